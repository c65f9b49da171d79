"""Training as a step of the graph: one lease, one training however many ask for it, one publication."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from router import events
from router.context import Context
from router.neighbours import learned_from, may_start, remember
from router.probing import seek_first
from router.receipt import Step
from router.reuse import (
    LEASE_S,
    SEEN,
    VALUE,
    adapter_key,
    decided_for,
    from_start,
    lease_or_adapter,
    recipe_of,
    reference,
    value_s,
    written_rows,
)
from router.state import State
from router.timing import in_time
from router.upkeep import keep_within
from store import Lease
from store.errors import DatabaseLocked, DatabaseUnavailable, LeaseLost
from ttt.augment import Space, space
from ttt.carry import undoubted
from ttt.crossfit import begin, begins_on_halves
from ttt.errors import ContextOverflow, TrainingFailed
from ttt.recipes import Recipe, fitting
from ttt.train import TrainReport, TrainRequest, TrainStep, train_adapter

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

TRIES = 3
"""Trainings whose lease was lost before the answer does without one."""


async def train(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Train the adapter and publish it, once however many ask for it at the same time."""
    work = _Work(state, in_time(state, runtime.context), runtime.stream_writer)
    failed: Exception | None = None
    while failed is None or (isinstance(failed, LeaseLost) and len(work.lost) < TRIES):
        started = time.perf_counter()
        try:
            update = await work.run()
            return {**update, "steps": [*work.searched, *work.lost, *update["steps"]]}
        except (
            LeaseLost,
            TrainingFailed,
            ContextOverflow,
        ) as error:  # a lost lease: another has taken over, and its adapter is used
            failed = error
            work.lost.append(Step("train", time.perf_counter() - started, {"failed": str(error)}))
    if state["request"].arm == "ttt":
        raise (
            failed
            if isinstance(failed, TrainingFailed | ContextOverflow)
            else TrainingFailed(
                f"Training was overtaken {TRIES} times by others that train the same adapter; ask again."
            )
        )
    runtime.stream_writer(events.FellBack(str(failed)))
    steps = [*work.searched, *work.lost]
    return {"steps": steps, "fallback": str(failed), "arm": "icl", "trained": None}


@dataclass(frozen=True, slots=True)
class _Made:
    """A training that ended well."""

    report: TrainReport
    tokens: int
    """Run here, those on halves among them."""
    on_halves_s: float
    """Of the steps on halves that were taken here."""
    by_probe: int
    """Steps that a probe had taken."""

    @property
    def seconds(self) -> float:
        return self.on_halves_s + self.report.seconds


class _Work:
    """One answer's training, and what is known of it when it has to begin again."""

    def __init__(self, state: State, context: Context, write: Callable[[events.Event], None]) -> None:
        self.state, self.context, self.write = state, context, write
        self.searched: list[Step] = []
        self.lost: list[Step] = []
        self._found: dict[str, Any] = {}
        """What a search adds to the state."""
        self._lease: Lease | None = None
        self._beat = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """What the adapter, made here or by another, adds to the state.

        Raises:
            LeaseLost: another has taken over.
            TrainingFailed: nothing was published.
        """
        state, context, started = self.state, self.context, time.perf_counter()
        key, begun_at = adapter_key(state, context), state.get("start")
        if begun_at is not None:
            key = from_start(key)
        self._lease, ref = await lease_or_adapter(key, state, context)
        if ref is not None:
            decided_for(key, state, context)
            found = "an adapter of this task, recipe and seed: another caller's, or an earlier one"
            step = Step("train", time.perf_counter() - started, {"found": found})
            return {**self._found, "trained": ref, "steps": [step]}
        try:
            recipe = await self._recipe()
            started = time.perf_counter()
            with context.store.adapters.stage() as staged:
                made = await self._train(recipe, staged, f"train-{key.hash[:16]}")
                plain: dict[str, Any] = {"recipe": asdict(recipe), "losses": list(made.report.losses)}
                sought = self._found.get("evidence")  # steps on halves that a search has taken just now
                before_s, before = (sought.train_s, sought.tokens) if sought is not None else (0.0, 0)
                plain |= {"seconds": made.seconds + before_s, "tokens": made.tokens + before}
                plain["left_out"] = list(_left_out(state, recipe))
                plain["rows"] = written_rows(state["task"], recipe)
                if recipe_of(state) != fitting(state["request"].recipes, state["task"]):
                    # under a deadline the longer one may not have been to choose: the next question decides again
                    plain[VALUE] = value_s(state) if context.deadline == math.inf else 0.0
                if begun_at is not None:
                    plain |= {"start": list(begun_at.adapters), SEEN: list(begun_at.seen_inputs)}
                hashes = learned_from(state)
                row = context.store.adapters.publish(
                    key, staged, plain, hashes, accepted=False, lease=self._lease
                )
            if may_start(state):
                await remember(state, context, row)
        finally:
            if self._lease is not None:
                context.store.leases.release(self._lease)
        here = space(state["task"], recipe.augmentations)
        how = {"content": here.kind, "augmentations": list(here.names), "rows": plain["rows"]}
        step = Step("train", time.perf_counter() - started, _detail(recipe, made) | how)
        context.costs.observe("train", made.tokens, made.seconds)
        notes = [*self._found.get("notes", []), *_ragged(here), *keep_within(context.store, context.settings)]
        return {**self._found, "trained": reference(row, context), "steps": [step], "notes": notes}

    async def _recipe(self) -> Recipe:
        """The one that was chosen, searched for now if none was and the one that was asked for says so. Where the guard
        will ask for evidence, the first steps leave it: they are a probe's."""
        state, task = self.state, self.state["task"]
        recipe = self._chosen() or recipe_of(state)
        self._beat = time.monotonic()
        known = state.get("evidence") is not None or "evidence" in self._found
        guarded = state["request"].arm == "auto" and begins_on_halves(task, recipe)
        if not recipe.search and (known or not guarded):
            return recipe
        self._found = await seek_first(state, self.context, partial(self._emit, phase="halves"), self._hold)
        self.searched += self._found.pop("steps")
        return self._chosen() or (undoubted(task, recipe) if recipe.search else recipe)

    def _chosen(self) -> Recipe | None:
        """What a search has found, now or before the decision, for as long a training as was decided on."""
        state = self.state
        short = recipe_of(state) != fitting(state["request"].recipes, state["task"])
        name: Literal["shorter", "chosen"] = "shorter" if short else "chosen"
        return self._found.get(name) or state.get(name)

    async def _train(self, recipe: Recipe, folder: Path, name: str) -> _Made:
        """On from the probe's steps, or from steps on halves."""
        context, task, seed = self.context, self.state["task"], self.state["request"].seed
        start = context.beginnings.get(self.state["request"].episode_id)
        by_probe, tokens, on_halves_s = len(start.losses) if start is not None else 0, 0, 0.0
        if start is None and begins_on_halves(task, recipe):
            emit = partial(self._emit, phase="halves")
            first = recipe  # either length begins as a probe does
            if recipe_of(self.state).id == recipe.id:
                first = fitting(self.state["request"].recipes, task)
            start, tokens, on_halves_s = await begin(
                context.engine, task, first, seed, emit, context.should_stop
            )
        asked = TrainRequest(task, recipe, seed, folder, name, start)
        if context.worker is None:
            report = await train_adapter(context.engine, asked, self._emit, context.should_stop)
        else:
            report = await context.worker.train(asked, self._emit, context.should_stop, self._hold)
        return _Made(report, tokens + report.tokens, on_halves_s, by_probe)

    def _emit(self, step: TrainStep, phase: Literal["halves", "train"] = "train") -> None:
        self._hold()
        self.write(events.TrainingStep(phase, step.step, step.of, step.loss))

    def _hold(self) -> None:
        """Renew the lease, from time to time."""
        if self._lease is not None and time.monotonic() - self._beat > LEASE_S / 4:
            with suppress(DatabaseUnavailable, DatabaseLocked):  # publishing asks whether it is still held
                self.context.store.leases.renew(self._lease)
            self._beat = time.monotonic()


def _left_out(state: State, recipe: Recipe) -> tuple[str, ...]:
    """What the recipe that was asked for augments by, and the one that a search has found does not."""
    asked = space(state["task"], fitting(state["request"].recipes, state["task"]).augmentations)
    return tuple(name for name in asked.names if name not in recipe.augmentations)


def _ragged(here: Space) -> list[str]:
    if not here.ragged:
        return []
    return [
        f"Not all rows of a demonstration are of one length, so it is not augmented by {', '.join(here.ragged)}."
    ]


def _detail(recipe: Recipe, made: _Made) -> dict[str, Any]:
    return {
        "recipe": recipe.id,
        "steps": len(made.report.losses),
        "of_these_by_probe": made.by_probe,
        "on_halves_s": made.on_halves_s,
        "tokens": made.tokens,
        "first_loss": made.report.losses[0],
        "last_loss": made.report.losses[-1],
        "trainable_parameters": made.report.trainable_parameters,
    }
