"""What is measured when: where a task lies before any query is asked, and the signals that a policy reads after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.types import LOCATION, Decision, Situation
from router.events import SignalsReady
from router.receipt import Receipt
from tests.router.conftest import QUERIES, TASK, OpenRouter
from ttt.task import Demonstration


class Reading:
    """A policy that reads these signals, keeps what it saw and stays."""

    version = "reading-1"

    def __init__(self, *reads: str) -> None:
        self.reads = frozenset(reads)
        self.seen: list[Situation] = []

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        return Decision("answer", "icl", 1.0, None, None, 0.0, "It only reads.", self.version)


def names(receipt: Receipt) -> list[str]:
    return [step.name for step in receipt.steps]


def test_where_a_task_lies_is_known_before_any_query_is_asked(open_router: OpenRouter) -> None:
    policy = Reading(LOCATION)
    got = open_router(policy=policy).ask(TASK, QUERIES)
    assert names(got)[:3] == ["look-up", LOCATION, "icl"] and got.steps[1].seconds > 0
    assert all(here.signals.location is not None for here in policy.seen)
    assert got.location is not None
    assert sum(x * x for x in got.location["point"]) == pytest.approx(1, abs=1e-3)
    assert Receipt.from_dict(got.as_dict()) == got
    assert LOCATION not in got.signals, "it is no figure"


@pytest.mark.parametrize("how", [{"arm": "icl"}, {"arm": "ttt"}, {"when": "never"}, {"deadline_s": 60}])
def test_it_is_not_looked_for_where_nothing_is_decided(open_router: OpenRouter, how: dict[str, Any]) -> None:
    got = open_router(policy=Reading(LOCATION)).ask(TASK, QUERIES, **how)
    assert LOCATION not in names(got) and got.location is None


def test_nor_by_a_policy_that_does_not_read_it(open_router: OpenRouter) -> None:
    got = open_router(policy=Reading("loo_accuracy")).ask(TASK, QUERIES)
    assert LOCATION not in names(got) and got.location is None


def test_each_part_is_measured_and_timed_where_it_is_read(open_router: OpenRouter) -> None:
    parts = {
        "loo_accuracy": "leave_one_out_s",
        "zero_shot_logprob": "zero_shot_s",
        "agreement": "consistency_s",
    }
    for name, part in parts.items():
        got = open_router(policy=Reading(name)).ask(TASK, QUERIES)
        assert got.signals[name] is not None
        detail = got.steps[names(got).index("signals")].detail
        assert detail[part] > 0 and set(detail) & set(parts.values()) == {part}


def test_zero_shot_predictions_do_not_depend_on_the_other_demonstrations(open_router: OpenRouter) -> None:
    agent = open_router(policy=Reading("zero_shot_logprob"))

    def measured(*shown: Demonstration) -> Any:
        return agent.ask(replace(TASK, demonstrations=shown), QUERIES).signals["zero_shot_logprob"]

    one, other = TASK.demonstrations[:2]
    alone = [measured(one), measured(other)]
    assert measured(one, other) == pytest.approx(sum(alone) / 2, abs=1e-4)


def test_a_part_that_does_not_fit_is_told_and_the_others_are_measured(open_router: OpenRouter) -> None:
    huge = Demonstration("0 1 2 3 " * 400, "ok")
    policy = Reading("loo_accuracy", "zero_shot_logprob", "agreement")
    events = list(
        open_router(policy=policy).stream(replace(TASK, demonstrations=(*TASK.demonstrations, huge)), QUERIES)
    )
    (ready,) = [event for event in events if isinstance(event, SignalsReady)]
    assert ready.signals.agreement is not None and ready.signals.zero_shot_logprob is None
    notes = events[-1].receipt.notes  # type: ignore[union-attr]
    assert any("Zero-shot was not measured" in note for note in notes)
    assert any("Leave-one-out was not measured" in note for note in notes)
