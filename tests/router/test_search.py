"""`recipe="auto"` through the router: what is searched, shown, kept and found again."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from router.cli.render import detail_text
from router.evaluate import EvaluateOptions, evaluate
from router.events import Done, TrainingStep
from router.receipt import Receipt
from router.settings import Settings
from tests.router.conftest import (
    LONG,
    QUERIES,
    QUICK,
    RICH,
    TASK,
    TRUSTING,
    OpenRouter,
    base_hash,
    ok_task,
    step_names,
)
from tests.router.test_evaluate import write_family
from tests.router.test_nodes import detail
from ttt.recipes import RECIPES
from ttt.task import Demonstration, Task

AUTO = replace(QUICK, name="auto", probe_steps=4, search=4.0)


@pytest.fixture(autouse=True)
def small_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "auto", (AUTO, AUTO))


def tried(receipt: Receipt, step: str) -> list[Any]:
    found: list[Any] = detail(receipt, step)["tried"]
    return found


def test_the_search_is_the_probe_and_what_it_finds_is_trained(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    receipt = agent.ask(TASK, QUERIES, recipe="auto")
    assert step_names(receipt) == ["look-up", "icl", "signals", "probe", "train", "guard", "answer"]
    assert receipt.arm == "train:auto" and receipt.fallback == ""
    probe, train = detail(receipt, "probe"), detail(receipt, "train")
    assert [row["outcome"] for row in probe["tried"]].count("chosen") == 1
    assert {row["candidate"] for row in probe["tried"]} == {
        "default",
        "half-rate",
        "double-rate",
        "last-output",
    }
    assert train["recipe"] == probe["recipe"] and train["recipe"].startswith("auto.")
    assert train["of_these_by_probe"] == probe["steps"] < train["steps"]
    (row,) = agent.parts.store.adapters.list()
    assert row.key.recipe == AUTO.id, "the key says what was asked for"
    assert row.report["recipe"]["name"] == train["recipe"].rsplit("-", 1)[0], "the report, what was chosen"
    assert row.report["recipe"]["steps"] >= len(row.report["losses"]) == train["steps"]
    assert agent.explain(receipt.episode_id) == receipt


def test_the_same_task_again_is_a_hit(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING, recipe="auto")
    first = agent.ask(TASK, QUERIES)
    again = agent.ask(TASK, QUERIES)
    assert step_names(again) == ["look-up", "answer"] and again.answers == first.answers
    other = agent.ask(TASK, QUERIES, recipe="quick")
    assert other.arm == "train:quick", "an adapter of another recipe is no hit"


def test_training_that_is_asked_for_outright_searches_first(open_router: OpenRouter) -> None:
    agent = open_router(recipe="auto")
    digest = base_hash(agent)
    receipt = agent.ask(TASK, QUERIES, arm="ttt")
    assert step_names(receipt) == ["look-up", "search", "train", "answer"]
    assert len(tried(receipt, "search")) > 4 and detail(receipt, "train")["of_these_by_probe"] >= 4
    assert receipt.signals["probe_logprob_after"] is not None
    search, train = receipt.step("search"), receipt.step("train")
    assert search is not None and train is not None and 0 < search.seconds < receipt.seconds - train.seconds
    assert base_hash(agent) == digest


def test_a_policy_that_trains_without_a_probe_is_guarded_by_the_search(open_router: OpenRouter) -> None:
    receipt = open_router(policy=AlwaysArm("train:auto"), recipe="auto").ask(TASK, QUERIES)
    assert step_names(receipt) == ["look-up", "icl", "signals", "search", "train", "guard", "answer"]
    assert receipt.arm == "train:auto"


def test_too_few_demonstrations_train_the_recipe_as_it_is_and_say_so(open_router: OpenRouter) -> None:
    receipt = open_router(recipe="auto").ask(ok_task(2), QUERIES, arm="ttt")
    assert step_names(receipt) == ["look-up", "train", "answer"]
    assert detail(receipt, "train")["recipe"] == AUTO.id
    assert receipt.notes == (), "texts go without nothing"
    rows = Task(tuple(Demonstration(f"{i} 0 0", f"0 {i} 0") for i in (1, 2)))
    mirrored = replace(AUTO, augmentations=("order", "symmetry"))
    without = open_router(recipe="auto").ask(rows, ["4 0 0"], arm="ttt", recipe=(mirrored, mirrored))
    assert detail(without, "train")["recipe"] == replace(mirrored, augmentations=("order",)).id
    assert any("too few to judge whether symmetry keeps the task's rule" in note for note in without.notes)


def test_a_search_that_is_cancelled_falls_back_and_leaves_nothing(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = replace(LONG, name="auto", probe_steps=100_000, search=2.0)
    monkeypatch.setitem(RECIPES, "auto", (endless, endless))
    agent, stop = open_router(policy=TRUSTING, recipe="auto"), threading.Event()
    digest = base_hash(agent)
    for event in agent.stream(TASK, QUERIES, should_stop=stop.is_set):
        if isinstance(event, TrainingStep):
            stop.set()
    assert isinstance(event, Done)
    receipt = event.receipt
    assert receipt.arm == "icl" and "cancelled" in receipt.fallback
    assert step_names(receipt)[-1] == "probe" and "cancelled" in detail(receipt, "probe")["failed"]
    assert agent.parts.store.adapters.list() == []
    names = agent.run(agent.parts.engine.run(lambda bench: bench.slots.names))
    assert names == () and base_hash(agent) == digest


def test_a_table_of_candidates_is_readable() -> None:
    rows = [{"candidate": "default", "steps": 4, "logprob_after": -1.23456, "outcome": "chosen"}]
    assert detail_text({"tried": rows}) == (
        "tried: (candidate default, steps 4, logprob_after -1.235, outcome chosen)"
    )


def test_evaluate_runs_with_it_and_counts_the_search(tiny_llama: Path, tmp_path: Path) -> None:
    settings = Settings(str(tiny_llama), "cpu", "float32", recipe="auto", worth_s=RICH)
    options = EvaluateOptions(demonstrations=6, queries=3, arms=("icl", "ttt"))
    report = evaluate([write_family(tmp_path, "aa")], options, settings)
    (row,) = report["families"]
    assert row["arms"]["ttt"]["arm"] == "train:auto"
    assert row["arms"]["ttt"]["chosen"].endswith(" steps.") and "chosen" not in row["arms"]["icl"]
    assert report["settings"]["recipes"] == [AUTO.id, AUTO.id]
