"""What a search for a recipe tries: variants of the recipe that it starts from, after the task's content.

For a choice or a closed label set, the augmentation of its own. For all texts, other rates and the loss on the last answer
alone. For cells none: what matters there is which augmentations keep the rule, and that is seen otherwise (`carry`).
Anybody's starting points besides. Knows nothing of how they are judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ttt.augment import check_names, space
from ttt.recipes import Recipe
from ttt.task import Task
from ttt.train import Beginning

DEFAULT = "default"
"""The recipe as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A recipe, and where its training starts."""

    name: str
    recipe: Recipe
    start: Beginning | None = None
    """None starts from nothing. What it was trained on must not hold any of the task's demonstrations."""


def candidates(task: Task, recipe: Recipe, starts: Mapping[str, Beginning]) -> tuple[Candidate, ...]:
    """The recipe as it is, first; then what may be better, the most promising first; no two that are the same on
    this task.

    Args:
        starts: further starting points by name, such as another task's adapter.
    """
    plain = replace(recipe, search=0.0)
    kind = space(task).kind
    variants: list[tuple[str, dict[str, Any]]] = []
    if kind not in ("grid", "sequence"):
        own = [name for name in ("options", "labels") if name in space(task, ("options", "labels")).names]
        variants = [(n, {"augmentations": check_names((*recipe.augmentations, n))}) for n in own]
        variants += [
            ("half-rate", {"learning_rate": recipe.learning_rate / 2}),
            ("double-rate", {"learning_rate": recipe.learning_rate * 2}),
            ("last-output", {"loss": "last-output"}),
        ]
    found = [Candidate(DEFAULT, _named(plain, DEFAULT))]
    found += [Candidate(f"from-{name}", _named(plain, DEFAULT), start) for name, start in starts.items()]
    seen = {_effect(task, plain)}
    for name, changes in variants:
        changed = replace(plain, **changes)
        if (effect := _effect(task, changed)) not in seen:
            seen.add(effect)
            found.append(Candidate(name, _named(changed, name)))
    return tuple(found)


def _named(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, name=f"{recipe.name}.{name}")


def _effect(task: Task, recipe: Recipe) -> Recipe:
    """The recipe without what does nothing on this task."""
    return replace(recipe, augmentations=space(task, recipe.augmentations).names)
