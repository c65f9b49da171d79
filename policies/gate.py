"""Which policy is in force: a candidate must beat the incumbent on paired evidence, and keep its promise.

Evidence is shadow outcomes: rows in which every arm was run, so that both policies' choices on the same task
have known outcomes. They choose between icl and one recipe's trainings, as in a router. Families that the
candidate was fitted on count only where the rows are exactly those of its fit (those of the package, which are
among them by default, need not be); then each family is decided by a refit without it. Families that the incumbent
was fitted on are in its favour, which is the careful side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from policies.errors import PolicyError
from policies.evaluation import cross_fitted
from policies.families import FamilyBootstrap
from policies.features import Array
from policies.learned import Learned
from policies.outcomes import TaskOutcome, hash_rows
from policies.types import Policy
from policies.ways import common_arms, comparable, fixed, n_queries, replayed

MIN_EVIDENCE = 12
"""Families; a bound on fewer rests on the shape of the distribution."""
CONFIDENCE = 0.95
"""One-sided, of the bounds that promote and revert."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether to promote, and why. Advantages are in correct answers per task, costs taken off."""

    promote: bool
    reason: str
    advantage: float
    advantage_low: float
    n_families: int
    more_families: int | None
    """How many further ones would show an advantage of this size; None where no number would."""


def gate(
    candidate: Learned,
    incumbent: Policy,
    rows: Sequence[TaskOutcome],
    worth_s: float,
    *,
    further: Sequence[TaskOutcome] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Gate:
    """Compare two policies on the same tasks.

    Args:
        further: what the candidate may have been fitted on besides `rows`; nobody is judged by these.

    Raises:
        PolicyError: rows without the outcomes that both need, or none that the candidate was not fitted on.
    """
    usable, policies = _fair(candidate, rows, further, progress)
    arms = common_arms(usable)
    queries, families = n_queries(usable), FamilyBootstrap([row.family for row in usable])

    def utility(of: Sequence[Policy]) -> Array:
        return families.by_family(replayed(usable, of, arms.offered, worth_s).utility(queries, worth_s))

    new, old = utility(policies), utility([incumbent] * len(usable))
    mean, low, spread = _bound(new - old)
    floors = {
        f"always {arm}": float(families.by_family(fixed(usable, arm).utility(queries, worth_s)).mean())
        for arm in arms.every
    }
    floor = max(floors, key=lambda name: floors[name])
    what = (
        f"on {families.n} families {candidate.version} brings {mean:+.2f} correct answers per task against "
        f"{incumbent.version}, cost taken off (at least {low:+.2f}, {CONFIDENCE:.0%} sure)"
    )
    more = _more(mean, spread, families.n)
    if families.n < MIN_EVIDENCE:
        n = max(more or 0, MIN_EVIDENCE - families.n)
        return Gate(
            False,
            f"Too little evidence: {what}; at least {MIN_EVIDENCE} families are needed.",
            mean,
            low,
            families.n,
            n,
        )
    if low <= 0:
        needed = (
            f"about {more} more families would show an advantage of this size"
            if more is not None
            else "no number of tasks like these would show an advantage"
        )
        return Gate(False, f"Not promoted: {what}; {needed}.", mean, low, families.n, more)
    if new.mean() < floors[floor]:
        reason = (
            f"Not promoted: {what}, but {floor} brings {floors[floor] - new.mean():.2f} more than it: a fixed arm is "
            "the better choice here."
        )
        return Gate(False, reason, mean, low, families.n, None)
    return Gate(True, f"{what[0].upper()}{what[1:]}.", mean, low, families.n, 0)


def _fair(
    candidate: Learned,
    rows: Sequence[TaskOutcome],
    further: Sequence[TaskOutcome],
    progress: Callable[[int, int], None],
) -> tuple[list[TaskOutcome], list[Learned]]:
    """Rows that may judge the candidate, and for each the policy to judge: itself, or a refit without the family."""
    usable = comparable(rows)
    for besides in (further, ()):
        if hash_rows([*besides, *rows]) == candidate.provenance.rows_sha256:
            how = candidate.provenance.base_model
            return usable, cross_fitted(
                usable, further=besides, confidence=candidate.confidence, base_model=how, progress=progress
            )
    seen = set(candidate.provenance.families)
    fresh = [row for row in usable if row.family not in seen]
    if not fresh:
        raise PolicyError(
            f"{candidate.version} was fitted on all {len({row.family for row in rows})} families of these rows, though not "
            "on exactly these: judge it on other families, or on the very rows that it was fitted on."
        )
    return fresh, [candidate] * len(fresh)


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether the gains that a policy promised came true. Gains are P(correct) per query."""

    n_tasks: int
    promised: float
    realised: float
    realised_low: float
    realised_high: float
    """One-sided 95 % bounds."""
    below: bool
    """The realised gain lies below the promise, beyond chance."""

    @property
    def sentence(self) -> str:
        return (
            f"On {self.n_tasks} trained tasks {self.promised:+.2f} correct answers per query were promised and "
            f"{self.realised:+.2f} came true (between {self.realised_low:+.2f} and {self.realised_high:+.2f}): "
            + ("below the promise." if self.below else "no evidence that it is below the promise.")
        )


def kept(promised: Sequence[float], realised: Sequence[float], families: Sequence[str]) -> Kept | None:
    """Compare promises with what came true, family by family; None below twelve families.

    Raises:
        PolicyError: the three differ in length.
    """
    if not len(promised) == len(realised) == len(families):
        raise PolicyError("Promised gains, realised gains and families must be one of each per task.")
    if len(set(families)) < MIN_EVIDENCE:
        return None
    means = FamilyBootstrap(families, resamples=1)
    mean, low, _ = _bound(means.by_family(np.asarray(realised, float)))
    short, short_low, _ = _bound(means.by_family(np.asarray(promised, float) - np.asarray(realised, float)))
    return Kept(len(promised), mean + short, mean, low, 2 * mean - low, short_low > 0)


def _bound(values: Array) -> tuple[float, float, float]:
    """Mean over families, its one-sided lower bound (Student's t), and the standard deviation."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    spread = float(values.std(ddof=1))
    return mean, mean - float(stdtrit(n - 1, CONFIDENCE)) * spread / math.sqrt(n), spread


def _more(mean: float, spread: float, n: int) -> int | None:
    """Further families until the bound of an advantage of this size is above 0; None where it is not positive."""
    if mean <= 0 or not math.isfinite(spread):
        return None
    total = max(n, MIN_EVIDENCE)
    while mean <= float(stdtrit(total - 1, CONFIDENCE)) * spread / math.sqrt(total):
        total = math.ceil(total * 1.02) + 1
        if total > 10_000_000:
            return None
    return total - n
