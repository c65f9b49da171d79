"""Two lengths of training: each is learned of, and which one is taken hangs on what a correct answer is worth."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from policies.baselines import AlwaysArm
from policies.checks import further_seconds
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.explore import Exploring
from policies.learned import fit
from policies.outcomes import TaskOutcome
from policies.replay import replay, situation_of
from policies.rule import Rule
from policies.types import SHORT, Costs
from policies.ways import all_ways, common_arms, comparable
from tests.policies.simulated import TRAIN, Simulated, simulate

SHORTER = f"{TRAIN}{SHORT}"


def with_shorter(simulated: Simulated, share: float = 0.85, seed: int = 0) -> list[TaskOutcome]:
    """Half of the seconds left after the probe win `share` of the gain."""
    rng = np.random.default_rng(seed)
    rows = []
    for row, truth in zip(simulated.rows, simulated.truth, strict=True):
        long = row.arms[TRAIN]
        chance = truth["icl"] + share * (truth[TRAIN] - truth["icl"])
        train_s = long.seconds_parts["train"] / 2
        parts = {"train": train_s, "answer": long.seconds_parts["answer"]}
        short = replace(
            long,
            correct=rng.binomial(long.n_queries, chance) / long.n_queries,
            seconds=sum(parts.values()),
            seconds_parts=parts,
        )
        rows.append(replace(row, arms={**row.arms, SHORTER: short}))
    return rows


SEEN = with_shorter(simulate(150, 2, seed=1))
UNSEEN = with_shorter(simulate(150, seed=2), seed=1)
POLICY, _ = fit(SEEN)
OFFERED = ("icl", TRAIN, SHORTER)


def shares(worth_s: float) -> dict[str, float]:
    taken = [replay(POLICY, row, worth_s, arms=OFFERED).arm for row in UNSEEN]
    return {arm: taken.count(arm) / len(taken) for arm in OFFERED}


def utility(arms: tuple[str, ...], worth_s: float) -> float:
    done = [replay(POLICY, row, worth_s, arms=arms) for row in UNSEEN]
    return mean(32 * r.correct - r.seconds / worth_s for r in done)


def test_the_longer_training_is_taken_the_more_the_more_an_answer_is_worth() -> None:
    cheap, dear = shares(8.0), shares(1000.0)
    assert cheap[SHORTER] > 0.05 and dear[TRAIN] > 0.3
    assert (
        cheap[SHORTER] / (cheap[SHORTER] + cheap[TRAIN]) > dear[SHORTER] / (dear[SHORTER] + dear[TRAIN]) + 0.2
    )


@pytest.mark.parametrize("worth_s", [6.0, 30.0, 300.0])
def test_to_choose_among_two_lengths_is_no_worse_than_to_have_one(worth_s: float) -> None:
    both = utility(OFFERED, worth_s)
    assert both > max(utility(("icl", arm), worth_s) for arm in (TRAIN, SHORTER)) - 0.2


def test_the_rule_which_knows_no_lengths_takes_the_whole_training() -> None:
    taken = {replay(Rule(), row, 1e5, arms=OFFERED).arm for row in UNSEEN}
    assert taken == {"icl", TRAIN}


def test_a_cost_of_another_training_that_is_no_number_is_refused_by_name() -> None:
    here = situation_of(UNSEEN[0], 30.0)
    with pytest.raises(PolicyError, match=f"Cost of {SHORTER} is nan"):
        POLICY.decide(replace(here, costs=replace(here.costs, others={SHORTER: float("nan")})))
    assert Costs(1.0, 2.0, 3.0).left_s(SHORTER) == 2.0


def test_an_adapter_that_is_there_costs_an_answer_and_no_probe() -> None:
    here = situation_of(UNSEEN[0], 30.0)
    there = replace(here, ready=SHORTER, costs=replace(here.costs, others={}))
    assert further_seconds(there, SHORTER) == there.costs.answer_s
    gained = [(POLICY.decide(replace(situation_of(row, 8.0), ready=SHORTER)), row) for row in UNSEEN]
    taken = [decision for decision, _ in gained if decision.arm == SHORTER]
    assert taken and all(decision.step == "answer" for decision in taken)
    without = [POLICY.decide(situation_of(row, 8.0)).arm or "probe" for row in UNSEEN]
    assert len(taken) > sum(arm not in ("icl", "probe") for arm in without)
    alone = replace(there, feasible=("icl", SHORTER), probe_feasible=False, worth_s=1e5)
    assert POLICY.decide(alone).arm == Rule().decide(alone).arm == SHORTER
    assert "adapter of a shorter training" in Rule().decide(alone).reason


def test_where_only_the_shorter_is_in_time_the_rule_weighs_its_seconds_and_nothing_is_tried_behind() -> None:
    here = situation_of(UNSEEN[0], 30.0)
    costs = replace(here.costs, train_s=1e6, others={SHORTER: 0.0})
    decision = Rule().decide(replace(here, feasible=("icl", SHORTER), costs=costs))
    same = Rule().decide(replace(here, feasible=("icl", TRAIN), costs=replace(costs, train_s=0.0)))
    assert (decision.step, decision.expected_cost_s) == (same.step, same.expected_cost_s)
    tried = Exploring(AlwaysArm("icl"), 1e9, seed=0).decide(replace(here, feasible=("icl", SHORTER)))
    assert tried.shadow is None and tried.shadow_propensity == 0.0


def test_evaluation_offers_both_lengths_of_one_recipe_and_no_other() -> None:
    other = "train:other"
    rows = [replace(row, arms={**row.arms, other: replace(row.arms[TRAIN], correct=0.0)}) for row in UNSEEN]
    arms = common_arms(rows)
    assert arms.strong == TRAIN and arms.offered == replace(arms, strong=SHORTER).offered == OFFERED
    assert replace(arms, strong=other).offered == ("icl", other)
    for arm in OFFERED:
        way = all_ways(rows, [AlwaysArm(arm)] * len(rows), arms, 30.0)["learned"]
        assert way.correct == pytest.approx([row.arms[arm].correct for row in rows])
    report = evaluate(UNSEEN, worths={"fast": 6.0})
    ways = report["worths"]["fast"]["ways"]
    assert {f"always {TRAIN}", f"always {SHORTER}"} < set(ways)
    assert ways["oracle"]["utility"][0] > ways["learned"]["utility"][0]


def test_episodes_that_took_either_length_are_compared_by_the_commoner() -> None:
    """A router runs one of the two; no arm is in all rows then."""

    def without(row: TaskOutcome, arm: str) -> TaskOutcome:
        return replace(row, arms={name: of for name, of in row.arms.items() if name != arm})

    rows = [without(row, TRAIN if i % 3 == 0 else SHORTER) for i, row in enumerate(UNSEEN)]
    kept = comparable(rows)
    assert kept == [row for i, row in enumerate(rows) if i % 3] and TRAIN in common_arms(kept).every
    assert comparable(UNSEEN) == UNSEEN
    assert evaluate(rows, worths={"balanced": 30.0})["n_rows"] == 100
