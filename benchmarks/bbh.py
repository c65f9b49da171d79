"""The published BIG-Bench-Hard protocol (arXiv 2411.07279) on any model, beside the published figures.

    python benchmarks/bbh.py FOLDER --model smollm2-135m --seeds 0,1,2,3,4 --out bbh.json

FOLDER holds BIG-Bench-Hard's JSON files, one a task. For each task and seed ten demonstrations are drawn, and the
arms are those of the paper: zero-shot, ten-shot in context, the majority of five orders, test-time training by
the recipe `paper-bbh`, and the majority of five orders of that. Exact match without regard to case.

What differs from the paper, apart from the model: the learning rate (docs/recipes.md); votes weigh their
probability; queries come from a pool of some 150 a task that holds no demonstration of any seed, where the paper
asks all 240 that are left of a seed; files carry no instruction, so there is none. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router.evaluate import EvaluateOptions, Progress, evaluate
from router.settings import read_settings
from router.statistics import paired_difference

PUBLISHED = {
    "zero-shot": ("zero-shot", 40.9),
    "icl": ("ICL, 10 shots", 50.5),
    "icl@5": ("ICL, majority of 5 orders", 51.1),
    "ttt": ("TTT", 57.8),
    "ttt@5": ("TTT, majority of 5 orders", 58.0),
}
"""Arm → its name and accuracy in the paper, Llama-3.1-8B-Instruct, 27 tasks × 5 seeds."""


def table(report: Mapping[str, Any]) -> str:
    """The published figures and ours, in Markdown; accuracies are means over tasks and seeds."""
    rows, arms = report["families"], report["summary"]["arms"]
    tasks, seeds = {row["family"] for row in rows}, {row["seed"] for row in rows}
    here = f"{report['model']['name']}, {len(tasks)} tasks × {len(seeds)} seeds"
    made = [f"| method | Llama-3.1-8B-Instruct, 27 tasks × 5 seeds (published) | {here} | seconds a task |"]
    made.append("|---|---|---|---|")
    for arm, cell in arms.items():
        name, published = PUBLISHED.get(arm, (arm, None))
        shown = "–" if published is None else f"{published:.1f} %"
        mine = f"{100 * cell['mean_over_families']:.1f} %"
        made.append(f"| {name} | {shown} | {mine} | {cell['seconds'] / len(rows):.1f} |")
    if {"icl", "ttt"} <= set(arms):
        gains: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for row in rows:
            gains[row["family"]][0].extend(row["arms"]["icl"]["correct"])
            gains[row["family"]][1].extend(row["arms"]["ttt"]["correct"])
        below = [name for name, (icl, ttt) in gains.items() if sum(ttt) < sum(icl)]
        d = paired_difference([gains[name] for name in sorted(gains)], seed=0, cluster=True)
        made.append(
            f"\nTTT − ICL: {100 * d.mean:+.1f} points (95 % over resampled tasks: {100 * d.low:+.1f} to "
            f"{100 * d.high:+.1f}; published +7.3). TTT is below ICL on {len(below)} of {len(tasks)} tasks "
            f"(published: 10 of 27){': ' + ', '.join(sorted(below)) if below else ''}."
        )
    return "\n".join(made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="folder of BIG-Bench-Hard files, or single ones")
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--recipe", default="paper-bbh")
    parser.add_argument("--arms", default=",".join(PUBLISHED))
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--queries", type=int, default=240, help="a task, at most; a pool has some 150")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    options = EvaluateOptions(
        demonstrations=given.demos,
        queries=given.queries,
        seeds=tuple(int(s) for s in given.seeds.split(",")),
        arms=tuple(given.arms.split(",")),
        out=given.out,
        resume=given.out.exists(),
    )
    settings = read_settings(
        {"model": given.model, "device": given.device, "dtype": given.dtype, "recipe": given.recipe}
    )

    def follow(progress: Progress) -> None:
        if progress.row is not None:
            cells = ", ".join(f"{n} {100 * c['accuracy']:.0f} %" for n, c in progress.row["arms"].items())
            here = f"[{progress.number}/{progress.of}] {progress.family} {progress.seed}"
            print(f"{here}: {cells}", file=sys.stderr)

    print(table(evaluate(given.paths, options, settings, follow)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
