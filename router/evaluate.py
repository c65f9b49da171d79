"""Arms on benchmark or user tasks, with intervals; resumable. The core of `ttt-router evaluate`.

An arm's seconds are those of the steps that it would have run alone. Arms share what they have in
common: the ICL answers and the adapter of the `auto` run are those that `icl` and `ttt` would have
made (same prompt, same seed, same recipe), so they are not computed twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import RouterError
from router.events import Event
from router.metrics import Metric, metric
from router.receipt import Receipt
from router.settings import Settings
from router.statistics import holm, mcnemar_exact, paired_difference, wilson_interval
from ttt.formats import Family, read_families
from ttt.pools import Pools, Sample, baseline_rates, sample, split
from ttt.recipes import find_recipes

if TYPE_CHECKING:
    from router.agent import Router

ARMS = ("auto", "icl", "ttt", "zero-shot")
REPORT_VERSION = 1


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
class _Arm:
    texts: tuple[str, ...]
    seconds: float
    arm: str
    chosen: str = ""
    """What a search for a recipe has found, and why."""


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

    unknown = [a for a in options.arms if a not in ARMS]
    if unknown:
        raise RouterError(f"Unknown arm {unknown[0]!r}; choose from: {', '.join(ARMS)}.")
    judge = metric(options.metric)
    families = [(f, split(f)) for f in read_families(paths)]
    drawn = [
        (f, pools, seed, sample(pools, options.demonstrations, options.queries, seed))
        for f, pools in families
        for seed in options.seeds
    ]
    report = _begin(options, settings)
    done = {(row["family"], row["seed"]) for row in report["families"]}
    with tempfile.TemporaryDirectory(prefix="ttt-router-evaluate-") as own:
        folder = str(options.store or own)
        with Router.open(replace(settings, data_dir=folder, database_url="")) as router:
            report["model"] = {
                "name": router.parts.engine.loaded.name,
                "revision": router.parts.engine.loaded.revision,
            }
            for number, (family, pools, seed, drawn_sample) in enumerate(drawn, start=1):
                if (family.name, seed) in done:
                    continue
                here = Progress(family.name, seed, number, len(drawn))
                on_event(here)
                row = _row(router, family, pools, drawn_sample, seed, options, judge, here, on_event)
                report["families"].append(row)
                _write(report, options)
                on_event(replace(here, row=row))
    report["summary"] = summarise(report["families"])
    _write(report, options)
    return report


def _row(
    router: Router,
    family: Family,
    pools: Pools,
    drawn: Sample,
    seed: int,
    options: EvaluateOptions,
    judge: Metric,
    here: Progress,
    on_event: Callable[[Progress], None],
) -> dict[str, Any]:
    def ask(arm: str) -> Receipt:
        last: Any = None
        for last in router.stream(drawn.task, drawn.queries, arm=arm, seed=seed):
            on_event(replace(here, event=last))
        receipt: Receipt = last.receipt
        return receipt

    arms, auto = _arms(options.arms, ask)
    rates = baseline_rates(pools)
    row: dict[str, Any] = {
        "family": family.name,
        "seed": seed,
        "n_queries": len(drawn.queries),
        "answerable": family.answerable,
        "chance": rates.chance,
        "majority": rates.majority,
        "notes": [*family.notes, *drawn.notes],
        "arms": {},
    }
    for name, taken in arms.items():
        correct = [int(judge(text, gold)) for text, gold in zip(taken.texts, drawn.gold, strict=True)]
        interval = wilson_interval(sum(correct), len(correct))
        row["arms"][name] = {
            "accuracy": sum(correct) / len(correct),
            "low": interval.low,
            "high": interval.high,
            "correct": correct,
            "seconds": taken.seconds,
            "arm": taken.arm,
            "answers": list(taken.texts),
        } | ({"chosen": taken.chosen} if taken.chosen else {})
    if auto is not None:
        row["auto"] = {
            "reason": auto.decisions[-1]["reason"] if auto.decisions else "",
            "fallback": auto.fallback,
            "signals": dict(auto.signals),
            "steps": [asdict(s) for s in auto.steps],
            "decisions": list(auto.decisions),
        }
    return row


def _arms(wanted: Sequence[str], ask: Callable[[str], Receipt]) -> tuple[dict[str, _Arm], Receipt | None]:
    arms: dict[str, _Arm] = {}
    auto = ask("auto") if "auto" in wanted else None
    if auto is not None:
        arms["auto"] = _Arm(auto.texts, auto.seconds, auto.arm, _chosen(auto))
    if "icl" in wanted:
        if auto is not None and auto.icl_answers and auto.step("vote") is None:
            texts = tuple(a.text for a in auto.icl_answers)
            arms["icl"] = _Arm(texts, _seconds(auto, "icl"), "icl")
        else:
            receipt = ask("icl")
            arms["icl"] = _Arm(receipt.texts, _seconds(receipt, "icl", "vote"), "icl")
    if "ttt" in wanted:
        trained = auto.step("train") if auto is not None else None
        if auto is not None and trained is not None and auto.arm.startswith("train:"):
            arms["ttt"] = _Arm(
                auto.texts, _training_s(auto) + _seconds(auto, "answer", "vote"), auto.arm, _chosen(auto)
            )
        else:
            receipt = ask("ttt")  # meets the adapter that a vetoed `auto` run has trained
            made = auto is not None and trained is not None and "failed" not in trained.detail
            before = _training_s(auto) if auto is not None and made else 0.0
            chosen = _chosen(receipt) or (_chosen(auto) if auto is not None and made else "")
            arms["ttt"] = _Arm(receipt.texts, before + receipt.seconds, receipt.arm, chosen)
    if "zero-shot" in wanted:
        receipt = ask("zero-shot")
        arms["zero-shot"] = _Arm(receipt.texts, receipt.seconds, receipt.arm)
    return {name: arms[name] for name in wanted}, auto


def _chosen(receipt: Receipt) -> str:
    step = receipt.step("search") or receipt.step("probe")
    return "" if step is None else str(step.detail.get("chosen", ""))


def _training_s(auto: Receipt) -> float:
    """Seconds of a training, with those of the probe or search that it goes on from."""
    trained = auto.step("train")
    begun = trained is not None and trained.detail.get("of_these_by_probe", 0) > 0
    return _seconds(auto, "probe", "search", "train") if begun else _seconds(auto, "train")


def _seconds(receipt: Receipt, *names: str) -> float:
    steps = (receipt.step(name) for name in names)
    return sum(step.seconds for step in steps if step is not None)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pooled accuracies, seconds and paired differences; every query weighs the same.

    `families_below` lists, per pair, families where the second arm is significantly below the first
    (exact McNemar over all seeds of a family, Holm over families, 5 %).
    """
    if not rows:
        return {}
    names = [n for n in ARMS if all(n in row["arms"] for row in rows)]
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
    pairs = [
        (a, b) for a, b in (("icl", "ttt"), ("icl", "auto"), ("ttt", "auto")) if a in names and b in names
    ]
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
    except (OSError, ValueError) as error:
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
    left_out = ("data_dir", "database_url", "tracing")
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
