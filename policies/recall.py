"""What families of tasks have gained beyond what their signals foretold, found again by where a task lies.

A task's location (`Signals.location`, an embedding of its demonstrations) is hardly further from other tasks of its family
than from itself, and further from most others. So what a family has gained more, or less, than its signals foretold
is remembered at the mean location of its tasks, and counts for a new task by how near that is:

    extra = Σ k·k·n·r ÷ (Σ k·n + λ),     k = exp(−(1 − cosine) ÷ width),     λ = variance within ÷ variance between

over families with n rows and a mean residual r. Where one family is at hand (k = 1) and others are far (k = 0) this is the
best linear prediction of its effect from n noisy looks at it, n·r ÷ (n + λ) (Robinson 1991, doi:10.1214/ss/1177011926);
what is only like others counts by its likeness. Both variances are measured on families with several rows; where too few
have, or where it would foretell too little, nothing is remembered. A task that is like nothing seen is left to its signals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.features import Array
from policies.outcomes import TaskOutcome
from policies.types import Location

WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Cosine distances at which likeness may fall to 1/e; the one by which tasks are foretold best from others is taken."""
LOOKED_AT = 2048
"""Rows, at most, that a width is tried on."""
MIN_REPEATED = 8
"""Families of several rows, below which nothing is known of how alike their tasks are."""
DIGITS = 4
LEAST_TOLD = 0.1
"""Share of the unexplained variance that remembering must take away, seen on rows left out; less is not worth finding out where
each task lies."""
LEAST_SHRINK = 0.01
"""λ, at least, in rows: outcomes of one query each seem to have no noise."""


@dataclass(frozen=True)
class Memory:
    """The families that an arm's stage was fitted on. A value, and JSON."""

    space: str
    """Locations of others say nothing here."""
    points: tuple[tuple[float, ...], ...]
    """(families, size), of length 1."""
    counts: tuple[int, ...]
    """Rows of each."""
    residuals: tuple[float, ...]
    """Mean gain of each beyond what a model without it expected."""
    width: float
    shrink: float
    """λ, in rows."""
    share: float
    """Of the spread between tasks that look alike, what is their families', 0 to 1."""

    def __post_init__(self) -> None:
        n = len(self.points)
        if not n or {len(self.counts), len(self.residuals)} != {n} or len(set(map(len, self.points))) != 1:
            raise PolicyError("A policy's memory has arrays of different lengths; fit it again.")
        for row in (*self.points, self.residuals):
            for value in row:
                check_finite("A number in the policy's memory", value)
        for name, value, low, high in (
            ("width", self.width, 1e-6, 2.0),
            ("shrink", self.shrink, LEAST_SHRINK, np.inf),
            ("share", self.share, 0.0, 1.0),
        ):
            check_finite(f"The {name} of a policy's memory", value, low, high)
        if any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in self.counts):
            raise PolicyError("A policy's memory has a family without rows; fit it again.")

    def recall(self, location: Location | None) -> tuple[float, float]:
        """Extra gain that tasks near here had, shrunk, and how much of the families' part of the spread that settles,
        0 to 1. Both are 0 of a location in another space."""
        points, counts, residuals = self._arrays
        if location is None or location.space != self.space or len(location.point) != points.shape[1]:
            return 0.0, 0.0
        likeness = _likeness(points @ np.asarray(location.point), self.width)
        weights = likeness * likeness * counts / (likeness @ counts + self.shrink)
        return float(weights @ residuals), float(weights.sum())

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        return np.array(self.points), np.array(self.counts, dtype=np.float64), np.array(self.residuals)


def remember(
    rows: Sequence[TaskOutcome], residuals: Array, noise: Array, spread: Array, base_model: str | None
) -> Memory | None:
    """What can be remembered of these rows; None where in no space enough families have several.

    Args:
        residuals: gain less what a model without its family expected of each, shape (rows,).
        noise: variance of each that finitely many queries explain.
        spread: variance of the gain between tasks that look alike, at each.
        base_model: revision whose spaces alone count, if any row is of it; else that of most rows comes first.
    """
    located = [row for row in rows if row.location is not None]
    own = [row for row in located if row.model == base_model] or located
    spaces = Counter(row.location.space for row in own if row.location is not None)
    for space in sorted(spaces, key=lambda name: (-spaces[name], name)):
        there = [i for i, r in enumerate(rows) if r.location is not None and r.location.space == space]
        points = np.array([rows[i].location.point for i in there])  # type: ignore[union-attr]
        _, family = np.unique([rows[i].family for i in there], return_inverse=True)
        found = _remember(space, points, family, residuals[there], noise[there], spread[there])
        if found is not None:
            return found
    return None


def _remember(
    space: str, each: Array, family: Any, residuals: Array, noise: Array, spread: Array
) -> Memory | None:
    counts: Array = np.bincount(family).astype(np.float64)
    repeated = counts > 1
    if repeated.sum() < MIN_REPEATED:
        return None
    sums: Array = np.bincount(family, residuals).astype(np.float64)
    squares = np.bincount(family, residuals**2)
    pairs = counts[repeated] * (counts[repeated] - 1)
    between = float(np.mean((sums[repeated] ** 2 - squares[repeated]) / pairs))
    total = float(np.average(spread, weights=1 / counts[family]))
    share = min(max(between, 0.0) / total, 1.0)
    if share == 0.0:
        return None
    within = (1.0 - share) * total + float(np.average(noise, weights=1 / counts[family]))
    shrink = max(within / (share * total), LEAST_SHRINK)
    centres = np.zeros((len(counts), each.shape[1]))
    np.add.at(centres, family, each)
    width, told = _width(centres, counts, sums, each, family, residuals, shrink)
    if told < LEAST_TOLD:
        return None
    return Memory(
        space,
        tuple(tuple(row) for row in np.round(_unit(centres), DIGITS).tolist()),
        tuple(map(int, counts)),
        tuple((sums / counts).tolist()),
        width,
        shrink,
        share,
    )


def _width(
    centres: Array, counts: Array, sums: Array, each: Array, family: Any, residuals: Array, shrink: float
) -> tuple[float, float]:
    """The width by which each row is foretold best from all others, and the share of the residuals' variance that this
    takes away; families weigh alike.

    Args:
        centres: sum of the points of each family, (families, size).
        sums: of its residuals, (families,).
    """
    looked_at = np.unique(np.linspace(0, len(each) - 1, min(len(each), LOOKED_AT)).astype(int))
    own, left, points = family[looked_at], residuals[looked_at], each[looked_at]
    cosines = points @ _unit(centres).T
    every = np.arange(len(looked_at))
    cosines[every, own] = (points * _unit(centres[own] - points)).sum(1)
    n: Array = np.tile(counts, (len(looked_at), 1))
    n[every, own] -= 1
    total: Array = np.tile(sums, (len(looked_at), 1))
    total[every, own] -= left
    errors = []
    for width in WIDTHS:
        likeness = _likeness(cosines, width)
        extra = (likeness * likeness * total).sum(1) / ((likeness * n).sum(1) + shrink)
        errors.append(float(np.average((left - extra) ** 2, weights=1 / counts[own])))
    nothing = float(np.average(left**2, weights=1 / counts[own]))
    return WIDTHS[int(np.argmin(errors))], 1.0 - min(errors) / nothing if nothing else 0.0


def _unit(points: Array) -> Array:
    unit: Array = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return unit


def _likeness(cosines: Array, width: float) -> Array:
    likeness: Array = np.exp(-np.maximum(1.0 - cosines, 0.0) / width)
    return likeness


def memory_from_json(data: Any) -> Memory | None:
    """
    Raises:
        PolicyError: missing or unknown keys, or a parameter that is impossible.
    """
    if data is None:
        return None
    try:
        if set(data) != {f.name for f in fields(Memory)} or not isinstance(data["space"], str):
            raise KeyError("memory")
        lists = {name: tuple(data[name]) for name in ("counts", "residuals")}
        return Memory(**{**data, **lists, "points": tuple(map(tuple, data["points"]))})
    except (KeyError, TypeError) as error:
        raise PolicyError(f"The policy's memory can't be read ({error!r}); fit it again.") from error
