"""Which augmentations keep a task's rule, seen without knowing the rule.

A row is filled between its markers mirrored or not; what moves to the right does not move to the left mirrored. So an
augmentation *holds* where the transformed output is the right answer to the transformed input, in the context of the
demonstrations as they are. A short training on half of the demonstrations shows it: what it has learned carries over to
the other half transformed, which the base model is asked as well, or it gets in the way.

Where the mean held-out log-probability of the transformed ones falls, or rises less than is asked for, the augmentation is
left out of the rest of the training. One that breaks many rules must show more: a lower bound of that rise (Student's t over
demonstrations) at 10 % divided by how many such are tried, so that on at most a tenth of the tasks one gets in by chance.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ttt.augment import OF_RECTANGLES, check_names, space
from ttt.crossfit import LEVEL, Fold, lower_bound
from ttt.engine import Engine
from ttt.errors import ContextOverflow
from ttt.judging import judge
from ttt.recipes import Recipe
from ttt.task import Demonstration, Task

CHECKED = ("symbols", *OF_RECTANGLES)
"""Augmentations of cells. `order` always holds; that of options or label names changes what is asked."""
DOUBTED = ("symmetry", "scale", "tile")
"""What the first steps go without: a training that has seen both directions does not tell them apart."""
FEWEST = 4
"""Demonstrations that an augmentation must change to be judged."""
DRAWS = 8
"""Views that are drawn for one that changes a demonstration."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Whether an augmentation holds, as the receipt shows it."""

    augmentation: str
    demonstrations: int
    """That it changes."""
    change: float | None
    """Of the mean log-probability of their answers, transformed, from the base model to the training on the other
    half, nats a token; None where that was not judged: then it is kept unless it is doubted."""
    kept: bool
    low: float | None = None
    """Of one that is doubted, the lower bound of how far that change is above what is asked for."""


def checked(task: Task, recipe: Recipe) -> tuple[str, ...]:
    """The recipe's augmentations that apply to the task and may break its rule."""
    return tuple(name for name in space(task, recipe.augmentations).names if name in CHECKED)


def undoubted(task: Task, recipe: Recipe) -> Recipe:
    """What the first steps train by."""
    doubted = {name for name in checked(task, recipe) if name in DOUBTED}
    return replace(recipe, augmentations=tuple(n for n in recipe.augmentations if n not in doubted))


async def carry(
    engine: Engine,
    task: Task,
    parts: tuple[Fold, ...],
    adapters: Sequence[str],
    names: Sequence[str],
    seed: int,
    go_on: Callable[[], None] = lambda: None,
    least: Mapping[Demonstration, float] | None = None,
) -> tuple[Carried, ...]:
    """Judge augmentations by trainings on either half of the task; two passes over each half for all of them.

    Args:
        adapters: by half, attached.
        names: see `checked`.
        go_on: asked before each pass; what it raises ends the judging.
        least: what each demonstration must gain by, at the least, nats a token; 0 where left out.
    """
    before: dict[str, list[float]] = defaultdict(list)
    after: dict[str, list[float]] = defaultdict(list)
    wanted: dict[str, list[float]] = defaultdict(list)
    level = LEVEL / max(1, sum(name in DOUBTED for name in names))
    if len(task.demonstrations) < FEWEST:
        return tuple(_verdict(name, (), (), (), level) for name in names)
    rng = random.Random(seed)
    for part, adapter in zip(parts, adapters, strict=True):
        asked = [
            (name, d, turned)
            for name in names
            for d in part.held_out
            if (turned := _turned(task, d, name, rng)) is not None
        ]
        if not asked:
            continue
        shown = [turned for _, _, turned in asked]
        for name, d, _ in asked:
            wanted[name].append((least or {}).get(d, 0.0))
        for wearing, found in ((None, before), (adapter, after)):
            go_on()
            try:
                judged = await judge(engine, part.task, shown, adapter=wearing, written=part.whole)
            except ContextOverflow:  # enlarged ones are too long: nothing is known of any
                return tuple(_verdict(name, (), (), (), level) for name in names)
            for (name, _, _), logprob in zip(asked, judged.logprob, strict=True):
                found[name].append(logprob)
    return tuple(_verdict(name, before[name], after[name], wanted[name], level) for name in names)


def kept(recipe: Recipe, verdicts: Sequence[Carried]) -> Recipe:
    """The recipe with the augmentations that hold, and without those that do not."""
    held, broken = ({v.augmentation for v in verdicts if v.kept is k} for k in (True, False))
    return replace(recipe, augmentations=check_names({*recipe.augmentations, *held} - broken))


def _verdict(
    name: str, before: Sequence[float], after: Sequence[float], wanted: Sequence[float], level: float
) -> Carried:
    changes = [b - a for a, b in zip(before, after, strict=True)]
    if len(changes) < FEWEST or not all(map(math.isfinite, changes)):
        return Carried(name, len(changes), None, name not in DOUBTED)
    above = [change - least for change, least in zip(changes, wanted, strict=True)]
    if name not in DOUBTED:
        return Carried(name, len(changes), mean(changes), mean(above) > 0)
    low = lower_bound(above, level)
    return Carried(name, len(changes), mean(changes), low > 0, low)


def _turned(task: Task, d: Demonstration, name: str, rng: random.Random) -> Demonstration | None:
    """The demonstration under one augmentation; None where that changes nothing."""
    views = space(task, (name,))
    for _ in range(DRAWS):
        turned = views.draw(rng).demonstration(d)
        if turned is not None and turned != d:
            return turned
    return None
