"""Two lengths of training: offered after one probe, decided on by utility, kept apart in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.checks import further_seconds
from policies.types import Decision, Situation
from router.agent import Router
from router.errors import RouterError
from tests.router.conftest import QUERIES, QUICK, RICH, TASK, OpenRouter, ok_task, step_names
from tests.router.test_nodes import detail, key_of
from ttt.recipes import RECIPES

TWO = replace(QUICK, name="two", short=10)
SEARCHED = replace(QUICK, name="searched", short=10, search=1.0)
SHORT = "train:two-short"


class Probing:
    """Probes where it can, then takes an arm; keeps what it saw."""

    version = "probing-1"
    reads: frozenset[str] = frozenset()

    def __init__(self, arm: str) -> None:
        self.arm, self.seen = arm, list[Situation]()

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        if situation.probe_feasible:
            return Decision("probe", None, 1.0, None, None, 0.0, "A look.", self.version)
        return Decision("answer", self.arm, 1.0, 0.3, 0.2, 0.0, "As told.", self.version, weighed=True)


class Ready(Probing):
    """Takes the adapter that is there where the longer training is not feasible, else that."""

    def __init__(self) -> None:
        super().__init__("train:two")

    def decide(self, situation: Situation) -> Decision:
        self.arm = "train:two" if "train:two" in situation.feasible else situation.ready or "icl"
        return super().decide(situation)


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for recipe in (TWO, SEARCHED):
        monkeypatch.setitem(RECIPES, recipe.name, (recipe, recipe))
    yield


def open_two(open_router: OpenRouter, policy: Any, **options: Any) -> Router:
    return open_router(**({"recipe": "two", "policy": policy} | options))


def test_both_lengths_are_offered_and_the_shorter_costs_less(open_router: OpenRouter) -> None:
    policy = Probing("icl")
    open_two(open_router, policy).ask(TASK, QUERIES)
    before, after = policy.seen[-2:]
    for seen in (before, after):
        assert [a for a in seen.feasible if a.startswith("train:")] == ["train:two", SHORT]
        ratio = seen.costs.left_s(SHORT) / seen.costs.left_s("train:two")
        assert 0 < ratio < 1 and seen.costs.left_s("train:two") == seen.costs.train_s
    assert before.probe_feasible and not after.probe_feasible


def test_a_recipe_of_one_length_offers_one(open_router: OpenRouter) -> None:
    policy = Probing("icl")
    open_router(policy=policy).ask(TASK, QUERIES)
    assert policy.seen[-1].feasible == ("icl", "train:quick") and not policy.seen[-1].costs.others


@pytest.mark.parametrize("name", ["two", "searched"])
def test_the_shorter_training_goes_on_from_the_same_probe_and_ends_sooner(
    open_router: OpenRouter, tmp_path: Path, name: str
) -> None:
    long, short = (
        open_router(recipe=name, policy=Probing(arm), data_dir=tmp_path / arm).ask(TASK, QUERIES)
        for arm in (f"train:{name}", f"train:{name}-short")
    )
    assert (long.arm, short.arm) == (f"train:{name}", f"train:{name}-short")
    one, other = detail(long, "probe"), detail(short, "probe")
    assert one["logprob_after"] == pytest.approx(other["logprob_after"]) and one["steps"] == other["steps"]
    steps = [detail(receipt, "train")["steps"] for receipt in (long, short)]
    by_probe = [detail(receipt, "train")["of_these_by_probe"] for receipt in (long, short)]
    assert steps[1] < steps[0] and by_probe[0] == by_probe[1] > 0
    if name == "two":
        assert steps == [12, 10]


def test_the_shorter_training_may_be_asked_for_outright(open_router: OpenRouter) -> None:
    agent = open_two(open_router, AlwaysArm("icl"))
    receipt = agent.ask(TASK, QUERIES, arm="ttt:short")
    assert receipt.arm == SHORT and detail(receipt, "train")["steps"] == 10
    assert agent.parts.store.adapters.find(key_of(agent, TASK, TWO.shorter)) is not None
    assert agent.parts.store.adapters.find(key_of(agent, TASK, TWO)) is None
    again = agent.ask(TASK, QUERIES, arm="ttt:short")
    assert again.arm.startswith("reuse:") and again.texts == receipt.texts
    assert agent.ask(TASK, QUERIES, arm="ttt").arm == "train:two", "which has an adapter of its own"


def test_its_adapter_answers_what_is_worth_no_more(open_router: OpenRouter) -> None:
    agent = open_two(open_router, Probing(SHORT), worth_s=30.0)
    assert agent.ask(TASK, QUERIES).arm == SHORT
    assert agent.ask(TASK, QUERIES).arm.startswith("reuse:")
    assert agent.ask(TASK, QUERIES[:1]).arm.startswith("reuse:")
    assert agent.ask(TASK, QUERIES, worth_s=60.0, when="never").arm.startswith("reuse:")
    policy = Probing(SHORT)
    agent = open_two(open_router, policy, worth_s=60.0)
    dearer = agent.ask(TASK, QUERIES)
    assert dearer.arm == SHORT and "found" in detail(dearer, "train"), "decided anew, not trained anew"
    assert detail(dearer, "look-up") == {"hit": False, "ready": True} and dearer.step("guard") is None
    ready = policy.seen[-1]
    assert ready.ready == SHORT and further_seconds(ready, SHORT) == ready.costs.answer_s
    assert step_names(agent.ask(TASK, QUERIES)) == ["look-up", "answer"], "it was decided on for as much"
    patient = open_two(open_router, Probing("train:two"), worth_s=90.0)
    assert patient.ask(TASK, QUERIES).arm == "train:two"
    assert step_names(patient.ask(TASK, QUERIES, worth_s=RICH)) == ["look-up", "answer"], "the longer one's"


def test_behind_an_answer_the_longer_may_follow_the_shorter(open_router: OpenRouter) -> None:
    cheap = open_two(open_router, Probing(SHORT), worth_s=30.0)
    short = cheap.ask(TASK, QUERIES)
    assert short.arm == SHORT
    agent = open_two(open_router, Ready(), worth_s=60.0)
    at_once = agent.ask(TASK, QUERIES, when="background")
    assert (at_once.arm, at_once.texts) == (SHORT, short.texts), "with what is there"
    assert agent.settle(120)
    later = agent.ask(TASK, QUERIES, when="background")
    assert later.arm.startswith("reuse:") and later.adapter != short.adapter
    assert [r.arm for r in agent.history() if r.arm == "train:two"] == ["train:two"]


def test_where_training_is_asked_for_behind_an_answer_the_shorter_is_not_it(open_router: OpenRouter) -> None:
    agent = open_two(open_router, AlwaysArm("icl"))
    agent.ask(TASK, QUERIES, arm="ttt:short")
    assert agent.ask(TASK, QUERIES, arm="ttt", when="background").arm == "icl"
    assert agent.settle(120)
    assert agent.ask(TASK, QUERIES, arm="ttt").arm.startswith("reuse:")
    assert agent.parts.store.adapters.find(key_of(agent, TASK, TWO)) is not None


def test_a_deadline_is_no_reason_to_leave_an_adapter_that_is_there(open_router: OpenRouter) -> None:
    open_two(open_router, Probing(SHORT), worth_s=30.0).ask(TASK, QUERIES)
    agent = open_two(open_router, Ready(), worth_s=60.0)
    for _ in range(9):
        agent.parts.costs.observe("train", 100, 2e4)
    assert agent.ask(TASK, QUERIES, deadline_s=60.0).arm == SHORT


def test_the_shorter_training_begins_at_no_other_tasks_adapter(open_router: OpenRouter) -> None:
    agent = open_two(open_router, AlwaysArm("icl"), reuse="near")
    agent.ask(ok_task(10), QUERIES, arm="ttt")
    receipt = agent.ask(TASK, QUERIES, arm="ttt:short")
    assert receipt.arm == SHORT and "neighbours" not in step_names(receipt)


@pytest.mark.parametrize("name", ["two", "searched"])
def test_asked_for_outright_or_decided_on_it_is_the_same_training(
    open_router: OpenRouter, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = replace(RECIPES[name][0], warmup=0.9)  # the shorter one's own rate would rise faster
    monkeypatch.setitem(RECIPES, name, (rising, rising))
    decided = open_router(recipe=name, policy=Probing(f"train:{name}-short"), data_dir=tmp_path / "a")
    outright = open_router(recipe=name, data_dir=tmp_path / "b")
    one, other = decided.ask(TASK, QUERIES), outright.ask(TASK, QUERIES, arm="ttt:short")
    assert one.arm == other.arm == f"train:{name}-short"
    assert detail(one, "train")["last_loss"] == pytest.approx(detail(other, "train")["last_loss"], abs=1e-4)


def test_where_only_the_shorter_is_in_time_it_is_what_is_offered(open_router: OpenRouter) -> None:
    policy = Probing("icl")
    agent = open_two(open_router, policy)
    agent.ask(TASK, QUERIES)  # this machine's speed is known from here on
    costs = policy.seen[-1].costs
    for _ in range(9):
        agent.parts.costs.observe("train", 100, 2e4)  # and training takes hours on it
    n = len(policy.seen)
    agent.ask(TASK, QUERIES, when="never")
    slow = policy.seen[n].costs
    between = slow.probe_s + (slow.train_s + slow.left_s(SHORT)) / 2 + slow.answer_s
    n = len(policy.seen)
    agent.ask(TASK, QUERIES, deadline_s=between)
    assert slow.train_s > costs.train_s + 100
    first = policy.seen[n]
    assert [a for a in first.feasible if a.startswith("train:")] == [SHORT] and first.probe_feasible


@pytest.mark.parametrize(
    "options,match",
    [
        ({"recipe": "quick"}, "'quick' offers no shorter training; ask for ttt, or set its key short"),
        ({"when": "background"}, "trains before it answers"),
        ({"when": "never"}, "trains and when='never' forbids it"),
    ],
)
def test_a_shorter_training_that_can_not_be_is_refused(
    open_router: OpenRouter, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(RouterError, match=match):
        open_two(open_router, AlwaysArm("icl")).ask(TASK, QUERIES, arm="ttt:short", **options)
