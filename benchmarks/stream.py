"""A policy that learns while tasks come in, on recorded outcomes: regret over a stream with a drift in its middle.

    python benchmarks/stream.py rows.jsonl [more.jsonl ...] [--after other.jsonl ...] [--out stream]
    python benchmarks/stream.py rows.jsonl --live 20 --families families/

Every task of the stream is a row of its own; none comes twice. In the middle the stream changes to other
collections (those where training wins least come first), or to the rows of `--after`, of another machine, say.
The learner starts from the built-in rule and fits itself anew every `--every` tasks, on what it would have
seen in use: in-context learning's outcome, and training's only where it trained, or where exploration trained
beside an answer by in-context learning (with probability `--explore`, and charged for). The same policy without
learning stands beside it. All is averaged over `--orders` random orders of the same tasks.

*Regret* of a task, in correct answers: utility of a cascade that knows what is best, less the policy's. It
answers in context, then trains where that pays; what pays is decided on the family's other rows, if there are any,
as the better of two noisy figures flatters. Writes `stream.json`, `stream.png` and `stream.svg`.

`--live N` runs the last policy for real on N tasks spread over the stream, from the files that they were drawn
from, and holds each against its replay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import PolicyError
from policies.learned import fit
from policies.outcomes import TaskOutcome, read_rows
from policies.replay import before_training_s, replay
from policies.rule import Rule
from policies.types import Policy
from policies.utility import utility, worth

Learn = Callable[[Sequence[TaskOutcome]], Policy]
"""The seam: a policy from the rows seen so far. PolicyError while they are too few."""
Array = NDArray[np.float64]
Key = tuple[str, str, int, str, str]

ENDS = 50
"""Tasks at the beginning, before the drift and at the end that are summed up."""
SMOOTH = 30
"""Tasks of the picture's moving mean."""
AGAIN = 20
"""Tasks over which the regret must be low again for the policy to have recovered."""
INK, FAINT = "#1f2937", "#9ca3af"
COLOURS = {"learning": "#0f766e", "not learning": "#b45309"}


@dataclass(frozen=True)
class Settings:
    """Of one stream."""

    arm: str
    worth_s: float
    every: int
    explore: float


@dataclass(frozen=True)
class Taken:
    """What the policy did with one task."""

    regret: float
    """Correct answers."""
    trained: bool
    explored: bool
    policy: str


def learned(rows: Sequence[TaskOutcome]) -> Policy:
    return fit(rows, base_model=rows[-1].model)[0]


def stream(
    rows: Sequence[TaskOutcome], best: Sequence[float], learn: Learn | None, how: Settings, seed: int
) -> tuple[list[Taken], Policy]:
    """One pass through the rows in their order; the policy as it is at the end.

    Args:
        best: utility of the knowing cascade, row by row.
        learn: None keeps the built-in rule.
    """
    rng = random.Random(seed)
    policy: Policy = Rule()
    seen: list[TaskOutcome] = []
    taken: list[Taken] = []
    for number, (row, reachable) in enumerate(zip(rows, best, strict=True)):
        if learn is not None and number and number % how.every == 0:
            with contextlib.suppress(PolicyError):  # too few families yet: what there is goes on deciding
                policy = learn(seen)
        went = replay(policy, row, how.worth_s, arms=("icl", how.arm))
        trained = went.arm == how.arm
        explored = learn is not None and not trained and rng.random() < how.explore
        seconds = went.seconds + (row.arms[how.arm].seconds if explored else 0.0)
        reached = utility(went.correct * row.n_expected, seconds, how.worth_s)
        taken.append(Taken(reachable - reached, trained, explored, policy.version))
        # A training without a probe begins by one, whose signals the guard reads; one beside an answer has no guard.
        seen.append(in_use(row, how.arm, trained or explored, went.probed or trained))
    return taken, policy


def in_use(row: TaskOutcome, arm: str, trained: bool, probed: bool) -> TaskOutcome:
    """What of a row is known where not every arm was run."""
    arms = {name: of for name, of in row.arms.items() if name == "icl" or (trained and name == arm)}
    if probed:
        return replace(row, arms=arms)
    signals = {name: None if name.startswith("probe_") else value for name, value in row.signals.items()}
    return replace(row, arms=arms, probe=None, signals=signals)


def best_utilities(rows: Sequence[TaskOutcome], how: Settings) -> dict[Key, float]:
    """Of the cascade that knows on which families training pays, by the row's key."""

    def cascade(row: TaskOutcome, trains: bool) -> float:
        icl, arm = row.arms["icl"], row.arms[how.arm]
        seconds = before_training_s(row) + arm.seconds if trains else icl.seconds
        return utility((arm if trains else icl).correct * row.n_expected, seconds, how.worth_s)

    families: dict[tuple[str, str, str], list[TaskOutcome]] = defaultdict(list)
    for row in rows:
        families[row.family, row.model, row.machine].append(row)
    found = {}
    for members in families.values():
        for row in members:
            others = [other for other in members if other is not row] or [row]
            pays = mean(cascade(r, True) - cascade(r, False) for r in others) > 0
            found[row.key] = cascade(row, pays)
    return found


def halves(
    rows: Sequence[TaskOutcome], after: Sequence[TaskOutcome], arm: str, n: int
) -> tuple[list[TaskOutcome], list[TaskOutcome]]:
    """Rows before and after the drift.

    Raises:
        PolicyError: fewer than n ÷ 2 on either side.
    """
    first, second = list(rows), list(after)
    if not after:
        gains: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            gains[row.collection].append(row.arms[arm].correct - row.arms["icl"].correct)
        order = sorted(gains, key=lambda name: mean(gains[name]))
        sizes = np.cumsum([len(gains[name]) for name in order])
        cut = int(np.argmin(np.abs(sizes - len(rows) / 2))) + 1
        early = set(order[:cut])
        first = [row for row in rows if row.collection in early]
        second = [row for row in rows if row.collection not in early]
    if min(len(first), len(second)) < n // 2:
        raise PolicyError(
            f"A stream of {n} tasks needs {n // 2} before the drift and as many after it; there are {len(first)} and "
            f"{len(second)} rows with icl and {arm}. Collect more seeds or families, or ask for fewer by --tasks."
        )
    return first, second


def summary(regrets: Array) -> dict[str, Any]:
    """Means of the parts, and how soon after the drift the regret is low again.

    Args:
        regrets: (orders, tasks).

    Low again: over the next `AGAIN` tasks, two thirds of what had been won before the drift are won again.
    """
    curve = regrets.mean(axis=0)
    drift = len(curve) // 2
    ends = min(ENDS, drift)
    start, settled = float(curve[:ends].mean()), float(curve[drift - ends : drift].mean())
    level = settled + max(0.0, start - settled) / 3
    later = [float(curve[t : t + AGAIN].mean()) for t in range(drift, len(curve) - AGAIN + 1)]
    recovered = next((t for t, regret in enumerate(later) if regret <= level), None)
    return {
        "first": start,
        "before_drift": settled,
        "after_drift": float(curve[drift : drift + ends].mean()),
        "last": float(curve[-ends:].mean()),
        "mean": float(curve.mean()),
        "tasks_averaged": ends,
        "low_again_level": level,
        "low_again_after_tasks": recovered,
    }


def moving(curve: Array, n: int) -> Array:
    """Mean of the `n` tasks up to each, fewer at the beginning. Along the last axis."""
    sums = np.cumsum(curve, axis=-1)
    sums[..., n:] = sums[..., n:] - sums[..., :-n]
    return sums / np.minimum(np.arange(1, curve.shape[-1] + 1), n)


def picture(regrets: dict[str, Array], path: Path) -> None:
    """Moving mean of the regret, with the middle 90 % of the orders, as PNG and SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, found in regrets.items():
        smooth = moving(found, SMOOTH)
        x = np.arange(1, smooth.shape[1] + 1)
        low, high = np.quantile(smooth, (0.05, 0.95), axis=0)
        axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        axes.plot(x, smooth.mean(axis=0), color=COLOURS[name], linewidth=2, label=name)
    n = next(iter(regrets.values())).shape[1]
    axes.axvline(n / 2 + 0.5, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate("drift", (n / 2 + 2, 0.97), xycoords=("data", "axes fraction"), color=INK, va="top")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xlabel("tasks", color=INK)
    axes.set_ylabel(f"regret (correct answers a task, mean of {SMOOTH})", color=INK)
    axes.set_title("Regret against a cascade that knows", loc="left", fontweight="bold", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix))


def live(
    rows: Sequence[TaskOutcome], policy: Policy, families: Sequence[Path], how: Settings
) -> list[dict[str, Any]]:
    """The policy's real way through the tasks of `rows`, beside its replay. The model is that of the settings.

    Raises:
        PolicyError: a task that the families don't give.
    """
    import tempfile

    from router.agent import Router
    from router.evaluate import EvaluateOptions, Progress, draw, run_arms
    from router.rows import task_fingerprint
    from router.settings import read_settings

    n_demonstrations, n_queries = rows[0].n_demonstrations, max(row.arms["icl"].n_queries for row in rows)
    options = EvaluateOptions(n_demonstrations, n_queries, tuple(sorted({r.seed for r in rows})), ("auto",))
    drawn = {(one.family.name, one.seed): one for one in draw(families, options)}
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="ttt-router-stream-") as own,
        Router.open(read_settings({"data_dir": own, "worth_s": how.worth_s}), policy=policy) as agent,
    ):
        for number, row in enumerate(rows, start=1):
            one = drawn.get((row.family, row.seed))
            if one is None or task_fingerprint(one) != row.task:
                raise PolicyError(
                    f"The families given hold no task like that of {row.family} (seed {row.seed}); give by --families "
                    "the files that the rows were collected from."
                )
            here = Progress(row.family, row.seed, number, len(rows))
            really = run_arms(agent, one, options, here, lambda _: None)["arms"]["auto"]
            replayed = replay(policy, row, how.worth_s, arms=("icl", how.arm))
            found.append(
                {
                    "family": row.family,
                    "seed": row.seed,
                    "replayed": {
                        "arm": replayed.arm,
                        "accuracy": replayed.correct,
                        "seconds": replayed.seconds,
                    },
                    "live": {k: really[k] for k in ("arm", "accuracy", "seconds")},
                }
            )
            print(
                f"[{number}/{len(rows)}] {row.family} seed {row.seed}: replayed {replayed.arm} "
                f"{replayed.correct:.0%}, {replayed.seconds:.1f} s; live {really['arm']} {really['accuracy']:.0%}, "
                f"{really['seconds']:.1f} s",
                file=sys.stderr,
            )
    return found


def run(
    rows: Sequence[TaskOutcome],
    after: Sequence[TaskOutcome],
    how: Settings,
    *,
    n: int,
    orders: int,
    learn: Learn = learned,
) -> tuple[dict[str, Array], dict[str, Any], list[TaskOutcome], Policy]:
    """Regrets of shape (orders, tasks), figures, and the last order's stream with its last policy."""
    rows, after = ([row for row in some if {"icl", how.arm} <= set(row.arms)] for some in (rows, after))
    first, second = halves(rows, after, how.arm, n)
    best = best_utilities([*first, *second], how)
    regrets: dict[str, list[list[float]]] = {name: [] for name in COLOURS}
    trained: dict[str, list[float]] = {name: [] for name in COLOURS}
    explored = 0.0
    order: list[TaskOutcome] = []
    policy: Policy = Rule()
    for seed in range(orders):
        rng = random.Random(seed)
        order = [*rng.sample(first, n // 2), *rng.sample(second, n // 2)]
        reachable = [best[row.key] for row in order]
        for name in COLOURS:
            learns = name == "learning"
            taken, last = stream(order, reachable, learn if learns else None, how, seed)
            if learns:
                policy = last
                explored += sum(t.explored for t in taken) / orders
            regrets[name].append([t.regret for t in taken])
            trained[name].append(mean(t.trained for t in taken))
    found = {name: np.array(values) for name, values in regrets.items()}
    figures: dict[str, Any] = {
        "settings": asdict(how),
        "tasks": 2 * (n // 2),
        "orders": orders,
        "rows": [len(first), len(second)],
        "collections": [sorted({row.collection for row in half}) for half in (first, second)],
        "explored_tasks": explored,
    }
    for name, values in found.items():
        figures[name] = {
            **summary(values),
            "share_trained": mean(trained[name]),
            "regret": values.mean(axis=0).tolist(),
        }
    return found, figures, order, policy


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows, or folders of them")
    parser.add_argument("--after", nargs="+", type=Path, default=[], help="rows that come after the drift")
    parser.add_argument("--arm", default="train:auto")
    parser.add_argument("--worth", type=float, default=30.0, help="seconds that a correct answer is worth")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--orders", type=int, default=20, help="random orders to average over")
    parser.add_argument("--every", type=int, default=10, help="tasks between two fits")
    parser.add_argument(
        "--explore", type=float, default=0.1, help="probability of training beside ICL's answer"
    )
    parser.add_argument("--out", type=Path, default=Path("stream"), help="files to write, without suffix")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="tasks to run for real")
    parser.add_argument("--families", nargs="+", type=Path, default=[], help="files that the rows are from")
    given = parser.parse_args(argv)
    if given.live and not given.families:
        parser.error("--live needs --families: the files that the rows were collected from")
    if given.tasks < 2 or given.orders < 1 or given.every < 1 or not 0 <= given.explore <= 1:
        parser.error("--tasks must be at least 2, --orders and --every at least 1, --explore from 0 to 1")
    try:
        how = Settings(given.arm, worth(worth_s=given.worth), given.every, given.explore)
        rows, after = read_rows(given.rows), read_rows(given.after) if given.after else []
        regrets, figures, order, policy = run(rows, after, how, n=given.tasks, orders=given.orders)
        if given.live:
            spread = np.linspace(0, len(order) - 1, min(given.live, len(order))).astype(int)
            figures["live"] = live([order[i] for i in spread], policy, given.families, how)
    except PolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 8
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    picture(regrets, given.out)
    print(
        f"{figures['tasks']} tasks, {given.orders} orders; regret in correct answers a task, means of "
        f"{figures['learning']['tasks_averaged']} tasks"
    )
    print(f"{'':14} {'first':>7} {'before':>7} {'after':>7} {'last':>7} {'all':>7}  trained  low again after")
    for name in COLOURS:
        f = figures[name]
        again = "never" if f["low_again_after_tasks"] is None else f"{f['low_again_after_tasks']} tasks"
        parts = " ".join(f"{f[k]:7.2f}" for k in ("first", "before_drift", "after_drift", "last", "mean"))
        print(f"{name:14} {parts}  {f['share_trained']:7.0%}  {again}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
