"""The benchmarks of the server run whole, on a tiny model, and what they print holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def figures(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """What benchmarks/`name` writes."""
    out = folder / "out.json"
    command = [sys.executable, f"benchmarks/{name}", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_many_clients_train_once_keep_deadlines_and_starve_none(tmp_path: Path) -> None:
    found = figures("load.py", tmp_path, "--deadline", "20")
    one, many = found["one task"], found["many tasks"]
    assert one["adapters_trained"] == 1, one
    assert one["arms_again"] == {"reuse": 32} and one["statuses"] == {"200": 64}, one
    assert many["worst_lateness"] <= 0.1, many
    assert many["statuses"] == {"200": 64} and many["fewest_answers_of_a_task"] == 4, many
    assert many["memory_peak_mb"] - many["memory_start_mb"] < 500, many


def test_deadlines_that_can_not_be_kept_by_all_are_missed_by_little(tmp_path: Path) -> None:
    many = figures("load.py", tmp_path, "--deadline", "1")["many tasks"]
    assert many["worst_lateness"] <= 0.1, many
    assert set(many["statuses"]) <= {"200", "422"}, many
