"""Outcomes in quantity: every arm on every task, a row of signals and outcomes each. The core of `ttt-router collect`.

What a policy learns from. One run measures all signals, the probe among them, gives the ICL answers that every arm is
compared with, and goes on from the probe to train; the other arms then answer beside it, whatever a policy would have chosen. Tasks
come one after the other, so all seconds are those of a path alone. Rows (see `policies.outcomes`) hold no text
of a task; their file grows as tasks are done, and is gone on with (`outcome_file.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.checks import stay_arm
from policies.errors import PolicyError
from policies.outcomes import TaskOutcome
from policies.types import LOCATION, MEASURED, SCALARS, Decision, Situation
from router.arms import Way, parse_arm
from router.errors import RouterError
from router.evaluate import Drawn, EvaluateOptions, Progress, draw, run_arms
from router.outcome_file import append, check_command, check_tasks, machine_name, rewrite, rows_there
from router.rows import completed, outcome, task_fingerprint
from router.settings import Settings, in_one_process
from router.stored import LEAST, halves_of
from ttt.errors import TaskError, TrainingFailed
from ttt.recipes import find_recipes
from ttt.views import SAMPLE as SAMPLED

if TYPE_CHECKING:
    from router.agent import Router


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What to run: tasks of each family by the seeds 0 to `seeds` − 1."""

    out: Path
    demonstrations: int = 10
    queries: int = 128
    seeds: int = 1
    arms: tuple[str, ...] = ("icl", "ttt")
    """Names as in `router.arms`, without `auto` and votes; `icl` is always among them."""
    metric: str = "exact"
    stored: bool = False
    """Also the tasks in the settings' store, one half of each asked by the other (see `router.stored`)."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run added."""

    rows: int
    completed: int
    """Rows that were there and have got an arm that they lacked."""
    there: int
    """Rows that the file had before."""
    failed: tuple[str, ...]
    """Tasks without a row, or without a further arm: family, seed and why. The next run tries them again."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """Sees everything: probes where that is feasible, and then trains, whatever the probe has shown, where training is
    among the arms, so that its beginning is not trained twice. Else it answers in context."""

    trains: bool
    version: str = "shadow-2"
    reads: frozenset[str] = MEASURED | {LOCATION}

    def decide(self, situation: Situation) -> Decision:
        reason = "Collecting outcomes: all signals are measured, and every arm answers."
        if situation.probe_feasible:
            return Decision("probe", None, 1.0, None, None, situation.costs.probe_s, reason, self.version)
        arm = next((a for a in situation.feasible if self.trains and a.startswith("train:")), None)
        arm = arm or stay_arm(situation)
        return Decision("answer", arm, 1.0, None, None, 0.0, reason, self.version, weighed=True)


def collect(
    paths: Sequence[Path],
    options: CollectOptions,
    settings: Settings,
    on_event: Callable[[Progress], None] = lambda _: None,
) -> Collected:
    """Append a row for each task that `options.out` has none of yet: all families by one seed, then by the next. Rows that
    lack one of the arms get it.

    A task whose training or prompt fails, or whose figures are not finite, gets no row; the others go on.

    Raises:
        RouterError: an arm that can't be collected, a file of rows that were made otherwise, or one that can't be
            written; or no task at all.
        PolicyError: a file of rows that can't be read.
        TaskError: a path that can't be read, or a pool that is too small.
    """
    from router.agent import Router

    asked = _asked(options, settings.recipe)
    drawn = sorted([*draw(paths, asked), *_stored(options, asked, settings)], key=lambda one: one.seed)
    if not drawn:
        raise RouterError(
            f"No stored task has {LEAST} demonstrations, of which one half could ask the other; name families."
            if options.stored
            else "There is nothing to collect on; name families, or ask for stored tasks."
        )
    there = rows_there(options.out)
    settings = replace(settings, signals="all", reuse="off", expected_repeats=0.0)
    added, further, failed = 0, 0, list[str]()
    with (
        tempfile.TemporaryDirectory(prefix="ttt-router-collect-") as own,
        Router.open(
            replace(in_one_process(settings), data_dir=own, database_url=""),
            policy=Shadow("ttt" in asked.arms),
        ) as agent,
    ):
        loaded = agent.parts.engine.loaded
        model = {"name": Path(loaded.name).name, "revision": loaded.revision}
        machine = machine_name(str(loaded.model.device), str(loaded.model.dtype).removeprefix("torch."))
        check_command(options.out, _command(options, settings, model, machine), bool(there))
        check_tasks(there, [(one.family.name, one.seed, task_fingerprint(one)) for one in drawn], options.out)
        rows = {row.key: row for row in there}
        made = {(row.family, row.seed): row for row in there}
        for number, one in enumerate(drawn, start=1):
            before = made.get((one.family.name, one.seed))
            wanted = asked if before is None else _lacking(before, asked, settings.recipe)
            if not wanted.arms:
                continue
            here = Progress(one.family.name, one.seed, number, len(drawn))
            on_event(here)
            try:
                with _store_of_its_own(agent, Path(own)):
                    report = run_arms(agent, one, wanted, here, on_event)
                if before is None:
                    row = outcome(one, report, model["revision"], machine)
                else:
                    row = completed(before, report)
            except (TrainingFailed, TaskError, PolicyError) as error:
                failed.append(f"{one.family.name} seed {one.seed}: {error}")
                continue
            rows[row.key] = row
            if before is None:
                append(options.out, row)
                added += 1
            else:
                rewrite(options.out, rows.values())
                further += 1
            report["arms"].pop("auto", None)  # the run that measured
            on_event(replace(here, row=report))
    return Collected(added, further, len(there), tuple(failed))


def _lacking(row: TaskOutcome, asked: EvaluateOptions, recipe: str) -> EvaluateOptions:
    """What was asked for, with those arms only that the row has no outcome of."""
    arms = [a for a in asked.arms if a != "auto" and not _outcomes_of(parse_arm(a), recipe) & set(row.arms)]
    return replace(asked, arms=tuple(arms))


def _stored(options: CollectOptions, asked: EvaluateOptions, settings: Settings) -> list[Drawn]:
    from router.bootstrap import open_store

    if not options.stored:
        return []
    opened = open_store(settings)
    try:
        return halves_of(opened.episodes.all_tasks(), asked.seeds, options.demonstrations, options.queries)
    finally:
        opened.close()


def _asked(options: CollectOptions, recipe: str) -> EvaluateOptions:
    if "auto" in options.arms:
        raise RouterError(
            "auto is no arm to collect: it is what policies are judged for on the rows; leave it out."
        )
    if options.seeds < 1:
        raise RouterError(f"{options.seeds} seeds make no task; ask for at least 1.")
    arms = tuple(dict.fromkeys(("auto", "icl", *options.arms)))
    ways = [parse_arm(name) for name in arms[1:]]
    outcomes = [name for way in ways for name in _outcomes_of(way, recipe)]
    if any(way.votes for way in ways) or len(set(outcomes)) < len(outcomes):
        raise RouterError(
            f"The arms {', '.join(arms[1:])} would write one outcome over another: a row has one of each kind, and none "
            "by votes; ask for them in collections of their own."
        )
    seeds = tuple(range(options.seeds))
    return EvaluateOptions(options.demonstrations, options.queries, seeds, arms, options.metric)


def _outcomes_of(way: Way, recipe: str) -> set[str]:
    """Names under which a row may hold the arm's outcome."""
    if way.arm == "ttt":
        pair = find_recipes(way.recipe or recipe)
        trained = [one.shorter for one in pair] if way.short else [*pair]
        if None in trained:
            raise RouterError(f"The recipe {pair[0].name!r} offers no shorter training; leave ttt:short out.")
        return {f"train:{one.name}" for one in trained if one is not None}
    if way.calibrated:
        return {f"{way.arm}:calibrated"}
    return {f"{way.arm}:{way.shots}" if way.shots else way.arm}


def _command(
    options: CollectOptions, settings: Settings, model: Mapping[str, str], machine: str
) -> dict[str, Any]:
    """All that rows depend on, by names that a person knows. What a preference says changes no row."""
    left_out = (
        "data_dir",
        "database_url",
        "tracing",
        "prefer",
        "worth_s",
        "expected_repeats",
        "model",
        "recipe",
    )
    return {
        "model": dict(model),
        "machine": machine,
        "demonstrations": options.demonstrations,
        "queries": options.queries,
        "arms": sorted({"icl", *options.arms}),
        "metric": options.metric,
        "sample": SAMPLED,
        "signals": sorted({*SCALARS, LOCATION}),
        "recipes": [recipe.id for recipe in find_recipes(settings.recipe)],
        "settings": {k: v for k, v in asdict(settings).items() if k not in left_out},
    }


@contextmanager
def _store_of_its_own(agent: Router, folder: Path) -> Iterator[None]:
    """No row meets an adapter that another has left; and adapters, tens of megabytes each, don't pile up."""
    from router.bootstrap import open_store

    shared = agent.parts
    with tempfile.TemporaryDirectory(dir=folder) as own:
        empty = open_store(replace(agent.settings, data_dir=own))
        agent.parts = replace(shared, store=empty)
        try:
            yield
        finally:
            agent.parts = shared
            empty.close()
