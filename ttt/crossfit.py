"""Cross-fitted evidence: does a short training on some demonstrations help on the others?

Train on half, judge the other half, swap: each demonstration is judged once, by an adapter and in a
context that have not seen it, beside the base model in the same context. Both halves train at the same
time and share their passes.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ttt.engine import Bench, Engine
from ttt.errors import Cancelled, TaskError
from ttt.icl import judge
from ttt.recipes import Recipe
from ttt.rounds import all_ended
from ttt.task import Task
from ttt.train import TrainRequest, TrainStep, train_adapter

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


async def cross_fit(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CrossFitResult:
    """Two folds of `recipe`, each on one half of the demonstrations.

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
    halves = (sorted(order[: n // 2]), sorted(order[n // 2 :]))
    folds = (halves, halves[::-1])
    parts = [replace(task, demonstrations=tuple(task.demonstrations[i] for i in own)) for own, _ in folds]
    held_out = [[task.demonstrations[i] for i in judged] for _, judged in folds]
    base = [await judge(engine, part, held, adapter=None) for part, held in zip(parts, held_out, strict=True)]
    names = [f"probe-{uuid.uuid4().hex[:12]}" for _ in folds]  # several callers may probe one task at once

    done = itertools.count(1)

    def emit_either(step: TrainStep) -> None:
        emit(TrainStep(next(done), 2 * recipe.steps, step.loss))

    try:
        reports = await all_ended(
            train_adapter(
                engine,
                TrainRequest(part, recipe, seed, None, name),
                emit_either,
                should_stop,
                keep=True,
            )
            for part, name in zip(parts, names, strict=True)
        )
        trained = []
        for part, held, name in zip(parts, held_out, names, strict=True):
            if should_stop():
                raise Cancelled("The probe was cancelled before it was judged; the model is unchanged.")
            trained.append(await judge(engine, part, held, adapter=name))
    finally:
        await engine.run(partial(_drop, names=names))
    before: dict[int, tuple[bool, float]] = {}
    after: dict[int, tuple[bool, float]] = {}
    for (_, judged), was, now in zip(folds, base, trained, strict=True):
        for row, i in enumerate(judged):
            before[i] = (was.correct[row], was.logprob[row])
            after[i] = (now.correct[row], now.logprob[row])
    return CrossFitResult(
        tuple(before[i][0] for i in range(n)),
        tuple(after[i][0] for i in range(n)),
        tuple(before[i][1] for i in range(n)),
        tuple(after[i][1] for i in range(n)),
        sum(report.tokens for report in reports),
        sum(report.seconds for report in reports),
    )


def _drop(bench: Bench, names: list[str]) -> None:
    for name in names:
        bench.slots.drop(name)
