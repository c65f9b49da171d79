"""Times at fixed sizes, and how to measure: for `speed.py` and `growth.py`. Not a program of its own.

Random tokens, a quarter of them labelled. Knows nothing of tasks.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ttt.dataset import Sequence
from ttt.engine import Bench, Engine
from ttt.gradients import losses, trainable
from ttt.recipes import CELLS, Recipe
from ttt.task import Task
from ttt.tree import Append, TokenTree


def median(values: list[float]) -> float:
    return statistics.median(values)


def timed(run: Callable[[], Any], n: int, warm: bool = True) -> list[float]:
    """Seconds of `n` runs, after one that is not counted."""
    if warm:
        run()
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def matrix_peak(n: int = 1536) -> float:
    """FLOP/s of a bf16 matrix product."""
    x = torch.randn(n, n, dtype=torch.bfloat16)
    return 2 * n**3 / median(timed(lambda: x @ x, 15))


def random_batch(tokens: int, rows: int, seed: int) -> list[Sequence]:
    rng = random.Random(seed)
    return [
        Sequence(
            tuple(rng.randrange(100, 40_000) for _ in range(tokens)),
            tuple(rng.random() < 0.25 for _ in range(tokens)),
        )
        for _ in range(rows)
    ]


def sizes(engine: Engine, repeats: int) -> dict[str, Any]:
    """Shares of the matrix-product peak, and eight tasks together against one after the other."""
    n_parameters = engine.loaded.n_nonembedding

    def run(bench: Bench) -> dict[str, Any]:
        peak = matrix_peak()
        adapters = []
        for i in range(8):
            bench.slots.create(f"size-{i}", CELLS, i)
            adapters.append(trainable(bench, f"size-{i}"))
        two = random_batch(768, 2, 0)
        step = median(timed(lambda: losses(bench, [(adapters[0], two)]), repeats))
        ids = [token for s in two for token in s.ids]

        def prefill() -> None:
            tree = TokenTree(bench.runner(None))
            a, b = tree.child(0), tree.child(0)
            tree.append([Append(a, ids[:768], 1)])
            tree.append([Append(b, ids[768:], 1)])

        forward = median(timed(prefill, repeats))
        together: dict[str, float] = {}
        for tokens in (256, 768):
            batches = [random_batch(tokens, 1, i) for i in range(8)]
            groups = [8] if tokens == 256 else [2, 2, 2, 2]  # as `rounds.ROUND_TOKENS` makes them

            def joint(batches: list[list[Sequence]] = batches, groups: list[int] = groups) -> None:
                start = 0
                for size in groups:
                    part = range(start, start + size)
                    losses(bench, [(adapters[i], batches[i]) for i in part])
                    start += size

            def alone(batches: list[list[Sequence]] = batches) -> None:
                for adapter, batch in zip(adapters, batches, strict=True):
                    losses(bench, [(adapter, batch)])

            ratios = []
            for _ in range(repeats):
                (a,), (b,) = timed(joint, 1, warm=False), timed(alone, 1, warm=False)
                ratios.append(a / b)
            together[str(tokens)] = median(ratios)
        for i in range(8):
            bench.slots.drop(f"size-{i}")
        return {
            "peak_flops": peak,
            "step_2x768_s": step,
            "step_peak_share": 4 * n_parameters * 1536 / step / peak,
            "prefill_2x768_s": forward,
            "prefill_peak_share": 2 * n_parameters * 1536 / forward / peak,
            "joint_training_ratio_256": together["256"],
            "joint_training_ratio_768": together["768"],
        }

    return engine.submit(run).result()


def peak_memory(model: str, task: Task, how: Recipe) -> int:
    """Peak resident bytes of a process that loads the model and makes three of our steps."""
    program = (
        "import sys, json, asyncio; sys.path.insert(0, sys.argv[1]); from ttt.process import prepare; prepare();"
        "from ttt.model import load, resolve; from ttt.engine import Engine; from ttt.task import Task, Demonstration;"
        "from ttt.recipes import Recipe; from ttt.train import train_adapter, TrainRequest;"
        "job = json.load(sys.stdin); engine = Engine(load(resolve(job['model'])));"
        "task = Task(tuple(Demonstration(a, b) for a, b in job['demonstrations']), job['instruction']);"
        "how = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in job['recipe'].items()});"
        "asyncio.run(train_adapter(engine, TrainRequest(task, how, 0, None, 'a')));"
        "from reference_ttt import peak_bytes; print(peak_bytes())"
    )
    job = {
        "model": model,
        "instruction": task.instruction,
        "demonstrations": [(d.input, d.output) for d in task.demonstrations],
        "recipe": asdict(how),
    }
    ran = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        input=json.dumps(job),
        check=True,
        capture_output=True,
        text=True,
    )
    return int(ran.stdout.splitlines()[-1])
