"""Cross-fitted evidence: does a short training on some demonstrations help on the others?

Train on half, judge the other half, swap: each demonstration is judged once, by an adapter and in a
context that have not seen it, beside the base model in the same context. Both halves train at the same
time and share their passes. They take the first steps of the recipe whose use is in question, and the mean of
both adapters is where the training on all demonstrations goes on: evidence costs nothing more where it is
followed, and a fraction where it is not. A training without a probe begins alike (`begin`).
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ttt.engine import Bench, Engine
from ttt.errors import TaskError
from ttt.icl import judge
from ttt.recipes import Recipe
from ttt.rounds import all_ended
from ttt.task import Task
from ttt.train import Beginning, TrainReport, TrainRequest, TrainStep, average, train_adapter

MIN_DEMONSTRATIONS = 4
"""With fewer, a half has one demonstration and nothing can be learned from its order."""


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


def begins_on_halves(task: Task, recipe: Recipe) -> bool:
    """Whether a training by `recipe` begins as a probe would: so it is the same training with and without one."""
    return len(task.demonstrations) >= MIN_DEMONSTRATIONS and recipe.form == "in-context"


@dataclass(frozen=True, slots=True)
class Halves:
    """Trainings on both halves of a task's demonstrations, still attached; see `train_halves`."""

    parts: tuple[Task, Task]
    judged: tuple[tuple[int, ...], tuple[int, ...]]
    """For each training, the positions of the demonstrations that it has not seen."""
    names: tuple[str, str]
    """Of the attached adapters; the caller drops them."""
    reports: tuple[TrainReport, TrainReport]

    async def beginning(self, engine: Engine) -> Beginning:
        """Where a training of the same recipe and seed on all demonstrations can go on."""
        reached = [report.reached for report in self.reports if report.reached is not None]
        return await engine.run(lambda _: average(reached))


async def train_halves(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None],
    should_stop: Callable[[], bool],
) -> Halves:
    """The first `recipe.probed` steps on either half of the demonstrations; nothing stays attached on failure.

    Raises:
        TaskError: fewer than four demonstrations.
        TrainingFailed: as `train_adapter`.
    """
    n = len(task.demonstrations)
    if n < MIN_DEMONSTRATIONS:
        raise TaskError(
            f"Cross-fitting needs at least {MIN_DEMONSTRATIONS} demonstrations, the task has {n}; add some."
        )
    order = list(range(n))
    random.Random(seed).shuffle(order)
    first, second = tuple(sorted(order[: n // 2])), tuple(sorted(order[n // 2 :]))
    one, other = (
        replace(task, demonstrations=tuple(task.demonstrations[i] for i in own)) for own in (first, second)
    )
    names = tuple(f"probe-{uuid.uuid4().hex[:12]}" for _ in range(2))  # two callers may have one task
    done = itertools.count(1)

    def emit_either(step: TrainStep) -> None:
        emit(TrainStep(next(done), 2 * recipe.probed, step.loss))

    try:
        reports = await all_ended(
            train_adapter(
                engine,
                TrainRequest(part, recipe, seed, None, name, pause_at=recipe.probed),
                emit_either,
                should_stop,
                keep=True,
            )
            for part, name in zip((one, other), names, strict=True)
        )
    except BaseException:
        await engine.run(partial(_drop, names=names))
        raise
    return Halves((one, other), (second, first), (names[0], names[1]), (reports[0], reports[1]))


async def begin(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Beginning, int, float]:
    """The beginning of a training where no probe has made it, with its tokens and seconds of computing; raises as
    `train_halves`."""
    halves = await train_halves(engine, task, recipe, seed, emit, should_stop)
    try:
        found = await halves.beginning(engine)
    finally:
        await engine.run(partial(_drop, names=halves.names))
    return found, sum(r.tokens for r in halves.reports), sum(r.seconds for r in halves.reports)


async def cross_fit(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    begun: Callable[[Beginning], None] = lambda _: None,
) -> CrossFitResult:
    """Judge each half of the demonstrations before and after training on the other (`train_halves`).

    Args:
        begun: gets where a training of the same recipe and seed on all demonstrations can go on.

    Raises:
        TaskError, TrainingFailed: as `train_halves`.
    """
    halves = await train_halves(engine, task, recipe, seed, emit, should_stop)
    before: dict[int, tuple[bool, float]] = {}
    after: dict[int, tuple[bool, float]] = {}
    try:
        for part, judged, name in zip(halves.parts, halves.judged, halves.names, strict=True):
            held_out = [task.demonstrations[i] for i in judged]
            was = await judge(engine, part, held_out, adapter=None)
            now = await judge(engine, part, held_out, adapter=name)
            for row, i in enumerate(judged):
                before[i] = (was.correct[row], was.logprob[row])
                after[i] = (now.correct[row], now.logprob[row])
        begun(await halves.beginning(engine))
    finally:
        await engine.run(partial(_drop, names=halves.names))
    n = len(task.demonstrations)
    return CrossFitResult(
        tuple(before[i][0] for i in range(n)),
        tuple(after[i][0] for i in range(n)),
        tuple(before[i][1] for i in range(n)),
        tuple(after[i][1] for i in range(n)),
        sum(report.tokens for report in halves.reports),
        sum(report.seconds for report in halves.reports),
    )


def _drop(bench: Bench, names: Sequence[str]) -> None:
    for name in names:
        bench.slots.drop(name)
