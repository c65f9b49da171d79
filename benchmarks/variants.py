"""Ways to train and answer, side by side on families × seeds: what `ablation.py` and `context_tuning.py` share.

Each row of the report is one family, seed and variant, written as it comes, so that a run that was stopped goes on
where it was. Variants that differ in nothing that this task can show (another symbol permutation on texts, say)
are not run twice: their row names the one that they equal.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router.metrics import exact
from router.statistics import paired_difference
from ttt.augment import DEFAULT, space
from ttt.engine import Engine
from ttt.formats import read_families
from ttt.icl import answer
from ttt.model import load, resolve
from ttt.pools import Sample, sample, split
from ttt.recipes import Recipe, as_written, fitting
from ttt.task import Task
from ttt.train import TrainRequest, train_adapter
from ttt.views import vote_answers

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train and answer."""

    name: str
    recipes: tuple[Recipe, Recipe] | None
    """For texts and for cells; None answers in context without training."""
    votes: int = 1
    augmentations: tuple[str, ...] = DEFAULT
    """Of the views that vote."""
    beside: str = "standard"
    """The variant that it is compared with."""


def effective(variant: Variant, task: Task) -> tuple[Any, ...]:
    """Equal for variants that do the same on this task."""
    votes = (variant.votes, space(task, variant.augmentations).names if variant.votes > 1 else ())
    if variant.recipes is None:
        return (None, votes)
    recipe = fitting(variant.recipes, task)
    return (replace(recipe, name="any", augmentations=space(task, recipe.augmentations).names), votes)


async def run_variant(
    engine: Engine, drawn: Sample, variants: Sequence[Variant], seed: int
) -> dict[str, dict[str, Any]]:
    """Results by variant; all have the same recipe in effect, so that one training serves them.

    `seconds` are those of a variant alone: training, answering and votes.
    """
    task, queries = drawn.task, drawn.queries
    recipe = fitting(variants[0].recipes, task) if variants[0].recipes is not None else None
    train_s, extra = 0.0, dict[str, Any]()
    name: str | None = None
    form = "in-context"
    if recipe is not None:
        task = as_written(task, recipe.rows)
        name, form = "variant", recipe.form
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            request = TrainRequest(task, recipe, seed, Path(folder), name)
            report = await train_adapter(engine, request, keep=True)
            train_s = time.perf_counter() - started
            size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        extra = {
            "steps": len(report.losses),
            "first_loss": report.losses[0],
            "last_loss": report.losses[-1],
            "trainable": report.trainable_parameters,
            "folder_bytes": size,
        }
    try:
        started = time.perf_counter()
        plain = await answer(engine, task, queries, adapter=name, in_context=form != "direct")
        plain_s = time.perf_counter() - started
        found = {}
        for variant in variants:
            started, answers = time.perf_counter(), plain.answers
            if variant.votes > 1:
                voted = await vote_answers(
                    engine,
                    task,
                    queries,
                    plain,
                    variant.votes,
                    augmentations=variant.augmentations,
                    seed=seed,
                    adapter=name,
                    in_context=form != "direct",
                )
                answers = voted.answers
            found[variant.name] = {
                "correct": [int(exact(a.text, gold)) for a, gold in zip(answers, drawn.gold, strict=True)],
                "seconds": train_s + plain_s + time.perf_counter() - started,
                "train_s": train_s,
                **extra,
            }
        return found
    finally:
        if name is not None:
            await drop(engine, name)


async def drop(engine: Engine, name: str) -> None:
    """Detach an adapter."""
    await engine.run(lambda bench: bench.slots.drop(name))


async def run(
    engine: Engine,
    paths: Iterable[Path],
    variants: Sequence[Variant],
    *,
    demonstrations: int,
    queries: int,
    seeds: Sequence[int],
    report: dict[str, Any],
    out: Path | None,
    say: Callable[[str], None] = print,
) -> None:
    """Fill `report["rows"]`, family by family and seed by seed, writing it to `out` after each."""
    rows: Rows = report["rows"]
    done = {(row["family"], row["seed"], row["variant"]) for row in rows}
    for family in read_families(list(paths)):
        pools = split(family)
        for seed in seeds:
            drawn = sample(pools, demonstrations, queries, seed)
            groups: dict[Any, list[Variant]] = defaultdict(list)
            for variant in variants:
                groups[effective(variant, drawn.task)[0]].append(variant)
            for group in groups.values():
                waiting = [v for v in group if (family.name, seed, v.name) not in done]
                if not waiting:
                    continue
                own: dict[Any, Variant] = {}
                for v in waiting:  # of those that equal one another the first is run
                    own.setdefault(effective(v, drawn.task), v)
                found = await run_variant(engine, drawn, list(own.values()), seed)
                for v in waiting:
                    first = own[effective(v, drawn.task)]
                    row = {"family": family.name, "seed": seed, "variant": v.name, **found[first.name]}
                    if first is not v:
                        row["same_as"] = first.name
                    rows.append(row)
                write(report, out)
                shown = ", ".join(f"{v.name} {_percent(found[v.name]['correct'])}" for v in own.values())
                say(f"{family.name} {seed}: {shown}")


def differences(rows: Rows, variants: Sequence[Variant]) -> Rows:
    """For each variant its accuracy, seconds a task, and difference to the one beside it, in points, over the
    families and seeds that have both; the interval resamples families."""
    by_variant: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_variant[row["variant"]][row["family"], row["seed"]] = row
    found = []
    for variant in variants:
        own, other = by_variant.get(variant.name, {}), by_variant.get(variant.beside, {})
        if not own:
            continue
        correct = [c for row in own.values() for c in row["correct"]]
        line: dict[str, Any] = {
            "variant": variant.name,
            "accuracy": sum(correct) / len(correct),
            "seconds": sum(row["seconds"] for row in own.values()) / len(own),
            "tasks": len(own),
            "not_applicable": sum("same_as" in row for row in own.values()),
        }
        families: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for key in own.keys() & other.keys():
            families[key[0]][0].extend(other[key]["correct"])
            families[key[0]][1].extend(own[key]["correct"])
        if families and variant.name != variant.beside:
            pairs = [families[name] for name in sorted(families)]
            d = paired_difference(pairs, seed=0, cluster=True)
            line |= {
                "beside": variant.beside,
                "points": 100 * d.mean,
                "low": 100 * d.low,
                "high": 100 * d.high,
            }
        found.append(line)
    return found


def markdown(lines: Rows) -> str:
    """The table of `differences`."""
    made = ["| variant | accuracy | points beside | 95 % interval | seconds a task | tasks it changes |"]
    made.append("|---|---|---|---|---|---|")
    for line in lines:
        points = f"{line['points']:+.1f} {line['beside']}" if "points" in line else "–"
        interval = f"{line['low']:+.1f} to {line['high']:+.1f}" if "points" in line else "–"
        changed = line["tasks"] - line["not_applicable"]
        made.append(
            f"| {line['variant']} | {100 * line['accuracy']:.1f} % | {points} | {interval} | "
            f"{line['seconds']:.1f} | {changed} of {line['tasks']} |"
        )
    return "\n".join(made)


def by_family(rows: Rows, variants: Sequence[Variant]) -> str:
    """Accuracy of each variant on each family, over its seeds."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    names = [v.name for v in variants if any(row["variant"] == v.name for row in rows)]
    made = [f"| family | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for family in families:
        cells = []
        for name in names:
            own = [r["correct"] for r in rows if (r["family"], r["variant"]) == (family, name)]
            cells.append(_percent([c for correct in own for c in correct]) if own else "–")
        made.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(made)


def open_engine(model: str, device: str, dtype: str) -> Engine:
    """A model ready to be used, whatever `--model` takes."""
    return Engine(load(resolve(model, progress=print), device, dtype))


def begin(out: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """The report to fill: that of `out` if it was asked for with the same values, else an empty one.

    Raises:
        SystemExit: `out` holds a report that was made with others.
    """
    asked = json.loads(json.dumps(asked))
    if out is None or not out.exists():
        return {"asked": asked, "rows": []}
    report: dict[str, Any] = json.loads(out.read_text())
    if report.get("asked") != asked:
        raise SystemExit(f"{out} was made with other options ({report.get('asked')}); name another --out.")
    return report


def write(report: dict[str, Any], out: Path | None) -> None:
    if out is None:
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(out)


def plain(variant: Variant) -> dict[str, Any]:
    """A variant as JSON."""
    return asdict(variant)


def _percent(correct: Sequence[int]) -> str:
    return f"{100 * sum(correct) / len(correct):.0f} %"
