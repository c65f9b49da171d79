"""Cross-fitted evidence: does a short training on some demonstrations help on the others?

Train on half, judge the other half, swap: each demonstration is judged once, by an adapter and in a
context that have not seen it, beside the base model in the same context.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ttt.engine import Bench, Engine
from ttt.errors import TaskError
from ttt.icl import judge
from ttt.recipes import Recipe
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
    before: dict[int, tuple[bool, float]] = {}
    after: dict[int, tuple[bool, float]] = {}
    tokens, train_s = 0, 0.0
    for fold, (train_on, judged) in enumerate((halves, halves[::-1])):
        part = replace(task, demonstrations=tuple(task.demonstrations[i] for i in train_on))
        held_out = [task.demonstrations[i] for i in judged]
        base = await judge(engine, part, held_out, adapter=None)
        name = f"probe-{uuid.uuid4().hex[:12]}"  # several callers may probe one task at the same time
        offset = fold * recipe.steps

        def shifted(step: TrainStep, offset: int = offset) -> None:
            emit(TrainStep(offset + step.step, 2 * recipe.steps, step.loss))

        request = TrainRequest(part, recipe, seed, None, name)
        report = await train_adapter(engine, request, shifted, should_stop, keep=True)
        try:
            trained = await judge(engine, part, held_out, adapter=name)
        finally:
            await engine.run(partial(_drop, name=name))
        tokens += report.tokens
        train_s += report.seconds
        for row, i in enumerate(judged):
            before[i] = (base.correct[row], base.logprob[row])
            after[i] = (trained.correct[row], trained.logprob[row])
    return CrossFitResult(
        tuple(before[i][0] for i in range(n)),
        tuple(after[i][0] for i in range(n)),
        tuple(before[i][1] for i in range(n)),
        tuple(after[i][1] for i in range(n)),
        tokens,
        train_s,
    )


def _drop(bench: Bench, name: str) -> None:
    bench.slots.drop(name)
