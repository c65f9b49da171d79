"""Arms on benchmark or user tasks, with intervals; resumable. The core of `ttt-router evaluate`.

An arm's seconds are those of the steps that it would have run alone. Arms share what they have in
common: the ICL answers and the adapter of the `auto` run are those that `icl` and `ttt` would have
made (same prompt, same seed, same recipe), so they are not computed twice; the former where all queries were asked at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.harm import holm
from router.arms import PLAIN, parse_arm
from router.errors import RouterError
from router.events import Event
from router.metrics import metric
from router.receipt import Receipt
from router.settings import Settings, in_one_process
from router.statistics import mcnemar_exact, paired_difference, wilson_interval
from ttt.formats import Family, read_families
from ttt.pools import Pools, Sample, baseline_rates, mislabelled, sample, split
from ttt.recipes import find_recipes

if TYPE_CHECKING:
    from router.agent import Router

REPORT_VERSION = 1
SHORTER = "short"
"""Stands for the shorter training among recipes."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What to run."""

    demonstrations: int = 10
    queries: int = 32
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ("icl", "ttt", "auto")
    metric: str = "exact"
    out: Path | None = None
    resume: bool = False
    store: Path | None = None
    flip_labels: float = 0.0
    """Share of the demonstrations that get a wrong label, 0 to 1; queries are never touched."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One family and seed begins (`row` None) or is done; `event` says what happens inside."""

    family: str
    seed: int
    number: int
    of: int
    row: Mapping[str, Any] | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One task of a family, by a seed."""

    family: Family
    pools: Pools
    seed: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class _Arm:
    texts: tuple[str, ...]
    parts: Mapping[str, float]
    """Seconds of each step that the arm would have run alone."""
    arm: str
    chosen: str = ""
    """What a search for a recipe has found, and why."""
    by_probe_s: float | None = None
    """Of the training, what a probe would do for it (see `Receipt.by_probe_s`)."""


@dataclass(frozen=True, slots=True)
class _Paid:
    """A training that was run."""

    arm: str
    seconds: float
    by_probe_s: float | None


def evaluate(
    paths: Sequence[Path],
    options: EvaluateOptions,
    settings: Settings,
    on_event: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the arms on each family and seed; the report grows in `options.out` as results come.

    Raises:
        RouterError: an unknown arm, or a report to resume that was made with other options.
        TaskError: a path that can't be read, or a pool that is too small.
    """
    from router.agent import Router

    drawn = draw(paths, options)
    report = _begin(options, settings)
    done = {(row["family"], row["seed"]) for row in report["families"]}
    with tempfile.TemporaryDirectory(prefix="ttt-router-evaluate-") as own:
        folder = str(options.store or own)
        with Router.open(replace(in_one_process(settings), data_dir=folder, database_url="")) as router:
            report["model"] = {
                "name": router.parts.engine.loaded.name,
                "revision": router.parts.engine.loaded.revision,
            }
            for number, one in enumerate(drawn, start=1):
                if (one.family.name, one.seed) in done:
                    continue
                here = Progress(one.family.name, one.seed, number, len(drawn))
                on_event(here)
                row = run_arms(router, one, options, here, on_event)
                report["families"].append(row)
                _write(report, options)
                on_event(replace(here, row=row))
    report["summary"] = summarise(report["families"])
    _write(report, options)
    return report


def draw(paths: Sequence[Path], options: EvaluateOptions) -> list[Drawn]:
    """A task of each family and seed.

    Raises:
        RouterError: an arm or metric that there is none of.
        TaskError: a path that can't be read, or a pool that is too small.
    """
    for name in options.arms:
        parse_arm(name)
    metric(options.metric)  # one that there is none of should not wait for the model
    return [
        Drawn(f, pools, seed, sample(pools, options.demonstrations, options.queries, seed))
        for f, pools in [(f, split(f)) for f in read_families(paths)]
        for seed in options.seeds
    ]


def run_arms(
    router: Router,
    drawn: Drawn,
    options: EvaluateOptions,
    here: Progress,
    on_event: Callable[[Progress], None],
) -> dict[str, Any]:
    """One row of the report: what each arm answered, right or wrong, and its seconds by step."""
    family, pools, asked = drawn.family, drawn.pools, drawn.sample
    judge = metric(options.metric)
    task, flipped = mislabelled(asked.task, options.flip_labels, drawn.seed)

    def ask(arm: str) -> Receipt:
        last: Any = None
        for last in router.stream(task, asked.queries, arm=arm, seed=drawn.seed):
            on_event(replace(here, event=last))
        receipt: Receipt = last.receipt
        return receipt

    arms, auto = _arms(options.arms, ask, router.settings.recipe)
    rates = baseline_rates(pools)
    row: dict[str, Any] = {
        "family": family.name,
        "seed": drawn.seed,
        "n_queries": len(asked.queries),
        "answerable": family.answerable,
        "chance": rates.chance,
        "majority": rates.majority,
        "notes": [*family.notes, *asked.notes],
        "arms": {},
    }
    if options.flip_labels:
        row["mislabelled"] = list(flipped)
    for name, taken in arms.items():
        correct = [int(judge(text, gold)) for text, gold in zip(taken.texts, asked.gold, strict=True)]
        interval = wilson_interval(sum(correct), len(correct))
        row["arms"][name] = {
            "accuracy": sum(correct) / len(correct),
            "low": interval.low,
            "high": interval.high,
            "correct": correct,
            "seconds": sum(taken.parts.values()),
            "seconds_parts": dict(taken.parts),
            "arm": taken.arm,
            "answers": list(taken.texts),
        } | {k: v for k in ("chosen", "by_probe_s") if (v := getattr(taken, k)) not in ("", None)}
    if auto is not None:
        row["auto"] = {
            "reason": auto.decisions[-1]["reason"] if auto.decisions else "",
            "fallback": auto.fallback,
            "signals": dict(auto.signals),
            "location": auto.location,
            "steps": [asdict(s) for s in auto.steps],
            "decisions": list(auto.decisions),
        }
    return row


def _arms(
    wanted: Sequence[str], ask: Callable[[str], Receipt], recipe: str
) -> tuple[dict[str, _Arm], Receipt | None]:
    arms: dict[str, _Arm] = {}
    paid: dict[str, _Paid] = {}
    """By recipe: a training that a later arm which meets its adapter would have run alone."""
    auto = ask("auto") if "auto" in wanted else None
    if auto is not None:
        arms["auto"] = _Arm(auto.texts, _parts(auto), auto.arm, _chosen(auto))
    if "icl" in wanted:
        if auto is not None and auto.icl_at_once and auto.step("vote") is None:
            arms["icl"] = _Arm(auto.icl_texts, _parts(auto, "icl"), "icl")
        else:
            receipt = ask("icl")
            arms["icl"] = _Arm(receipt.texts, _parts(receipt, "icl", "vote"), "icl")
    trained = auto.step("train") if auto is not None else None
    full = {f"train:{one.name}" for one in find_recipes(recipe)}
    if auto is not None and trained is not None and "failed" not in trained.detail:
        taken = _decided(auto)
        paid[recipe if taken in full else SHORTER] = _Paid(taken, auto.training_s, auto.by_probe_s)
    if "ttt" in wanted:
        if auto is not None and trained is not None and auto.arm in full:
            parts = _parts(auto, "train", "answer", "vote") | {"train": auto.training_s}
            arms["ttt"] = _Arm(auto.texts, parts, auto.arm, _chosen(auto), auto.by_probe_s)
        else:
            arms["ttt"] = _trained(ask("ttt"), recipe, paid)  # may meet what a vetoed `auto` run has trained
    for name in wanted:
        if name not in arms:
            receipt, way = ask(name), parse_arm(name)
            if way.arm == "ttt":
                arms[name] = _trained(receipt, SHORTER if way.short else way.recipe or recipe, paid)
            else:
                arms[name] = _Arm(receipt.texts, _parts(receipt), receipt.arm)
    return {name: arms[name] for name in wanted}, auto


def _trained(receipt: Receipt, recipe: str, paid: dict[str, _Paid]) -> _Arm:
    """An arm that trains, by its name and at its whole price even where it met the adapter that another arm has left."""
    if receipt.step("train") is not None:
        paid[recipe] = _Paid(receipt.arm, receipt.training_s, receipt.by_probe_s)
        return _Arm(receipt.texts, _parts(receipt), receipt.arm, _chosen(receipt), receipt.by_probe_s)
    if recipe not in paid:
        return _Arm(receipt.texts, _parts(receipt), receipt.arm)
    met = paid[recipe]
    return _Arm(receipt.texts, {"train": met.seconds} | _parts(receipt), met.arm, by_probe_s=met.by_probe_s)


def _decided(receipt: Receipt) -> str:
    """The arm that the policy took, though the guard may have vetoed it since."""
    return str(receipt.decisions[-1]["arm"]) if receipt.decisions else receipt.arm


def _chosen(receipt: Receipt) -> str:
    step = receipt.step("search") or receipt.step("probe")
    return "" if step is None else str(step.detail.get("chosen", ""))


def _parts(receipt: Receipt, *names: str) -> dict[str, float]:
    """Seconds by step, of the steps of these names, or of all."""
    found: dict[str, float] = {}
    for step in receipt.steps:
        if not names or step.name in names:
            found[step.name] = found.get(step.name, 0.0) + step.seconds
    return found


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pooled accuracies, seconds and paired differences; every query weighs the same.

    `families_below` lists, per pair, families where the second arm is significantly below the first
    (exact McNemar over all seeds of a family, Holm over families, 5 %).
    """
    if not rows:
        return {}
    names = [n for n in rows[0]["arms"] if all(n in row["arms"] for row in rows)]
    arms: dict[str, Any] = {}
    for name in names:
        cells = [row["arms"][name] for row in rows]
        correct = [c for cell in cells for c in cell["correct"]]
        interval = wilson_interval(sum(correct), len(correct))
        arms[name] = {
            "accuracy": sum(correct) / len(correct),
            "mean_over_families": sum(cell["accuracy"] for cell in cells) / len(cells),
            "low": interval.low,
            "high": interval.high,
            "seconds": sum(cell["seconds"] for cell in cells),
            "share_trained": sum(str(cell["arm"]).startswith("train:") for cell in cells) / len(cells),
        }
    further = [("icl", n) for n in names if n not in PLAIN]
    compared = (("icl", "ttt"), ("icl", "auto"), ("ttt", "auto"), *further)
    pairs = [(a, b) for a, b in compared if a in names and b in names]
    return {"arms": arms, "differences": {f"{b} - {a}": _difference(rows, a, b) for a, b in pairs}}


def _difference(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    pairs = [(row["arms"][first]["correct"], row["arms"][second]["correct"]) for row in rows]
    pooled = paired_difference(pairs, seed=0)
    merged: dict[str, tuple[list[int], list[int]]] = {}
    for row, (a, b) in zip(rows, pairs, strict=True):
        left, right = merged.setdefault(row["family"], ([], []))
        left += a
        right += b
    below = [(name, a, b) for name, (a, b) in merged.items() if sum(b) < sum(a)]
    p_values = {name: mcnemar_exact(a, b) for name, (a, b) in merged.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    significant = [name for name, _, _ in below if adjusted[name] < 0.05]
    return {"mean": pooled.mean, "low": pooled.low, "high": pooled.high, "families_below": significant}


def _begin(options: EvaluateOptions, settings: Settings) -> dict[str, Any]:
    values = {k: v for k, v in asdict(options).items() if k not in ("out", "resume", "store")}
    asked = json.loads(json.dumps({"options": values, "settings": _relevant(settings)}))
    fresh = {"version": REPORT_VERSION, **asked, "families": [], "summary": {}}
    if not options.resume:
        return fresh
    if options.out is None:
        raise RouterError("--resume needs --out: the report to go on with.")
    if not options.out.exists():
        return fresh
    try:
        report: dict[str, Any] = json.loads(options.out.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RouterError(
            f"The report {options.out} can't be read ({error}); run without --resume."
        ) from error
    for key in ("version", "options", "settings"):
        if report.get(key) != fresh[key]:
            raise RouterError(
                f"The report {options.out} was made with other {key} ({report.get(key)}); run without --resume or "
                "with the same ones."
            )
    return report


def _relevant(settings: Settings) -> dict[str, Any]:
    """Settings that change results."""
    left_out = (
        "data_dir",
        "database_url",
        "tracing",
        "quota_bytes",
        "max_age_days",
        "executor",
        "train_max_s",
    )
    values = {k: v for k, v in asdict(settings).items() if k not in left_out}
    return values | {"recipes": [recipe.id for recipe in find_recipes(settings.recipe)]}


def _write(report: Mapping[str, Any], options: EvaluateOptions) -> None:
    if options.out is None:
        return
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(options.out)
    except OSError as error:
        raise RouterError(f"The report can't be written to {options.out}: {error.strerror}.") from error
