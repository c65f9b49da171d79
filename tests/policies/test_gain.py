import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.gain import GainModel, headroom
from tests.policies.situations import probed, signals

MODEL = GainModel()


def test_headroom_is_what_the_better_of_two_measurements_leaves() -> None:
    assert headroom(signals(loo_accuracy=0.7)) == pytest.approx(0.3)
    assert headroom(probed(loo_accuracy=0.2, probe_accuracy_before=0.4)) == pytest.approx(0.6)
    assert headroom(signals(loo_accuracy=None)) == 1.0


def test_without_a_probe_the_gain_is_the_prior_share_of_the_headroom() -> None:
    gain = MODEL.estimate(signals(loo_accuracy=0.5))
    assert gain.expected == pytest.approx(0.5 * MODEL.prior_share)
    assert gain.optimistic == pytest.approx(0.5 * MODEL.optimistic_share)
    assert gain.low < 0 < gain.expected < gain.optimistic


def test_a_probe_that_moved_only_the_log_probability_still_promises_a_gain() -> None:
    gain = MODEL.estimate(probed(probe_accuracy_after=0.0))
    assert gain.expected > MODEL.estimate(signals()).expected
    assert gain.low > 0.05


def test_a_probe_that_moved_nothing_promises_less_than_the_prior() -> None:
    gain = MODEL.estimate(
        probed(probe_accuracy_after=0.0, probe_logprob_after=-1.0, probe_logprob_gain_low=-0.1)
    )
    assert 0 < gain.expected < MODEL.estimate(signals()).expected
    assert gain.low < 0


def test_more_demonstrations_shrink_less_and_know_more() -> None:
    few, many = MODEL.estimate(probed(n_demonstrations=4)), MODEL.estimate(probed(n_demonstrations=100))
    evidence = MODEL.logprob_weight * 0.6 + MODEL.accuracy_weight * 0.3
    assert MODEL.prior_share < few.expected < many.expected < evidence
    assert many.expected - many.low < few.expected - few.low


def test_a_noisier_log_probability_lowers_the_bound_but_not_the_expectation() -> None:
    sure, unsure = MODEL.estimate(probed()), MODEL.estimate(probed(probe_logprob_gain_low=-0.4))
    assert unsure.expected == sure.expected
    assert unsure.low < sure.low


def test_where_everything_is_right_already_there_is_nothing_to_gain() -> None:
    gain = MODEL.estimate(probed(loo_accuracy=1.0))
    assert (gain.expected, gain.optimistic) == (0.0, 0.0)


@pytest.mark.parametrize(
    "missing",
    ["probe_accuracy_before", "probe_accuracy_after", "probe_logprob_before", "probe_logprob_gain_low"],
)
def test_an_incomplete_probe_is_an_error_that_names_what_is_missing(missing: str) -> None:
    with pytest.raises(PolicyError, match=missing):
        MODEL.estimate(probed(**{missing: None}))


@pytest.mark.parametrize("name", [f.name for f in fields(GainModel)])
def test_a_constant_that_is_not_a_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(PolicyError, match=f"GainModel.{name} is nan"):
        replace(MODEL, **{name: math.nan})


def test_a_reuse_bound_above_its_expectation_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"reuse_share_low is 0\.5"):
        GainModel(reuse_share=0.2, reuse_share_low=0.5)


share = st.floats(0.0, 1.0)
nats = st.floats(-20.0, 0.0)


@given(
    n=st.integers(4, 200),
    before=share,
    after=share,
    loo=share,
    lp_before=nats,
    lp_after=nats,
    low=st.floats(-20, 20),
)
def test_gains_never_leave_the_headroom(
    n: int, before: float, after: float, loo: float, lp_before: float, lp_after: float, low: float
) -> None:
    gain = MODEL.estimate(
        probed(
            n_demonstrations=n,
            loo_accuracy=loo,
            probe_accuracy_before=before,
            probe_accuracy_after=after,
            probe_logprob_before=lp_before,
            probe_logprob_after=lp_after,
            probe_logprob_gain_low=low,
        )
    )
    assert -gain.headroom <= gain.low <= gain.expected <= gain.headroom


def test_the_check_of_the_adapter_itself_says_what_reusing_it_wins() -> None:
    model = GainModel()
    blind, checked = model.estimate_reuse(probed()), model.estimate_reuse(probed(), probed())
    assert checked.expected > blind.expected and checked.low > blind.low
    assert checked.expected < model.estimate(probed()).expected, "a short training wins more than it shows"
    worse = probed(probe_logprob_after=-1.5, probe_accuracy_after=0.0)
    assert model.estimate_reuse(probed(), worse).low < 0
    with pytest.raises(PolicyError, match="probe_accuracy_after unmeasured"):
        model.estimate_reuse(probed(), probed(probe_accuracy_after=None))
