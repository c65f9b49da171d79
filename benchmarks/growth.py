"""How cost grows: seconds against demonstrations, tokens of a training sequence, queries and tasks.

    python benchmarks/growth.py [--model M] [--out growth.json] [--plot growth.png]

Tasks are made here (a block of one colour moves right by one cell). Medians of three. For each curve the slope in
double logarithmic scale between its last two points is printed: 1 is linear.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

from fixed_sizes import median, random_batch, timed  # noqa: E402
from profile_answer import puzzle  # noqa: E402

from ttt import icl, judging  # noqa: E402
from ttt.engine import Bench, Engine  # noqa: E402
from ttt.gradients import losses, trainable  # noqa: E402
from ttt.model import load, resolve  # noqa: E402
from ttt.recipes import CELLS  # noqa: E402
from ttt.task import Demonstration, Query, Task  # noqa: E402

REPEATS = 3


def task(n: int) -> tuple[Task, list[Query]]:
    items = puzzle(n + 128, seed=1)
    return Task(tuple(Demonstration(a, b) for a, b in items[:n])), [Query(a) for a, _ in items[n:]]


def curves(engine: Engine) -> dict[str, dict[int, float]]:
    """Curve → size → seconds."""
    found: dict[str, dict[int, float]] = {}

    def seconds(name: str, size: int, work: Any) -> None:
        found.setdefault(name, {})[size] = median(timed(work, REPEATS))
        print(f"{name:32} {size:6} {found[name][size]:8.3f} s", flush=True)

    for n in (5, 10, 20, 40):
        shown, queries = task(n)
        few = queries[:16]
        seconds("ICL, 16 queries: demonstrations", n, lambda: asyncio.run(icl.answer(engine, shown, few)))  # noqa: B023
        seconds("leave-one-out: demonstrations", n, lambda: asyncio.run(judging.leave_one_out(engine, shown)))  # noqa: B023
    shown, queries = task(10)
    for n in (8, 32, 64, 128):
        seconds("ICL: queries", n, lambda: asyncio.run(icl.answer(engine, shown, queries[:n])))  # noqa: B023

    def steps(bench: Bench) -> None:
        adapters = []
        for i in range(8):
            bench.slots.create(f"growth-{i}", CELLS, i)
            adapters.append(trainable(bench, f"growth-{i}"))
        for tokens in (64, 128, 256, 512, 1024, 2048):
            batch = random_batch(tokens, 1, 0)
            seconds("training step: tokens", tokens, lambda: losses(bench, [(adapters[0], batch)]))  # noqa: B023
        for n in (1, 2, 4, 8):
            group = [(adapter, random_batch(145, 1, i)) for i, adapter in enumerate(adapters[:n])]
            seconds("step of 145 tokens: tasks", n, lambda: losses(bench, group))  # noqa: B023
        for i in range(8):
            bench.slots.drop(f"growth-{i}")

    engine.submit(steps).result()
    return found


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.2), constrained_layout=True)
    for axis, (name, curve) in zip(axes, found.items(), strict=True):
        sizes, seconds = list(curve), list(curve.values())
        axis.loglog(sizes, seconds, "o-", color="#1f5fa8")
        axis.loglog(
            sizes, [seconds[0] * s / sizes[0] for s in sizes], "--", color="#999999", label="in proportion"
        )
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.minorticks_off()
        what, _, over = name.partition(": ")
        axis.set_title(what, fontsize=9)
        axis.set_xlabel(over)
        axis.set_ylabel("seconds")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    engine = Engine(load(resolve(options.model)))
    found = curves(engine)
    engine.close()
    for name, curve in found.items():
        (a, first), (b, last) = list(curve.items())[-2:]
        print(f"{name:32} grows with power {math.log(last / first) / math.log(b / a):.2f} from {a} to {b}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
