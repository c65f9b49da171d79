"""One candidate of a search under way: its trainings on both halves, and how long a step of it is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from ttt.candidates import Candidate
from ttt.crossfit import Fold, shape
from ttt.engine import Bench, Engine, Priority
from ttt.judging import Judged
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe
from ttt.rounds import all_ended
from ttt.task import Task
from ttt.train import Beginning, Training, TrainRequest, TrainStep, average


@dataclass(frozen=True, slots=True)
class StepTokens:
    """How long a step of the recipe is."""

    prefix: int
    """Of the instruction and all demonstrations. To judge costs as much as to train on them: both folds read them,
    at half the price."""
    halves: float
    """Of a step on all folds."""
    whole: float
    """Of a step on all demonstrations."""

    @classmethod
    def of(cls, fmt: PromptFormat, task: Task, recipe: Recipe) -> StepTokens:
        head, n = len(fmt.head()), len(task.demonstrations)
        prefix = head + sum(len(fmt.segment(d)) for d in task.demonstrations)
        shots = 1 if recipe.form == "direct" else recipe.shots

        def step(shown: float) -> float:
            long = head + min(shown, shots) * (prefix - head) / n
            return recipe.batch * min(long, recipe.sequence_tokens)

        k, _ = shape(n)
        return cls(prefix, k * step(n - n / k), step(n))


class Entrant:
    """A candidate in the race, with a training on each half."""

    def __init__(
        self,
        engine: Engine,
        parts: tuple[Fold, ...],
        candidate: Candidate,
        seed: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self.name, self.recipe = candidate.name, candidate.recipe
        self.adapters = [f"search-{uuid.uuid4().hex[:12]}" for _ in parts]
        asked = [
            TrainRequest(
                part.task,
                candidate.recipe,
                seed,
                None,
                name,
                pause_at=candidate.recipe.steps,
                written=part.whole,
            )
            for part, name in zip(parts, self.adapters, strict=True)
        ]
        self.trainings = [Training.of(engine, request, should_stop) for request in asked]
        self.steps = self.tokens = 0
        self.seconds = 0.0
        self.judged: list[Judged] = []
        """At each rung."""
        self.rungs: list[int] = []
        """Steps at these."""

    @property
    def logprob(self) -> tuple[float, ...]:
        return self.judged[-1].logprob

    @property
    def mean(self) -> float:
        return mean(self.logprob)

    async def advance(self, engine: Engine, rung: int, emit: Callable[[TrainStep], None]) -> None:
        for training in self.trainings:
            if not training.attached:
                await engine.run(training.begin, Priority.TRAINING)
            training.until = rung
        try:
            await all_ended(training.advance(engine, emit) for training in self.trainings)
        finally:
            self.steps = rung
            self.tokens = sum(training.tokens for training in self.trainings)
            self.seconds = sum(training.seconds for training in self.trainings)

    def finish(self, bench: Bench) -> Beginning:
        for training in self.trainings:
            training.finish(bench)
        return average([training.reached for training in self.trainings if training.reached is not None])

    def drop(self, bench: Bench) -> None:
        for training in self.trainings:
            training.drop(bench)
        self.trainings = []
