import math

import pytest

from policies.baselines import AlwaysArm, FixedThreshold, RandomAtBudget
from policies.errors import PolicyError
from policies.types import Policy
from tests.policies.situations import TRAIN, probed, signals, situation


def test_always_takes_its_arm_and_charges_its_seconds() -> None:
    taken = AlwaysArm(TRAIN).decide(situation(probed()))
    assert (taken.step, taken.arm, taken.propensity, taken.expected_cost_s) == ("answer", TRAIN, 1.0, 60.0)
    unprobed = AlwaysArm(TRAIN).decide(situation(signals()))
    assert unprobed.expected_cost_s == 72.0, "it begins by the probe that judges it"
    outright = AlwaysArm(TRAIN).decide(situation(signals(), probe_feasible=False))
    assert outright.expected_cost_s == 60.0
    stayed = AlwaysArm("icl").decide(situation(signals()))
    assert (stayed.arm, stayed.propensity, stayed.expected_cost_s) == ("icl", 1.0, 0.0)


def test_zero_shot_beside_icl_costs_one_more_answer_but_nothing_where_it_has_answered() -> None:
    beside = situation(signals(), feasible=("icl", "zero-shot"))
    assert AlwaysArm("zero-shot").decide(beside).expected_cost_s == 10.0
    alone = situation(signals(n_demonstrations=0), feasible=("zero-shot",))
    assert AlwaysArm("zero-shot").decide(alone).expected_cost_s == 0.0


@pytest.mark.parametrize("feasible,answers", [(("icl", "zero-shot"), "icl"), (("zero-shot",), "zero-shot")])
@pytest.mark.parametrize(
    "policy",
    [AlwaysArm(TRAIN), FixedThreshold("loo_accuracy", 0.5, "below", TRAIN), RandomAtBudget(1.0, TRAIN, 0)],
)
def test_an_infeasible_arm_falls_back_visibly_and_forced(
    policy: Policy, feasible: tuple[str, ...], answers: str
) -> None:
    decision = policy.decide(situation(signals(), feasible=feasible))
    assert (decision.arm, decision.propensity) == (answers, 1.0)
    assert f"{TRAIN} is not feasible here, so {answers} answers instead" in decision.reason


def test_without_any_arm_to_fall_back_to_there_is_no_decision() -> None:
    with pytest.raises(PolicyError, match="icl or zero-shot must be among them"):
        AlwaysArm(TRAIN).decide(situation(signals(), feasible=(TRAIN,)))


@pytest.mark.parametrize(
    "direction,threshold,arm",
    [("below", 0.5, TRAIN), ("below", 0.3, "icl"), ("above", 0.3, "icl"), ("above", 0.2, TRAIN)],
)
def test_a_threshold_trains_strictly_on_its_side(direction: str, threshold: float, arm: str) -> None:
    policy = FixedThreshold("loo_accuracy", threshold, direction, TRAIN)  # type: ignore[arg-type]
    decision = policy.decide(situation(signals(loo_accuracy=0.3)))
    assert (decision.arm, decision.propensity) == (arm, 1.0)
    assert "loo_accuracy is 0.3" in decision.reason


def test_an_unknown_signal_or_direction_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="Unknown signal 'confidence'; choose one of n_demonstrations"):
        FixedThreshold("confidence", 0.5, "below", TRAIN)
    with pytest.raises(PolicyError, match="'under'"):
        FixedThreshold("agreement", 0.5, "under", TRAIN)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="threshold is nan"):
        FixedThreshold("agreement", math.nan, "below", TRAIN)


def test_a_signal_that_was_not_measured_never_trains() -> None:
    decision = FixedThreshold("agreement", 0.5, "below", TRAIN).decide(situation(signals()))
    assert decision.arm == "icl"
    assert "agreement was not measured" in decision.reason


def test_a_threshold_on_a_probe_signal_probes_first_and_stays_where_it_can_not() -> None:
    policy = FixedThreshold("probe_relative_gain", 0.3, "above", TRAIN)
    assert policy.decide(situation(signals())).step == "probe"
    assert policy.decide(situation(signals())).expected_cost_s == 12.0
    assert policy.decide(situation(signals(), probe_feasible=False)).arm == "icl"
    assert policy.decide(situation(probed())).arm == TRAIN
    assert policy.decide(situation(probed(probe_logprob_after=-0.8))).arm == "icl"


def test_random_takes_its_share_and_logs_the_probability_of_what_it_took() -> None:
    policy, here = RandomAtBudget(0.3, TRAIN, seed=1), situation(signals())
    decisions = [policy.decide(here) for _ in range(4000)]
    trained = [d for d in decisions if d.arm == TRAIN]
    assert len(trained) / 4000 == pytest.approx(0.3, abs=0.03)  # four standard errors
    assert {d.propensity for d in trained} == {0.3}
    assert {d.propensity for d in decisions if d.arm == "icl"} == {0.7}
    # Inverse propensities add up to the number of decisions, for each arm.
    assert sum(1 / d.propensity for d in trained) == pytest.approx(4000, rel=0.1)


def test_random_repeats_itself_by_seed_and_position_even_past_infeasible_tasks() -> None:
    here, nothing = situation(signals()), situation(signals(), feasible=("icl",))

    def arms(seed: int, third: bool) -> list[str | None]:
        policy = RandomAtBudget(0.5, TRAIN, seed)
        return [policy.decide(nothing if third and k == 2 else here).arm for k in range(40)]

    assert arms(7, third=False) == arms(7, third=False)
    assert arms(7, third=False) != arms(8, third=False)
    assert arms(7, third=True)[3:] == arms(7, third=False)[3:]


@pytest.mark.parametrize("share,arm", [(0.0, "icl"), (1.0, TRAIN)])
def test_a_share_of_all_or_nothing_is_certain(share: float, arm: str) -> None:
    policy = RandomAtBudget(share, TRAIN, seed=0)
    for _ in range(50):
        decision = policy.decide(situation(signals()))
        assert (decision.arm, decision.propensity) == (arm, 1.0)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(PolicyError, match="share is"):
        RandomAtBudget(share, TRAIN, seed=0)


@pytest.mark.parametrize("policy", [AlwaysArm(TRAIN), RandomAtBudget(0.5, TRAIN, 0)])
def test_a_nan_signal_is_an_error_that_names_it(policy: Policy) -> None:
    with pytest.raises(PolicyError, match="Signal query_margin is nan"):
        policy.decide(situation(signals(query_margin=math.nan)))
