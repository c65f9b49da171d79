"""The table of signals, as a program over rows whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.outcomes import TaskOutcome, write_rows
from tests.benchmarks.rows import TRAIN, simulated_rows

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "signals.py"


def run(rows: list[TaskOutcome], folder: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    write_rows(rows, folder / "rows.jsonl")
    out = folder / "signals.json"
    command = [sys.executable, str(PROGRAM), str(folder / "rows.jsonl"), "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False), out


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    done, out = run(
        simulated_rows(), tmp_path_factory.mktemp("signals"), "--trees", "20", "--resamples", "100"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_what_tells_the_gain_is_told_from_noise(ran: tuple[str, dict[str, Any]]) -> None:
    signals = ran[1]["signals"]
    told, noise = signals["probe_relative_gain"]["correlation"], signals["query_margin"]["correlation"]
    assert told["value"] > 0.6 and told["low"] > 0.4
    assert noise["low"] < 0 < noise["high"]
    assert (
        signals["probe_relative_gain"]["group"] == "probe" and signals["probe_relative_gain"]["measured"] == 1
    )
    assert "n_demonstrations" not in signals, "what never differs says nothing"


def test_groups_are_charged_and_credited(ran: tuple[str, dict[str, Any]]) -> None:
    groups, everything = ran[1]["groups"], ran[1]["all"]
    assert {name: g["seconds"] for name, g in groups.items()} == {
        "size": 0.0,
        "icl": 0.0,
        "leave-one-out": 1.0,
        "consistency": 2.0,
        "probe": 10.0,
    }
    assert everything["r2"]["value"] > 0.8 > 0.3 > groups["consistency"]["with_cheaper"]["r2"]["value"]
    assert groups["probe"]["with_cheaper"] == everything, "the last group completes all"
    assert groups["probe"]["drop"]["r2"]["low"] > 0.3
    assert abs(groups["consistency"]["drop"]["r2"]["value"]) < 0.1
    for group in groups.values():
        for figure in (group["with_cheaper"]["r2"], group["drop"]["utility"]):
            assert figure["low"] <= figure["high"]


def test_utility_is_that_of_training_where_it_pays(ran: tuple[str, dict[str, Any]]) -> None:
    """Half of the families win 40 of 100 answers for 45 s at 30 s each: (40 − 1.5) ÷ 2 a task."""
    known = ran[1]["utility_if_gains_were_known"]
    assert known == pytest.approx(19.25, abs=1.5)
    assert 0.9 * known < ran[1]["all"]["utility"]["value"] <= known
    assert ran[1]["mean_gain"] == pytest.approx(0.2, abs=0.03)
    assert (ran[1]["tasks"], ran[1]["families"]) == (60, 30)


def test_the_table_names_every_signal_and_group(ran: tuple[str, dict[str, Any]]) -> None:
    text, found = ran
    assert all(name in text for name in (*found["signals"], *found["groups"], TRAIN))


def test_correlations_that_only_tell_collections_apart_vanish_within_them(tmp_path: Path) -> None:
    """`query_margin` is set to the collection's mean gain, so within a collection it is constant."""
    rows = [
        replace(
            row,
            collection="pays" if int(row.family.split("-")[1]) % 10 < 5 else "does not",
            signals={**row.signals, "query_margin": float(int(row.family.split("-")[1]) % 10 < 5)},
        )
        for row in simulated_rows(20)
    ]
    done, out = run(rows, tmp_path, "--trees", "5", "--resamples", "20")
    assert done.returncode == 0, done.stderr
    margin = json.loads(out.read_text())["signals"]["query_margin"]
    assert margin["correlation"]["value"] > 0.7 and margin["within"]["value"] == 0.0


def test_too_few_families_are_refused(tmp_path: Path) -> None:
    done, _ = run(simulated_rows(9), tmp_path)
    assert done.returncode == 8 and "9 families" in done.stderr and "at least 10" in done.stderr
    done, _ = run(simulated_rows(12), tmp_path, "--arm", "train:other")
    assert done.returncode == 8 and "0 families have outcomes of icl and train:other" in done.stderr


def test_rows_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    rows = simulated_rows(12)
    done, _ = run([replace(row, signals=rows[0].signals) for row in rows], tmp_path)
    assert done.returncode == 8 and "No signal differs" in done.stderr
