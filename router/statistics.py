"""How sure a difference of accuracies is: intervals, paired resampling, exact tests.

Everything is computed from lists of right and wrong (1 and 0), paired by query. Knows nothing of arms,
tasks or reports. Intervals are of 95 % unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

Pair = tuple[Sequence[int], Sequence[int]]
"""Right (1) or wrong (0) of two arms on the same queries, in the same order."""


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    mean: float
    low: float
    high: float


def wilson_interval(n_correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of an accuracy, 0 to 1; (0, 1) when nothing was asked.

    Unlike mean ± 1.96 standard errors it keeps its coverage near 0 and 1 and in small samples
    (Wilson 1927). The queries of one task share its demonstrations: it says nothing of other tasks.

    Raises:
        ValueError: `n_correct` is not within 0 to `n`.
    """
    if not 0 <= n_correct <= n:
        raise ValueError(f"{n_correct} correct of {n} is impossible; give 0 ≤ correct ≤ n.")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = n_correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if n_correct == 0 else centre - half
    high = 1.0 if n_correct == n else centre + half
    return Interval(low, high)


def paired_difference(
    families: Sequence[Pair],
    seed: int,
    resamples: int = 2000,
    *,
    cluster: bool = False,
    confidence: float = 0.95,
) -> Difference:
    """Mean over all queries of `second − first`, pooled over families, with a bootstrap percentile interval.

    Args:
        families: for each family (first, second), the two arms' 0/1 on the same queries.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap draws.
        cluster: False resamples queries within each family, so the interval is about further queries
            of *these* families. True resamples whole families, so it is about further families; it needs
            many (below about ten it is too narrow).
        confidence: of the interval.

    When all differences are equal the interval has no width: that is the bootstrap's blindness, not
    certainty.

    Raises:
        ValueError: no family, an empty one, unequal lengths, or a value that is not 0 or 1.
    """
    import numpy as np

    if not families:
        raise ValueError("There are 0 families to compare; give at least one.")
    for pair in families:
        _check(pair)
    rng = np.random.default_rng(seed)
    sizes = np.array([len(first) for first, _ in families])  # (families,)
    gains = np.array([_discordant(pair) for pair in families])  # (families, 2): won, lost by the second arm
    totals = gains[:, 0] - gains[:, 1]  # (families,)
    mean = float(totals.sum() / sizes.sum())
    if cluster:
        chosen = rng.integers(len(sizes), size=(resamples, len(sizes)))  # (resamples, families)
        means = totals[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    else:
        # Drawing n queries with replacement is a multinomial draw of won, lost and tied ones.
        drawn = np.zeros(resamples)
        for n, (won, lost) in zip(sizes, gains, strict=True):
            counts = rng.multinomial(n, [won / n, lost / n, (n - won - lost) / n], size=resamples)
            drawn += counts[:, 0] - counts[:, 1]
        means = drawn / sizes.sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(mean, float(low), float(high))


def mcnemar_exact(first: Sequence[int], second: Sequence[int]) -> float:
    """Two-sided p-value of the exact McNemar (sign) test that two arms are right equally often.

    Only queries on which exactly one arm is right count: under the null hypothesis the second arm wins
    each with probability ½. Without such queries it is 1.

    Raises:
        ValueError: unequal lengths, no query, or a value that is not 0 or 1.
    """
    _check((first, second))
    won, lost = _discordant((first, second))
    n = won + lost
    tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _check(pair: Pair) -> None:
    first, second = pair
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} results can't be paired; give equally many, not 0.")
    odd = [value for value in (*first, *second) if value not in (0, 1)]
    if odd:
        raise ValueError(f"{odd[0]!r} is not a result; give 0 for wrong and 1 for right.")


def _discordant(pair: Pair) -> tuple[int, int]:
    """Queries that only the second arm has right, and only the first."""
    first, second = pair
    won = sum(1 for a, b in zip(first, second, strict=True) if b > a)
    return won, sum(1 for a, b in zip(first, second, strict=True) if a > b)
