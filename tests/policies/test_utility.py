import math

import pytest

from policies.errors import PolicyError
from policies.utility import WORTH, breakeven_gain, utility, worth


def test_presets_go_from_impatient_to_thorough_and_balanced_is_the_default() -> None:
    assert WORTH["fast"] < WORTH["balanced"] < WORTH["accurate"]
    assert worth() == worth(prefer="balanced") == WORTH["balanced"]
    assert worth(prefer="accurate") == 300.0
    assert worth(worth_s=1_000_000) == 1e6


@pytest.mark.parametrize("bad", [0, -3.0, math.nan, math.inf, 1_000_001, 10**400, True])
def test_a_worth_out_of_range_is_refused_with_its_value_and_the_range(bad: float) -> None:
    with pytest.raises(PolicyError) as refused:
        worth(worth_s=bad)
    assert repr(bad) in str(refused.value)
    assert "above 0 and at most 1,000,000" in str(refused.value)


def test_an_unknown_preference_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match="'cheap'; choose one of fast, balanced, accurate"):
        worth(prefer="cheap")


def test_preference_and_figure_together_are_refused() -> None:
    with pytest.raises(PolicyError, match="give one of them"):
        worth(prefer="fast", worth_s=3)


def test_at_the_breakeven_gain_training_and_staying_have_equal_utility() -> None:
    gain = breakeven_gain(64.0, n_expected=32, worth_s=30.0)
    assert gain == pytest.approx(0.0667, abs=1e-4)
    assert utility(32 * (0.2 + gain), 64.0, 30.0) == pytest.approx(utility(32 * 0.2, 0.0, 30.0))


def test_a_breakeven_over_no_queries_is_refused() -> None:
    with pytest.raises(PolicyError, match="0 queries are expected"):
        breakeven_gain(64.0, 0, 30.0)
