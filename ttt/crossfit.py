"""Cross-fitted evidence: does a short training on some demonstrations help on the others?

Train on half, judge the other half, swap: each demonstration is judged once, by an adapter and in a
context that have not seen it, beside the base model in the same context. Of three demonstrations each is judged by a
training on the other two. The folds train at the same time and share their passes. They take the first steps of the recipe whose use is in question, and the mean of
their adapters is where the training on all demonstrations goes on: evidence costs nothing more where it is
followed, and a fraction where it is not. A training without a probe begins alike (`begin`).
"""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev

from ttt.engine import Bench, Engine
from ttt.errors import Cancelled, TaskError
from ttt.judging import Judged, judge
from ttt.recipes import Recipe, as_written
from ttt.rounds import all_ended
from ttt.task import Demonstration, Task
from ttt.train import Beginning, TrainReport, TrainRequest, TrainStep, average, train_adapter

MIN_DEMONSTRATIONS = 3
"""With fewer, one is trained on alone, and nothing can be learned from a context."""

LEVEL = 0.10
"""Chance of being taken in by evidence on a task, at most: that a recipe which is no better replaces the default, or that an
augmentation which does not hold is trained with. Divided by how many are tried."""


def lower_bound(changes: Sequence[float], level: float) -> float:
    """One-sided lower bound of the mean at confidence 1 − `level`, by Student's t."""
    from scipy.special import stdtrit

    n = len(changes)
    return mean(changes) - float(stdtrit(n - 1, 1 - level)) * stdev(changes) / math.sqrt(n)


@dataclass(frozen=True, slots=True)
class CrossFitResult:
    """Paired judgements of every demonstration, in the task's order."""

    correct_before: tuple[bool, ...]
    correct_after: tuple[bool, ...]
    logprob_before: tuple[float, ...]
    """Per answer token, nats."""
    logprob_after: tuple[float, ...]
    tokens: int
    """Training tokens run."""
    train_s: float
    """Seconds of the trainings alone, without judging."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Some of the demonstrations as a task of its own, and the others, which it is judged on."""

    task: Task
    held_out: tuple[Demonstration, ...]
    positions: tuple[int, ...]
    """Of `held_out` in the whole task."""

    @property
    def whole(self) -> Task:
        """All of them, in any order."""
        return replace(self.task, demonstrations=(*self.task.demonstrations, *self.held_out))


def shape(n: int) -> tuple[int, int]:
    """How many folds there are of `n` demonstrations, and how many each trains on (of an odd half the smaller)."""
    return (2, n // 2) if n > MIN_DEMONSTRATIONS else (n, n - 1)


def folds(task: Task, seed: int) -> tuple[Fold, ...]:
    """The task's demonstrations in two random halves, each against the other; of three each two against the third.

    Raises:
        TaskError: fewer than three demonstrations.
    """
    n = len(task.demonstrations)
    if n < MIN_DEMONSTRATIONS:
        raise TaskError(
            f"Cross-fitting needs at least {MIN_DEMONSTRATIONS} demonstrations, the task has {n}; add some."
        )
    order = list(range(n))
    random.Random(seed).shuffle(order)
    k, _ = shape(n)
    cuts = [i * n // k for i in range(k + 1)]
    judged = [sorted(order[a:b]) for a, b in itertools.pairwise(cuts)][::-1]

    def fold(positions: list[int]) -> Fold:
        shown = tuple(d for i, d in enumerate(task.demonstrations) if i not in positions)
        return Fold(
            replace(task, demonstrations=shown),
            tuple(task.demonstrations[i] for i in positions),
            tuple(positions),
        )

    return tuple(map(fold, judged))


async def judge_folds(engine: Engine, parts: tuple[Fold, ...], adapters: Sequence[str | None]) -> Judged:
    """Every demonstration judged once, after those of the fold that it is held out of and under that fold's adapter; in
    the task's order."""
    rows: dict[int, tuple[bool, float]] = {}
    for part, adapter in zip(parts, adapters, strict=True):
        found = await judge(engine, part.task, part.held_out, adapter=adapter)
        rows |= zip(part.positions, zip(found.correct, found.logprob, strict=True), strict=True)
    in_order = [rows[i] for i in range(len(rows))]
    return Judged(tuple(correct for correct, _ in in_order), tuple(logprob for _, logprob in in_order))


def begins_on_halves(task: Task, recipe: Recipe) -> bool:
    """Whether a training by `recipe` begins as a probe would: so it is the same training with and without one."""
    return len(task.demonstrations) >= MIN_DEMONSTRATIONS and recipe.form == "in-context"


async def begin(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Beginning, int, float]:
    """The beginning of a training where no probe has made it, with its tokens and seconds of computing.

    Raises:
        TaskError, TrainingFailed: as `cross_fit`.
    """
    async with _trained(
        engine, folds(as_written(task, recipe.rows), seed), recipe, seed, emit, should_stop
    ) as (_, reports):
        found = await _mean(engine, reports)
    return found, sum(r.tokens for r in reports), sum(r.seconds for r in reports)


async def cross_fit(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    begun: Callable[[Beginning], None] = lambda _: None,
) -> CrossFitResult:
    """`recipe.probed` steps of `recipe` on each fold of the demonstrations.

    Args:
        begun: gets where a training of the same recipe and seed on all demonstrations can go on.

    Raises:
        TaskError: fewer than three demonstrations.
        TrainingFailed: as `train_adapter`.
    """
    parts = folds(as_written(task, recipe.rows), seed)
    plain = folds(task, seed)
    base = await judge_folds(engine, plain, [None] * len(plain))  # as in-context learning has it
    async with _trained(engine, parts, recipe, seed, emit, should_stop) as (names, reports):
        if should_stop():
            raise Cancelled("The probe was cancelled before it was judged; the model is unchanged.")
        trained = await judge_folds(engine, parts, names)
        begun(await _mean(engine, reports))
    return CrossFitResult(
        base.correct,
        trained.correct,
        base.logprob,
        trained.logprob,
        sum(report.tokens for report in reports),
        sum(report.seconds for report in reports),
    )


@asynccontextmanager
async def _trained(
    engine: Engine,
    parts: tuple[Fold, ...],
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None],
    should_stop: Callable[[], bool],
) -> AsyncIterator[tuple[list[str], list[TrainReport]]]:
    """Adapters trained on each fold, attached within."""
    names = [f"probe-{uuid.uuid4().hex[:12]}" for _ in parts]  # several callers may probe one task at once
    done = itertools.count(1)

    def emit_any(step: TrainStep) -> None:
        emit(TrainStep(next(done), len(parts) * recipe.probed, step.loss))

    try:
        yield (
            names,
            await all_ended(
                train_adapter(
                    engine,
                    TrainRequest(
                        part.task, recipe, seed, None, name, pause_at=recipe.probed, written=part.whole
                    ),
                    emit_any,
                    should_stop,
                    keep=True,
                )
                for part, name in zip(parts, names, strict=True)
            ),
        )
    finally:
        await engine.clean_up(partial(_drop, names=names))


async def _mean(engine: Engine, reports: Sequence[TrainReport]) -> Beginning:
    reached = [report.reached for report in reports if report.reached is not None]
    return await engine.run(lambda _: average(reached))


def _drop(bench: Bench, names: list[str]) -> None:
    for name in names:
        bench.slots.drop(name)
