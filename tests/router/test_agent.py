"""The Python API: one implementation in two forms, options, refusals, history, and a Ctrl-C that keeps answers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policies.baselines import AlwaysArm
from policies.errors import PolicyError
from router import reuse
from router.agent import Router
from router.errors import RouterError, SettingsError
from router.events import Decided, Done, Started
from router.settings import Settings
from store import AdapterKey
from store.errors import NotFound
from tests.router.conftest import OTHER, QUERIES, TASK, OpenRouter, kinds, ok_task
from ttt import gradients
from ttt.errors import ContextOverflow, TaskError
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Query, Task


def test_the_asynchronous_forms_do_what_the_synchronous_ones_do(open_router: OpenRouter) -> None:
    agent = open_router()

    async def both() -> tuple[Any, list[Any], int]:
        receipt = await agent.aask(TASK, QUERIES, arm="icl")
        events = [event async for event in agent.astream(TASK, QUERIES, arm="icl")]
        return receipt, events, await agent.afeedback(receipt.episode_id, right=True, query=0)

    receipt, events, outcomes = asyncio.run(both())
    assert receipt.answers == events[-1].receipt.answers == agent.ask(TASK, QUERIES, arm="icl").answers
    assert kinds(events) == kinds(agent.stream(TASK, QUERIES, arm="icl"))
    assert outcomes == 1 and agent.feedback(receipt.episode_id, right=True, query=0) == 0


def test_a_stream_starts_with_started_and_ends_with_the_receipt(open_router: OpenRouter) -> None:
    events = list(open_router().stream(TASK, QUERIES, arm="icl"))
    assert isinstance(events[-1], Done)
    assert events[0] == Started(TASK.fingerprint, (), events[-1].receipt.episode_id)


def test_queries_may_be_texts_or_queries_and_answers_keep_their_order(open_router: OpenRouter) -> None:
    agent = open_router()
    texts = ("a much longer query than the others", "uv", "w")
    whole = agent.ask(TASK, texts, arm="icl")
    assert whole.answers == agent.ask(TASK, [Query(t) for t in texts], arm="icl").answers
    alone = [agent.ask(TASK, [t], arm="icl").texts[0] for t in texts]
    assert list(whole.texts) == alone


def test_many_tasks_at_once_are_answered_in_order_and_train_together(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[int] = []
    real = gradients.losses

    def count(bench: Any, steps: Any, *rest: Any) -> Any:
        shared.append(len(steps))
        return real(bench, steps, *rest)

    monkeypatch.setattr(gradients, "losses", count)
    agent = open_router()
    tasks = [replace(TASK, instruction=f"Say it {n} times.") for n in range(3)]
    receipts = agent.ask_many([(task, QUERIES) for task in tasks], arm="ttt")
    assert [r.fingerprint for r in receipts] == [t.fingerprint for t in tasks]
    assert max(shared) == 6, "three tasks, each first on both halves of its demonstrations"
    again = agent.ask_many([(task, QUERIES) for task in tasks], arm="ttt", at_once=1)
    assert [r.adapter for r in again] == [r.adapter for r in receipts]
    assert [r.texts for r in again] == [r.texts for r in receipts]
    with pytest.raises(RouterError, match="at_once is 0; it must be at least 1"):
        agent.ask_many([(TASK, QUERIES)], at_once=0)
    with pytest.raises(TaskError, match="nothing to answer"):
        agent.ask_many([(TASK, QUERIES), (TASK, [])])


@pytest.mark.parametrize(
    ("task", "queries", "options", "error", "says"),
    [
        (TASK, [], {}, TaskError, "at least one query"),
        (TASK, ["a", " \n"], {}, TaskError, "Query 2 is empty"),
        (TASK, ["a"], {"arm": "best"}, RouterError, "'best'.*auto, icl, ttt, zero-shot"),
        (Task(), ["a"], {"arm": "ttt"}, TaskError, "needs demonstrations"),
        (Task((Demonstration("a", " "),)), ["a"], {}, TaskError, "Demonstration 1 has an empty output"),
        (TASK, ["a"], {"prefer": "cheap"}, PolicyError, "'cheap'"),
        (TASK, ["a"], {"worth_s": -1.0}, PolicyError, "-1.0"),
        (TASK, ["a"], {"worth_s": 0.0}, PolicyError, "worth is 0.0"),
        (TASK, ["a"], {"prefer": "fast", "worth_s": 3.0}, PolicyError, "give one of them"),
        (TASK, ["a"], {"recipe": "none such"}, TaskError, "'none such'"),
        (TASK, ["x" * 5000], {}, ContextOverflow, "shorten the query"),
    ],
)
def test_what_can_not_be_asked_is_refused_with_the_value(
    open_router: OpenRouter,
    task: Task,
    queries: list[str],
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    agent = open_router()
    with pytest.raises(error, match=says):
        agent.ask(task, queries, **options)
    assert list(agent.history()) == []


def test_worth_is_that_of_the_question_then_that_of_the_settings(open_router: OpenRouter) -> None:
    agent = open_router(worth_s=7.0)

    def worth(**options: Any) -> float:
        return agent.ask(TASK, QUERIES[:1], arm="icl", **options).worth_s

    assert worth() == 7.0 and worth(worth_s=2.0) == 2.0 and worth(prefer="accurate") == 300.0
    assert open_router(worth_s=None, prefer="fast").ask(TASK, QUERIES[:1], arm="icl").worth_s == 5.0


def test_settings_given_whole_take_single_ones_on_top(tiny_llama: Path, tmp_path: Path) -> None:
    whole = Settings(model=str(tiny_llama), device="cpu", dtype="float32", worth_s=9.0)
    with Router.open(whole, data_dir=tmp_path / "d", prefer="fast", seed=None) as agent:
        assert agent.settings == replace(whole, data_dir=str(tmp_path / "d"), prefer="fast", worth_s=0.0)
        assert (tmp_path / "d" / "router.db").is_file()
    with pytest.raises(SettingsError, match="'modle'"):
        Router.open(whole, modle="x")


def test_explain_and_history_give_the_receipts_of_earlier_answers(open_router: OpenRouter) -> None:
    agent = open_router()
    receipts = [agent.ask(ok_task(n), QUERIES, arm="icl") for n in (2, 3)]
    assert [row.episode_id for row in agent.history()] == [r.episode_id for r in receipts[::-1]]
    assert [row.episode_id for row in agent.history(1)] == [receipts[1].episode_id]
    assert agent.explain(receipts[0].episode_id) == receipts[0]
    assert agent.explain(receipts[0].episode_id[:8]) == receipts[0]
    with pytest.raises(NotFound, match="'0123456789'"):
        agent.explain("0123456789")
    task = agent.parts.store.episodes.task(ok_task(3).fingerprint)
    assert task.name == "words" and task.demonstrations[0] == ("ab", "ok")


def test_answers_with_the_same_seed_are_the_same_on_another_store(
    open_router: OpenRouter, tmp_path: Path
) -> None:
    one, two = (open_router(data_dir=tmp_path / name, recipe="other") for name in ("one", "two"))
    first, second = (agent.ask(TASK, QUERIES, arm="ttt", seed=4) for agent in (one, two))
    assert first.texts == second.texts
    other = two.ask(TASK, QUERIES, arm="ttt", seed=5)
    weights = [
        load_file(tmp_path / name / "adapters" / receipt.adapter / "adapter_model.safetensors")
        for name, receipt in (("one", first), ("two", second), ("two", other))
    ]
    # To rounding: whether two halves share a pass, which rounds otherwise, is a matter of timing.
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-3) for key in weights[0])
    assert any(not torch.allclose(weights[0][key], weights[2][key], atol=1e-2) for key in weights[0])


def test_ctrl_c_while_training_is_awaited_keeps_the_answers_of_icl(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds the lease, so the main thread waits in silence for certain when the signal comes."""
    monkeypatch.setattr(reuse, "POLL_S", 0.05)
    agent = open_router(policy=AlwaysArm("train:other"), recipe="other")
    loaded = agent.parts.engine.loaded
    template = PromptFormat(loaded.tokenizer, TASK).template
    key = AdapterKey(TASK.fingerprint, loaded.revision, template, OTHER.id, 0)
    agent.parts.store.leases.acquire(f"train:{key.hash}", "somebody else", 60.0)
    decided, polls = threading.Event(), []

    def should_stop() -> bool:
        if decided.is_set():
            polls.append(time.monotonic())
            if len(polls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
        return False

    events: list[Any] = []
    try:
        for event in agent.stream(TASK, QUERIES, should_stop=should_stop):
            events.append(event)
            if isinstance(event, Decided):
                decided.set()
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C was not taken as a wish to stop training")
    receipt = events[-1].receipt
    assert (
        len(polls) >= 3
        and receipt.arm == "icl"
        and "was cancelled" in receipt.fallback
        and len(receipt.texts) == 3
    )


def test_an_error_inside_reaches_the_caller_of_every_form(open_router: OpenRouter) -> None:
    agent = open_router()
    with pytest.raises(ContextOverflow):
        list(agent.stream(TASK, ["x" * 5000]))
    with pytest.raises(ContextOverflow):
        asyncio.run(agent.aask(TASK, ["x" * 5000]))
    assert agent.ask(TASK, QUERIES, arm="icl").texts, "and the router still works"


def test_a_closed_router_says_so(open_router: OpenRouter) -> None:
    agent = open_router()
    agent.close()
    with pytest.raises(RouterError, match="closed; open a new one"):
        agent.ask(TASK, QUERIES)
    with pytest.raises(RouterError, match="closed; open a new one"):
        asyncio.run(agent.aask(TASK, QUERIES))
    agent.close()
