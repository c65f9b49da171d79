"""How good a learned policy is on families it never saw, against every baseline that it must beat (`ways.py`).

Each task is decided by a policy fitted without its family (or without its collection, or without that task, while others
of its family are known; then up to a 150th of all tasks is left out together). All figures are
means over families with family-bootstrap intervals (95 %), paired between ways. Utility is in correct
answers per task: Σ P(correct) − seconds ÷ worth, over the queries asked and those expected later.
The best fixed arm is chosen in hindsight, on these very rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from policies.calibration import calibration, ranking
from policies.errors import PolicyError
from policies.families import FamilyBootstrap, Interval
from policies.harm import TOLERATED, below, check_fresh, on_fresh, p_below, share
from policies.learned import DEFAULT_CONFIDENCE, Learned, fit
from policies.outcomes import ArmOutcome, TaskOutcome
from policies.types import ArmName
from policies.utility import WORTH, worth
from policies.ways import Way, all_ways, common_arms, comparable, n_queries, replayed

Holdout = Literal["family", "collection", "task"]
MAX_FOLDS = 150
"""More families than this are held out several at a time."""


def cross_fitted(
    rows: Sequence[TaskOutcome],
    by: Holdout = "family",
    *,
    further: Sequence[TaskOutcome] = (),
    confidence: float = DEFAULT_CONFIDENCE,
    base_model: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Learned]:
    """For each row, a policy that has not seen its family (or collection, or that task, on whatever model). The other
    options are those of `fit`.

    Args:
        further: rows to learn from besides, as far as they are not of what is held out.

    Raises:
        PolicyError: what `fit` refuses, said of the rows that remain; or only one collection.
    """
    rows, further = ([replace(row, arms=_judged(row)) for row in some] for some in (rows, further))
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
        seen += [row for row in further if fold.get(getattr(row, by)) != k]
        if by == "collection":  # a family that stands in both must not be on both sides
            held = {row.family for row, group in zip(rows, groups, strict=True) if fold[group] == k}
            seen = [row for row in seen if row.family not in held]
        try:
            policies[k], _ = fit(seen, confidence=confidence, base_model=base_model, seed=seed)
        except PolicyError as error:
            held_out = ", ".join(repr(name) for name in names if fold[name] == k)
            raise PolicyError(f"With the {by} {held_out} held out: {error}") from error
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
    if fresh:
        check_fresh(usable, fresh, arms.offered)
    fitted = cross_fitted(usable, by, confidence=confidence, seed=seed, progress=progress)
    policies = [p.for_model(row.model) for p, row in zip(fitted, usable, strict=True)]
    families = FamilyBootstrap([row.family for row in usable], seed)
    report: dict[str, Any] = {
        "held_out": by,
        "n_rows": len(usable),
        "n_families": families.n,
        "collections": sorted({row.collection for row in usable}),
        "models": sorted({row.model for row in usable}),
        "arms": list(arms.every),
        "strong_arm": arms.strong,
        "confidence": confidence,
        "calibration": calibration(usable, policies, arms.strong, families),
        "ranking": ranking(usable, policies, arms.strong),
        "worths": {},
    }
    for name, worth_s in worths.items():
        ways = all_ways(usable, policies, arms, worth_s, seed)
        report["worths"][name] = _compare(usable, ways, families, worth_s)
        if fresh:
            report["worths"][name]["fresh"] = on_fresh(usable, fresh, ways["learned"].arms)
    return report


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

    Each entry has `families`, the number of `draws`, the mean `utility` over them and its least and greatest, all on the
    families that a draw leaves out. One that can't be fitted on (all outcomes of one kind, say) is not counted; a size of
    which none can has no entry.
    """
    usable = comparable(rows)
    offered = common_arms(usable).offered
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
            try:
                policy, _ = fit(
                    [row for row in usable if row.family in seen], confidence=confidence, seed=seed
                )
            except PolicyError:
                continue
            rest = [row for row in usable if row.family not in seen]
            way = replayed(rest, [policy] * len(rest), offered, worth_s)
            utility = way.utility(n_queries(rest), worth_s)
            found.append(FamilyBootstrap([row.family for row in rest], seed, 1).mean(utility))
        if found:
            middle = {"families": size, "draws": len(found), "utility": float(np.mean(found))}
            curve.append(middle | {"least": min(found), "greatest": max(found)})
    return curve
