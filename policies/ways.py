"""Ways to answer recorded tasks, side by side: a policy's, its baselines' and the oracle's.

The oracle knows the outcomes. The better of two noisy arms flatters it, so it is cross-fitted: it chooses on
one random half of the queries' outcomes and is scored on the other. It pays for ICL like any cascade, or for the sample
where one was timed and it trains.
Rows know no guard: training is taken as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from policies.errors import PolicyError
from policies.families import FamilyBootstrap
from policies.features import Array
from policies.learned import Learned
from policies.outcomes import SAMPLE, TaskOutcome
from policies.replay import before_training_s, replay
from policies.rule import Rule
from policies.types import SHORT, ArmName, Policy

ORACLE_SPLITS = 40


@dataclass(frozen=True, slots=True)
class Arms:
    """What rows can compare."""

    every: tuple[ArmName, ...]
    """Arms that all rows have an outcome of, icl first."""
    strong: ArmName
    """The arm of training among them that answers best, mean over families: its recipe is what a policy may choose beside
    icl. A policy that picks among several, or zero-shot, would win with what it never has."""

    @property
    def offered(self) -> tuple[ArmName, ...]:
        """What a router offers a policy: icl and, of one recipe, the training and its shorter one."""
        recipe = self.strong.removesuffix(SHORT)
        return ("icl", *(arm for arm in (recipe, f"{recipe}{SHORT}") if arm in self.every))


@dataclass(frozen=True, slots=True)
class Way:
    """What a way to answer did on every row. Arrays of shape (rows,)."""

    correct: Array
    """Share of the queries, 0 to 1."""
    seconds: Array
    trained: Array
    """1 where an arm other than icl answered."""
    probed: Array
    arms: tuple[ArmName, ...] = ()
    """That answered, one a row; empty where it is not one."""

    def utility(self, queries: Array, worth_s: float) -> Array:
        """Correct answers per task, less seconds ÷ worth."""
        return self.correct * queries - self.seconds / worth_s


def comparable(rows: Sequence[TaskOutcome]) -> list[TaskOutcome]:
    """Rows that have icl and a common arm of training. Episodes of a router have the training that was taken: where no
    arm is in all of them, these are the rows with the commonest."""
    usable = [row for row in rows if "icl" in row.arms]
    having = Counter(arm for row in usable for arm in row.arms if arm.startswith("train:"))
    if not having or max(having.values()) == len(usable):
        return usable
    commonest = max(sorted(having), key=having.__getitem__)
    return [row for row in usable if commonest in row.arms]


def common_arms(rows: Sequence[TaskOutcome]) -> Arms:
    """
    Raises:
        PolicyError: the rows have no arm of training in common, or not icl.
    """
    shared = set.intersection(*(set(row.arms) for row in rows)) if rows else set()
    trainings = sorted(arm for arm in shared if arm.startswith("train:"))
    if "icl" not in shared or not trainings:
        raise PolicyError(
            f"The {len(rows)} rows have in common the arms {sorted(shared)}; icl and an arm of training are needed in "
            "every row."
        )
    families = FamilyBootstrap([row.family for row in rows], resamples=1)
    strong = max(trainings, key=lambda arm: families.mean(_correct(rows, arm)))
    return Arms(("icl", *sorted(shared - {"icl"})), strong)


def all_ways(
    rows: Sequence[TaskOutcome],
    policies: Sequence[Policy],
    arms: Arms,
    worth_s: float,
    seed: int = 0,
) -> dict[str, Way]:
    """Every way to answer: the cross-fitted policy as `learned`, the baselines and the oracle. There is no oracle where
    a task has one judged query: it could not choose on one half and be scored on the other.

    Args:
        policies: one a row, each without that row's family.
        arms: of `rows`; random and threshold escalate to the strong one.
    """
    rule, strong = Rule(), arms.strong
    families = FamilyBootstrap([row.family for row in rows], resamples=1)
    ways = {f"always {arm}": fixed(rows, arm) for arm in arms.every}
    ways["rule"] = replayed(rows, [rule] * len(rows), arms.offered, worth_s)
    ways["learned"] = learned = replayed(rows, policies, arms.offered, worth_s)
    ways["random at equal budget"] = at_random(
        ways["always icl"], ways[f"always {strong}"], learned, families.mean
    )
    ways["confidence threshold"] = threshold(rows, strong, worth_s)
    if min(row.arms[arm].n_queries for row in rows for arm in arms.every) > 1:
        ways["oracle"] = oracle(rows, arms.every, worth_s, seed)
    return ways


def replayed(
    rows: Sequence[TaskOutcome], policies: Sequence[Policy], arms: Sequence[ArmName], worth_s: float
) -> Way:
    """What policies would have done, one a row; a learned one as it decides over the row's base model."""
    done = [replay(p, row, worth_s, arms=arms) for p, row in zip(at_hand(policies, rows), rows, strict=True)]
    return Way(
        np.array([d.correct for d in done]),
        np.array([d.seconds for d in done]),
        np.array([float(d.arm != "icl") for d in done]),
        np.array([float(d.probed) for d in done]),
        tuple(d.arm for d in done),
    )


def at_hand(policies: Sequence[Policy], rows: Sequence[TaskOutcome]) -> list[Policy]:
    """Each policy as it decides over its row's base model: a learned one counts for less on one that it knows too little of."""
    made: dict[tuple[int, str], Policy] = {}
    for policy, row in zip(policies, rows, strict=True):
        if (id(policy), row.model) not in made:
            own = policy.for_model(row.model) if isinstance(policy, Learned) else policy
            made[id(policy), row.model] = own
    return [made[id(policy), row.model] for policy, row in zip(policies, rows, strict=True)]


def fixed(rows: Sequence[TaskOutcome], arm: ArmName) -> Way:
    """The same arm always, which pays for itself alone."""
    seconds = np.array([row.arms[arm].seconds for row in rows])
    return Way(_correct(rows, arm), seconds, np.full(len(rows), float(arm != "icl")), np.zeros(len(rows)))


def at_random(weak: Way, strong: Way, budget: Way, mean: Callable[[Array], float]) -> Way:
    """In expectation: `strong` with the probability that spends what `budget` spends, else `weak`.

    Args:
        mean: of what is spent, over rows.
    """
    low, high, spent = (mean(way.seconds) for way in (weak, strong, budget))
    share = float(np.clip((spent - low) / (high - low), 0.0, 1.0)) if high > low else 0.0

    def mixed(a: Array, b: Array) -> Array:
        return (1.0 - share) * a + share * b

    return Way(
        mixed(weak.correct, strong.correct),
        mixed(weak.seconds, strong.seconds),
        np.full(len(weak.correct), share),
        np.zeros(len(weak.correct)),
    )


def threshold(rows: Sequence[TaskOutcome], strong: ArmName, worth_s: float) -> Way:
    """Train where ICL's answers are less likely than a threshold, which is chosen on the other families."""
    unsure = np.array([-(row.signals["query_logprob"] or 0.0) for row in rows])
    icl, trained = fixed(rows, "icl"), fixed(rows, strong)
    trained_s = np.array([before_training_s(row) for row in rows]) + trained.seconds
    stay_s = icl.seconds + np.array([row.arms["icl"].seconds_parts.get(SAMPLE, 0.0) for row in rows])
    queries = n_queries(rows)
    gain = (trained.correct - icl.correct) * queries - (trained_s - stay_s) / worth_s
    families = np.array([row.family for row in rows])
    _, index = np.unique(families, return_inverse=True)
    order = np.argsort(-unsure, kind="stable")
    taken = np.zeros(len(rows))
    for family in range(int(index.max()) + 1):
        others = order[index[order] != family]
        totals = np.concatenate([[0.0], np.cumsum(gain[others])])
        best = int(np.argmax(totals))
        limit = np.inf if best == 0 else unsure[others[best - 1]]
        taken[index == family] = unsure[index == family] >= limit
    return Way(
        np.where(taken > 0, trained.correct, icl.correct),
        np.where(taken > 0, trained_s, stay_s),
        taken,
        np.zeros(len(rows)),
    )


def oracle(rows: Sequence[TaskOutcome], arms: Sequence[ArmName], worth_s: float, seed: int) -> Way:
    """The arm of highest utility on one half of the outcomes, scored on the other; mean over random halves. Every arm
    needs at least two judged queries."""
    rng = np.random.default_rng(seed)
    queries = np.array([[row.arms[arm].n_queries for arm in arms] for row in rows])  # (rows, arms)
    right = np.rint(
        [[row.arms[arm].correct * row.arms[arm].n_queries for arm in arms] for row in rows]
    ).astype(int)
    paid = np.array(
        [
            [row.arms[arm].seconds + (before_training_s(row) if arm != "icl" else 0.0) for arm in arms]
            for row in rows
        ]
    )
    half, rest, served = queries // 2, queries - queries // 2, n_queries(rows)
    every = np.arange(len(rows))
    total = {name: np.zeros(len(rows)) for name in ("correct", "seconds", "trained")}
    for _ in range(ORACLE_SPLITS):
        seen = rng.hypergeometric(right, queries - right, half)
        chosen = np.argmax(seen / half * served[:, None] - paid / worth_s, axis=1)
        scored = (right - seen) / rest
        total["correct"] += scored[every, chosen]
        total["seconds"] += paid[every, chosen]
        total["trained"] += chosen != list(arms).index("icl")
    mean = {name: value / ORACLE_SPLITS for name, value in total.items()}
    return Way(mean["correct"], mean["seconds"], mean["trained"], np.zeros(len(rows)))


def n_queries(rows: Sequence[TaskOutcome]) -> Array:
    """Queries that each task's seconds serve, shape (rows,): asked, of which some may not be judged, and expected."""
    return np.array([row.n_expected for row in rows])


def _correct(rows: Sequence[TaskOutcome], arm: ArmName) -> Array:
    return np.array([row.arms[arm].correct for row in rows])
