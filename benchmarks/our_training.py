"""Our training of one task step by step, as a router does it, with looks at it and its seconds: for `speed.py`."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fixed_sizes import median

from ttt import judging
from ttt.crossfit import begins_on_halves, folds
from ttt.dataset import sequences
from ttt.engine import Bench, Engine
from ttt.gradients import losses
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe
from ttt.task import Demonstration, Task
from ttt.train import Beginning, Training, TrainRequest, average

LOOKS = 10
"""Over all steps of a training."""
TIMED = 5
"""Steps on halves and on all that are timed in a round."""


def advance(trainings: Many[Training], bench: Bench) -> bool:
    """One step of each, in one pass; whether there is another."""
    batches = [training.batch() for training in trainings]
    started = time.perf_counter()
    found = losses(bench, [(t.weights, batch) for t, batch in zip(trainings, batches, strict=True)])
    seconds = (time.perf_counter() - started) / len(trainings)
    ended = [
        training.done(loss, batch, labelled, seconds)
        for training, batch, (loss, labelled) in zip(trainings, batches, found, strict=True)
    ]
    return all(more for _, more in ended)


class Ours:
    """Our training of one task as a router does it, step by step on the engine's thread: the first steps on both
    halves of the demonstrations in shared passes (`crossfit.begin`), the others on all, from the mean of both."""

    def __init__(self, engine: Engine, task: Task, how: Recipe, name: str, folder: Path | None) -> None:
        self.engine, self.task, self.how, self.name, self.folder = engine, task, how, name, folder
        self.fixed = 0.0
        """Seconds beside the steps: adapters made, averaged and saved."""
        self.tokens = 0
        parts = folds(task, 0) if begins_on_halves(task, how) else ()
        self.trainings = [
            self._training(
                TrainRequest(part.task, how, 0, None, f"{name}-{i}", pause_at=how.probed, written=part.whole)
            )
            for i, part in enumerate(parts)
        ]
        self.on_halves = bool(parts)
        if not parts:
            self._whole(None)
        self._untimed(*(training.start for training in self.trainings))

    @property
    def attached(self) -> str:
        """The adapter that is trained; only once it is trained on all demonstrations."""
        return self.trainings[0].request.name

    def step(self) -> tuple[float, bool]:
        """Seconds of a step (on halves: of both), and whether this training (on halves or on all) goes on."""
        started = time.perf_counter()
        more = self.engine.submit(partial(advance, self.trainings)).result()
        return time.perf_counter() - started, more

    def join(self) -> None:
        """Go on with all demonstrations."""
        self._untimed(*(training.finish for training in self.trainings))
        reached = [training.reached for training in self.trainings if training.reached is not None]
        halves = self.trainings
        started = time.perf_counter()
        self._whole(self.engine.submit(lambda _: average(reached)).result())
        self.fixed += time.perf_counter() - started
        self.tokens += sum(training.tokens for training in halves)
        self._untimed(*(training.drop for training in halves), self.trainings[0].start)
        self.on_halves = False

    def end(self) -> None:
        """Save and detach."""
        self.tokens += sum(training.tokens for training in self.trainings)
        self._untimed(*(training.finish for training in self.trainings))
        for training in self.trainings:
            self.engine.submit(training.drop).result()

    def _whole(self, begin: Beginning | None) -> None:
        self.trainings = [self._training(TrainRequest(self.task, self.how, 0, self.folder, self.name, begin))]

    def _training(self, request: TrainRequest) -> Training:
        fmt = PromptFormat(self.engine.loaded.tokenizer, request.task)
        return Training(request, sequences(request.task, fmt, request.recipe, 0), lambda: False)

    def _untimed(self, *slices: Callable[[Bench], Any]) -> None:
        """Not a step: its seconds go to `fixed`."""
        started = time.perf_counter()
        for slice_ in slices:
            self.engine.submit(slice_).result()
        self.fixed += time.perf_counter() - started


def look(engine: Engine, task: Task, items: list[Demonstration], adapter: str | None) -> tuple[float, float]:
    """Loss (nats a token, mean over items) and share answered exactly, of labelled items."""
    judged = asyncio.run(judging.judge(engine, task, items, adapter=adapter))
    return -statistics.fmean(judged.logprob), statistics.fmean(judged.correct)


@dataclass(frozen=True)
class Reached:
    """One training of ours that was looked at."""

    steps: int
    crossing: int | None
    """Step at which the goal was met for the second time in a row."""
    tokens: int
    loss: float
    accuracy: float


def reach(
    engine: Engine, task: Task, items: list[Demonstration], how: Recipe, goal: float, folder: Path
) -> Reached:
    """A training in full; looks begin when it goes on with all demonstrations."""
    ours, done, below, crossing, last = Ours(engine, task, how, "ours", folder), 0, 0, None, (math.inf, 0.0)
    while ours.on_halves:
        _, more = ours.step()
        done += 1
        if not more:
            ours.join()
    every, more = max(1, how.steps // LOOKS), True
    while more:
        _, more = ours.step()
        done += 1
        if done % every == 0 or not more:
            last = look(engine, task, items, ours.attached)
            below = below + 1 if last[0] <= goal else 0
            crossing = done if below == 2 and crossing is None else crossing
    ours.end()
    return Reached(done, crossing, ours.tokens, *last)


def ours_seconds(engine: Engine, task: Task, how: Recipe, folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of `steps` of our steps with all that comes beside them, and of one on all demonstrations; from a few."""
    ours = Ours(engine, task, how, "timed", folder)
    halves, whole = [], []
    if ours.on_halves:
        halves = [ours.step()[0] for _ in range(min(TIMED, how.probed))]
        ours.join()
    whole = [ours.step()[0] for _ in range(TIMED)]
    ours.end()
    on_halves = how.probed if halves else 0
    on_halves_s = on_halves * median(halves) if halves else 0.0
    return ours.fixed + on_halves_s + (steps - on_halves) * median(whole), median(whole)
