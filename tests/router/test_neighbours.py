"""`reuse="near"`: adapters of like tasks are tried, said, used, and never leak."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.types import Decision, Situation
from router.agent import Router
from router.errors import RouterError, SettingsError
from router.events import Done, SignalsReady
from router.learning import rows_of
from router.receipt import Receipt
from router.reuse import STARTED, input_hashes
from router.settings import read_settings
from store import AdapterRow
from tests.router.conftest import OTHER, POOR, QUERIES, TRUSTING, OpenRouter, base_hash, step_names
from tests.router.test_nodes import detail
from ttt.recipes import RECIPES, Recipe
from ttt.task import Demonstration, Task
from ttt.warm import Check

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NEAR: dict[str, Any] = {"reuse": "near", "arm": "ttt"}
WORDS = Recipe(
    "words", rank=4, alpha=8, learning_rate=1e-2, steps=12, probe_steps=2, stop_loss=0.0, sequence_tokens=256
)
"""Gets the word right, although a tiny model's log-probability hardly moves."""


@pytest.fixture
def open_near(open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch) -> OpenRouter:
    monkeypatch.setitem(RECIPES, "words", (WORDS, WORDS))
    monkeypatch.setattr("ttt.warm.LITTLE", 0.02)
    monkeypatch.setattr("ttt.warm.SOLVED", ((0.04, 0.6),))
    return lambda **options: open_router(**({"recipe": "words"} | options))


def task_of(number: int, output: str = "ok", n: int = 6) -> Task:
    """Tasks of one rule that share no demonstration."""
    inputs = [f"{LETTERS[i]}{LETTERS[(i + number + 1) % 26]}" for i in range(n)]
    return Task(tuple(Demonstration(x, output) for x in inputs), "Say the word.", f"words {number}")


def rows(agent: Router) -> list[AdapterRow]:
    return sorted(agent.parts.store.adapters.list(), key=lambda row: row.created_at)


def chosen(receipt: Receipt) -> str:
    return str(detail(receipt, "neighbours")["chosen"])


def skipped(receipt: Receipt) -> str:
    return " ".join(detail(receipt, "neighbours").get("skipped", ()))


# What it does


def test_off_is_as_before_and_remembers_nothing(open_near: OpenRouter) -> None:
    agent = open_near()
    first = agent.ask(task_of(0), QUERIES, arm="ttt")
    again = agent.ask(task_of(1), QUERIES, arm="ttt")
    assert step_names(first) == step_names(again) == ["look-up", "train", "answer"]
    assert chosen(agent.ask(task_of(2), QUERIES, **NEAR)) == "nothing", "they were never embedded"


def test_a_like_task_is_answered_by_the_adapter_that_solves_its_demonstrations(
    open_near: OpenRouter,
) -> None:
    agent = open_near()
    digest = base_hash(agent)
    first = agent.ask(task_of(0), QUERIES, **NEAR)
    assert step_names(first) == ["look-up", "neighbours", "train", "answer"]
    assert chosen(first) == "nothing" and detail(first, "neighbours")["neighbours"] == 0
    second = agent.ask(task_of(1), QUERIES, **NEAR)
    assert step_names(second) == ["look-up", "neighbours", "answer"]
    assert second.arm == f"reuse:{first.adapter[:12]}" and second.adapter == first.adapter
    (tried,) = detail(second, "neighbours")["tried"]
    assert tried["start"] == "nearest" and tried["adapters"] == first.adapter[:12]
    assert tried["unseen"] == 6 == tried["correct_after"] > tried["correct_before"]
    assert tried["logprob_after"] > tried["logprob_before"] and 0.85 < tried["cosine"] <= 1.0001
    assert tried["outcome"] == "solves it" and tried["seconds"] > 0 and chosen(second) == first.adapter[:12]
    assert detail(second, "neighbours")["embed_s"] > 0
    assert len(rows(agent)) == 1 and base_hash(agent) == digest
    assert agent.explain(second.episode_id) == second


def test_where_it_only_helps_training_begins_there_and_is_shorter(
    open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttt.warm.Check.use", property(lambda self: "start"))
    agent = open_near()
    first, second = (agent.ask(task_of(i), QUERIES, **NEAR) for i in (0, 1))
    assert step_names(second) == ["look-up", "neighbours", "train", "answer"]
    assert detail(first, "train")["steps"] == 12 and detail(second, "train")["steps"] == 6
    assert chosen(second) == f"{first.adapter[:12]}, and 6 steps from there"
    assert second.arm == "train:words" and second.adapter != first.adapter
    assert detail(second, "train")["first_loss"] < detail(first, "train")["first_loss"]
    one, two = rows(agent)
    assert two.key.recipe == one.key.recipe + STARTED and two.report["start"] == [one.content_hash]
    assert two.report["recipe"]["steps"] == 6 and "start" not in one.report
    assert set(two.demonstration_hashes) > set(one.demonstration_hashes), "its descent counts as seen"
    again = agent.ask(task_of(1), QUERIES, **NEAR)
    assert step_names(again) == ["look-up", "answer"] and again.adapter == second.adapter
    without = agent.ask(task_of(1), QUERIES, arm="ttt")
    assert without.adapter != second.adapter, "who wants no reuse gets no adapter that began at another"
    names = agent.run(agent.parts.engine.run(lambda bench: bench.slots.names))
    assert all(name.startswith("saved-") for name in names)


def test_no_use_trains_from_nothing(open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = open_near()
    agent.ask(task_of(0, "no"), QUERIES, **NEAR)
    far = agent.ask(task_of(2), QUERIES, **NEAR)
    assert detail(far, "neighbours")["nearest"] < 0.85 and "tried" not in detail(far, "neighbours")
    monkeypatch.setattr("router.neighbours.NEAREST", -1.0)
    monkeypatch.setattr("router.neighbours.ALONE", 1)
    monkeypatch.setattr("ttt.warm.LITTLE", 0.99)
    receipt = agent.ask(task_of(1), QUERIES, **NEAR)
    assert [row["outcome"] for row in detail(receipt, "neighbours")["tried"]] == ["of no use"] * 2
    assert chosen(receipt) == "nothing" and detail(receipt, "train")["steps"] == 12
    assert STARTED not in rows(agent)[-1].key.recipe


def test_where_none_alone_is_of_a_like_task_means_are_tried(
    open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttt.warm.Check.use", property(lambda self: "none"))
    agent = open_near()
    for i in range(6):
        receipt = agent.ask(task_of(i), QUERIES, **NEAR)
    tried = detail(receipt, "neighbours")["tried"]
    assert [row["start"] for row in tried] == ["nearest", "nearest", "merged", "shared"]
    assert [row["adapters"].count("+") for row in tried] == [0, 0, 2, 3]
    assert chosen(receipt) == "nothing" and detail(receipt, "train")["steps"] == 12
    judged: list[tuple[float, ...]] = []

    def use(self: Check) -> str:
        """None of the first two."""
        if self.evidence.logprob_after not in judged:
            judged.append(self.evidence.logprob_after)
        return "none" if judged.index(self.evidence.logprob_after) < 2 else "answers"

    monkeypatch.setattr("ttt.warm.Check.use", property(use))
    receipt = agent.ask(task_of(6), QUERIES, **NEAR)
    merged = detail(receipt, "neighbours")["tried"][-1]
    assert merged["start"] == "merged" and chosen(receipt) == f"{merged['adapters']}, and 6 steps from there"
    assert receipt.arm == "train:words" and detail(receipt, "train")["steps"] == 6, (
        "a mean can't answer as it is"
    )
    assert len(rows(agent)[-1].report["start"]) == 3


class Thrifty:
    """Takes what is there, or else trains; remembers what it saw."""

    version, reads = "thrifty", frozenset[str]()

    def __init__(self) -> None:
        self.seen: list[Situation] = []

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        if situation.probe_feasible:
            return Decision("probe", None, 1.0, None, None, 0.0, "A look.", self.version)
        arm = next((a for a in situation.feasible if a.startswith("reuse:")), situation.feasible[-1])
        return Decision("answer", arm, 1.0, None, None, 0.0, "It is there.", self.version)


def test_a_policy_gets_to_see_the_check_and_takes_the_adapter(open_near: OpenRouter) -> None:
    policy = Thrifty()
    agent = open_near(policy=policy, reuse="near")
    first = agent.ask(task_of(0), QUERIES)
    assert first.arm == "train:words" and step_names(first)[:5] == [
        "look-up", "icl", "signals", "neighbours", "probe",
    ]  # fmt: skip
    second = agent.ask(task_of(1), QUERIES)
    assert step_names(second) == ["look-up", "icl", "signals", "neighbours", "answer"]
    assert second.arm == f"reuse:{first.adapter[:12]}" and "probe" not in [
        d["step"] for d in second.decisions
    ]
    (tried,) = detail(second, "neighbours")["tried"]
    assert second.signals["probe_logprob_after"] == pytest.approx(tried["logprob_after"])
    last = policy.seen[-1]
    assert last.checked == last.signals and not last.probe_feasible and policy.seen[0].checked is None
    assert len(last.feasible) == 3 and last.costs.train_s < policy.seen[-2].costs.train_s, (
        "what is left to do"
    )
    agent.feedback(second.episode_id, answer="x", query=0)
    assert rows_of(agent.parts.store) == (
        [],
        ["left out 1 episode: rests on adapters of other tasks, not on a probe."],
    )


def test_a_training_that_begins_at_another_is_guarded_by_the_check(open_near: OpenRouter) -> None:
    agent = open_near(policy=TRUSTING, reuse="near")
    agent.ask(task_of(0), QUERIES)
    other = open_near(policy=AlwaysArm("train:words"), reuse="near")
    receipt = other.ask(task_of(1), QUERIES)
    assert step_names(receipt) == ["look-up", "icl", "signals", "neighbours", "train", "guard", "answer"]
    assert detail(receipt, "guard")["accepted"] and receipt.arm == "train:words"
    assert rows(other)[-1].accepted and rows(other)[-1].key.recipe.endswith(STARTED)
    assert step_names(other.ask(task_of(1), QUERIES)) == ["look-up", "answer"]


def test_where_training_could_not_pay_nothing_is_tried(open_near: OpenRouter) -> None:
    agent = open_near(reuse="near")
    agent.ask(task_of(0), QUERIES, arm="ttt")
    assert step_names(agent.ask(task_of(1), QUERIES, worth_s=POOR)) == ["look-up", "icl", "signals"]


# What must not happen


def test_no_query_was_ever_a_demonstration_of_an_adapter_that_answers_it_or_is_begun_at(
    open_near: OpenRouter,
) -> None:
    """A query is anybody's input in canonical form, whatever its output or instruction was, in the adapter's own
    demonstrations or in those of any that it began at."""
    agent = open_near()
    first = agent.ask(task_of(0), QUERIES, **NEAR)
    own = [d.input for d in task_of(0).demonstrations]
    for number, text in ((1, own[0]), (2, f"  {own[3]}\r\n")):
        receipt = agent.ask(replace(task_of(number), instruction="Else."), [*QUERIES, text], **NEAR)
        assert f"{first.adapter[:12]}: it has learned from one of the queries" in skipped(receipt)
        assert first.adapter[:12] not in chosen(receipt) and receipt.adapter != first.adapter


def test_descent_is_part_of_what_an_adapter_has_learned_from(
    open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttt.warm.Check.use", property(lambda self: "start"))
    agent = open_near()
    for i in range(3):
        agent.ask(task_of(i), QUERIES, **NEAR)
    queries = [task_of(0).demonstrations[0].input]
    receipt = agent.ask(task_of(7), queries, **NEAR)
    assert detail(receipt, "neighbours")["not_used"] == 3, "two of them began at the first"
    assert set(input_hashes(queries)) and chosen(receipt) == "nothing"
    grown = replace(task_of(0), demonstrations=(*task_of(0).demonstrations, *task_of(8).demonstrations[:4]))
    receipt = agent.ask(grown, QUERIES, **NEAR)
    assert {row["unseen"] for row in detail(receipt, "neighbours")["tried"]} == {4}, (
        "judged on new ones alone"
    )
    (index,) = [row.demonstration_hashes for row in rows(agent) if len(row.demonstration_hashes) == 18]
    assert len(set(index)) == 18


def test_a_cached_adapter_that_began_at_another_does_not_answer_what_that_one_was_trained_on(
    open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttt.warm.Check.use", property(lambda self: "start"))
    agent = open_near()
    first, second = (agent.ask(task_of(i), QUERIES, **NEAR) for i in (0, 1))
    assert agent.ask(task_of(1), QUERIES, **NEAR).adapter == second.adapter, "it is cached"
    asked = [*QUERIES, task_of(0).demonstrations[2].input]
    receipt = agent.ask(task_of(1), asked, **NEAR)
    assert "began at another that has learned from a query" in " ".join(receipt.notes)
    assert receipt.adapter not in (first.adapter, second.adapter) and receipt.arm == "train:words"
    assert f"{first.adapter[:12]}: it has learned from one of the queries" in skipped(receipt)
    own = [*QUERIES, task_of(1).demonstrations[2].input]
    assert agent.ask(task_of(1), own, **NEAR).arm.startswith("reuse:"), "its own demonstrations may be asked"


def test_the_same_task_by_another_seed_can_not_be_judged(open_near: OpenRouter) -> None:
    agent = open_near()
    agent.ask(task_of(0), QUERIES, **NEAR)
    receipt = agent.ask(task_of(0), QUERIES, seed=1, **NEAR)
    assert "nothing could judge it" in skipped(receipt) and receipt.arm == "train:words"
    other = replace(task_of(0), instruction="Say something else.")
    assert "nothing could judge it" in skipped(agent.ask(other, QUERIES, **NEAR)), (
        "it knows the labels all the same"
    )


def test_what_the_guard_has_not_accepted_is_for_those_who_ask_for_training_alone(
    open_near: OpenRouter,
) -> None:
    agent = open_near(policy=TRUSTING)
    agent.ask(task_of(0), QUERIES, **NEAR)
    receipt = agent.ask(task_of(1), QUERIES, reuse="near")
    assert "the guard has not accepted it" in skipped(receipt) and chosen(receipt) == "nothing"
    assert agent.ask(task_of(2), QUERIES, **NEAR).arm.startswith("reuse:")


# Bad input


def test_another_rank_is_skipped_and_said(open_near: OpenRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(OTHER, name="wide", rank=8)
    monkeypatch.setitem(RECIPES, "wide", (wide, wide))
    monkeypatch.setitem(RECIPES, "narrow", (replace(wide, targets=("q_proj",)),) * 2)
    agent = open_near()
    agent.ask(task_of(0), QUERIES, **NEAR)
    assert "its rank is 4, here it is 8" in skipped(agent.ask(task_of(1), QUERIES, recipe="wide", **NEAR))
    assert "it adapts other layers" in skipped(agent.ask(task_of(2), QUERIES, recipe="narrow", **NEAR))


def test_another_base_or_template_is_no_neighbour(
    open_near: OpenRouter, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_near().ask(task_of(0), QUERIES, **NEAR)
    other = open_near(model=str(tiny_qwen2)).ask(task_of(1), QUERIES, **NEAR)
    assert detail(other, "neighbours")["neighbours"] == 0 and not skipped(other)
    monkeypatch.setattr("ttt.prompts.TEMPLATE", "qa2")
    assert detail(open_near().ask(task_of(1), QUERIES, **NEAR), "neighbours")["neighbours"] == 0


@pytest.mark.parametrize("damage", ["changed", "missing", "of another model"])
def test_a_damaged_folder_is_skipped_and_said(open_near: OpenRouter, damage: str) -> None:
    agent = open_near()
    agent.ask(task_of(0), QUERIES, **NEAR)
    (row,), adapters = rows(agent), agent.parts.store.adapters
    folder = adapters.path(row)
    weights = folder / "adapter_model.safetensors"
    if damage == "missing":
        folder.rename(folder.with_name("elsewhere"))
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    else:
        with adapters.stage() as staged:
            for file in folder.iterdir():
                (staged / file.name).write_bytes(b"no tensors" if file == weights else file.read_bytes())
            adapters.publish(row.key, staged, row.report, row.demonstration_hashes, True)
    fresh = open_near()
    receipt = fresh.ask(task_of(1), QUERIES, **NEAR)
    told = {
        "changed": "has changed",
        "missing": "is missing",
        "of another model": "does not fit this base model",
    }
    assert told[damage] in skipped(receipt) and receipt.arm == "train:words"


def test_without_time_nothing_more_is_tried(open_near: OpenRouter) -> None:
    agent, stop = open_near(policy=AlwaysArm("icl"), reuse="near"), threading.Event()
    agent.ask(task_of(0), QUERIES, arm="ttt")
    for event in agent.stream(task_of(1), QUERIES, should_stop=stop.is_set):
        if isinstance(event, SignalsReady):
            stop.set()
    assert isinstance(event, Done)
    assert "tried" not in detail(event.receipt, "neighbours") and chosen(event.receipt) == "nothing"


def test_few_demonstrations_and_other_forms_are_left_alone(open_near: OpenRouter) -> None:
    agent = open_near()
    agent.ask(task_of(0), QUERIES, **NEAR)
    assert step_names(agent.ask(task_of(1, n=3), QUERIES, **NEAR)) == ["look-up", "train", "answer"]
    direct = replace(OTHER, name="direct", form="direct")
    recipes = (direct, direct)
    assert step_names(agent.ask(task_of(2), QUERIES, recipe=recipes, **NEAR)) == [
        "look-up",
        "train",
        "answer",
    ]


def test_an_unknown_way_to_reuse_is_refused(open_near: OpenRouter) -> None:
    with pytest.raises(SettingsError, match="reuse to 'always'; it must be off or near"):
        read_settings({"reuse": "always"}, {})
    with pytest.raises(RouterError, match="reuse is 'far'; it must be off or near"):
        open_near().ask(task_of(0), QUERIES, reuse="far")
