"""Statistics: against published values, against scipy, and against simulation."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from router.statistics import Pair, mcnemar_exact, paired_difference, wilson_interval


@pytest.mark.parametrize(("n_correct", "n"), [(0, 10), (1, 10), (16, 32), (127, 128), (128, 128)])
def test_wilson_interval_equals_scipy(n_correct: int, n: int) -> None:
    expected = binomtest(n_correct, n).proportion_ci(method="wilson")
    assert wilson_interval(n_correct, n) == pytest.approx((expected.low, expected.high))


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 correct of 4"):
        wilson_interval(5, 4)


def pairs(seed: int, n_families: int, n: int, gain: float) -> list[Pair]:
    rng = np.random.default_rng(seed)
    first = rng.random((n_families, n)) < 0.4
    second = rng.random((n_families, n)) < 0.4 + gain
    return [(a.astype(int).tolist(), b.astype(int).tolist()) for a, b in zip(first, second, strict=True)]


def test_difference_is_the_mean_over_all_queries_and_repeats_with_its_seed() -> None:
    families: list[Pair] = [([0, 0, 1, 0], [1, 1, 1, 0]), ([1, 1], [0, 1])]
    found = paired_difference(families, seed=1)
    assert found.mean == pytest.approx((2 - 1) / 6)
    assert found.low <= found.mean <= found.high
    assert found == paired_difference(families, seed=1)
    assert found.low >= -1 and found.high <= 1


def test_stratified_interval_has_the_width_of_the_normal_one() -> None:
    families = pairs(3, 6, 200, 0.2)
    differences = [np.subtract(b, a) for a, b in families]
    error = np.sqrt(sum(d.var() * len(d) for d in differences)) / 1200
    found = paired_difference(families, seed=0, resamples=8000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        found = paired_difference(pairs(seed, 4, 64, 0.1), seed=seed, resamples=400)
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 199


def test_resampling_families_is_wider_when_families_disagree() -> None:
    helped, harmed = ([0] * 50, [1] * 50), ([1] * 50, [0] * 50)
    families: list[Pair] = [helped, helped, helped, harmed]
    assert paired_difference(families, seed=0) == (0.5, 0.5, 0.5)
    found = paired_difference(families, seed=0, cluster=True)
    assert found.mean == 0.5
    assert found.low <= -0.4 and found.high == 1.0


@pytest.mark.parametrize(
    ("families", "told"),
    [
        ([], "0 families"),
        ([([], [])], "0 and 0 results"),
        ([([0, 1], [1])], "2 and 1 results"),
        ([([0, 2], [1, 1])], "2 is not a result"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(families: list[Pair], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        paired_difference(families, seed=0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 5))
def test_mcnemar_equals_the_binomial_test_on_discordant_queries(won: int, lost: int, tied: int) -> None:
    first, second = [0] * won + [1] * lost + [1] * tied, [1] * won + [0] * lost + [1] * tied
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected)


def test_mcnemar_of_very_many_queries_does_not_overflow() -> None:
    assert mcnemar_exact([0] * 2000, [1] * 2000) == 0.0
    assert mcnemar_exact([0, 1] * 1000, [1, 0] * 1000) == 1.0


def test_importing_it_loads_no_numpy() -> None:
    code = "import sys, router.statistics; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
