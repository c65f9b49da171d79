"""Means over families, and how sure they are: the family is the unit, rows of one depend on each other.

Knows only arrays and names of families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from policies.features import Array

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean with a two-sided interval."""

    mean: float
    low: float
    high: float


class FamilyBootstrap:
    """Resamples whole families; the same draws for every figure, so that differences are paired.

    Below about ten families such an interval is too narrow.
    """

    def __init__(self, families: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        self._names, self._index, self._counts = np.unique(
            np.asarray(families), return_inverse=True, return_counts=True
        )
        rng = np.random.default_rng(seed)
        self._drawn = rng.integers(self.n, size=(resamples, self.n))

    @property
    def n(self) -> int:
        return len(self._names)

    def by_family(self, values: Array) -> Array:
        """Mean of each family, shape (families,), in the order of their sorted names."""
        return np.asarray(np.bincount(self._index, weights=values) / self._counts)

    def mean(self, values: Array) -> float:
        """Mean over families of their means."""
        return float(self.by_family(values).mean())

    def interval(self, values: Array, confidence: float = 0.95) -> Interval:
        """The mean with its bootstrap percentile interval."""
        return self.of_means([values], lambda means: means[0], confidence)

    def of_means(
        self, values: Sequence[Array], figure: Callable[[Array], Array], confidence: float = 0.95
    ) -> Interval:
        """A figure of several means, e.g. a ratio of differences.

        Args:
            values: each of shape (rows,).
            figure: from means of shape (values, resamples) to figures of shape (resamples,).
        """
        each = np.stack([self.by_family(v) for v in values])  # (values, families)
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = float(figure(each.mean(axis=1, keepdims=True))[0])
            drawn = figure(each[:, self._drawn].mean(axis=2))
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Interval(whole, whole, whole)
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(whole, float(low), float(high))
