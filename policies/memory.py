"""What families of tasks have gained beyond what their signals foretold, found again by where a task lies.

A task's embedding (`Signals.embedding`) is hardly further from another task of its family than from itself, and far from
all others. So what a family has gained more, or less, than the line over the signals says is remembered at the mean
embedding of its tasks, and counts for a new task by how near that is:

    extra = Σ k·n·r ÷ (Σ k·n + λ),     k = exp(−(1 − cosine) ÷ width),     λ = variance within ÷ variance between

over families with n rows and a mean residual r: the best linear prediction of a family's effect from n noisy looks at
it, shrunk towards no effect (Robinson 1991, doi:10.1214/ss/1177011926). Both variances are measured on families with
several rows; where too few have, nothing is remembered. A task that is like nothing seen is left to its signals.
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

WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Cosine distances at which likeness may fall to 1/e; the one that foretells best is taken."""
LOOKED_AT = 4096
"""Rows, at most, that a width is tried on."""
MIN_REPEATED = 8
"""Families of several rows, below which nothing is known of how alike their tasks are."""
DIGITS = 4


@dataclass(frozen=True)
class Memory:
    """The families that an arm's stage was fitted on. A value, and JSON."""

    base_model: str
    """Revision: embeddings of other models say nothing here."""
    points: tuple[tuple[float, ...], ...]
    """(families, size), of length 1."""
    counts: tuple[int, ...]
    """Rows of each."""
    residuals: tuple[float, ...]
    """Mean gain of each beyond what the stage's line says."""
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
            ("shrink", self.shrink, 0.0, np.inf),
            ("share", self.share, 0.0, 1.0),
        ):
            check_finite(f"The {name} of a policy's memory", value, low, high)
        if any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in self.counts):
            raise PolicyError("A policy's memory has a family without rows; fit it again.")

    def recall(self, embedding: Sequence[float]) -> tuple[float, float]:
        """Extra gain that tasks near `embedding` had, shrunk, and how much of the family's part of the spread that
        settles, 0 to 1. Both are 0 of an embedding made otherwise."""
        points, counts, residuals = self._arrays
        if len(embedding) != points.shape[1]:
            return 0.0, 0.0
        weight = _likeness(points @ np.asarray(embedding), self.width) * counts
        total = float(weight.sum())
        return float(weight @ residuals) / (total + self.shrink), total / (total + self.shrink)

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        return np.array(self.points), np.array(self.counts, dtype=np.float64), np.array(self.residuals)


def remember(
    rows: Sequence[TaskOutcome], residuals: Array, noise: Array, spread: Array, base_model: str | None
) -> Memory | None:
    """What can be remembered of these rows; None where too few families of the base model have several.

    Args:
        residuals: gain less what the line says of each, shape (rows,).
        noise: variance of each that finitely many queries explain.
        spread: variance of the gain between tasks that look alike, at each.
        base_model: revision; the one of most rows when None.
    """
    known = [i for i, row in enumerate(rows) if row.embedding is not None]
    models = Counter(rows[i].model for i in known)
    if not models:
        return None
    model = base_model if base_model and base_model in models else models.most_common(1)[0][0]
    known = [i for i in known if rows[i].model == model]
    known = [i for i in known if len(rows[i].embedding or ()) == len(rows[known[0]].embedding or ())]
    _, family = np.unique([rows[i].family for i in known], return_inverse=True)
    residuals, noise, spread = residuals[known], noise[known], spread[known]
    counts: Array = np.bincount(family).astype(np.float64)
    sums: Array = np.bincount(family, residuals).astype(np.float64)
    repeated = counts > 1
    if repeated.sum() < MIN_REPEATED:
        return None
    squares = np.bincount(family, residuals**2)
    pairs = counts[repeated] * (counts[repeated] - 1)
    between = float(np.mean((sums[repeated] ** 2 - squares[repeated]) / pairs))
    total = float(np.average(spread, weights=1 / counts[family]))
    share = min(max(between, 0.0) / total, 1.0)
    if share == 0.0:
        return None
    within = (1.0 - share) * total + float(np.average(noise, weights=1 / counts[family]))
    shrink = within / (share * total)
    each = np.array([rows[i].embedding for i in known])
    points = np.zeros((len(counts), each.shape[1]))
    np.add.at(points, family, each)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    width = _width(points, counts, sums, each, family, residuals, shrink)
    return Memory(
        model,
        tuple(tuple(row) for row in np.round(points, DIGITS).tolist()),
        tuple(map(int, counts)),
        tuple((sums / counts).tolist()),
        width,
        shrink,
        share,
    )


def _width(
    points: Array,
    counts: Array,
    sums: Array,
    each: Array,
    family: Any,
    residuals: Array,
    shrink: float,
) -> float:
    """The width by which each row is foretold best from all others, families weighing alike."""
    looked_at = np.unique(np.linspace(0, len(each) - 1, min(len(each), LOOKED_AT)).astype(int))
    own, left = family[looked_at], residuals[looked_at]
    cosines = each[looked_at] @ points.T
    every = np.arange(len(looked_at))
    errors = []
    for width in WIDTHS:
        weight = _likeness(cosines, width)
        mine = weight[every, own]
        extra = (weight @ sums - mine * left) / (weight @ counts - mine + shrink)
        errors.append(float(np.average((left - extra) ** 2, weights=1 / counts[own])))
    return WIDTHS[int(np.argmin(errors))]


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
        if set(data) != {f.name for f in fields(Memory)} or not isinstance(data["base_model"], str):
            raise KeyError("memory")
        lists = {name: tuple(data[name]) for name in ("counts", "residuals")}
        return Memory(**{**data, **lists, "points": tuple(map(tuple, data["points"]))})
    except (KeyError, TypeError) as error:
        raise PolicyError(f"The policy's memory can't be read ({error!r}); fit it again.") from error
