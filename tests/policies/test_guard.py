import math

import numpy as np
import pytest

from policies.errors import PolicyError
from policies.guard import CrossFit, TrainingSummary, Verdict, guard, shrunk_mcnemar

TRAINED = TrainingSummary(steps=16, first_loss=1.2, last_loss=0.1)


def evidence(before: str, after: str, changes: list[float]) -> CrossFit:
    """`before` and `after` as strings of 0 and 1; log-probabilities start at −1 nat."""
    return CrossFit(
        tuple(c == "1" for c in before),
        tuple(c == "1" for c in after),
        (-1.0,) * len(changes),
        tuple(-1.0 + c for c in changes),
    )


def accepted(
    p_before: float, p_after: float, change: float, *, change_sd: float = 0.5, n: int = 10, trials: int = 3000
) -> float:
    """Share of simulated adapters that the guard accepts; items are independent, before and after too."""
    random, accepts = np.random.default_rng(0), 0
    for _ in range(trials):
        before = -np.abs(random.normal(1.0, 0.5, n))
        after = before + random.normal(change, change_sd, n)
        crossfit = CrossFit(
            tuple((random.random(n) < p_before).tolist()),
            tuple((random.random(n) < p_after).tolist()),
            tuple(before.tolist()),
            tuple(after.tolist()),
        )
        accepts += guard(crossfit, TRAINED).accept
    return accepts / trials


def test_an_adapter_that_helps_on_held_out_demonstrations_is_accepted_with_its_figures() -> None:
    verdict = guard(evidence("0000000011", "0011110011", [0.5, 0.4, 0.6] * 3 + [0.5]), TRAINED)
    assert verdict.accept
    assert (verdict.gained, verdict.lost, verdict.n_held_out) == (4, 0, 10)
    assert verdict.logprob_change == pytest.approx(0.5)
    assert verdict.logprob_change_low is not None and verdict.logprob_change_low > 0.4
    assert verdict.reason.startswith(
        "No evidence of harm: of 10 held-out demonstrations 0 were lost and 4 gained"
    )


def test_ten_demonstrations_catch_most_harm_that_both_measures_show() -> None:
    assert accepted(0.6, 0.4, -0.2) < 0.25


def test_harm_that_the_log_probability_hides_passes_nearly_every_second_time() -> None:
    assert 0.35 < accepted(0.6, 0.4, 0.0) < 0.55


def test_a_useless_adapter_is_accepted_about_two_times_in_three() -> None:
    assert 0.6 < accepted(0.5, 0.5, 0.0) < 0.8


def test_a_useful_adapter_is_hardly_ever_refused() -> None:
    assert accepted(0.2, 0.6, 0.4) > 0.98


def test_thirty_demonstrations_tell_more_than_ten() -> None:
    assert accepted(0.6, 0.4, 0.0, n=30) < accepted(0.6, 0.4, 0.0, n=10) - 0.05


def test_two_held_out_demonstrations_could_not_have_told() -> None:
    """Why the guard asks for more: an adapter that does nothing wins or ties 69 % of the time on two."""
    random = np.random.default_rng(0)
    before, after = random.binomial(2, 0.5, 20_000), random.binomial(2, 0.5, 20_000)
    assert np.mean(after > before) == pytest.approx(0.32, abs=0.02)
    assert np.mean(after == before) == pytest.approx(0.37, abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_held_out_demonstrations_are_no_evidence(n: int) -> None:
    verdict = guard(evidence("0" * n, "1" * n, [0.9] * n), TRAINED)
    assert not verdict.accept
    assert "Too few demonstrations to tell" in verdict.reason


def test_a_clear_fall_of_the_log_probability_is_vetoed_even_where_accuracy_holds() -> None:
    verdict = guard(evidence("1100", "1100", [-0.5, -0.4, -0.6, -0.5]), TRAINED)
    assert not verdict.accept
    assert verdict.reason.startswith("Harm: the held-out log-probability changed by -0.50 nats per token")


def test_three_lost_and_none_gained_is_vetoed_even_where_the_log_probability_rose() -> None:
    rose = [0.3] * 10
    assert not guard(evidence("1110000000", "0000000000", rose), TRAINED).accept
    assert guard(evidence("1110000000", "0010000000", rose), TRAINED).accept
    assert guard(evidence("1110000000", "0001000000", rose), TRAINED).accept


def test_two_weak_signs_of_harm_are_a_veto_where_either_alone_is_not() -> None:
    noisy_fall, noisy_rise = [1.0, -1.2] * 5, [1.2, -1.0] * 5
    both = guard(evidence("1" * 10, "0" + "1" * 9, noisy_fall), TRAINED)
    assert not both.accept and both.reason.startswith("Both point to harm")
    assert guard(evidence("1" * 10, "1" * 10, noisy_fall), TRAINED).accept
    assert guard(evidence("1" * 10, "0" + "1" * 9, noisy_rise), TRAINED).accept


def test_the_shrunk_test_is_an_exact_binomial_tail_with_one_more_on_either_side() -> None:
    assert shrunk_mcnemar(3, 0) == pytest.approx(6 / 32)
    assert shrunk_mcnemar(0, 0) == pytest.approx(3 / 4)
    assert shrunk_mcnemar(2, 2) > 0.5


@pytest.mark.parametrize(
    "training,says",
    [
        (TrainingSummary(0, 1.0, 1.0), "0 steps"),
        (TrainingSummary(8, 1.0, math.nan), "not finite"),
        (TrainingSummary(8, 1.0, 2.5), "rose from 1.00 to 2.50 nats per token"),
    ],
)
def test_a_training_that_failed_is_vetoed_whatever_the_evidence(training: TrainingSummary, says: str) -> None:
    verdict: Verdict = guard(evidence("0000", "1111", [0.9] * 4), training)
    assert not verdict.accept
    assert says in verdict.reason


def test_evidence_that_the_policy_has_weighed_is_not_judged_again_but_training_is() -> None:
    harm = evidence("1111111111", "0000000000", [-1.0] * 10)
    assert not guard(harm, TRAINED).accept
    assert guard(harm, TRAINED, weighed=True).accept
    assert not guard(harm, TrainingSummary(16, 0.1, 1.2), weighed=True).accept
    lost = evidence("1111", "0000", [-0.5, math.nan, -0.5, -0.5])
    assert not guard(lost, TRAINED, weighed=True).accept


def test_a_log_probability_lost_to_nan_is_a_veto_after_training_and_an_error_before() -> None:
    assert not guard(evidence("0000", "1111", [0.9, math.nan, 0.9, 0.9]), TRAINED).accept
    with pytest.raises(PolicyError, match="demonstration 2 has log-probability nan before training"):
        CrossFit((True,) * 2, (True,) * 2, (-1.0, math.nan), (-1.0, -1.0))


def test_evidence_that_is_not_paired_is_refused() -> None:
    with pytest.raises(PolicyError, match="4, 4, 4, 3 entries"):
        CrossFit((True,) * 4, (True,) * 4, (-1.0,) * 4, (-1.0,) * 3)
