"""Where the time of one answer by training goes: set-up, ICL, signals, probe, training, guard, answer.

    python benchmarks/profile_answer.py [--model M] [--queries 32]

Prints a table of the receipt's steps with their share, and what one training step is made of (self time of
operators, by kind). The task is generated here: a block of one colour moves right by one cell.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from typing import Any

from ttt.task import Demonstration, Query, Task

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"),
    "attention": ("attention",),
    "optimiser": ("adam", "clip_grad", "foreach", "norm"),
    "copies and casts": ("copy_", "cat", "clone", "fill_", "zero_"),
    "softmax and loss": ("softmax", "nll_loss"),
    "other element-wise": ("mul", "add", "silu", "neg", "div", "pow", "rsqrt", "mean", "sum", "sub"),
}


def puzzle(n: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    items: dict[str, str] = {}
    while len(items) < n:
        size, colour = rng.randint(2, 6), str(rng.randint(1, 9))
        start = rng.randrange(0, 15 - size)
        row = ["0"] * 16
        row[start : start + size] = [colour] * size
        items[" ".join(row)] = " ".join(["0", *row[:-1]])
    return list(items.items())


def step_profile(bench: Any, task: Task) -> dict[str, float]:
    """Seconds of self time by kind of operator in one training step, after two to warm up."""
    from torch.profiler import ProfilerActivity, profile

    from ttt.dataset import sequences
    from ttt.gradients import trainable
    from ttt.prompts import PromptFormat
    from ttt.recipes import CELLS

    bench.slots.create("profile", CELLS, 0)
    try:
        stream = sequences(task, PromptFormat(bench.loaded.tokenizer, task), CELLS, 0)
        adapter = trainable(bench, "profile")
        for _ in range(2):
            adapter.loss(bench, [next(stream)])
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            adapter.loss(bench, [next(stream)])
    finally:
        bench.slots.drop("profile")
    seconds = dict.fromkeys([*KINDS, "rest"], 0.0)
    for row in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in row.key for n in names)), "rest")
        seconds[kind] += row.self_cpu_time_total / 1e6
    return seconds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--queries", type=int, default=32)
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    from router.agent import Router

    items = puzzle(10 + options.queries, seed=0)
    task = Task(tuple(Demonstration(a, b) for a, b in items[:10]))
    with tempfile.TemporaryDirectory() as folder, Router.open(model=options.model, data_dir=folder) as router:
        setup = time.perf_counter() - started
        receipt = router.ask(task, [Query(a) for a, _ in items[10:]], worth_s=10_000.0)
        again = router.ask(task, [Query(a) for a, _ in items[10:]])
        kinds = router.parts.engine.submit(lambda bench: step_profile(bench, task)).result()
    rows = [("set-up", setup), *((s.name, s.seconds) for s in receipt.steps)]
    total = sum(seconds for _, seconds in rows)
    print(f"{receipt.base_model}, {options.queries} queries, arm {receipt.arm}")
    for name, seconds in rows:
        print(f"  {name:12} {seconds:8.2f} s  {seconds / total:5.1%}")
    print(f"  {'all':12} {total:8.2f} s")
    print(f"asked again: arm {again.arm}, {again.seconds:.2f} s")
    whole = sum(kinds.values())
    print(f"one training step's forward and backward, {whole:.2f} s under the profiler:")
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {kind:20} {seconds / whole:5.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
