"""When an answer waits for training: wait, background, never; deadlines; and answers that grow on the stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from router import behind, measuring, training
from router.errors import RouterError
from router.events import AnswerGrew, Decided, Done, ICLDone, TrainingStep
from router.pending import Pending
from tests.router.conftest import LONG, QUERIES, TASK, TRUSTING, OpenRouter, ok_task, step_names
from ttt.errors import Cancelled
from ttt.task import Query, Task
from ttt.train import train_adapter


def test_never_trains_nothing_and_still_uses_what_was_trained(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    before = agent.ask(TASK, QUERIES, when="never")
    assert before.arm == "icl" and not {"probe", "train"} & set(step_names(before))
    trained = agent.ask(TASK, QUERIES)
    assert trained.arm == "train:quick", trained.fallback
    again = agent.ask(TASK, QUERIES, when="never")
    assert again.adapter == trained.adapter and again.texts == trained.texts


def test_background_answers_at_once_and_later_queries_have_the_adapter(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    events = list(agent.stream(TASK, QUERIES, when="background"))
    assert not any(isinstance(e, TrainingStep) for e in events)
    done = events[-1]
    assert isinstance(done, Done) and done.receipt.arm == "icl"
    assert agent.settle(120)
    later = agent.ask(TASK, QUERIES, when="background")
    assert later.arm.startswith("reuse:") and step_names(later) == ["look-up", "answer"]
    behind = [r for r in agent.history() if r.arm == "train:quick"]
    assert len(behind) == 1, "the training behind is an episode of its own"


def test_many_who_ask_one_task_in_the_background_train_once(open_router: OpenRouter) -> None:
    agent = open_router()

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(agent.aask(TASK, [q], when="background", arm="ttt") for q in QUERIES * 3)
        )

    assert {r.arm for r in agent.run(all_at_once())} == {"icl"}
    assert agent.settle(120)
    assert [r.arm for r in agent.history(100)].count("train:quick") == 1


def test_what_was_trained_outright_behind_an_answer_answers_who_asks_so_again(
    open_router: OpenRouter,
) -> None:
    """No guard has looked at it, so it answers nobody else."""
    agent = open_router()
    assert agent.ask(TASK, QUERIES, when="background", arm="ttt").arm == "icl"
    assert agent.settle(120)
    assert agent.ask(TASK, QUERIES, when="background", arm="ttt").arm.startswith("reuse:")
    assert agent.ask(TASK, QUERIES, when="never").arm == "icl"


def test_a_task_that_grew_replaces_the_training_of_the_smaller_one(open_router: OpenRouter) -> None:
    agent = open_router(recipe=LONG.name)
    agent.ask(ok_task(4), QUERIES, when="background", arm="ttt")
    agent.ask(ok_task(5), QUERIES, when="background", arm="ttt", recipe="quick")
    assert agent.settle(120)
    arms = [r.arm for r in agent.history()]
    assert arms.count("train:quick") == 1 and f"train:{LONG.name}" not in arms


def test_few_tasks_train_behind_at_once_the_others_wait_and_past_a_limit_are_left_for_later(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "AT_ONCE", 2)
    monkeypatch.setattr(behind, "WAITING", 5)
    now = most = 0
    release = threading.Event()

    async def counted(*asked: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            while not release.is_set():
                await asyncio.sleep(0.01)
            return await train_adapter(*asked)
        finally:
            now -= 1

    monkeypatch.setattr(training, "train_adapter", counted)
    agent = open_router()
    tasks = [ok_task(4, word) for word in ("a", "b", "c", "d", "e", "f", "g")]
    for task in tasks:
        agent.ask(task, QUERIES, when="background", arm="ttt")
        assert agent.n_behind <= 5
    release.set()
    assert agent.settle(120)
    assert most == 2 and [r.arm for r in agent.history(100)].count("train:quick") == 5
    agent.ask(tasks[-1], QUERIES, when="background", arm="ttt")
    assert agent.settle(120)
    assert [r.arm for r in agent.history(100)].count("train:quick") == 6


def test_what_trained_behind_when_a_router_closed_is_taken_up_by_the_next_that_outlives(
    open_router: OpenRouter,
) -> None:
    first = open_router(recipe=LONG.name)
    assert first.outlive() == 0
    first.ask(TASK, [Query("uv", (("x", "y"),))], when="background", arm="ttt", recipe="quick")
    first.ask(ok_task(5), QUERIES, when="background", arm="ttt")
    living = open_router()
    assert living.outlive() == 0, "its owner lives"
    assert wait_for(lambda: "train:quick" in [r.arm for r in living.history(9)])
    kept = first.settings.data_path / "behind"
    assert wait_for(lambda: len(list(kept.rglob("*.json"))) == 1), "what is done is taken off the list"
    first.close()
    assert len(living.history(9)) >= 3
    left = Pending(kept, first.parts.engine.loaded.revision).take(9)
    (work,) = left
    assert work.task == ok_task(5) and work.tries == 0
    assert work.options["recipe"] == (LONG, LONG) and [q.input for q in work.queries] == list(QUERIES)


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.05)
    return done()


def test_closing_ends_what_trains_behind(open_router: OpenRouter) -> None:
    agent = open_router(recipe=LONG.name)
    agent.ask(TASK, QUERIES, when="background", arm="ttt")
    started = time.monotonic()
    agent.close()
    assert time.monotonic() - started < 20


def test_a_deadline_too_short_for_training_leaves_it_out_and_says_so(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING, recipe=LONG.name)
    receipt = agent.ask(TASK, QUERIES, deadline_s=20)
    assert receipt.arm == "icl" and "train" not in step_names(receipt)
    assert any("too little for training" in note for note in receipt.notes)


def test_a_training_that_takes_longer_than_expected_ends_at_the_deadline(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_router(policy=TRUSTING, recipe=LONG.name)
    agent.ask(TASK, QUERIES, arm="icl")
    agent.parts = replace(agent.parts, costs=replace_rates(agent.parts.costs))
    started = time.monotonic()
    receipt = agent.ask(TASK, QUERIES, deadline_s=6)
    seconds = time.monotonic() - started
    assert 3 < seconds < 6.6 and receipt.arm == "icl"
    assert "cancelled" in receipt.fallback and len(receipt.texts) == len(QUERIES)


def test_measuring_ends_early_enough_before_a_deadline(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(*_: Any, should_stop: Callable[[], bool]) -> Any:
        while not should_stop():
            await asyncio.sleep(0.01)
        raise Cancelled("Leave-one-out was cancelled; ask again.")

    monkeypatch.setattr(measuring, "leave_one_out", endless)
    agent = open_router(policy=TRUSTING)
    agent.parts = replace(agent.parts, costs=replace_rates(agent.parts.costs))
    started = time.monotonic()
    receipt = agent.ask(TASK, QUERIES, deadline_s=3)
    assert 2 < time.monotonic() - started < 4.5
    assert receipt.arm == "icl" and "train" not in step_names(receipt)
    assert any("Measuring was cancelled" in n for n in receipt.notes)


def replace_rates(costs: Any) -> Any:
    """A cost model that takes training for nearly free."""

    class Optimist:
        def __getattr__(self, name: str) -> Any:
            return getattr(costs, name)

        def costs(self, sizes: Any) -> Any:
            return replace(costs.costs(sizes), train_s=0.2, probe_s=0.2, answer_s=0.05)

    return Optimist()


def test_a_deadline_before_any_answer_is_an_error(open_router: OpenRouter) -> None:
    with pytest.raises(Cancelled, match="give more time"):
        open_router().ask(TASK, QUERIES, deadline_s=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"when": "later"}, "'later'.*wait, background, never"),
        ({"when": "never", "arm": "ttt"}, "give one of them"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"deadline_s": float("inf")}, "deadline_s is inf"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_impossible_options_are_refused(open_router: OpenRouter, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RouterError, match=says):
        open_router().ask(TASK, QUERIES, **options)


@pytest.mark.parametrize("options", [{"arm": "icl"}, {"arm": "zero-shot"}, {"when": "never"}])
def test_an_answer_that_stands_grows_on_the_stream(open_router: OpenRouter, options: dict[str, Any]) -> None:
    events = list(open_router().stream(TASK, QUERIES[:1], **options))
    grown = [e.text for e in events if isinstance(e, AnswerGrew)]
    done = events[-1]
    assert isinstance(done, Done)
    whole = done.receipt.texts[0]
    assert len(grown) > 1 or len(whole) < 2
    assert all(whole.startswith(text) for text in grown)
    assert all(b.startswith(a) and b != a for a, b in pairwise(grown))
    first_decision = next(i for i, e in enumerate(events) if isinstance(e, Decided))
    assert all(i < first_decision for i, e in enumerate(events) if isinstance(e, AnswerGrew))


def test_an_answer_that_training_may_replace_does_not_grow_on_the_stream(open_router: OpenRouter) -> None:
    events = list(open_router(policy=TRUSTING).stream(TASK, QUERIES))
    assert any(isinstance(e, ICLDone) for e in events)
    assert not any(isinstance(e, AnswerGrew) for e in events)


def test_max_tokens_ends_answers_and_tokens_are_counted(open_router: OpenRouter) -> None:
    agent = open_router()
    receipt = agent.ask(TASK, QUERIES, arm="icl", max_tokens=2)
    assert all(a.n_tokens <= 2 for a in receipt.answers) and receipt.prompt_tokens > 20
    assert agent.explain(receipt.episode_id) == receipt


def test_a_plain_question_is_put_in_the_chat_template_or_the_receipt_says_that_there_is_none(
    open_router: OpenRouter, tiny_chat: Any
) -> None:
    question = Query("hello", ())
    bare = open_router().ask(Task(), [question])
    assert bare.arm == "zero-shot" and any("no chat template" in note for note in bare.notes)
    chat = open_router(model=str(tiny_chat)).ask(Task(), [question], max_tokens=3)
    assert chat.arm == "zero-shot" and not chat.notes and chat.answers[0].n_tokens <= 3


def test_answers_while_a_training_runs_equal_those_of_an_idle_engine(open_router: OpenRouter) -> None:
    agent = open_router(recipe=LONG.name)
    idle = agent.ask(ok_task(3), QUERIES, arm="icl")
    agent.ask(TASK, QUERIES, when="background", arm="ttt")
    busy = [agent.ask(ok_task(3), QUERIES, arm="icl") for _ in range(3)]
    assert agent.n_behind == 1, "the training went on all the time"
    assert all(receipt.answers == idle.answers for receipt in busy)
