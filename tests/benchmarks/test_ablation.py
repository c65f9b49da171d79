"""The ablation: every variant changes what its name says, nothing is run twice, differences are paired by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.statistics import paired_difference
from tests.benchmarks.conftest import Program, write_families
from ttt.recipes import RECIPES, find_recipes
from ttt.task import Demonstration, Task

WORDS = Task(tuple(Demonstration(f"word {i}", "yes" if i % 2 else "no") for i in range(6)))
CELLS = Task((Demonstration("1 0 0", "0 0 1"), Demonstration("0 2 0", "0 2 0")))


def row(family: str, variant: str, correct: list[int], seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"family": family, "seed": seed, "variant": variant, "correct": correct, "seconds": 2.0, **more}


def test_variants_have_names_of_their_own_and_differ_from_the_standard(program: Program) -> None:
    variants = program("ablation").variants()
    names = [v.name for v in variants]
    assert len(set(names)) == len(names) and names[0] == "standard"
    standard = variants[0]
    for v in variants[1:]:
        assert (v.recipes, v.votes, v.augmentations) != (standard.recipes, 1, standard.augmentations), v.name
        assert v.beside in names


def test_what_makes_no_difference_to_a_task_is_told(program: Program) -> None:
    made, effective = {v.name: v for v in program("ablation").variants()}, program("variants").effective
    assert effective(made["without symbols"], WORDS) == effective(made["standard"], WORDS)
    assert effective(made["without symbols"], CELLS) != effective(made["standard"], CELLS)
    assert effective(made["without order"], WORDS) != effective(made["standard"], WORDS)
    assert effective(made["icl"], WORDS) != effective(made["icl, 5 votes"], WORDS)


def test_it_runs_writes_and_goes_on(
    program: Program, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablation, out = program("ablation"), tmp_path / "ablation.json"
    only = "icl;without symbols;direct, not in context;standard, 5 votes"
    arguments = [str(write_families(tmp_path / "families")), "--model", str(tiny_llama), "--device", "cpu"]
    arguments += ["--dtype", "float32", "--demos", "4", "--queries", "3", "--seeds", "0", "--only", only]
    assert ablation.main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {(r["family"], r["variant"]) for r in rows} == {
        (f, v) for f in ("cells", "words") for v in (*only.split(";"), "standard")
    }
    same = [(r["family"], r["variant"]) for r in rows if "same_as" in r]
    assert same == [("words", "without symbols")]
    trained = [r for r in rows if r["variant"] == "standard"]
    assert all(r["steps"] == 3 and r["folder_bytes"] > 0 and r["seconds"] > r["train_s"] > 0 for r in trained)
    assert "| without symbols |" in printed and "1 of 2" in printed
    kept = json.loads(out.read_text())
    dropped = [r for r in rows if (r["family"], r["variant"]) != ("words", "icl")]
    out.write_text(json.dumps(kept | {"rows": dropped}))
    assert ablation.main([*arguments, "--out", str(out)]) == 0
    again = json.loads(out.read_text())["rows"]
    assert again[:-1] == dropped and (again[-1]["family"], again[-1]["variant"]) == ("words", "icl")


def test_differences_are_paired_and_resample_families(program: Program) -> None:
    variants = program("variants")
    asked = [variants.Variant("standard", find_recipes("standard")), variants.Variant("x", None)]
    rows = [
        row("a", "standard", [1, 0, 0, 0]),
        row("a", "x", [1, 1, 1, 0]),
        row("a", "standard", [0, 0, 0, 0], seed=1),
        row("a", "x", [0, 0, 0, 1], seed=1),
        row("b", "standard", [1, 1]),
        row("b", "x", [0, 1], same_as="standard"),
        row("c", "x", [1, 1, 1, 1]),
    ]
    standard, x = variants.differences(rows, asked)
    assert standard["accuracy"] == 0.3 and "points" not in standard
    expected = paired_difference(
        [([1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 1]), ([1, 1], [0, 1])], seed=0, cluster=True
    )
    assert x["points"] == pytest.approx(100 * expected.mean) == pytest.approx(20.0)
    assert (x["low"], x["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert (x["tasks"], x["not_applicable"]) == (4, 1)
    table = variants.markdown([standard, x])
    assert "| x | 64.3 % | +20.0 standard |" in table and "3 of 4" in table


def test_an_unknown_variant_is_refused(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program("ablation").main(["f.json", "--only", "nonsense"])
    assert "no variant 'nonsense'" in capsys.readouterr().err


def test_context_tuning_stands_beside_lora(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned = replace(RECIPES["standard"][0], name="context", form="prefix", batch=3)
    monkeypatch.setitem(RECIPES, "context", (tuned, tuned))
    out = tmp_path / "context.json"
    arguments = [str(write_families(tmp_path / "families")), "--model", str(tiny_llama), "--device", "cpu"]
    arguments += ["--dtype", "float32", "--demos", "4", "--queries", "3", "--rates", "1e-2", "--steps", "2"]
    assert program("context_tuning").main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = {(r["family"], r["variant"]): r for r in json.loads(out.read_text())["rows"]}
    assert {v for _, v in rows} == {"icl", "standard", "quick", "context 0.01 × 2"}
    context, lora = rows["words", "context 0.01 × 2"], rows["words", "standard"]
    assert (context["steps"], lora["steps"]) == (2, 3) and context["trainable"] != lora["trainable"]
    assert context["folder_bytes"] > 4 * context["trainable"] and "| context 0.01 × 2 |" in printed
