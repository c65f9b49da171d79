"""Which families a way to answer leaves below in-context learning: beyond doubt, and by more than is tolerated.

A figure of 32 queries says little of one family: of many some look harmed by chance. So each is tested, corrected for how many
there are; and how often more than `TOLERATED` is lost is best read off more queries of the same tasks (`on_fresh`). No
decision rests on the right answers of any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from policies.errors import PolicyError
from policies.families import FamilyBootstrap, Interval
from policies.features import Array
from policies.outcomes import TaskOutcome
from policies.types import ArmName

TOLERATED = 0.02
"""A family is harmed when its accuracy falls by more than this below in-context learning's."""
LEVEL = 0.05
"""Probability of naming any family that is not below, at most."""


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979).

    Those at most α are rejected with a probability of any false rejection of at most α, whatever the
    dependence among the tests.

    Raises:
        ValueError: a value is not within 0 to 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"{p} is not a p-value; give values from 0 to 1.")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def p_below(rows: Sequence[TaskOutcome], correct: Array) -> dict[str, float]:
    """For each family the probability that so much is lost by chance: Fisher's exact test, one-sided, on what both ways have
    right over all its rows. Both answer the same queries; rows don't tell which, and to take them for different ones
    errs on the side of no difference.

    Args:
        correct: of the way to answer, shape (rows,), 0 to 1.
    """
    from scipy.stats import hypergeom

    counts: dict[str, Array] = {}
    for row, right in zip(rows, correct, strict=True):
        icl = row.arms["icl"]
        n = icl.n_queries
        here = np.rint([icl.correct * n, right * n, n])
        counts[row.family] = counts.get(row.family, np.zeros(3)) + here
    return {
        family: float(hypergeom.cdf(way, 2 * n, icl + way, n))
        for family, (icl, way, n) in sorted(counts.items())
    }


def below(p_values: dict[str, float]) -> list[str]:
    """Families that stay significant after Holm's correction."""
    adjusted = zip(p_values, holm(list(p_values.values())), strict=True)
    return [family for family, p in adjusted if p < LEVEL]


def share(k: int, n: int) -> Interval:
    """A share with its exact (Clopper–Pearson) 95 % interval."""
    from scipy.special import betaincinv

    low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return Interval(k / n, low, high)


def check_fresh(rows: Sequence[TaskOutcome], fresh: Sequence[TaskOutcome], arms: Sequence[ArmName]) -> None:
    """Make sure that fresh rows can judge what is done on `rows` by any of `arms`.

    Args:
        fresh: rows of (some of) the same tasks, on whatever machine, with more queries.

    Raises:
        PolicyError: no task stands in both, or a fresh row has no outcome of one of the arms.
    """
    tasks = {_task(row) for row in rows}
    if not any(_task(row) in tasks for row in fresh):
        raise PolicyError(
            f"None of the {len(fresh)} fresh rows is of a task of the {len(rows)} rows that are judged; collect them on "
            "the same families and seeds, with more queries."
        )
    for row in fresh:
        lacking = sorted(set(arms) - set(row.arms))
        if lacking:
            raise PolicyError(
                f"The fresh row of {row.family} lacks an outcome of {lacking[0]}; collect it with that arm."
            )


def _task(row: TaskOutcome) -> tuple[str, str, int, str]:
    return row.family, row.task, row.seed, row.model


def on_fresh(
    rows: Sequence[TaskOutcome], fresh: Sequence[TaskOutcome], taken: Sequence[ArmName]
) -> dict[str, Any]:
    """How much the arms that were taken on `rows` lose on more queries of the same tasks; plain values.

    Args:
        fresh: what `check_fresh` has let pass.
        taken: an arm a row.
    """
    others = {_task(row): row for row in fresh}
    pairs = [(others[_task(row)], arm) for row, arm in zip(rows, taken, strict=True) if _task(row) in others]
    judged = [row for row, _ in pairs]
    correct = np.array([row.arms[arm].correct for row, arm in pairs])
    families = FamilyBootstrap([row.family for row in judged])
    change = correct - np.array([row.arms["icl"].correct for row in judged])
    p_values = p_below(judged, correct)
    return {
        "n_families": families.n,
        "n_queries": min(row.arms["icl"].n_queries for row in judged),
        "share_trained": families.mean(np.array([float(arm != "icl") for _, arm in pairs])),
        "share_harmed": list(share(int((families.by_family(change) < -TOLERATED).sum()), families.n)),
        "change": list(families.interval(change)),
        "families_below": below(p_values),
        "least_p": min(p_values.values()),
    }
