"""A sample of the queries first: when, what it decides on, and that no answer is missing whatever comes after it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.types import Decision, Situation
from router.agent import Router
from router.asking import LEAST
from router.events import Done, Event, GuardDone, ICLDone, Sampled, TrainingStep
from router.receipt import Receipt
from tests.router.conftest import TASK, TRUSTING, OpenRouter, kinds, step_names
from ttt.errors import Cancelled
from ttt.task import Query
from ttt.views import SAMPLE, spread

QUERIES = tuple(f"{a}{b}" for a in "uvwxyz" for b in "abcdef")[:30]
LOOKED_AT = spread(len(QUERIES), SAMPLE)


@dataclass(frozen=True)
class ThenStays:
    """Trains as long as no query was asked, then stays."""

    seen: list[Situation] = field(default_factory=list)
    version: str = "then-stays-1"
    reads: frozenset[str] = frozenset()

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        arm = "icl" if situation.signals.query_logprob is not None else "train:quick"
        return Decision("answer", arm, 1.0, 0.0, 0.0, 0.0, "As the test wants it.", self.version)


def known(agent: Router) -> Router:
    """The router, on a machine whose speed it knows."""
    agent.parts.costs.observe("train", 1000, 0.1)
    return agent


def listen(agent: Router, stop_at: type[Event] | None = None, **options: Any) -> list[Event]:
    """Events of one answer that is told to stop at the first event of a type."""
    stop = threading.Event()

    async def hear() -> list[Event]:
        seen = []
        async for event in agent.astream(TASK, QUERIES, should_stop=stop.is_set, **options):
            seen.append(event)
            if stop_at is not None and isinstance(event, stop_at):
                stop.set()
        return seen

    return agent.run(hear())


def receipt_of(events: list[Event]) -> Receipt:
    assert isinstance(events[-1], Done)
    return events[-1].receipt


def test_where_training_answers_only_a_sample_was_asked_in_context(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=TRUSTING))
    events = listen(agent)
    got = receipt_of(events)
    assert step_names(got) == ["look-up", "sample", "signals", "probe", "train", "guard", "answer"]
    assert kinds(events)[:2] == ["Started", "Sampled"] and not any(isinstance(e, ICLDone) for e in events)
    assert got.arm == "train:quick" and len(got.answers) == len(QUERIES)
    assert [i for i, a in enumerate(got.icl_answers) if a is not None] == list(LOOKED_AT)
    assert len(got.icl_answers) == len(QUERIES) and got.icl_texts == ()
    told = agent.ask(TASK, [QUERIES[i] for i in LOOKED_AT], arm="icl")
    assert [got.icl_answers[i].text for i in LOOKED_AT] == list(told.texts)  # type: ignore[union-attr]
    assert got.signals["query_logprob"] == pytest.approx(told.signals["query_logprob"], abs=1e-5)
    assert got.signals["n_queries"] == len(QUERIES)
    step = got.step("sample")
    assert step is not None and step.detail["queries"] == SAMPLE and step.detail["all_s"] > 0
    assert got.seconds == pytest.approx(sum(s.seconds for s in got.steps))
    assert agent.explain(got.episode_id) == got, "it is read as it was written"


def test_staying_after_a_sample_asks_the_others_and_only_them(open_router: OpenRouter) -> None:
    policy = ThenStays()
    agent = known(open_router(policy=policy))
    events = listen(agent)
    got, whole = receipt_of(events), agent.ask(TASK, QUERIES, arm="icl")
    assert kinds(events) == ["Started", "Sampled", "Decided icl", "ICLDone", "Done"]
    assert got.arm == "icl" and got.texts == got.icl_texts == whole.texts
    assert [a.logprob for a in got.answers] == pytest.approx([a.logprob for a in whole.answers], abs=1e-4)
    rest = got.step("icl")
    assert rest is not None and rest.detail["queries"] == len(QUERIES) - SAMPLE
    assert got.prompt_tokens == whole.prompt_tokens, "the demonstrations count once"
    unasked, sampled = policy.seen[0], policy.seen[1]
    assert unasked.signals.query_logprob is None and sampled.signals.query_logprob is not None
    assert (
        unasked.costs.rest_s == unasked.costs.answer_s and 0 < sampled.costs.rest_s < sampled.costs.answer_s
    )
    (done,) = [e for e in events if isinstance(e, ICLDone)]
    assert done.answers == got.icl_answers and done.seconds == pytest.approx(got.seconds, rel=0.2)


@pytest.mark.parametrize("stop_at", [Sampled, TrainingStep, GuardDone])
def test_told_to_stop_at_any_time_every_query_is_answered(
    open_router: OpenRouter, stop_at: type[Event]
) -> None:
    agent = known(open_router(policy=TRUSTING))
    got = receipt_of(listen(agent, stop_at))
    assert got.arm == "icl" and got.texts == agent.ask(TASK, QUERIES, arm="icl").texts
    assert got.fallback and got.icl_texts == got.texts


def test_where_nobody_waits_any_more_the_others_are_not_asked(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=TRUSTING))
    with pytest.raises(Cancelled, match="before all queries were done"):
        listen(agent, TrainingStep, abandoned=lambda: True)
    stream = agent.stream(TASK, QUERIES)
    assert any(isinstance(event, TrainingStep) for event in stream)
    stream.close()
    assert list(agent.history()) == []


def test_a_new_machine_is_measured_by_all_queries_first(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    assert agent.ask(TASK, QUERIES).icl_at_once
    again = agent.ask(TASK, QUERIES, seed=1)
    assert again.step("sample") is not None and not again.icl_at_once


def test_short_steps_of_a_sample_do_not_pass_for_those_of_all_queries(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=AlwaysArm("train:quick")))
    costs = agent.parts.costs
    before = costs.predict("decode", 1)
    seen: list[float] = []
    for event in agent.stream(TASK, QUERIES):
        if isinstance(event, Sampled):
            seen.append(costs.predict("decode", 1))
    assert seen == [before] and costs.predict("decode", 1) != before, "the adapter's answers were observed"


def test_an_adapter_that_can_not_be_read_falls_back_to_answers_of_all_queries(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttt.engine import Engine
    from ttt.errors import AdapterError

    agent = known(open_router(policy=TRUSTING))

    def broken(self: Engine, folder: object) -> Any:
        raise AdapterError("The adapter can't be read.")

    monkeypatch.setattr(Engine, "adapter", broken)
    got = agent.ask(TASK, QUERIES)
    assert got.arm == "icl" and got.fallback == "The adapter can't be read."
    assert got.texts == got.icl_texts == agent.ask(TASK, QUERIES, arm="icl").texts


def test_all_are_asked_at_once_where_a_sample_would_not_do(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=TRUSTING))
    whole: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (QUERIES[: LEAST - 1], {}),
        (QUERIES, {"worth_s": 1e-6}),  # training can't pay, whatever the queries show
        (QUERIES, {"deadline_s": 600.0}),  # their answers must be there when the time is up
        (QUERIES, {"when": "never"}),
        (QUERIES, {"arm": "icl"}),
    ]
    for seed, (queries, options) in enumerate(whole):
        got = agent.ask(TASK, queries, seed=seed, **options)
        step = got.step("icl")
        assert got.step("sample") is None and step is not None and "queries" not in step.detail, options
        assert len(got.icl_texts) == len(queries)


def test_views_vote_on_all_queries_after_a_sample(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=ThenStays()))
    got = agent.ask(TASK, QUERIES, votes=3)
    assert got.step("sample") and got.step("vote") and len(got.texts) == len(QUERIES)
    assert got.texts == agent.ask(TASK, QUERIES, arm="icl", votes=3).texts


def test_to_learn_from_both_are_done_and_the_signals_are_those_of_the_sample(open_router: OpenRouter) -> None:
    agent = known(open_router(policy=AlwaysArm("train:quick"), signals="all"))
    got = agent.ask(TASK, QUERIES)
    assert step_names(got)[:5] == ["look-up", "location", "sample", "icl", "signals"]
    assert len(got.icl_texts) == len(QUERIES)
    alone = agent.ask(TASK, [QUERIES[i] for i in LOOKED_AT], arm="icl")
    assert got.signals["query_logprob"] == pytest.approx(alone.signals["query_logprob"], abs=1e-5)
    step = got.step("signals")
    assert step is not None and step.detail["sampled_queries"] == SAMPLE


def test_feedback_on_queries_that_were_not_asked_in_context_compares_nothing(open_router: OpenRouter) -> None:
    from router.learning import rows_of

    agent = known(open_router(policy=TRUSTING))
    got = agent.ask(TASK, [Query(q) for q in QUERIES])
    for i in range(len(QUERIES)):
        agent.feedback(got.episode_id, answer=got.texts[i], query=i)
    rows, _ = rows_of(agent.parts.store)
    (row,) = rows
    icl, sample, measuring = row.arms["icl"], got.step("sample"), got.step("signals")
    assert measuring is not None and icl.seconds_parts["signals"] == measuring.seconds > 0
    assert icl.n_queries == row.arms["train:quick"].n_queries == SAMPLE
    assert sample is not None and icl.seconds == sample.detail["all_s"] == icl.seconds_parts["icl"]
    assert icl.seconds_parts["sample"] == sample.seconds
    assert row.arms["train:quick"].correct == 1.0


def test_a_sample_is_spread_over_the_queries() -> None:
    assert spread(64, 8) == (0, 9, 18, 27, 36, 45, 54, 63)
    assert spread(3, 8) == (0, 1, 2) and spread(1, 8) == (0,) and spread(0, 8) == ()
