"""Every branch of the graph is taken for real, in its order, and its state stays plain."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import cycle
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.checks import answer
from policies.gain import GainModel
from policies.rule import Rule
from policies.types import Decision, Policy, Situation
from router import nodes
from router.context import Context
from router.events import CacheHit, Decided, Done, FellBack, GuardDone, ICLDone, SignalsReady, TrainingStep
from router.graph import build_graph
from router.receipt import Receipt
from router.state import Request
from tests.policies.situations import Looking
from tests.router.conftest import (
    POOR,
    QUERIES,
    QUICK,
    RICH,
    TASK,
    TRUSTING,
    OpenRouter,
    kinds,
    ok_task,
    step_names,
)
from ttt.task import Query, Task

NODES = [
    "prepare", "look_up", "icl", "signals", "neighbours", "decide", "probe", "train", "guard", "answer", "record",
]  # fmt: skip


def run(
    open_router: OpenRouter, task: Task = TASK, policy: Policy | None = None, **options: Any
) -> list[Any]:
    return list(open_router(policy=policy).stream(task, QUERIES, **options))


def receipt(events: list[Any]) -> Receipt:
    found: Receipt = events[-1].receipt
    return found


def test_icl_asked_for_answers_in_context_and_measures_nothing(open_router: OpenRouter) -> None:
    events = run(open_router, arm="icl")
    assert kinds(events) == ["Started", "ICLDone", "Decided icl", "Done"]
    got = receipt(events)
    assert got.arm == "icl" and got.answers == got.icl_answers and len(got.answers) == 3
    assert step_names(got) == ["icl"] and got.adapter == got.fallback == ""
    assert got.signals["loo_accuracy"] is None and got.signals["query_logprob"] is not None


@pytest.mark.parametrize("arm", ["auto", "icl", "zero-shot"])
def test_a_task_without_demonstrations_is_answered_zero_shot(open_router: OpenRouter, arm: str) -> None:
    events = run(open_router, Task((), "Say the word."), arm=arm)
    assert kinds(events) == ["Started", "ICLDone", "Decided zero-shot", "Done"]
    assert receipt(events).arm == "zero-shot"


def test_zero_shot_asked_for_hides_the_demonstrations(open_router: OpenRouter) -> None:
    agent = open_router()
    got = agent.ask(TASK, QUERIES, arm="zero-shot")
    bare = agent.ask(replace(TASK, demonstrations=()), QUERIES, arm="zero-shot")
    assert got.arm == "zero-shot" and got.fingerprint == bare.fingerprint != TASK.fingerprint
    assert got.texts == bare.texts and got.signals["n_demonstrations"] == 0


def test_training_asked_for_trains_without_icl_signals_probe_or_guard(open_router: OpenRouter) -> None:
    events = run(open_router, arm="ttt")
    assert kinds(events) == ["Started", "Decided train:quick", "Halves", "Train", "Done"]
    got = receipt(events)
    assert got.arm == "train:quick" and got.adapter and got.icl_answers == ()
    assert step_names(got) == ["look-up", "train", "answer"]
    steps = [(e.phase, e.step, e.of) for e in events if isinstance(e, TrainingStep)]
    halves = [("halves", i, 16) for i in range(1, 17)]
    assert steps == [*halves, *(("train", i, 12) for i in range(9, 13))], (
        "on from the eight steps of both halves"
    )
    assert got.signals["label_set_size"] == pytest.approx(1 / 6) and got.signals["query_logprob"] is None


def test_where_training_is_too_dear_nothing_is_measured_and_the_receipt_says_why(
    open_router: OpenRouter,
) -> None:
    events = run(open_router, worth_s=POOR)
    assert kinds(events) == ["Started", "ICLDone", "Decided icl", "Done"]
    got = receipt(events)
    assert step_names(got) == ["look-up", "icl", "signals"]
    skipped = got.step("signals")
    assert skipped is not None and skipped.seconds == 0
    assert skipped.detail["skipped"] == got.decisions[0]["reason"] and "at best" in skipped.detail["skipped"]


def test_a_probe_that_shows_little_stays_with_icl(open_router: OpenRouter) -> None:
    doubting = Rule(GainModel(prior_share=0.0, logprob_weight=0.0, accuracy_weight=0.0))
    events = run(open_router, policy=doubting)
    assert kinds(events) == [
        "Started", "ICLDone", "SignalsReady", "Decided probe", "Probe", "Decided icl", "Done",
    ]  # fmt: skip
    got = receipt(events)
    assert step_names(got) == ["look-up", "icl", "signals", "probe"]
    assert got.arm == "icl" and got.fallback == "" and got.answers == got.icl_answers
    assert [d["step"] for d in got.decisions] == ["probe", "answer"]
    assert got.signals["probe_logprob_after"] > got.signals["probe_logprob_before"]  # type: ignore[operator]


def test_a_promising_probe_trains_and_an_accepted_adapter_answers(open_router: OpenRouter) -> None:
    events = run(open_router, policy=TRUSTING)
    assert kinds(events) == [
        "Started", "ICLDone", "SignalsReady", "Decided probe", "Probe", "Decided train:quick", "Train",
        "GuardDone", "Done",
    ]  # fmt: skip
    got = receipt(events)
    assert step_names(got) == ["look-up", "icl", "signals", "probe", "train", "guard", "answer"]
    assert got.arm == "train:quick" and got.adapter and got.fallback == ""
    assert got.texts != got.icl_texts, "the adapter changed nothing"
    assert next(e.answers for e in events if isinstance(e, ICLDone)) == got.icl_answers
    assert all(e.signals.loo_accuracy is not None for e in events if isinstance(e, SignalsReady))
    assert [e.accept for e in events if isinstance(e, GuardDone)] == [True]
    assert [d.decision.policy for d in events if isinstance(d, Decided)] == [TRUSTING.version] * 2


def test_a_veto_falls_back_visibly_to_the_answers_of_icl(open_router: OpenRouter) -> None:
    events = run(open_router, ok_task(2), AlwaysArm("train:quick"))
    assert kinds(events) == [
        "Started", "ICLDone", "SignalsReady", "Decided train:quick", "Train", "GuardDone", "FellBack", "Done",
    ]  # fmt: skip
    got = receipt(events)
    assert got.arm == "icl" and got.answers == got.icl_answers and got.adapter == ""
    assert (
        got.fallback == "The guard vetoed the adapter: Too few demonstrations to tell: 2, at least 3 needed."
    )
    guard = got.step("guard")
    assert guard is not None and guard.detail["accepted"] is False
    assert next(e.reason for e in events if isinstance(e, FellBack)) in got.fallback
    assert got.decisions[-1]["arm"] == "train:quick", "what was decided stays on record"


def test_without_a_probe_the_first_steps_of_training_leave_the_guards_evidence(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once_more(*args: Any, **options: Any) -> None:
        raise AssertionError("Nothing is trained for the guard once more.")

    monkeypatch.setattr(nodes, "cross_fit", once_more)
    events = run(open_router, policy=AlwaysArm("train:quick"))
    trained = ["SignalsReady", "Decided train:quick", "Halves", "Train", "GuardDone", "Done"]
    assert kinds(events)[-6:] == trained
    got = receipt(events)
    assert step_names(got) == ["look-up", "icl", "signals", "probe", "train", "guard", "answer"]
    guard, train = got.step("guard"), got.step("train")
    assert guard is not None and guard.detail["accepted"] and "6 held-out" in guard.detail["reason"]
    assert train is not None and train.detail["of_these_by_probe"] == 8 and train.detail["on_halves_s"] == 0


def test_an_exact_hit_answers_at_once(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    first = agent.ask(TASK, QUERIES)
    events = list(agent.stream(TASK, QUERIES))
    assert kinds(events) == ["Started", "CacheHit", "Done"]
    assert next(e.adapter for e in events if isinstance(e, CacheHit)) == first.adapter


@pytest.mark.parametrize("signal", ["loo_accuracy", "agreement", "probe_logprob_after"])
def test_what_a_policy_reads_is_measured_before_it_trains(open_router: OpenRouter, signal: str) -> None:
    events = run(open_router, policy=Looking(signal, "train:quick"))
    assert "SignalsReady" in kinds(events) and receipt(events).arm == "train:quick"
    assert ("Probe" in kinds(events)) is signal.startswith("probe_")


class Drawing:
    """Takes one of two arms at random, as it says; for a test, in turn. It is asked twice a task: also before measuring."""

    version, reads = "drawing-1", frozenset[str]()

    def __init__(self) -> None:
        train, stay = ("train:other", 0.4), ("icl", 0.6)
        self.chances = cycle((train, train, stay, stay))

    def decide(self, situation: Situation) -> Decision:
        arm, chance = next(self.chances)
        return answer(situation, arm, "It was drawn.", self.version, chance)


def test_a_random_policy_logs_the_true_propensity_of_what_it_took(open_router: OpenRouter) -> None:
    agent = open_router(policy=Drawing(), recipe="other")
    taken = set()
    for repeat in range(4):
        got = agent.ask(replace(TASK, instruction=f"Say it {repeat} times."), QUERIES[:1])
        decision = got.decisions[-1]
        taken.add(decision["arm"])
        assert decision["propensity"] == {"train:other": 0.4, "icl": 0.6}[decision["arm"]]
        assert agent.history(1)[0].propensity == decision["propensity"]
    assert taken == {"train:other", "icl"}


def request_of(agent: Any) -> Request:
    return Request("e" * 32, TASK, tuple(map(Query, QUERIES)), "auto", RICH, 0.0, (QUICK, QUICK), 0)


def context_of(agent: Any) -> Context:
    parts = agent.parts
    return Context(parts.engine, parts.store, parts.policy, parts.costs, agent.settings, parts.owner)


PLAIN = (str, int, float, bool, type(None), enum.Enum)


def foreign(value: Any, path: str) -> list[str]:
    """Where `value` holds anything but plain values, mappings, sequences and frozen dataclasses of them."""
    if isinstance(value, PLAIN):
        return []
    if isinstance(value, Mapping):
        return [bad for k, v in value.items() for bad in foreign(k, path) + foreign(v, f"{path}.{k}")]
    if isinstance(value, list | tuple):
        return [bad for i, v in enumerate(value) for bad in foreign(v, f"{path}[{i}]")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        inside = [b for f in fields(value) for b in foreign(getattr(value, f.name), f"{path}.{f.name}")]
        return inside if frozen else [f"{path} is a {type(value).__name__}, not frozen", *inside]
    return [f"{path} is a {type(value).__name__}"]


def test_state_holds_plain_values_at_every_step(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)

    async def states() -> list[Any]:
        stream = build_graph().astream(
            {"request": request_of(agent)}, context=context_of(agent), stream_mode="values"
        )
        return [state async for state in stream]

    seen = agent.run(states())
    assert len(seen) == 1 + 10, "the input, nine nodes, decide a second time; record adds nothing"
    assert [foreign(state, "state") for state in seen] == [[]] * len(seen)
    last = seen[-1]
    for key in ("icl", "signals", "decisions", "evidence", "trained", "answers", "steps"):
        assert last[key], f"{key} was never set, so the walk has not looked at it"


def test_the_walk_would_find_a_live_object(open_router: OpenRouter) -> None:
    agent = open_router()
    assert foreign({"a": [agent.parts.engine]}, "state") == ["state.a[0] is a Engine"]
    weight = next(agent.parts.engine.loaded.model.parameters())
    assert foreign({"a": weight}, "state") == ["state.a is a Parameter"]


@pytest.mark.parametrize("module", ["router.state", "router.receipt", "router.events", "router.settings"])
def test_the_words_of_the_router_are_read_without_torch(module: str) -> None:
    heavy = ("torch", "transformers", "peft", "langgraph")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_request_has_no_place_for_right_answers() -> None:
    assert [f.name for f in fields(Query)] == ["input", "turns"]
    names = ["episode_id", "task", "queries", "arm", "worth_s", "expected_repeats", "recipes", "seed"]
    names += ["votes", "augmentations", "when", "max_tokens", "shots", "reuse", "calibrated"]
    names += ["short", "outright"]
    assert [f.name for f in fields(Request)] == names


def test_the_graph_is_drawn_with_all_its_nodes() -> None:
    drawn = build_graph().get_graph().draw_mermaid()
    assert [name for name in NODES if f"\t{name}(" in drawn] == NODES


def test_a_step_that_runs_again_writes_the_episode_once(open_router: OpenRouter) -> None:
    agent = open_router()

    async def once() -> list[Any]:
        stream: Any = build_graph().astream(
            {"request": replace(request_of(agent), arm="icl")},
            context=context_of(agent),
            stream_mode="custom",
        )
        return [event async for event in stream]

    first, again = agent.run(once()), agent.run(once())
    assert isinstance(first[-1], Done) and isinstance(again[-1], Done)
    assert [row.episode_id for row in agent.history()] == ["e" * 32]


def test_events_arrive_while_the_work_goes_on(open_router: OpenRouter) -> None:
    """At the first training step the adapter is not there yet."""
    agent = open_router()

    async def adapters_at_first_step() -> int:
        stream = agent.astream(TASK, QUERIES, arm="ttt")
        found = -1
        async for event in stream:
            if isinstance(event, TrainingStep) and event.step == 1:
                found = len(agent.parts.store.adapters.list())
        return found

    assert asyncio.run(adapters_at_first_step()) == 0
    assert len(agent.parts.store.adapters.list()) == 1
