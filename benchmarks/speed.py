"""How fast test-time training is here, against the published method on transformers and PEFT, in one run.

    python benchmarks/speed.py DATA [--families a,b,…] [--model M] [--quick] [--out speed.json]

DATA holds the folders `1d-arc` and `bbh`. For each family, on one task of ten demonstrations:

1. The reference (`reference_ttt`) trains once in full, in a process of its own. Its final loss on 64 separate
   labelled items is the goal. Ours trains once as usual; the step at which its loss on them has been at or below
   the goal at two looks in a row is the crossing. Where it never was, ours trains once more, with twice the steps.
   Looks (ten over the steps, from the third on) are not timed. Where the reference's loss is no better than the
   untrained model's, ours is timed for all of its usual steps instead.
2. Rounds of one timing each: the reference as a process and within this one, and ours. The full run of 1 is the
   first process. Steps of one training cost the same, so what follows times a few of them: seconds = fixed part +
   steps · seconds a step, with the number of steps from 1. Ratios are taken round by round.

Then steps and forward passes at fixed sizes as shares of the bf16 matrix-product peak measured in the same run
(4 · non-embedding parameters · tokens ÷ seconds ÷ peak for a step, 2 · for a forward pass; adapters, attention
and logits are not counted), trainings of eight tasks together, leave-one-out against ICL, and peak memory.

A report that is there already is gone on with: its families are not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

import reference_ttt as reference  # noqa: E402
import torch  # noqa: E402

from ttt import icl  # noqa: E402
from ttt.augment import symbol_alphabet  # noqa: E402
from ttt.dataset import Sequence, sequences  # noqa: E402
from ttt.engine import Bench, Engine  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.gradients import losses, trainable  # noqa: E402
from ttt.model import load, resolve  # noqa: E402
from ttt.pools import sample, split  # noqa: E402
from ttt.prompts import PromptFormat  # noqa: E402
from ttt.recipes import CELLS, Recipe, recipe  # noqa: E402
from ttt.task import Demonstration, Task  # noqa: E402
from ttt.train import Training, TrainRequest  # noqa: E402

FAMILIES = "1d_move_1p,dyck_languages,1d_fill,object_counting,1d_pcopy_1c"
HELD_OUT, LOOKS = 64, 10
SHORT = 2
"""Steps of the reference in rounds after the first."""
LONGER = 2
"""Times the usual steps, where these do not reach the goal: the reference sees more tokens than we usually do."""


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


def advance(training: Training, bench: Bench) -> bool:
    """One step; whether there is another."""
    batch = training.batch()
    started = time.perf_counter()
    ((loss, labelled),) = losses(bench, [(training.weights, batch)])
    return training.done(loss, batch, labelled, time.perf_counter() - started)[1]


class Ours:
    """Our training of one task, step by step on the engine's thread."""

    def __init__(self, engine: Engine, task: Task, how: Recipe, name: str, folder: Path | None) -> None:
        fmt = PromptFormat(engine.loaded.tokenizer, task)
        request = TrainRequest(task, how, 0, folder, name)
        self.engine, self.name = engine, name
        self.training = Training(request, sequences(task, fmt, how, 0), lambda: False)
        started = time.perf_counter()
        engine.submit(self.training.start).result()
        self.fixed = time.perf_counter() - started

    def step(self) -> tuple[float, bool]:
        started = time.perf_counter()
        more = self.engine.submit(partial(advance, self.training)).result()
        return time.perf_counter() - started, more

    def end(self) -> None:
        """Save and detach; counted as part of `fixed`."""
        started = time.perf_counter()
        self.engine.submit(self.training.finish).result()
        self.fixed += time.perf_counter() - started
        self.engine.submit(self.training.drop).result()


def look(engine: Engine, task: Task, items: list[Demonstration], adapter: str | None) -> tuple[float, float]:
    """Loss (nats a token, mean over items) and share answered exactly, of labelled items."""
    judged = asyncio.run(icl.judge(engine, task, items, adapter=adapter))
    return -statistics.fmean(judged.logprob), statistics.fmean(judged.correct)


def reach(
    engine: Engine, task: Task, items: list[Demonstration], how: Recipe, goal: float, folder: Path
) -> tuple[int, int | None, tuple[float, float]]:
    """Steps of one training of ours, the step at which it crossed the goal, and its last look."""
    ours, more, done = Ours(engine, task, how, "ours", folder), True, 0
    crossing, below, last = None, 0, (math.inf, 0.0)
    every = max(1, how.steps // LOOKS)
    while more:
        _, more = ours.step()
        done += 1
        if (done % every == 0 and done >= 3 * every) or not more:
            last = look(engine, task, items, "ours")
            below = below + 1 if last[0] <= goal else 0
            crossing = done if below == 2 and crossing is None else crossing
    ours.end()
    return done, crossing, last


def look_saved(engine: Engine, task: Task, items: list[Demonstration], folder: Path) -> tuple[float, float]:
    async def run() -> tuple[float, float]:
        async with engine.adapter(folder) as name:
            judged = await icl.judge(engine, task, items, adapter=name)
            return -statistics.fmean(judged.logprob), statistics.fmean(judged.correct)

    return asyncio.run(run())


def process(job: dict[str, Any], folder: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the reference as a process of its own, and what it printed."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, reference.__file__, str(file)], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, json.loads(ran.stdout.splitlines()[-1])


def family(
    engine: Engine, task: Task, items: list[Demonstration], source: Path, rounds: int
) -> dict[str, Any]:
    cells = bool(symbol_alphabet(task))
    n = reference.CELL_STEPS if cells else reference.TEXT_STEPS
    fmt = PromptFormat(engine.loaded.tokenizer, task)
    whole = replace(recipe("standard", task), shots=len(task.demonstrations))
    rows = [(s.ids, s.labels) for s in islice(sequences(task, fmt, whole, 0), n * reference.BATCH)]
    job = {"model": str(source), "rows": rows, "batch": reference.BATCH, "steps": n, "of": n}
    job["learning_rate"] = reference.CELL_RATE if cells else reference.TEXT_RATE
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole_wall, full = process({**job, "out": str(folder / "reference")}, folder)
        goal, reference_accuracy = look_saved(engine, task, items, folder / "reference")
        before, icl_accuracy = look(engine, task, items, None)

        how = recipe("standard", task)
        done, crossing, last = reach(engine, task, items, how, goal, folder / "ours")
        usual = done
        if crossing is None and goal < before:
            how = how.with_steps(LONGER * how.steps)
            done, crossing, last = reach(engine, task, items, how, goal, folder / "longer")
        # A reference that ends worse than the untrained model sets no goal: ours then runs as it usually does.
        steps = usual if goal >= before else crossing or done

        found: dict[str, list[float]] = {k: [] for k in ("process", "in_process", "ours")}
        for number in range(rounds):
            if number:
                wall, short = process({**job, "steps": SHORT, "out": str(folder / "short")}, folder)
                found["process"].append(wall + (n - SHORT) * median(short["steps"]))
            else:
                found["process"].append(whole_wall)
            started = time.perf_counter()
            peft, _, each = reference.train(reference.load(str(source)), {**job, "steps": SHORT})
            peft.save_pretrained(folder / "short")
            rest = time.perf_counter() - started - sum(each)
            del peft
            found["in_process"].append(rest + n * median(each))
            mine = Ours(engine, task, how, "timed", folder / "timed")
            each = [mine.step()[0] for _ in range(8)]
            mine.end()
            found["ours"].append(mine.fixed + steps * median(each))
    # A goal that was never reached is no speed: ratio 0.
    reached = float(crossing is not None or goal >= before)
    pairs = list(zip(found["process"], found["in_process"], found["ours"], strict=True))
    return {
        "cells": cells,
        "reference_loss": goal,
        "icl_loss": before,
        "our_loss": last[0],
        "icl_accuracy": icl_accuracy,
        "reference_accuracy": reference_accuracy,
        "our_accuracy": last[1],
        "reference_steps": n,
        "reference_full_run_s": full["seconds"],
        "our_steps": done,
        "crossing": crossing,
        "seconds": {k: median(v) for k, v in found.items()},
        "ratio_vs_process": reached * median([a / c for a, _, c in pairs]),
        "ratio_vs_in_process": reached * median([b / c for _, b, c in pairs]),
        "reference_peak_bytes": full["peak_bytes"],
    }


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
        from ttt.tree import Append, TokenTree

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
    from dataclasses import asdict

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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--families", default=FAMILIES, help="names, comma between; '' measures fixed sizes only"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="three families, medians of three")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    names = [n for n in options.families.split(",") if n][: 3 if options.quick else None]
    rounds = 3 if options.quick else 5
    source = resolve(options.model)
    engine = Engine(load(source))
    found = {f.name: f for f in read_families([options.data / "1d-arc", options.data / "bbh"])}
    report: dict[str, Any] = _begun(options.out, {"model": options.model, "rounds": rounds})
    if "families" not in report:
        report |= sizes(engine, rounds) | {"families": {}}
        print(json.dumps(report, indent=1), flush=True)
    for name in names:
        if name in report["families"]:
            continue
        pools = split(found[name])
        drawn = sample(pools, 10, 32, 0)
        rest = [item for item in pools.queries if item.input not in {q.input for q in drawn.queries}]
        items = [Demonstration(item.input, item.output) for item in (rest or list(pools.queries))[:HELD_OUT]]
        row = family(engine, drawn.task, items, source.folder, rounds)
        ask = median(timed(lambda: asyncio.run(icl.answer(engine, drawn.task, drawn.queries)), 1))  # noqa: B023
        loo = median(timed(lambda: asyncio.run(icl.leave_one_out(engine, drawn.task)), 1))  # noqa: B023
        row["held_out"] = len(items)
        row["loo_over_icl"] = loo / ask
        row["our_peak_bytes"] = peak_memory(
            options.model, drawn.task, replace(recipe("standard", drawn.task), steps=3)
        )
        report["families"][name] = row
        print(name, json.dumps(row), flush=True)
        rows = report["families"].values()
        for key in ("ratio_vs_process", "ratio_vs_in_process"):
            report[key] = median([r[key] for r in rows])
        report["loo_over_icl_ratio"] = median([r["loo_over_icl"] for r in rows])
        report["peak_memory_ratio"] = median([r["our_peak_bytes"] / r["reference_peak_bytes"] for r in rows])
        _write(report, options.out)
    _write(report, options.out)
    print_table(report)
    engine.close()
    return 0


def _begun(file: Path | None, what: dict[str, Any]) -> dict[str, Any]:
    """The report in `file`, if it is of the same model and number of rounds; else a new one.

    Raises:
        SystemExit: it is of another.
    """
    if file is None or not file.exists():
        return what
    report: dict[str, Any] = json.loads(file.read_text())
    if any(report.get(key) != value for key, value in what.items()):
        raise SystemExit(f"{file} is not a report of {what}; move it away or name another.")
    return report


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


def print_table(report: dict[str, Any]) -> None:
    print(
        "\n| family | ICL | reference | ours | steps (crossing) | process s | in process s | ours s | ratios |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in report["families"].items():
        s = row["seconds"]
        print(
            f"| {name} | {row['icl_accuracy']:.0%} | {row['reference_accuracy']:.0%} at {row['reference_loss']:.3f} | "
            f"{row['our_accuracy']:.0%} at {row['our_loss']:.3f} | {row['our_steps']} ({row['crossing']}) | "
            f"{s['process']:.0f} | {s['in_process']:.0f} | {s['ours']:.1f} | "
            f"{row['ratio_vs_process']:.1f} / {row['ratio_vs_in_process']:.1f} |"
        )
    for key in (
        "ratio_vs_process",
        "ratio_vs_in_process",
        "step_peak_share",
        "prefill_peak_share",
        "joint_training_ratio_256",
        "joint_training_ratio_768",
        "loo_over_icl_ratio",
        "peak_memory_ratio",
    ):
        if key in report:
            print(f"{key}: {report[key]:.3f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
