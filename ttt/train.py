"""Test-time training: the whole loop, visible.

`train_adapter` is a function of plain values: a task, a recipe, a seed, a folder to write to. It hands
the engine one slice a step, so that answers can run in between, and leaves the base weights as they were
however it ends. It never sees a query.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.dataset import Sequence, sequences
from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, NonFiniteLoss, OutOfMemory, TaskError
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe
from ttt.task import Task

if TYPE_CHECKING:
    import torch

EXPLODED = 20.0
"""A loss (nats a token) above this, or above thrice the first, is an explosion: a uniform guess over
a vocabulary of 150,000 costs 12."""


STOP_WINDOW = 8
"""Steps whose mean loss is held against the recipe's `stop_loss`."""


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
    """Mean over labelled tokens, nats, step by step."""
    tokens: int
    """All tokens run, padding not counted."""
    labelled_tokens: int
    seconds: float
    trainable_parameters: int


async def train_adapter(
    engine: Engine,
    request: TrainRequest,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    keep: bool = False,
) -> TrainReport:
    """Train a fresh LoRA adapter on the task's demonstrations.

    With `keep` the adapter stays attached under `request.name`; otherwise it is detached at the end,
    and always after a failure.

    Raises:
        TaskError: no demonstrations.
        NonFiniteLoss, OutOfMemory, Cancelled: the base is unchanged and nothing was written.
    """
    if not request.task.demonstrations:
        raise TaskError("Training needs at least one demonstration; add some or answer zero-shot.")
    started = time.perf_counter()
    recipe = request.recipe
    fmt = PromptFormat(engine.loaded.tokenizer, request.task)
    stream = sequences(request.task, fmt, recipe, request.seed)
    training = _Training(request, stream)
    done = False
    try:
        await engine.run(training.start, Priority.TRAINING)
        losses: list[float] = []
        for step in range(recipe.steps):
            if should_stop():
                raise Cancelled(
                    f"Training was cancelled after {step} of {recipe.steps} steps; the model is unchanged."
                )
            loss = await engine.run(partial(training.step, step=step), Priority.TRAINING)
            losses.append(loss)
            if not math.isfinite(loss) or loss > max(EXPLODED, 3 * losses[0]):
                raise NonFiniteLoss(
                    f"Training on this task failed: the loss was {loss:.3g} at step {step + 1} of {recipe.steps}; "
                    f"lower the learning rate (now {recipe.learning_rate:g})."
                )
            emit(TrainStep(step + 1, recipe.steps, loss))
            if step + 1 >= STOP_WINDOW and sum(losses[-STOP_WINDOW:]) / STOP_WINDOW < recipe.stop_loss:
                break
        await engine.run(training.finish, Priority.TRAINING)
        done = True
    finally:
        if not (done and keep):
            await engine.run(training.drop, Priority.ANSWER)
    return TrainReport(
        recipe.id,
        request.seed,
        tuple(losses),
        training.tokens,
        training.labelled,
        time.perf_counter() - started,
        training.trainable,
    )


class _Training:
    """One adapter's optimiser and data; lives on the owner thread between slices."""

    def __init__(self, request: TrainRequest, stream: Iterator[Sequence]) -> None:
        self.request, self.stream = request, stream
        self.tokens = self.labelled = 0
        self.attached = False

    def start(self, bench: Bench) -> None:
        import torch

        request = self.request
        bench.slots.create(request.name, request.recipe, request.seed)
        self.attached = True
        self.weights = bench.slots.parameters(request.name)
        # The adapter runs in the model's type; its optimiser keeps a float32 copy, since at bfloat16's
        # eight bits small updates would be lost.
        self.masters = [w.detach().float().clone().requires_grad_() for w in self.weights]
        recipe = request.recipe
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.trainable = sum(w.numel() for w in self.weights)

    def step(self, bench: Bench, step: int) -> float:
        """One forward, backward and update; returns the loss."""
        import torch

        recipe = self.request.recipe
        batch = list(islice(self.stream, recipe.batch))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(step, recipe)
        try:
            with bench.slots.active(self.request.name) as model, torch.enable_grad():
                for weight in self.weights:
                    weight.requires_grad_(True)
                loss, n = batch_loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.detach())
            if math.isfinite(value):
                self._update(recipe)
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
                longest = max(len(s.ids) for s in batch)
                raise OutOfMemory(
                    f"Training ran out of memory at {len(batch)} × {longest} tokens; use a recipe with fewer "
                    "sequence tokens or a smaller model."
                ) from error
            raise
        finally:
            for weight in self.weights:
                weight.grad = None
        self.tokens += sum(len(s.ids) for s in batch)
        self.labelled += n
        return value

    def finish(self, bench: Bench) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.weights):
            raise NonFiniteLoss(
                "Training on this task failed: the last step made the adapter's weights infinite; "
                f"lower the learning rate (now {self.request.recipe.learning_rate:g})."
            )
        if self.request.folder is not None:
            bench.slots.save(self.request.name, self.request.folder)
        self.optimizer.state.clear()
        self.masters.clear()

    def drop(self, bench: Bench) -> None:
        """Detach the adapter, unless there never was one (another's of the same name is left alone)."""
        if self.attached:
            bench.slots.drop(self.request.name)

    def _update(self, recipe: Recipe) -> None:
        import torch

        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = weight.grad.float() if weight.grad is not None else None
        torch.nn.utils.clip_grad_norm_(self.masters, recipe.max_gradient_norm)
        self.optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)


def rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine decay to a tenth; 1 at the peak."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def batch_loss(model: torch.nn.Module, batch: list[Sequence]) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy over labelled tokens (scalar, float32) and their number.

    Rows are padded on the right, which causal attention never looks at, so no mask is needed. Logits are
    made only for positions that predict a label in some row.
    """
    import torch

    device = next(model.parameters()).device
    length = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), -100, dtype=torch.long)
    for row, s in enumerate(batch):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
        mask = torch.tensor(s.labels)
        mask[0] = False  # nothing predicts the first token
        labels[row, : len(s.ids)][mask] = ids[row, : len(s.ids)][mask]
    targets = labels[:, 1:]  # (batch, length - 1)
    keep = (targets != -100).any(dim=0).nonzero()[:, 0]  # positions that predict a label
    logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=keep.to(device)).logits
    chosen = targets[:, keep].to(device)  # (batch, kept)
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), chosen.flatten(), ignore_index=-100
    )
    return loss, int((chosen != -100).sum())
