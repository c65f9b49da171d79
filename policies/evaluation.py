"""How good a learned policy is on families it never saw, against every baseline that it must beat.

Each task is decided by a policy fitted without its family (or without its collection, or without that task, while others
of its family are known; then up to a 150th of all tasks is left out together). All figures are
means over families with family-bootstrap intervals (95 %), paired between ways. Utility is in correct
answers per task: Σ P(correct) − seconds ÷ worth, over the queries asked and those expected later.

The oracle knows the outcomes. The better of two noisy arms flatters it, so it is cross-fitted: it chooses on
one random half of the queries' outcomes and is scored on the other. It pays for ICL like any cascade, or for the sample
where one was timed and it trains.
The best fixed arm is chosen in hindsight, on these very rows. Rows know no guard: training is taken as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from policies.calibration import calibration, ranking
from policies.errors import PolicyError
from policies.families import FamilyBootstrap, Interval
from policies.features import Array
from policies.harm import TOLERATED, below, check_fresh, on_fresh, p_below, share
from policies.learned import DEFAULT_CONFIDENCE, Learned, fit
from policies.outcomes import SAMPLE, ArmOutcome, TaskOutcome
from policies.replay import before_training_s, replay
from policies.rule import Rule
from policies.types import SHORT, ArmName, Policy
from policies.utility import WORTH, worth

Holdout = Literal["family", "collection", "task"]
MAX_FOLDS = 150
"""More families than this are held out several at a time."""
ORACLE_SPLITS = 40


@dataclass(frozen=True, slots=True)
class Way:
    """What a way to answer did on every row. Arrays of shape (rows,)."""

    correct: Array
    """Share of the queries, 0 to 1."""
    seconds: Array
    trained: Array
    """1 where an arm other than icl answered."""
    probed: Array

    def utility(self, queries: Array, worth_s: float) -> Array:
        """Correct answers per task, less seconds ÷ worth."""
        return self.correct * queries - self.seconds / worth_s


def cross_fitted(
    rows: Sequence[TaskOutcome],
    by: Holdout = "family",
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    base_model: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Learned]:
    """For each row, a policy that has not seen its family (or collection, or that task, on whatever model). The other
    options are those of `fit`.

    Raises:
        PolicyError: what `fit` refuses, said of the rows that remain; or only one collection.
    """
    rows = [replace(row, arms=_judged(row)) for row in rows]
    groups: list[str] = [getattr(row, by) for row in rows]
    names = sorted(set(groups))
    if len(names) < 2:
        raise PolicyError(f"There is only one {by}, {names[0]!r}; holding one out needs at least 2.")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[i]: int(k) % MAX_FOLDS for k, i in enumerate(order)}
    policies: dict[int, Learned] = {}
    n_folds = min(len(names), MAX_FOLDS)
    for k in range(n_folds):
        seen = [row for row, group in zip(rows, groups, strict=True) if fold[group] != k]
        if by == "collection":  # a family that stands in both must not be on both sides
            held = {row.family for row, group in zip(rows, groups, strict=True) if fold[group] == k}
            seen = [row for row in seen if row.family not in held]
        policies[k], _ = fit(seen, confidence=confidence, base_model=base_model, seed=seed)
        progress(k + 1, n_folds)
    return [policies[fold[group]] for group in groups]


def _judged(row: TaskOutcome) -> dict[ArmName, ArmOutcome]:
    """In-context learning and trainings: the policies are offered no other arm, so none is fitted."""
    return {name: arm for name, arm in row.arms.items() if name == "icl" or name.startswith("train:")}


def evaluate(
    rows: Sequence[TaskOutcome],
    *,
    worths: Mapping[str, float] = WORTH,
    by: Holdout = "family",
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
    fresh: Sequence[TaskOutcome] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """The whole report, as JSON values.

    Args:
        fresh: outcomes of the same tasks on more queries, to judge harm by (see `harm.check_fresh`).

    Raises:
        PolicyError: rows that `fit` refuses, or without a common arm to train; or fresh rows of other tasks.
    """
    for name, value in worths.items():
        worth(worth_s=value) if value else worth(name)
    usable = comparable(rows)
    arms = common_arms(usable)
    strong = strong_arm(usable, arms)
    offered = offered_arms(arms, strong)
    if fresh:
        check_fresh(usable, fresh, offered)
    policies = cross_fitted(usable, by, confidence=confidence, seed=seed, progress=progress)
    families = FamilyBootstrap([row.family for row in usable], seed)
    report: dict[str, Any] = {
        "held_out": by,
        "n_rows": len(usable),
        "n_families": families.n,
        "collections": sorted({row.collection for row in usable}),
        "models": sorted({row.model for row in usable}),
        "arms": list(arms),
        "strong_arm": strong,
        "confidence": confidence,
        "calibration": calibration(usable, policies, strong, families),
        "ranking": ranking(usable, policies, strong),
        "worths": {},
    }
    for name, worth_s in worths.items():
        ways = all_ways(usable, policies, arms, strong, worth_s, seed)
        report["worths"][name] = _compare(usable, ways, families, worth_s)
        if fresh:
            decided = [replay(p, r, worth_s, arms=offered) for p, r in zip(policies, usable, strict=True)]
            report["worths"][name]["fresh"] = on_fresh(usable, fresh, [one.arm for one in decided])
    return report


def common_arms(rows: Sequence[TaskOutcome]) -> tuple[ArmName, ...]:
    """Arms that every row has an outcome of, icl first.

    Raises:
        PolicyError: no arm of training is among them.
    """
    shared = set.intersection(*(set(row.arms) for row in rows)) if rows else set()
    if "icl" not in shared or not any(arm.startswith("train:") for arm in shared):
        raise PolicyError(
            f"The {len(rows)} rows have in common the arms {sorted(shared)}; icl and an arm of training are needed in "
            "every row."
        )
    return ("icl", *sorted(shared - {"icl"}))


def comparable(rows: Sequence[TaskOutcome]) -> list[TaskOutcome]:
    """Rows that have icl and a common arm of training. Episodes of a router have the training that was taken: where no
    arm is in all of them, these are the rows with the commonest."""
    usable = [row for row in rows if "icl" in row.arms]
    having = Counter(arm for row in usable for arm in row.arms if arm.startswith("train:"))
    if not having or max(having.values()) == len(usable):
        return usable
    commonest = max(sorted(having), key=having.__getitem__)
    return [row for row in usable if commonest in row.arms]


def offered_arms(arms: Sequence[ArmName], strong: ArmName) -> tuple[ArmName, ...]:
    """What a router offers a policy: icl and, of one recipe, the training and its shorter one; of these `arms`."""
    recipe = strong.removesuffix(SHORT)
    return ("icl", *(arm for arm in (recipe, f"{recipe}{SHORT}") if arm in arms))


def strong_arm(rows: Sequence[TaskOutcome], arms: Sequence[ArmName]) -> ArmName:
    """The arm of training that answers best, mean over families: its recipe is what a policy may choose beside icl. A
    policy that picks among several, or zero-shot, would win with what it never has."""
    families = FamilyBootstrap([row.family for row in rows], resamples=1)
    return max((a for a in arms if a.startswith("train:")), key=lambda a: families.mean(_correct(rows, a)))


def all_ways(
    rows: Sequence[TaskOutcome],
    policies: Sequence[Policy],
    arms: Sequence[ArmName],
    strong: ArmName,
    worth_s: float,
    seed: int = 0,
) -> dict[str, Way]:
    """Every way to answer: the cross-fitted policy as `learned`, the baselines and the oracle. There is no oracle where
    a task has one judged query: it could not choose on one half and be scored on the other.

    Args:
        policies: one a row, each without that row's family.
        strong: the arm of training whose recipe the policies choose beside icl; random and threshold escalate to it.
    """
    rule, offered = Rule(), offered_arms(arms, strong)
    families = FamilyBootstrap([row.family for row in rows], resamples=1)
    ways = {f"always {arm}": fixed(rows, arm) for arm in arms}
    ways["rule"] = replayed(rows, [rule] * len(rows), offered, worth_s)
    ways["learned"] = learned = replayed(rows, policies, offered, worth_s)
    ways["random at equal budget"] = at_random(
        ways["always icl"], ways[f"always {strong}"], learned, families.mean
    )
    ways["confidence threshold"] = threshold(rows, strong, worth_s)
    if min(row.arms[arm].n_queries for row in rows for arm in arms) > 1:
        ways["oracle"] = oracle(rows, arms, worth_s, seed)
    return ways


def replayed(
    rows: Sequence[TaskOutcome], policies: Sequence[Policy], arms: Sequence[ArmName], worth_s: float
) -> Way:
    """What policies would have done, one a row."""
    done = [replay(p, row, worth_s, arms=arms) for p, row in zip(policies, rows, strict=True)]
    return Way(
        np.array([d.correct for d in done]),
        np.array([d.seconds for d in done]),
        np.array([float(d.arm != "icl") for d in done]),
        np.array([float(d.probed) for d in done]),
    )


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


def _compare(
    rows: Sequence[TaskOutcome], ways: Mapping[str, Way], families: FamilyBootstrap, worth_s: float
) -> dict[str, Any]:
    queries = n_queries(rows)
    utility = {name: way.utility(queries, worth_s) for name, way in ways.items()}
    best = max((n for n in ways if n.startswith("always ")), key=lambda n: families.mean(utility[n]))
    table = {
        name: {
            "accuracy": _plain(families.interval(way.correct)),
            "seconds": _plain(families.interval(way.seconds)),
            "utility": _plain(families.interval(utility[name])),
            "share_trained": families.mean(way.trained),
            "share_probed": families.mean(way.probed),
        }
        for name, way in ways.items()
    }
    learned = ways["learned"]
    room: Interval | None = None
    won: Interval | None = None
    if "oracle" in utility:
        room = families.interval(utility["oracle"] - utility[best])
        won = families.of_means(
            [utility["learned"], utility[best], utility["oracle"]],
            lambda m: (m[0] - m[1]) / np.where(m[2] - m[1] > 1e-9, m[2] - m[1], np.nan),
        )
    harmed = families.by_family(learned.correct - ways["always icl"].correct) < -TOLERATED
    p_values = p_below(rows, learned.correct)
    return {
        "worth_s": worth_s,
        "ways": table,
        "best_fixed": best,
        "advantage": {
            name: {
                "utility": _plain(families.interval(utility["learned"] - utility[name])),
                "accuracy": _plain(families.interval(learned.correct - way.correct)),
                "seconds_ratio": _plain(
                    families.of_means([learned.seconds, way.seconds], lambda m: m[0] / m[1])
                ),
            }
            for name, way in ways.items()
            if name != "learned"
        },
        "oracle_over_best_fixed": None if room is None else _plain(room),
        "won_of_oracle": None if won is None or room is None or room.low <= 0 else _plain(won),
        "share_harmed": _plain(share(int(harmed.sum()), families.n)),
        "families_below": below(p_values),
        "least_p": min(p_values.values()),
    }


def _plain(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def learning_curve(
    rows: Sequence[TaskOutcome],
    sizes: Sequence[int],
    *,
    worth_s: float,
    repeats: int = 5,
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Utility on unseen families against the number of families learned from; random subsets, averaged.

    Each entry has `families`, the mean `utility` over subsets and its least and greatest, all on the families
    that the subset leaves out.
    """
    usable = comparable(rows)
    arms = common_arms(usable)
    offered = offered_arms(arms, strong_arm(usable, arms))
    names = sorted({row.family for row in usable})
    rng, curve = np.random.default_rng(seed), []
    for size in sizes:
        if size >= len(names):
            raise PolicyError(
                f"A curve to {size} families needs more than the {len(names)} there are: some to judge on."
            )
        found = []
        for _ in range(repeats):
            seen = {names[i] for i in rng.permutation(len(names))[:size]}
            policy, _ = fit([row for row in usable if row.family in seen], confidence=confidence, seed=seed)
            rest = [row for row in usable if row.family not in seen]
            way = replayed(rest, [policy] * len(rest), offered, worth_s)
            utility = way.utility(n_queries(rest), worth_s)
            found.append(FamilyBootstrap([row.family for row in rest], seed, 1).mean(utility))
        curve.append(
            {"families": size, "utility": float(np.mean(found)), "least": min(found), "greatest": max(found)}
        )
    return curve
