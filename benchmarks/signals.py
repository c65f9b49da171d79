"""What each signal tells of the gain from training, and what it costs. From rows of outcomes alone.

    python benchmarks/signals.py rows.jsonl [more.jsonl ...] [--arm train:auto] [--out signals.json]

The gain is an arm's accuracy less that of in-context learning, per task. For each signal:

- *rank correlation* with the gain (Spearman), and the same *within collections* (ranks less their collection's
  mean): over several collections a signal may only tell the collections apart.
- *drop*: how much worse a forest predicts the gain without this signal, in R², every family predicted by a
  forest that has not seen it. Signals stand in for one another, so the drop of a single one is small; the table
  of groups leaves out all that is measured together, and adds group by group in the order of cost.
- *utility*: correct answers a task that the same predictions win by training where they promise more than
  training costs, at `--worth` seconds a correct answer. What measuring the signals costs is not in it, but beside it.

Intervals are of 95 %, from resampled families. All families weigh the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from policies.errors import PolicyError
from policies.outcomes import TaskOutcome, read_rows
from policies.types import SIGNAL_PARTS

Array = NDArray[np.float64]
Statistic = Callable[[NDArray[np.intp]], float]
"""Of the rows with these numbers."""

GROUPS: dict[str, tuple[str, ...]] = {
    "size": (
        "n_demonstrations",
        "n_queries",
        "prompt_tokens",
        "answer_tokens",
        "label_set_size",
        "train_steps",
    ),
    "icl": ("query_logprob", "query_margin"),
    "zero-shot": ("zero_shot_accuracy", "zero_shot_logprob"),
    "leave-one-out": ("loo_accuracy", "loo_logprob"),
    "consistency": ("agreement", "answer_entropy"),
    "probe": (
        *("probe_accuracy_before", "probe_accuracy_after", "probe_logprob_before", "probe_logprob_after"),
        *("probe_logprob_gain_low", "probe_relative_gain", "probe_accuracy_gain"),
        *("probe_loss_before", "probe_loss_after"),
    ),
}
"""Signals that are measured together, cheapest first; relative gain and accuracy gain are computed from others."""
FOLDS = 5


@dataclass(frozen=True)
class Data:
    """One entry, or row of a matrix, a task."""

    names: tuple[str, ...]
    values: Array
    """(tasks, signals), NaN where not measured."""
    gain: Array
    n_queries: Array
    seconds: Array
    """That training adds: the arm's own, ICL's being paid already."""
    family: NDArray[np.intp]
    collection: NDArray[np.intp]
    weight: Array
    """1 ÷ rows of the family."""


def data_of(rows: Sequence[TaskOutcome], arm: str) -> Data:
    """Rows that have both arms, and signals that are measured somewhere and differ."""
    rows = [row for row in rows if arm in row.arms and "icl" in row.arms]
    columns: dict[str, Array] = {}
    for name in (name for group in GROUPS.values() for name in group):
        column = np.array([_signal(row, name) for row in rows], dtype=np.float64)
        known = column[~np.isnan(column)]
        if len(known) and np.ptp(known) > 0:
            columns[name] = column
    if not columns:
        raise PolicyError(
            "No signal differs between the rows, so none can tell anything; collect more tasks."
        )
    families = Counter(row.family for row in rows)
    _, family = np.unique([row.family for row in rows], return_inverse=True)
    _, collection = np.unique([row.collection for row in rows], return_inverse=True)
    return Data(
        tuple(columns),
        np.column_stack(list(columns.values())),
        np.array([row.arms[arm].correct - row.arms["icl"].correct for row in rows]),
        np.array([row.n_expected for row in rows]),
        np.array([row.arms[arm].seconds for row in rows]),
        family,
        collection,
        np.array([1 / families[row.family] for row in rows]),
    )


def _signal(row: TaskOutcome, name: str) -> float:
    signals = row.measured(probed=True)
    value: float | None
    if name == "probe_accuracy_gain":
        before, after = signals.probe_accuracy_before, signals.probe_accuracy_after
        value = None if before is None or after is None else after - before
    else:
        value = getattr(signals, name)
    return np.nan if value is None else float(value)


def correlation(x: Array, y: Array, groups: NDArray[np.intp] | None = None) -> float:
    """Spearman's, over rows where `x` is known; with `groups` of ranks less their group's mean. 0 if constant."""
    known = ~np.isnan(x)
    a, b = rankdata(x[known]), rankdata(y[known])
    if groups is not None and len(a):
        _, group = np.unique(groups[known], return_inverse=True)
        sizes = np.bincount(group)
        a = a - (np.bincount(group, a) / sizes)[group]
        b = b - (np.bincount(group, b) / sizes)[group]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def predicted(data: Data, names: Iterable[str], trees: int, seed: int) -> Array:
    """The gain of each task, by forests that have not seen its family; without signals, the others' mean."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    wanted = [data.names.index(name) for name in names if name in data.names]
    x = data.values[:, wanted]
    found = np.empty(len(data.gain))
    for train, test in GroupKFold(FOLDS).split(x if wanted else data.gain, groups=data.family):
        weight = data.weight[train]
        if not wanted:
            found[test] = np.average(data.gain[train], weights=weight)
            continue
        forest = RandomForestRegressor(trees, min_samples_leaf=4, max_features=0.5, random_state=seed)
        found[test] = forest.fit(x[train], data.gain[train], weight).predict(x[test])
    return found


def r2(data: Data, found: Array, rows: NDArray[np.intp]) -> float:
    """Share of the gain's variance that was foreseen; below 0 is worse than the mean."""
    weight, gain = data.weight[rows], data.gain[rows]
    spread = float(np.sum(weight * (gain - np.average(gain, weights=weight)) ** 2))
    return 1 - float(np.sum(weight * (gain - found[rows]) ** 2)) / spread if spread else 0.0


def won(data: Data, found: Array, worth_s: float, rows: NDArray[np.intp]) -> float:
    """Utility a task over always staying, correct answers: of training where it is expected to pay."""
    cost = data.seconds / worth_s
    trains = found * data.n_queries > cost
    value = np.where(trains, data.gain * data.n_queries - cost, 0.0)
    return float(np.average(value[rows], weights=data.weight[rows]))


def with_interval(data: Data, statistic: Statistic, resamples: int, seed: int) -> dict[str, float]:
    """The statistic, and its 95 % interval over resampled families."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(data.family == f) for f in range(int(data.family.max()) + 1)]
    drawn = [
        statistic(np.concatenate([members[f] for f in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"value": statistic(np.arange(len(data.gain))), "low": float(low), "high": float(high)}


def seconds_of(rows: Sequence[TaskOutcome]) -> dict[str, float]:
    """Mean seconds a task of measuring each group, over the tasks where it was measured."""
    found: dict[str, list[float]] = {name: [] for name in (*SIGNAL_PARTS, "probe")}
    for row in rows:
        parts = row.arms["icl"].seconds_parts if "icl" in row.arms else {}
        for name in SIGNAL_PARTS:
            if name in parts:
                found[name].append(parts[name])
        if row.probe is not None:
            found["probe"].append(row.probe.seconds)
    free = {"size": 0.0, "icl": 0.0}
    return free | {name: float(np.mean(s)) for name, s in found.items() if s}


def table(
    rows: Sequence[TaskOutcome],
    arm: str,
    worth_s: float,
    *,
    trees: int = 200,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures.

    Raises:
        PolicyError: too few families with both arms, or no signal that differs.
    """
    both = [row for row in rows if arm in row.arms and "icl" in row.arms]
    n_families = len({row.family for row in both})
    if n_families < 2 * FOLDS:
        raise PolicyError(
            f"{n_families} families have outcomes of icl and {arm}; at least {2 * FOLDS} are needed. Collect more, or "
            "name another arm by --arm."
        )
    data = data_of(both, arm)
    costs = seconds_of(both)
    whole = predicted(data, data.names, trees, seed)

    def score(found: Array) -> dict[str, Any]:
        return {
            "r2": with_interval(data, lambda rows: r2(data, found, rows), resamples, seed),
            "utility": with_interval(data, lambda rows: won(data, found, worth_s, rows), resamples, seed),
        }

    def lost(without: Array) -> dict[str, Any]:
        return {
            "r2": with_interval(
                data, lambda rows: r2(data, whole, rows) - r2(data, without, rows), resamples, seed
            ),
            "utility": with_interval(
                data,
                lambda rows: won(data, whole, worth_s, rows) - won(data, without, worth_s, rows),
                resamples,
                seed,
            ),
        }

    def told(x: Array, groups: NDArray[np.intp] | None = None) -> Statistic:
        return lambda rows: correlation(x[rows], data.gain[rows], None if groups is None else groups[rows])

    signals = {}
    for i, name in enumerate(data.names):
        x = data.values[:, i]
        signals[name] = {
            "group": next(group for group, members in GROUPS.items() if name in members),
            "measured": float(np.mean(~np.isnan(x))),
            "correlation": with_interval(data, told(x), resamples, seed),
            "within": with_interval(data, told(x, data.collection), resamples, seed),
            "drop": lost(predicted(data, [n for n in data.names if n != name], trees, seed)),
        }
    groups = {}
    so_far: list[str] = []
    for group, members in GROUPS.items():
        there = [name for name in members if name in data.names]
        if not there:
            continue
        so_far += there
        groups[group] = {
            "seconds": costs.get(group),
            "with_cheaper": score(predicted(data, so_far, trees, seed)),
            "drop": lost(predicted(data, [n for n in data.names if n not in there], trees, seed)),
        }
    perfect = won(data, data.gain, worth_s, np.arange(len(data.gain)))
    return {
        "arm": arm,
        "worth_s": worth_s,
        "tasks": len(both),
        "families": n_families,
        "collections": len(set(data.collection.tolist())),
        "mean_gain": float(np.average(data.gain, weights=data.weight)),
        "icl_seconds": float(np.mean([row.arms["icl"].seconds for row in both])),
        "arm_seconds": float(np.mean(data.seconds)),
        "all": score(whole),
        "utility_if_gains_were_known": perfect,
        "groups": groups,
        "signals": signals,
    }


def show(found: dict[str, Any]) -> str:
    """The tables as text."""

    def cell(of: dict[str, float], digits: int = 2) -> str:
        return f"{of['value']:+.{digits}f} [{of['low']:+.{digits}f}, {of['high']:+.{digits}f}]"

    lines = [
        f"{found['arm']} against icl: {found['tasks']} tasks of {found['families']} families in "
        f"{found['collections']} collections; mean gain {100 * found['mean_gain']:+.1f} points; icl takes "
        f"{found['icl_seconds']:.1f} s, the arm {found['arm_seconds']:.1f} s.",
        f"All signals: R² {cell(found['all']['r2'])}, utility {cell(found['all']['utility'], 1)} correct answers a "
        f"task at {found['worth_s']:g} s each; {found['utility_if_gains_were_known']:+.1f} if gains were known.",
        "",
        f"{'group':15} {'seconds':>8}  {'R² with cheaper ones':22} {'utility with them':24} "
        f"{'R² lost without':22} {'utility lost without'}",
    ]
    for name, g in found["groups"].items():
        seconds = "–" if g["seconds"] is None else f"{g['seconds']:.1f}"
        lines.append(
            f"{name:15} {seconds:>8}  {cell(g['with_cheaper']['r2']):22} {cell(g['with_cheaper']['utility'], 1):24} "
            f"{cell(g['drop']['r2']):22} {cell(g['drop']['utility'], 1)}"
        )
    lines += ["", f"{'signal':24} {'rank correlation':22} {'within collections':22} {'R² lost without'}"]
    order = sorted(found["signals"], key=lambda name: -abs(found["signals"][name]["correlation"]["value"]))
    for name in order:
        s = found["signals"][name]
        lines.append(
            f"{name:24} {cell(s['correlation']):22} {cell(s['within']):22} {cell(s['drop']['r2'], 3)}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows, or folders of them")
    parser.add_argument("--arm", help="compared with icl; the commonest one that trains if left out")
    parser.add_argument("--worth", type=float, default=30.0, help="seconds that a correct answer is worth")
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    given = parser.parse_args(argv)
    try:
        rows = read_rows(given.rows)
        trained = Counter(name for row in rows for name in row.arms if name.startswith("train:"))
        if not given.arm and not trained:
            raise PolicyError("No row has an arm that trains; name one to compare with icl by --arm.")
        arm = given.arm or trained.most_common(1)[0][0]
        found = table(rows, arm, given.worth, trees=given.trees, resamples=given.resamples)
    except PolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 8
    print(show(found))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
