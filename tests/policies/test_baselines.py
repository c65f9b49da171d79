import math

import pytest

from policies.baselines import AlwaysArm
from policies.errors import PolicyError
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
def test_an_infeasible_arm_falls_back_visibly_and_forced(feasible: tuple[str, ...], answers: str) -> None:
    decision = AlwaysArm(TRAIN).decide(situation(signals(), feasible=feasible))
    assert (decision.arm, decision.propensity) == (answers, 1.0)
    assert f"{TRAIN} is not feasible here, so {answers} answers instead" in decision.reason


def test_without_any_arm_to_fall_back_to_there_is_no_decision() -> None:
    with pytest.raises(PolicyError, match="icl or zero-shot must be among them"):
        AlwaysArm(TRAIN).decide(situation(signals(), feasible=(TRAIN,)))


def test_a_nan_signal_is_an_error_that_names_it() -> None:
    with pytest.raises(PolicyError, match="Signal query_margin is nan"):
        AlwaysArm(TRAIN).decide(situation(signals(query_margin=math.nan)))
