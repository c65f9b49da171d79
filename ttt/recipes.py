"""Training recipes: named frozen values.

Rates are for small models: the published 1e-4 (8B parameters) hardly moves a model of 135 million.
Many short steps (one sequence of five demonstrations) learn more from the same tokens than few long ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from ttt.augment import symbol_alphabet
from ttt.errors import TaskError
from ttt.task import Task


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained. The recipe's hash is part of the adapter's key."""

    name: str
    rank: int = 32
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter (the published ones: query, value, output and MLP)."""
    learning_rate: float = 1e-3
    steps: int = 32
    """At most; see `stop_loss`."""
    stop_loss: float = 0.01
    """Training ends when the mean loss of the last eight steps is below this, in nats a labelled token: what is
    left to learn is noise, and going on costs seconds. 0 never ends early."""
    batch: int = 1
    """Sequences a step."""
    warmup: float = 0.1
    """Share of the steps with a rising rate; cosine decay after."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    shots: int = 5
    """A training sequence holds at most so many demonstrations, in random order: for the same tokens, more
    and shorter steps."""
    sequence_tokens: int = 1536
    """And at most as many as fit in this."""
    symbols: bool = True
    """Permute symbols where the task is made of cells."""
    reverse: bool = False
    """Also read rows from right to left where the task is made of cells."""

    @property
    def id(self) -> str:
        """Name and hash of all values, e.g. `standard-3f2a9c01`."""
        values = json.dumps(asdict(self), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"

    def with_steps(self, steps: int) -> Recipe:
        return replace(self, steps=steps)


TEXT = Recipe("standard", learning_rate=1e-3, steps=32)
"""Without symbols to permute the same answers come round again: more steps memorise them."""
CELLS = Recipe("standard", learning_rate=2e-3, steps=64)
"""Permuted symbols make every step a new task, which bears twice the rate and twice the steps."""
PROBE = Recipe("probe", learning_rate=1e-3, steps=8)
RECIPES: dict[str, tuple[Recipe, Recipe]] = {"standard": (TEXT, CELLS)}
"""By name: the recipe for texts, and the one for tasks made of cells."""


def recipe(name: str, task: Task) -> Recipe:
    """The recipe called `name`, as it is for tasks like this one.

    Raises:
        TaskError: there is none of this name.
    """
    check_recipe(name)
    for_text, for_cells = RECIPES[name]
    return for_cells if symbol_alphabet(task) else for_text


def check_recipe(name: str) -> None:
    """Raises:
    TaskError: there is no recipe of this name.
    """
    if name not in RECIPES:
        raise TaskError(f"Unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}.")
