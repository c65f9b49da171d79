"""What a search for a recipe tries: variants of the recipe that it starts from, after the task's content.

For a choice or a closed label set, the augmentation of its own. For all texts, other rates and the loss on the last answer
alone. For cells none: what matters there is which augmentations keep the rule, and that is seen otherwise (`carry`).
Knows nothing of how they are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ttt.augment import check_names, space
from ttt.recipes import Recipe
from ttt.task import Task

DEFAULT = "default"
"""The recipe as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A recipe, and its name in this race."""

    name: str
    recipe: Recipe


def candidates(task: Task, recipe: Recipe) -> tuple[Candidate, ...]:
    """The recipe as it is, first; then what may be better, the most promising first; no two that are the same here."""
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
