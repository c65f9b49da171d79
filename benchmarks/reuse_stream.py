"""A stream of tasks of a few families: what adapters of like tasks save, and what that costs.

    python benchmarks/reuse_stream.py FAMILY… --out stream.json [--tasks 60] [--instances 5] [--queries 32]

Of each family `--instances` tasks with other demonstrations and, as far as there are enough, other queries; in random
order. Every task is asked with `arm="ttt"`, once with `reuse="off"` and once with `reuse="near"`, each on a store of its
own that begins empty. Families are folders or files; the first that have enough demonstrations are taken, and
`--tasks` says how many tasks there are in all (60 of 12 families at five each; fewer is a short form).

Seconds of training are those of the steps `neighbours`, `search` and `train`: with reuse, trying other tasks' adapters
counts. The goals: at most 40 % of the seconds without, and accuracy not inferior (a paired 95 % interval over resampled
families whose lower end is above −2 points). With `--arm auto` the second way is the router's own, at `--worth` seconds a
correct answer: it may also answer in context, or train for less long. Of tasks whose family was there before, all
seconds are compared, too (goal: 30 %). Stopped, the same command goes on where it was: the stores are kept
beside `--out`. `--tables` prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete
from variants import begin, write

from ttt.process import prepare

prepare()

from router.agent import Router  # noqa: E402
from router.metrics import exact  # noqa: E402
from router.receipt import Receipt  # noqa: E402
from router.statistics import paired_difference  # noqa: E402
from store.tables import adapters  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.pools import Pools, sample, split  # noqa: E402
from ttt.task import Task, canonical_text, clean_task, fingerprint  # noqa: E402

MODES = ("off", "near")
GOAL_SECONDS, GOAL_POINTS, GOAL_SEEN = 0.40, -2.0, 0.30
TRAINING = ("neighbours", "search", "train")
MIN_QUERIES = 8


@dataclass(frozen=True, slots=True)
class Instance:
    """One task of the stream."""

    family: str
    number: int
    task: Task
    queries: tuple[str, ...]
    gold: tuple[str, ...]


def instances(pools: Pools, n: int, demos: int, queries: int, seed: int) -> list[Instance]:
    """`n` tasks of a family that share no demonstration nor, where the pool has enough for that, any query."""
    each = min(queries, len(pools.queries) // n)
    apart = each >= min(queries, MIN_QUERIES)
    drawn = sample(pools, n * demos, n * each if apart else queries, seed)
    shown = drawn.task.demonstrations
    found = []
    for i in range(n):
        own = slice(i * each, (i + 1) * each) if apart else slice(None)
        task = replace(drawn.task, demonstrations=shown[i * demos : (i + 1) * demos])
        asked = tuple(q.input for q in drawn.queries[own])
        found.append(Instance(pools.name, i, task, asked, drawn.gold[own]))
    return found


def stream(paths: Sequence[Path], given: argparse.Namespace) -> list[Instance]:
    """The tasks in their order.

    Raises:
        SystemExit: too few families, or a query that is a demonstration.
    """
    wanted, enough = math.ceil(given.tasks / given.instances), given.instances * given.demos
    pools = [p for p in map(split, read_families(paths)) if len(p.demonstrations) >= enough and p.queries]
    if len(pools) < wanted:
        raise SystemExit(
            f"{len(pools)} families have {enough} demonstrations, {wanted} are needed; name more families or ask for "
            "fewer --tasks, --instances or --demos."
        )
    found = []
    for one in pools[:wanted]:
        own = instances(one, given.instances, given.demos, given.queries, given.seed)
        shown = {canonical_text(d.input) for i in own for d in i.task.demonstrations}
        if shown & {canonical_text(q) for i in own for q in i.queries}:
            raise SystemExit(f"A query of {one.name} is a demonstration, too.")
        found += own
    random.Random(given.seed).shuffle(found)
    return found[: given.tasks]


def ask(router: Router, one: Instance, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    arm = given.arm if mode == "near" else "ttt"
    receipt = router.ask(one.task, one.queries, arm=arm, reuse=mode, seed=given.seed, worth_s=given.worth)
    train, tried = receipt.step("train"), receipt.step("neighbours")
    return {
        "family": one.family,
        "instance": one.number,
        "mode": mode,
        "arm": receipt.arm.partition(":")[0],
        "correct": [int(exact(t, gold)) for t, gold in zip(receipt.texts, one.gold, strict=True)],
        "training_s": training_s(receipt),
        "seconds": receipt.seconds,
        "steps": 0 if train is None else train.detail.get("steps", 0),
        "neighbours": {} if tried is None else {"seconds": tried.seconds, **tried.detail},
    }


def forget(router: Router, task: Task) -> None:
    """Drop what a run that was killed has trained for the task that it was at: met again, it would be free."""
    own = adapters.c.fingerprint == fingerprint(clean_task(task)[0])
    with router.parts.store.db.write() as connection:
        connection.execute(delete(adapters).where(own))


def training_s(receipt: Receipt) -> float:
    return sum(step.seconds for step in receipt.steps if step.name in TRAINING)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both modes over the tasks that both have answered."""
    by_task: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault((row["family"], row["instance"]), {})[row["mode"]] = row
    both = [pair for pair in by_task.values() if len(pair) == len(MODES)]
    if not both:
        return {}
    totals = {mode: sum(pair[mode]["training_s"] for pair in both) for mode in MODES}
    families: dict[str, tuple[list[int], list[int]]] = {}
    for pair in both:
        off, near = families.setdefault(pair["off"]["family"], ([], []))
        off += pair["off"]["correct"]
        near += pair["near"]["correct"]
    came: set[str] = set()
    seen = []
    for (family, _), pair in by_task.items():
        if family in came and len(pair) == len(MODES):
            seen.append(pair)
        came.add(family)
    d = paired_difference([families[name] for name in sorted(families)], seed=0, cluster=True)
    return {
        "tasks": len(both),
        "training_s": totals,
        "share": totals["near"] / totals["off"],
        "steps": {mode: sum(pair[mode]["steps"] for pair in both) for mode in MODES},
        "accuracy": {
            mode: sum(map(sum, (p[mode]["correct"] for p in both)))
            / sum(len(p[mode]["correct"]) for p in both)
            for mode in MODES
        },
        "points": [100 * d.mean, 100 * d.low, 100 * d.high],
        "seen": {"tasks": len(seen), **{m: _seen(seen, m) for m in MODES}},
        "how": dict(Counter(how(pair["near"]) for pair in both)),
    }


def _seen(pairs: Sequence[dict[str, dict[str, Any]]], mode: str) -> dict[str, float]:
    """All seconds and the accuracy of one mode."""
    correct = [c for pair in pairs for c in pair[mode]["correct"]]
    seconds = sum(pair[mode]["seconds"] for pair in pairs)
    return {"seconds": seconds, "accuracy": sum(correct) / max(1, len(correct))}


def how(row: dict[str, Any]) -> str:
    """What became of a task with reuse."""
    if row["arm"] == "icl":
        return "answered in context"
    if row["arm"] == "reuse":
        return "answered by another's adapter"
    return "trained from nothing" if row["neighbours"].get("chosen") == "nothing" else "trained from there"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    found = summary(rows)
    if not found:
        return "No task has been answered both ways yet."
    made = ["| family | training s off | near | accuracy off | near | steps off | near |", "|---" * 7 + "|"]
    paired = {(r["family"], r["instance"]) for r in rows if r["mode"] == "near"}
    for family in dict.fromkeys(row["family"] for row in rows):
        cells = []
        for key in ("training_s", "correct", "steps"):
            for mode in MODES:
                own = [
                    r[key]
                    for r in rows
                    if (r["family"], r["mode"]) == (family, mode) and (family, r["instance"]) in paired
                ]
                if key == "correct":
                    flat = [c for correct in own for c in correct]
                    cells.append(f"{100 * sum(flat) / max(1, len(flat)):.0f} %")
                else:
                    cells.append(f"{sum(own):.0f}")
        made.append(f"| {family} | {' | '.join(cells)} |")
    mean, low, high = found["points"]
    seconds = found["training_s"]
    ways = ", ".join(f"{n} {name}" for name, n in sorted(found["how"].items()))
    made += [
        "",
        f"{found['tasks']} tasks: {ways}.",
        f"Training: {seconds['near']:.0f} s with reuse, {seconds['off']:.0f} s without: {100 * found['share']:.0f} % (goal: "
        f"at most {100 * GOAL_SECONDS:.0f} %).",
        f"Accuracy: {100 * found['accuracy']['near']:.1f} % with reuse, {100 * found['accuracy']['off']:.1f} % without: "
        f"{mean:+.1f} points ({low:+.1f} to {high:+.1f}; goal: lower end above {GOAL_POINTS:+.0f}).",
    ]
    seen = found["seen"]
    if seen["tasks"]:
        off, near = seen["off"], seen["near"]
        made.append(
            f"{seen['tasks']} tasks whose family was there before, all seconds: {near['seconds']:.0f} of {off['seconds']:.0f}: "
            f"{100 * near['seconds'] / off['seconds']:.0f} % (goal: at most {100 * GOAL_SEEN:.0f} %), right "
            f"{100 * near['accuracy']:.1f} % in place of {100 * off['accuracy']:.1f} %."
        )
    return "\n".join(made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="family files or folders")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--recipe", default="standard")
    parser.add_argument("--arm", choices=("ttt", "auto"), default="ttt", help="with reuse")
    parser.add_argument("--worth", type=float, default=30.0, help="seconds that a correct answer is worth")
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--instances", type=int, default=5, help="tasks of each family")
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--queries", type=int, default=32, help="of each task, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tables", action="store_true", help="print the tables of --out and end")
    given = parser.parse_args(arguments)
    names = ("model", "recipe", "arm", "worth", "tasks", "instances", "demos", "queries", "seed")
    report = begin(given.out, {name: getattr(given, name) for name in names})
    rows: list[dict[str, Any]] = report["rows"]
    if given.tables:
        print(markdown(rows))
        return 0
    if not given.paths:
        parser.error("name families: files or folders.")
    tasks = stream(given.paths, given)
    with tempfile.TemporaryDirectory() as passing:
        kept = Path(passing) if given.out is None else given.out.with_name(f"{given.out.name}.stores")
        if rows and not kept.exists():
            raise SystemExit(
                f"{given.out} has rows and {kept}, where their adapters were, is gone; name another --out."
            )
        opened = {
            mode: Router.open(
                model=given.model,
                device=given.device,
                dtype=given.dtype,
                recipe=given.recipe,
                data_dir=kept / mode,
            )
            for mode in MODES
        }
        try:
            run(opened, tasks, report, given)
        finally:
            for router in opened.values():
                router.close()
    print("\n" + markdown(rows))
    found = summary(rows)
    return 0 if found and found["share"] <= GOAL_SECONDS and found["points"][1] >= GOAL_POINTS else 1


def run(
    opened: dict[str, Router], tasks: Sequence[Instance], report: dict[str, Any], given: argparse.Namespace
) -> None:
    """All tasks in turn, each both ways, so that both meet the same machine."""
    rows = report["rows"]
    done = {(row["family"], row["instance"], row["mode"]) for row in rows}
    for number, one in enumerate(tasks, start=1):
        for mode in MODES:
            if (one.family, one.number, mode) in done:
                continue
            forget(opened[mode], one.task)
            row = ask(opened[mode], one, mode, given)
            rows.append(row)
            report["summary"] = summary(rows)
            write(report, given.out)
            said = f"; {row['neighbours'].get('chosen', '')}" if mode == "near" else ""
            print(
                f"{number}/{len(tasks)} {one.family} {one.number} {mode}: {row['training_s']:.1f} s, {row['steps']} steps, "
                f"{100 * sum(row['correct']) / len(row['correct']):.0f} %{said}",
                flush=True,
            )


if __name__ == "__main__":
    raise SystemExit(main())
