"""What a replayed decision has paid for, and which outcome it gets."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from policies.baselines import AlwaysArm
from policies.checks import further_seconds
from policies.errors import PolicyError
from policies.gain import GainModel
from policies.outcomes import TaskOutcome
from policies.replay import Asked, before_training_s, replay, situation_of
from policies.rule import Rule
from tests.policies.simulated import TRAIN, simulate
from tests.policies.situations import Looking

ROW = simulate(1, seed=3).rows[0]
ICL, TRAINED = ROW.arms["icl"], ROW.arms[TRAIN]
EAGER = Rule(
    GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0, logprob_weight=0.0, accuracy_weight=0.0), 10
)


def test_staying_costs_icl_alone() -> None:
    done = replay(AlwaysArm("icl"), ROW, 30.0)
    assert (done.arm, done.correct, done.seconds) == ("icl", ICL.correct, ICL.seconds)


def test_a_cascade_that_trains_has_paid_for_icl_probe_and_training() -> None:
    assert ROW.probe is not None
    better = replace(ROW, signals={**ROW.signals, "probe_logprob_after": -0.1, "probe_accuracy_after": 1.0})
    done = replay(EAGER, better, 1e5)
    assert done.probed and done.arm == TRAIN and done.correct == TRAINED.correct
    assert done.seconds == pytest.approx(ICL.seconds + ROW.probe.seconds + TRAINED.seconds)


def test_what_the_probe_has_trained_is_paid_for_once() -> None:
    assert ROW.probe is not None
    parts = {"train": 40.0, "answer": 6.0, "by_probe": 9.0}
    trained = replace(TRAINED, seconds=46.0, seconds_parts=parts)
    better = {**ROW.signals, "probe_logprob_after": -0.1, "probe_accuracy_after": 1.0}
    row = replace(ROW, signals=better, arms={**ROW.arms, TRAIN: trained})
    paid = ICL.seconds + ROW.probe.seconds + 37.0
    done = replay(EAGER, row, 1e5)
    assert done.probed and done.seconds == pytest.approx(paid)
    at_once = replay(AlwaysArm(TRAIN), row, 30.0)
    assert not at_once.probed and at_once.seconds == pytest.approx(paid), "the guard asks for the probe"
    before, after = situation_of(row, 30.0), situation_of(row, 30.0, probed=True)
    assert before.costs == after.costs and (before.costs.train_s, before.costs.by_probe_s) == (31.0, 9.0)
    assert further_seconds(before, TRAIN) == pytest.approx(ROW.probe.seconds + 37.0)
    assert further_seconds(after, TRAIN) == pytest.approx(37.0)


def test_trainings_of_one_probe_cost_what_is_left_of_each() -> None:
    assert ROW.probe is not None
    long = replace(TRAINED, seconds=46.0, seconds_parts={"train": 40.0, "answer": 6.0, "by_probe": 9.0})
    short = replace(
        TRAINED,
        seconds=26.0,
        seconds_parts={"search": 9.0, "train": 10.0, "answer": 7.0, "by_probe": 9.0},
        correct=0.4,
    )
    row = replace(ROW, arms={"icl": ICL, TRAIN: long, f"{TRAIN}-short": short})
    seen = situation_of(row, 30.0, probed=True)
    assert seen.feasible == ("icl", TRAIN, f"{TRAIN}-short")
    assert (seen.costs.left_s(TRAIN), seen.costs.left_s(f"{TRAIN}-short")) == (31.0, 10.0)
    assert further_seconds(seen, f"{TRAIN}-short") == pytest.approx(16.0)
    assert situation_of(row, 30.0, arms=("icl", f"{TRAIN}-short")).costs.train_s == 10.0
    done = replay(AlwaysArm(f"{TRAIN}-short"), row, 30.0)
    assert done.correct == 0.4 and done.seconds == pytest.approx(ICL.seconds + ROW.probe.seconds + 17.0)


def test_without_a_probe_to_go_on_from_a_training_is_whole() -> None:
    parts = {"train": 40.0, "answer": 6.0, "by_probe": 9.0}
    trained = replace(TRAINED, seconds=46.0, seconds_parts=parts)
    row = replace(ROW, probe=None, arms={**ROW.arms, TRAIN: trained})
    assert situation_of(row, 30.0).costs.train_s == 40.0
    assert replay(AlwaysArm(TRAIN), row, 30.0).seconds == pytest.approx(ICL.seconds + 46.0)


def test_signals_are_paid_for_only_where_they_are_read_and_can_change_the_decision() -> None:
    with_signals = replace(
        ROW, arms={**ROW.arms, "icl": replace(ICL, seconds_parts={"icl": ICL.seconds, "signals": 2.5})}
    )
    reads_loo = Looking("loo_accuracy", "icl")
    assert replay(reads_loo, with_signals, 30.0).seconds == pytest.approx(ICL.seconds + 2.5)
    parts = {"signals": 2.5, "leave-one-out": 1.0, "consistency": 1.5}
    in_parts = replace(ROW, arms={**ROW.arms, "icl": replace(ICL, seconds_parts=parts)})
    assert replay(reads_loo, in_parts, 30.0).seconds == pytest.approx(ICL.seconds + 1.0)
    assert replay(AlwaysArm("icl"), with_signals, 30.0).seconds == pytest.approx(ICL.seconds)
    assert replay(Rule(), with_signals, 1e-3).seconds == pytest.approx(ICL.seconds)


def test_the_probe_is_hidden_until_asked_for() -> None:
    before, after = situation_of(ROW, 30.0), situation_of(ROW, 30.0, probed=True)
    assert before.probe_feasible and not before.signals.probed
    assert not after.probe_feasible and after.signals.probed
    assert before.costs.train_s + before.costs.answer_s == pytest.approx(TRAINED.seconds)
    assert not situation_of(replace(ROW, probe=None), 30.0).probe_feasible


def test_a_row_without_icl_can_not_start_a_cascade() -> None:
    with pytest.raises(PolicyError, match="no outcome of icl"):
        replay(Rule(), replace(ROW, arms={TRAIN: TRAINED}), 30.0)


def sampled(sample_s: float = 1.5) -> TaskOutcome:
    parts = {"icl": ICL.seconds, "sample": sample_s}
    return replace(ROW, arms={**ROW.arms, "icl": replace(ICL, seconds_parts=parts)})


def test_a_sample_in_place_of_all_queries_is_paid_for_where_training_is_likely() -> None:
    row = sampled()
    better = {**ROW.signals, "probe_logprob_after": -0.1, "probe_accuracy_after": 1.0}
    row, unsampled = replace(row, signals=better), replay(EAGER, replace(ROW, signals=better), 1e5)
    done = replay(EAGER, row, 1e5)
    assert unsampled.probed and done.probed and done.arm == unsampled.arm == TRAIN
    assert done.seconds == pytest.approx(unsampled.seconds - ICL.seconds + 1.5)
    assert replay(AlwaysArm(TRAIN), row, 30.0).seconds == pytest.approx(
        replay(AlwaysArm(TRAIN), ROW, 30.0).seconds - ICL.seconds + 1.5
    )


def test_staying_after_a_sample_pays_for_it_and_for_all_of_icl() -> None:
    worse = {**ROW.signals, "probe_logprob_after": -9.0}
    row = replace(sampled(), signals=worse)
    done = replay(EAGER, row, 1e5)
    assert ROW.probe is not None
    assert done.probed and done.arm == "icl"
    assert done.seconds == pytest.approx(1.5 + ROW.probe.seconds + ICL.seconds)
    assert replay(AlwaysArm("icl"), row, 30.0).seconds == ICL.seconds, "who stays at once asks all at once"
    assert replay(Rule(), row, 1e-3).seconds == ICL.seconds


def test_before_any_query_was_asked_nothing_is_known_of_them_and_staying_owes_them() -> None:
    row = sampled()
    none, some, every = (situation_of(row, 30.0, asked=a, measured=False) for a in get_args(Asked))
    assert none.signals.query_logprob is None and none.signals.query_margin is None
    assert some.signals == every.signals and some.signals.query_logprob is not None
    assert none.costs == some.costs
    assert some.costs == replace(every.costs, rest_s=ICL.seconds) and every.costs.rest_s == 0
    assert before_training_s(row) == 1.5 and before_training_s(ROW) == ICL.seconds
