"""How fast test-time training is here, against the published method on transformers and PEFT, in one run.

    python benchmarks/speed.py DATA [--families a,b,…] [--model M] [--reference-rates TEXT,CELLS] [--quick]
        [--out speed.json]

DATA holds the folders `1d-arc` and `bbh`. For each family, on one task of ten demonstrations:

1. The reference (`reference_ttt`) trains once in full, in a process of its own. Its final loss on 64 separate
   labelled items is the goal. Ours trains once as usual; the step at which its loss on them has been at or below
   the goal at two looks in a row is the crossing. Where it never was, ours trains once more, with twice the steps.
   Ours begins on halves of the demonstrations, as in a router; looks (about ten, from then on) are not timed. Where the reference's loss is no better than the
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
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

import reference_ttt as reference  # noqa: E402
from fixed_sizes import median, peak_memory, sizes, timed  # noqa: E402
from our_training import look, ours_seconds, reach  # noqa: E402

from ttt import icl, judging  # noqa: E402
from ttt.augment import symbol_alphabet  # noqa: E402
from ttt.dataset import sequences  # noqa: E402
from ttt.engine import Engine  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.model import load, resolve  # noqa: E402
from ttt.pools import sample, split  # noqa: E402
from ttt.prompts import PromptFormat  # noqa: E402
from ttt.recipes import recipe  # noqa: E402
from ttt.task import Demonstration, Task  # noqa: E402

FAMILIES = "1d_move_1p,dyck_languages,1d_fill,object_counting,1d_pcopy_1c"
HELD_OUT = 64
SHORT = 2
"""Steps of the reference in rounds after the first."""
LONGER = 2
"""Times the usual steps, where these do not reach the goal: the reference sees more tokens than we usually do."""


def look_saved(engine: Engine, task: Task, items: list[Demonstration], folder: Path) -> tuple[float, float]:
    async def run() -> tuple[float, float]:
        async with engine.adapter(folder) as name:
            judged = await judging.judge(engine, task, items, adapter=name)
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
    engine: Engine,
    task: Task,
    items: list[Demonstration],
    source: Path,
    rounds: int,
    rates: tuple[float, float],
) -> dict[str, Any]:
    """`rates`: the reference's, for texts and for cells."""
    cells = bool(symbol_alphabet(task))
    n = reference.CELL_STEPS if cells else reference.TEXT_STEPS
    fmt = PromptFormat(engine.loaded.tokenizer, task)
    whole = replace(recipe("standard", task), shots=len(task.demonstrations))
    rows = [(s.ids, s.labels) for s in islice(sequences(task, fmt, whole, 0), n * reference.BATCH)]
    job = {"model": str(source), "rows": rows, "batch": reference.BATCH, "steps": n, "of": n}
    job["learning_rate"] = rates[cells]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole_wall, full = process({**job, "out": str(folder / "reference")}, folder)
        goal, reference_accuracy = look_saved(engine, task, items, folder / "reference")
        before, icl_accuracy = look(engine, task, items, None)

        how = recipe("standard", task)
        ran = reach(engine, task, items, how, goal, folder / "ours")
        steps = ran.crossing or ran.steps
        if ran.crossing is None and goal < before:
            how = how.with_steps(LONGER * how.steps)
            ran = reach(engine, task, items, how, goal, folder / "longer")
            steps = ran.crossing or ran.steps
        # A reference that ends worse than the untrained model sets no goal: ours then runs as it usually does.

        found: dict[str, list[float]] = {k: [] for k in ("process", "in_process", "ours")}
        each_step: dict[str, list[float]] = {k: [] for k in ("reference", "ours")}
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
            each_step["reference"].append(median(each))
            seconds, step_s = ours_seconds(engine, task, how, folder / "timed", steps)
            found["ours"].append(seconds)
            each_step["ours"].append(step_s)
    # A goal that was never reached is no speed: ratio 0.
    reached = float(ran.crossing is not None or goal >= before)
    pairs = list(zip(found["process"], found["in_process"], found["ours"], strict=True))
    return {
        "cells": cells,
        "reference_loss": goal,
        "icl_loss": before,
        "our_loss": ran.loss,
        "icl_accuracy": icl_accuracy,
        "reference_accuracy": reference_accuracy,
        "our_accuracy": ran.accuracy,
        "reference_steps": n,
        "reference_full_run_s": full["seconds"],
        "our_steps": ran.steps,
        "crossing": ran.crossing,
        "step_s": {k: median(v) for k, v in each_step.items()},
        "tokens_per_s": {
            "reference": sum(len(ids) for ids, _ in rows) / n / median(each_step["reference"]),
            "ours": ran.tokens / ran.steps / median(each_step["ours"]),
        },
        "seconds": {k: median(v) for k, v in found.items()},
        "ratio_vs_process": reached * median([a / c for a, _, c in pairs]),
        "ratio_vs_in_process": reached * median([b / c for _, b, c in pairs]),
        "reference_peak_bytes": full["peak_bytes"],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--families", default=FAMILIES, help="names, comma between; '' measures fixed sizes only"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--reference-rates",
        default=f"{reference.TEXT_RATE:g},{reference.CELL_RATE:g}",
        help="the reference's for texts and for cells; the default was found on SmolLM2-135M",
    )
    parser.add_argument("--quick", action="store_true", help="three families, medians of three")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    names = [n for n in options.families.split(",") if n][: 3 if options.quick else None]
    rounds = 3 if options.quick else 5
    text, cell = (float(rate) for rate in options.reference_rates.split(","))
    rates = (text, cell)
    source = resolve(options.model)
    engine = Engine(load(source))
    found = {f.name: f for f in read_families([options.data / "1d-arc", options.data / "bbh"])}
    report: dict[str, Any] = _begun(
        options.out, {"model": options.model, "rounds": rounds, "reference_rates": list(rates)}
    )
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
        row = family(engine, drawn.task, items, source.folder, rounds, rates)
        ask = median(timed(lambda: asyncio.run(icl.answer(engine, drawn.task, drawn.queries)), 1))  # noqa: B023
        loo = median(timed(lambda: asyncio.run(judging.leave_one_out(engine, drawn.task)), 1))  # noqa: B023
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
