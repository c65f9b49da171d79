"""The stream: disjoint tasks, both ways of each, resumable, and a table that adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Program, write_families


def test_a_short_stream_runs_both_ways_goes_on_and_adds_up(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = program("reuse_stream")
    folder, out = write_families(tmp_path / "families", 60), tmp_path / "report.json"
    asked = [str(folder), "--model", str(tiny_llama), "--device", "cpu", "--dtype", "float32"]
    asked += ["--tasks", "4", "--instances", "2", "--demos", "4", "--queries", "3", "--out", str(out)]
    assert stream.main(asked) in (0, 1)
    report = json.loads(out.read_text())
    keys = [(row["family"], row["instance"], row["mode"]) for row in report["rows"]]
    assert len(set(keys)) == 8 and {mode for _, _, mode in keys} == {"off", "near"}
    assert all(row["training_s"] > 0 and len(row["correct"]) == 3 for row in report["rows"])
    assert all(bool(row["neighbours"]) == (row["mode"] == "near") for row in report["rows"])
    found = report["summary"]
    total = sum(row["training_s"] for row in report["rows"] if row["mode"] == "near")
    assert found["tasks"] == 4 == sum(found["how"].values())
    assert found["training_s"]["near"] == pytest.approx(total)
    assert found["share"] == pytest.approx(total / found["training_s"]["off"])
    shown = capsys.readouterr().out
    assert "| cells |" in shown and "4 tasks:" in shown and "goal: at most 40 %" in shown

    later = [row for row in report["rows"] if row["mode"] == "near"]
    firsts = {row["family"]: row for row in later[::-1]}.values()
    seconds = sum(row["seconds"] for row in later if row not in firsts)
    assert found["seen"]["tasks"] == 2 and found["seen"]["near"]["seconds"] == pytest.approx(seconds)
    assert "2 tasks whose family was there before, all seconds: " in shown and "goal: at most 30 %" in shown

    report["rows"] = report["rows"][:5]
    out.write_text(json.dumps(report))
    stream.main(asked)
    again = json.loads(out.read_text())
    assert again["rows"][:5] == report["rows"]
    assert [(r["family"], r["instance"], r["mode"]) for r in again["rows"]] == keys
    assert all(row["training_s"] > 0 for row in again["rows"]), "no adapter of the run that stopped is met"


def test_the_routers_own_way_is_held_against_training_always(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_families(tmp_path / "families", 60), tmp_path / "report.json"
    asked = [str(folder), "--model", str(tiny_llama), "--device", "cpu", "--dtype", "float32"]
    asked += ["--tasks", "2", "--instances", "2", "--demos", "4", "--queries", "3", "--out", str(out)]
    program("reuse_stream").main([*asked, "--arm", "auto", "--worth", "1e-6"])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mode"], row["arm"]) for row in rows] == [("off", "train"), ("near", "icl")] * 2
    assert "2 answered in context" in capsys.readouterr().out


def test_tasks_of_a_family_share_no_demonstration_and_no_query(program: Program, tmp_path: Path) -> None:
    from ttt.formats import read_families
    from ttt.pools import split

    stream = program("reuse_stream")
    for family in read_families([write_families(tmp_path / "families", 200)]):
        own = stream.instances(split(family), 5, 10, 8, 0)
        shown = [d.input for one in own for d in one.task.demonstrations]
        asked = [q for one in own for q in one.queries]
        assert (len(own) == 5 and len(set(shown)) == 50) or family.name == "cells"
        assert not set(shown) & set(asked)
        assert len(asked) == len(set(asked)) or all(one.queries == own[0].queries for one in own)


def test_what_can_not_be_run_is_told(program: Program, tmp_path: Path) -> None:
    stream = program("reuse_stream")
    folder = write_families(tmp_path / "families", 20)
    with pytest.raises(SystemExit, match="0 families have 50 demonstrations, 12 are needed"):
        stream.main([str(folder)])
    out = tmp_path / "report.json"
    asked = [str(folder), "--tasks", "2", "--instances", "2", "--demos", "2", "--out", str(out)]
    names = {"model": "smollm2-135m", "recipe": "standard", "arm": "ttt", "worth": 30.0}
    names |= {"tasks": 2, "instances": 2, "demos": 2}
    row = {"family": "cells", "instance": 0, "mode": "off"}
    out.write_text(json.dumps({"asked": names | {"queries": 32, "seed": 0}, "rows": [row]}))
    with pytest.raises(SystemExit, match="where their adapters were, is gone"):
        stream.main(asked)
