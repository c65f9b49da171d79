"""Test-time training: the whole loop, visible.

`train_adapter` is a function of plain values: a task, a recipe, a seed, a folder to write to. It hands
the engine one slice a step, so that answers can run in between, and leaves the base weights as they were
however it ends. It never sees a query.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.dataset import Sequence, Shown, after_prefix, sequences, shown_prefix
from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, ContextOverflow, NonFiniteLoss, OutOfMemory, TaskError
from ttt.gradients import Trainable, trainable
from ttt.icl import context_budget, shown_order
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe, as_written
from ttt.task import Task

if TYPE_CHECKING:
    import torch

EXPLODED = 20.0
"""A loss (nats a token) above this, or above thrice the first, is an explosion: a uniform guess over
a vocabulary of 150,000 costs 12."""


SETTLING = 0.15
"""Steps that are left for the decay of the rate once there is nothing left to learn, as a share of the recipe's."""
STOP_WINDOW = 8
"""Steps whose mean loss is held against the recipe's `stop_loss`."""


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """Where a training goes on from: the state that another of the same recipe and seed has reached, or the
    average of several (see `average`). Live tensors, for the engine's thread."""

    weights: torch.Tensor
    """(parameters,), float32."""
    moments: dict[str, torch.Tensor]
    """AdamW's, by its own names."""
    losses: tuple[float, ...]
    """Of the steps already taken; the schedule goes on behind them."""


def average(parts: Many[Beginning]) -> Beginning:
    """The mean of trainings from one initialisation on different demonstrations (federated averaging,
    arXiv 1602.05629): as long as they are short they stay close enough for their mean to have what all learned."""
    n, steps = len(parts), min(len(p.losses) for p in parts)
    moments = {key: sum(p.moments[key] for p in parts) / n for key in parts[0].moments}
    losses = tuple(math.fsum(p.losses[i] for p in parts) / n for i in range(steps))
    return Beginning(sum(p.weights for p in parts) / n, moments, losses)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train, as plain values."""

    task: Task
    recipe: Recipe
    seed: int
    folder: Path | None
    """Where the adapter is written; None trains one that is only used in place."""
    name: str
    """Under which the engine knows the adapter while it is attached."""
    begin: Beginning | None = None
    """Go on from here, behind its steps; None starts from nothing."""
    pause_at: int | None = None
    """Take only so many of the recipe's steps; `TrainReport.reached` is then where to go on."""
    written: Task | None = None
    """The whole task where `task` is a part of it: prompts are written, and cells recognised, as of the whole, which
    else may differ between the part that is trained on and the one that judges it. Gives no data."""


@dataclass(frozen=True, slots=True)
class TrainStep:
    """Progress: step `step` of `of` is done."""

    step: int
    of: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did."""

    recipe: str
    seed: int
    losses: tuple[float, ...]
    """Mean over labelled tokens, nats, step by step; those of `TrainRequest.begin` first."""
    tokens: int
    """All tokens run here, padding not counted."""
    labelled_tokens: int
    seconds: float
    """Of computing; where passes were shared, its share by tokens."""
    trainable_parameters: int
    reached: Beginning | None = field(default=None, compare=False, repr=False)
    """Where a training that was asked to pause stands."""


async def train_adapter(
    engine: Engine,
    request: TrainRequest,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    keep: bool = False,
) -> TrainReport:
    """Train an adapter on the task's demonstrations: LoRA or, where the recipe says so, a prefix.

    Trainings that run at the same time on one engine share their passes (see `rounds`). With `keep` the
    adapter stays attached under `request.name`; otherwise it is detached at the end, and always after a
    failure.

    Args:
        emit: gets each step after it was made.
        should_stop: asked before each step and, of known decoders, between its layers, on the engine's thread.

    Raises:
        TaskError: no demonstrations, or one that does not fit the model's context.
        NonFiniteLoss, OutOfMemory, Cancelled: the base is unchanged and nothing was written.
    """
    training = Training.of(engine, request, should_stop)
    done = False
    try:
        await engine.run(training.begin, Priority.TRAINING)
        await training.advance(engine, emit)
        await engine.run(training.finish, Priority.TRAINING)
        done = True
    finally:
        if not (done and keep):
            await engine.clean_up(training.drop)
    return training.report()


class Training:
    """One adapter's optimiser and data; lives on the owner thread."""

    weights: Trainable
    send: Callable[[Any], None]

    def __init__(
        self,
        request: TrainRequest,
        stream: Iterator[Sequence],
        should_stop: Callable[[], bool],
        shown: Shown | None = None,
    ) -> None:
        """`shown`: the prompt to train a prefix from, in place of LoRA."""
        self.shown = shown
        self.request, self.stream, self.should_stop = request, stream, should_stop
        self.tokens = self.labelled = self.trainable = 0
        self.seconds = 0.0
        self.losses: list[float] = list(request.begin.losses) if request.begin else []
        self.until = min(request.recipe.steps, request.pause_at or request.recipe.steps)
        """Steps at which `advance` ends."""
        self.learned_at: int | None = None
        """Step at which the loss had fallen below the recipe's `stop_loss`."""
        self.attached = False
        self.reached: Beginning | None = None

    @classmethod
    def of(cls, engine: Engine, request: TrainRequest, should_stop: Callable[[], bool]) -> Training:
        """
        Raises:
            TaskError: no demonstrations, or one that does not fit the model's context.
        """
        if not request.task.demonstrations:
            raise TaskError("Training needs at least one demonstration; add some or answer zero-shot.")
        written, loaded = as_written(request.written or request.task, request.recipe.rows), engine.loaded
        request = replace(request, task=replace(request.task, indexed=written.indexed))
        fmt = PromptFormat(loaded.tokenizer, written, as_turns=loaded.as_turns)
        if request.recipe.form != "prefix":
            most = min(request.recipe.sequence_tokens, loaded.context_length)
            fitting = _fitting(request.task, fmt, loaded.context_length)
            how = replace(request.recipe, sequence_tokens=most)
            return cls(request, sequences(fitting, fmt, how, request.seed, written), should_stop)
        segments = [fmt.segment(d) for d in request.task.demonstrations]
        room = context_budget(engine, fmt, [s.question for s in segments], fmt.max_new_tokens(request.task))
        shown = shown_prefix(fmt, segments, shown_order(segments, room))
        return cls(request, after_prefix(segments, shown, request.recipe, request.seed), should_stop, shown)

    async def advance(self, engine: Engine, emit: Callable[[TrainStep], None]) -> None:
        """All steps up to `until`, in rounds with the engine's other trainings. More may follow after `until`
        was raised: optimiser, schedule and data then go on where they stood."""
        async with aclosing(engine.trainings.run(self)) as steps:
            async for step in steps:
                emit(step)

    def begin(self, bench: Bench) -> None:
        """`start`, where memory that runs out is told as elsewhere."""
        try:
            self.start(bench)
        except Exception as error:
            raise self.failed(error, ()) from error

    def start(self, bench: Bench) -> None:
        import torch

        started = time.perf_counter()
        request = self.request
        recipe = request.recipe
        if self.shown is not None:
            from ttt.prefix import read_prefix

            bench.slots.put(request.name, read_prefix(bench, self.shown.ids))
            self.tokens += len(self.shown.ids)
        else:
            bench.slots.create(request.name, recipe, request.seed)
        self.attached = True
        self.weights = trainable(bench, request.name)
        # The adapter runs in the model's type; its optimiser keeps a float32 copy, since at bfloat16's
        # eight bits small updates would be lost.
        self.master = self.weights.flat.float().clone().requires_grad_()
        self.rate = recipe.learning_rate
        if recipe.weight_rms > 0:
            self.rate *= bench.slots.weight_rms(recipe.targets) / recipe.weight_rms
        self.optimizer = torch.optim.AdamW(
            [self.master], lr=self.rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.trainable = self.master.numel()
        if request.begin is not None:
            with torch.no_grad():
                self.master.copy_(request.begin.weights)
                self.weights.flat.copy_(self.master)
            self.optimizer.state[self.master] = {k: v.clone() for k, v in request.begin.moments.items()}
        self.seconds += time.perf_counter() - started

    def check(self) -> None:
        if self.should_stop():
            raise Cancelled(
                f"Training was cancelled after {len(self.losses)} of {self.request.recipe.steps} steps; the model "
                "is unchanged."
            )

    def batch(self) -> list[Sequence]:
        return list(islice(self.stream, self.request.recipe.batch))

    def done(
        self, loss: float, batch: Many[Sequence], labelled: int, seconds: float
    ) -> tuple[TrainStep, bool]:
        """One update from the gradients of a step; whether another step is to come."""
        started = time.perf_counter()
        recipe, step = self.request.recipe, len(self.losses)
        self.losses.append(loss)
        if not math.isfinite(loss) or loss > max(EXPLODED, 3 * self.losses[0]):
            raise NonFiniteLoss(
                f"Training on this task failed: the loss was {loss:.3g} at step {step + 1} of {recipe.steps}; "
                f"lower the learning rate (now {self.rate:g})."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self._factor(step)
        self._update(recipe)
        self.tokens += sum(len(s.ids) for s in batch)
        self.labelled += labelled
        self.seconds += seconds + time.perf_counter() - started
        last = self.losses[-STOP_WINDOW:]
        learned = len(last) == STOP_WINDOW and sum(last) / STOP_WINDOW < recipe.stop_loss
        if learned and self.learned_at is None:
            self.learned_at = step
        return TrainStep(step + 1, recipe.steps, loss), step + 1 < min(self.until, self._end)

    def failed(self, error: Exception, batch: Many[Sequence]) -> Exception:
        """The error to tell when a pass over `batch` alone raised `error`."""
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            where = f"at {len(batch)} × {max(len(s.ids) for s in batch)} tokens" if batch else "as it began"
            told = OutOfMemory(
                f"Training ran out of memory {where}; use a recipe with fewer sequence tokens or a smaller model."
            )
            told.__cause__ = error
            return told
        return error

    def finish(self, bench: Bench) -> None:
        started = time.perf_counter()
        if not bool(self.weights.flat.isfinite().all()):
            raise NonFiniteLoss(
                "Training on this task failed: the last step made the adapter's weights infinite; "
                f"lower the learning rate (now {self.rate:g})."
            )
        if self.request.folder is not None:
            bench.slots.save(self.request.name, self.request.folder)
        if self.request.pause_at is not None:
            moments = dict(self.optimizer.state[self.master])
            self.reached = Beginning(self.master.detach(), moments, tuple(self.losses))
        del self.optimizer, self.master, self.weights
        self.seconds += time.perf_counter() - started

    def drop(self, bench: Bench) -> None:
        """Detach the adapter, unless there never was one (another's of the same name is left alone)."""
        if self.attached:
            bench.slots.drop(self.request.name)

    def report(self) -> TrainReport:
        request = self.request
        return TrainReport(
            request.recipe.id,
            request.seed,
            tuple(self.losses),
            self.tokens,
            self.labelled,
            self.seconds,
            self.trainable,
            self.reached,
        )

    @property
    def _end(self) -> int:
        """Steps in all: of a training that has nothing left to learn, a few more, since at the full rate weights are
        still scattered about where they would settle."""
        steps = self.request.recipe.steps
        return steps if self.learned_at is None else self.learned_at + 1 + math.ceil(SETTLING * steps)

    def _factor(self, step: int) -> float:
        recipe, since = self.request.recipe, self.learned_at
        if since is None or self._end >= recipe.steps:
            return rate_factor(step, recipe)
        progress = (step - since) / (self._end - since)
        return min(rate_factor(step, recipe), rate_factor(since, recipe) * decayed(progress))

    def _update(self, recipe: Recipe) -> None:
        import torch

        self.master.grad = self.weights.grads.float()
        torch.nn.utils.clip_grad_norm_([self.master], recipe.max_gradient_norm)
        self.optimizer.step()
        self.master.grad = None
        with torch.no_grad():
            self.weights.flat.copy_(self.master)


def _fitting(task: Task, fmt: PromptFormat, context_length: int) -> Task:
    """Without demonstrations that are longer than the model's context, which answering leaves out as well.

    Raises:
        TaskError: that is all of them.
    """
    room = context_length - len(fmt.head())
    kept = tuple(d for d in task.demonstrations if len(fmt.segment(d)) <= room)
    if not kept:
        raise ContextOverflow(
            f"No demonstration fits in the model's context of {context_length} tokens; shorten them, or use a model "
            "with a longer one."
        )
    return replace(task, demonstrations=kept)


def rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine decay to a tenth; 1 at the peak."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return decayed(progress)


def decayed(progress: float) -> float:
    """Cosine from 1 to a tenth."""
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
