"""Votes over views on the way of one answer: paid for, shown in the receipt, and given up for a cancel."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.agent import Router
from router.errors import RouterError, SettingsError
from router.evaluate import EvaluateOptions, evaluate
from router.events import AnswerGrew
from router.receipt import Answered
from router.settings import Settings, read_settings
from router.state import Arm, State
from router.votes import vote
from tests.router.conftest import QUERIES, QUICK, RICH, TASK, OpenRouter, step_names
from tests.router.test_evaluate import write_family
from ttt.carry import Carried
from ttt.errors import TaskError
from ttt.icl import answer
from ttt.recipes import RECIPES, find_recipes
from ttt.task import Demonstration, Query, Task

CELLS = Task(tuple(Demonstration(f"0 0 {i}", f"{i} 0 0") for i in range(1, 6)), name="cells")


def test_without_votes_there_is_no_such_step_and_one_vote_is_none(open_router: OpenRouter) -> None:
    agent = open_router()
    plain = agent.ask(TASK, QUERIES, arm="icl")
    assert step_names(plain) == ["icl"]
    assert agent.ask(TASK, QUERIES, arm="icl", votes=1).answers == plain.answers


def test_votes_on_icl_are_a_step_with_seconds_views_and_counts(open_router: OpenRouter) -> None:
    agent = open_router()
    receipt = agent.ask(CELLS, ["0 0 7", "0 8 0"], arm="icl", votes=4)
    assert step_names(receipt) == ["icl", "vote"]
    step = receipt.step("vote")
    assert step is not None and 0 < step.seconds < receipt.seconds
    assert step.detail["rule"] == "hierarchical" and step.detail["augmentations"] == ["order", "symbols"]
    assert step.detail["views"] == ["plain", *["order+symbols"] * 3]
    assert step.detail["not_inverted"] == step.detail["not_shown"] == 0
    read, written = receipt.tokens
    assert (read, written) == (step.detail["prompt_tokens"], step.detail["answer_tokens"])
    assert read > 3 * receipt.prompt_tokens and written >= 4 * min(
        a.n_tokens for a in receipt.icl_answers if a
    )
    changed = sum(a != b for a, b in zip(receipt.texts, receipt.icl_texts, strict=True))
    assert step.detail["changed_answers"] == changed
    assert agent.explain(receipt.episode_id) == receipt


def test_predictions_that_can_not_be_turned_back_are_noted(open_router: OpenRouter) -> None:
    receipt = open_router().ask(
        CELLS, ["0 0 7", "no cells"], arm="icl", votes=6, augmentations=("order", "scale", "tile")
    )
    step = receipt.step("vote")
    assert step is not None and step.detail["augmentations"] == ["order", "scale", "tile"]
    assert step.detail["not_shown"] > 0 and step.detail["not_inverted"] > 0
    assert any(
        f"{step.detail['not_inverted']} prediction(s) under other views could not be turned back" in n
        for n in receipt.notes
    )
    assert any("had no form under another view" in n for n in receipt.notes)


def test_a_trained_adapter_s_answers_are_voted_on_and_so_are_those_of_the_next_time(
    open_router: OpenRouter,
) -> None:
    agent = open_router()
    first = agent.ask(TASK, QUERIES, arm="ttt", votes=3)
    assert step_names(first)[-2:] == ["answer", "vote"] and first.arm == "train:quick"
    again = agent.ask(TASK, QUERIES, arm="ttt", votes=3)
    assert again.arm.startswith("reuse:") and step_names(again) == ["look-up", "answer", "vote"]
    assert again.answers == first.answers


def test_votes_go_without_what_training_has_left_out(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(*_: Any) -> tuple[Carried, ...]:
        return (Carried("symbols", 5, -0.2, False),)

    searching = replace(QUICK, name="auto", probe_steps=4, search=1.0)
    monkeypatch.setitem(RECIPES, "auto", (searching, searching))
    monkeypatch.setattr("ttt.race.carry", found)
    agent = open_router(recipe="auto")
    for arm in ("train:auto", "reuse:"):
        receipt = agent.ask(CELLS, ["0 0 7"], arm="ttt", votes=3)
        step = receipt.step("vote")
        assert receipt.arm.startswith(arm) and step is not None
        assert step.detail["augmentations"] == ["order"] and step.detail["views"] == [
            "plain",
            "order",
            "order",
        ]
    (row,) = agent.parts.store.adapters.list()
    assert row.report["left_out"] == ["symbols"]
    named = agent.ask(CELLS, ["0 0 7"], arm="ttt", votes=3, augmentations=("symbols", "labels"))
    step = named.step("vote")
    assert step is not None and step.detail["augmentations"] == ["symbols"], "who names them has them"
    assert any(
        "No view changes by labels, which does not apply to this task (sequence)" in n for n in named.notes
    )


def test_the_receipt_says_what_a_training_augments_by_and_why_not_by_all(open_router: OpenRouter) -> None:
    """Rows of unequal length can't be mirrored together."""
    agent = open_router()
    even = agent.ask(CELLS, ["0 0 7"], arm="ttt", recipe="standard").step("train")
    assert even is not None and even.detail["content"] == "sequence"
    assert even.detail["augmentations"] == ["order", "symbols", "symmetry", "shift"]
    ragged = replace(CELLS, demonstrations=(Demonstration("0 0\n0 0 0", "0 0\n0 0 1"), *CELLS.demonstrations))
    receipt = agent.ask(ragged, ["0 0 7"], arm="ttt", recipe="standard")
    train = receipt.step("train")
    assert train is not None and train.detail["augmentations"] == ["order", "symbols"]
    assert any("of one length, so it is not augmented by symmetry, shift" in n for n in receipt.notes)


def test_an_adapter_that_was_trained_with_index_hints_answers_and_votes_with_them(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(
        tuple(Demonstration("6 " * i + "5 " * (7 - i), "5 " * (7 - i) + "6 " * i) for i in range(1, 7))
    )
    indexed = replace(QUICK, name="indexed", rows="indexed")
    monkeypatch.setitem(RECIPES, "indexed", (indexed, indexed))
    agent = open_router(recipe="indexed")
    first, again = (agent.ask(task, ["6 6 6 6 5 5", "5 6 5 6 5 6"], arm="ttt", votes=3) for _ in range(2))
    train = first.step("train")
    assert train is not None and train.detail["rows"] == "indexed"
    assert again.arm.startswith("reuse:") and again.answers == first.answers

    async def by_hand(hinted: bool) -> list[str]:
        (row,) = agent.parts.store.adapters.list()
        async with agent.parts.engine.adapter(agent.parts.store.adapters.path(row)) as name:
            asked = [Query("6 6 6 6 5 5"), Query("5 6 5 6 5 6")]
            found = await answer(agent.parts.engine, replace(task, indexed=hinted), asked, adapter=name)
        return [a.text for a in found.answers]

    plain = agent.ask(task, ["6 6 6 6 5 5", "5 6 5 6 5 6"], arm="ttt")
    assert list(plain.texts) == agent.run(by_hand(True)) != agent.run(by_hand(False))


def test_a_cancelled_vote_leaves_the_plain_answers_and_says_so(open_router: OpenRouter) -> None:
    agent = open_router()
    plain = agent.ask(TASK, QUERIES, arm="icl")
    asked = iter(range(10**6))
    n_plain = 0

    def count() -> bool:
        nonlocal n_plain
        n_plain = next(asked)
        return False

    agent.ask(TASK, QUERIES, arm="icl", should_stop=count)
    left = n_plain + 1
    calls = iter(range(10**6))
    receipt = agent.ask(TASK, QUERIES, arm="icl", votes=5, should_stop=lambda: next(calls) > left)
    assert receipt.answers == plain.answers and receipt.fallback == ""
    step = receipt.step("vote")
    assert step is not None and step.detail == {"cancelled": True}
    assert any("Voting was cancelled" in note for note in receipt.notes)


def voted(agent: Router, deadline_s: float, prefill_s: float) -> tuple[Any, dict[str, Any]]:
    """ICL's answers, said to have taken `prefill_s` and no decoding, and what voting adds until a deadline."""
    request, context = agent.question(TASK, QUERIES, arm="icl", votes=40)

    async def work() -> tuple[Any, dict[str, Any]]:
        plain = await answer(context.engine, TASK, request.queries)
        plain = replace(plain, prefill_s=prefill_s, decode_s=0.0)
        late = replace(context, deadline=time.monotonic() + deadline_s)
        return plain, await vote(plain, None, True, State(request=request, task=TASK), late)

    return agent.run(work())


@pytest.mark.parametrize(("deadline_s", "prefill_s"), [(-1.0, 0.0), (30.0, 1.0)])
def test_votes_that_the_deadline_leaves_no_time_for_are_left_out_and_the_receipt_says_so(
    open_router: OpenRouter, deadline_s: float, prefill_s: float
) -> None:
    """Thirty seconds are too few for 39 further views of a second each."""
    plain, update = voted(open_router(), deadline_s, prefill_s)
    assert update["answers"] == plain
    assert [(s.name, s.seconds, s.detail) for s in update["steps"]] == [("vote", 0.0, {"skipped": True})]
    assert update["notes"] == [
        "Voting was left out: the deadline is too near; the answers are those of the task as it is."
    ]


def test_votes_that_take_longer_than_expected_end_at_the_deadline(open_router: OpenRouter) -> None:
    plain, update = voted(open_router(), 0.05, 0.0)
    assert update["answers"] == plain
    (step,) = update["steps"]
    assert step.detail == {"cancelled": True} and 0.04 < step.seconds < 1
    assert "ended by the deadline" in update["notes"][0]


def test_votes_that_there_is_time_for_are_those_without_a_deadline(open_router: OpenRouter) -> None:
    agent = open_router()
    free = agent.ask(CELLS, ["0 0 7", "0 8 0"], arm="icl", votes=4)
    timed = agent.ask(CELLS, ["0 0 7", "0 8 0"], arm="icl", votes=4, deadline_s=300)
    assert timed.answers == free.answers and step_names(timed) == ["icl", "vote"] and not timed.notes


@pytest.mark.parametrize("arm", ["icl", "ttt"])
def test_an_answer_that_votes_may_replace_does_not_grow_on_the_stream(
    open_router: OpenRouter, arm: Arm
) -> None:
    agent, gentle = open_router(), replace(QUICK, learning_rate=1e-5, steps=1)
    for votes in (1, 3):
        events = list(agent.stream(TASK, QUERIES, arm=arm, votes=votes, recipe=(gentle, gentle)))
        assert any(isinstance(e, AnswerGrew) for e in events) is (votes == 1)


def test_max_tokens_holds_for_every_view(open_router: OpenRouter) -> None:
    receipt = open_router().ask(TASK, QUERIES, arm="icl", votes=6, max_tokens=2)
    step = receipt.step("vote")
    assert step is not None and len(step.detail["views"]) == 6
    assert all(a.n_tokens <= 2 for a in receipt.answers)


def test_a_plain_question_has_one_view_and_keeps_its_chat_template(
    open_router: OpenRouter, tiny_chat: Path
) -> None:
    agent = open_router(model=str(tiny_chat))
    question = Query("hello", (("hi", "there"),))
    alone = agent.ask(Task(), [question], max_tokens=3)
    receipt = agent.ask(Task(), [question], max_tokens=3, votes=3)
    assert receipt.answers == alone.answers and receipt.prompt_tokens == alone.prompt_tokens
    assert receipt.notes == ("3 views were asked for; this task has 1 different ones.",)


def test_behind_an_answer_the_same_recipe_file_trains_without_votes(
    open_router: OpenRouter, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "quick"\nsteps = 3\n')
    agent = open_router(recipe=str(file), votes=3)
    first = agent.ask(TASK, QUERIES, when="background", arm="ttt")
    file.write_text('base = "quick"\nsteps = 4\n')
    assert first.arm == "icl" and step_names(first)[-1] == "vote"
    assert agent.settle(120)
    (behind,) = [r for r in map(lambda row: agent.explain(row.episode_id), agent.history()) if r.adapter]
    step = behind.step("train")
    assert behind.arm == "train:mine" and step is not None and step.detail["steps"] == 3
    assert behind.step("vote") is None


def test_impossible_votes_and_unknown_augmentations_are_refused(open_router: OpenRouter) -> None:
    agent = open_router()
    with pytest.raises(RouterError, match="votes is 0; it must be at least 1"):
        agent.ask(TASK, QUERIES, votes=0)
    with pytest.raises(TaskError, match="'colours'; choose from: order, symbols"):
        agent.ask(TASK, QUERIES, votes=3, augmentations=("colours",))
    with pytest.raises(SettingsError, match="TTT_ROUTER_VOTES sets votes to 0; it must be at least 1"):
        read_settings({}, {"TTT_ROUTER_VOTES": "0"})
    assert list(agent.history()) == []


def test_votes_may_come_from_the_settings(open_router: OpenRouter) -> None:
    receipt = open_router(votes=3).ask(TASK, QUERIES, arm="icl")
    step = receipt.step("vote")
    assert step is not None and len(step.detail["views"]) == 3


def test_evaluated_arms_vote_each_for_themselves(tiny_llama: Path, tmp_path: Path, use_quick: None) -> None:
    write_family(tmp_path, "words")
    settings = Settings(
        model=str(tiny_llama), device="cpu", dtype="float32", recipe="quick", worth_s=RICH, votes=3
    )
    options = EvaluateOptions(6, 3, arms=("icl", "auto"))
    report = evaluate([tmp_path / "words.json"], options, settings)
    (row,) = report["families"]
    steps = {s["name"]: s["seconds"] for s in row["auto"]["steps"]}
    assert "vote" in steps and row["arms"]["auto"]["seconds"] >= steps["vote"]
    assert report["settings"]["recipes"] == [QUICK.id, QUICK.id] and report["settings"]["votes"] == 3


@pytest.fixture
def use_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "quick", (QUICK, QUICK))


def test_a_recipe_of_one_s_own_trains_and_is_read_once_for_an_answer(
    open_router: OpenRouter, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "quick"\nsteps = 3\n')
    receipt = open_router(recipe=str(file)).ask(TASK, QUERIES, arm="ttt")
    step = receipt.step("train")
    assert receipt.arm == "train:mine" and step is not None
    assert step.detail["recipe"] == find_recipes(str(file))[0].id and step.detail["steps"] == 3
    file.write_text("stepps = 3\n")
    with pytest.raises(TaskError, match="unknown key 'stepps'"):
        open_router(recipe=str(file))


def test_a_direct_recipe_answers_without_demonstrations(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = replace(QUICK, name="direct", form="direct", batch=2)
    monkeypatch.setitem(RECIPES, "direct", (direct, direct))
    agent = open_router(recipe="direct")
    receipt = agent.ask(TASK, QUERIES, arm="ttt", votes=3)
    step, vote = receipt.step("answer"), receipt.step("vote")
    assert step is not None and step.detail["demonstrations"] == 0
    assert vote is not None and vote.detail["views"] == ["plain"]
    (row,) = agent.parts.store.adapters.list()
    engine, folder = agent.parts.engine, agent.parts.store.adapters.path(row)

    async def by_hand(in_context: bool) -> tuple[Answered, ...]:
        async with engine.adapter(folder) as name:
            asked = [Query(q) for q in QUERIES]
            found = await answer(engine, TASK, asked, adapter=name, in_context=in_context)
        return tuple(Answered(a.text, a.logprob, a.finished, a.n_tokens) for a in found.answers)

    assert receipt.answers == agent.run(by_hand(False)) != agent.run(by_hand(True))
    in_context = agent.ask(TASK, QUERIES, arm="ttt", recipe="quick").step("answer")
    assert in_context is not None and "demonstrations" not in in_context.detail
