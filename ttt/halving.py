"""The rules of a search by successive halving: when it looks, who wins, and how long a training takes then. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev

from ttt.candidates import DEFAULT
from ttt.crossfit import LEVEL, lower_bound
from ttt.recipes import Recipe

TAIL = 0.25
"""Steps that are left for the decay of the rate where more training does not pay, as a share of the recipe's."""
LONGEST = 1.5
"""Steps of a training that keeps paying, at most, as a multiple of the recipe's."""


def rungs(recipe: Recipe) -> tuple[int, ...]:
    """Steps at which candidates are judged: half of a probe, a probe, twice that, …, up to half of the recipe."""
    found = [max(1, recipe.probed // 2)]
    step = recipe.probed
    while step <= max(recipe.probed, recipe.steps // 2):
        found.append(step)
        step *= 2
    return tuple(dict.fromkeys(found))


def pays(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the paired mean rose by more than its standard error."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return mean(changes) > stdev(changes) / math.sqrt(len(changes))


def best_of(default: Sequence[float], others: Mapping[str, Sequence[float]], tried: int) -> tuple[str, float]:
    """Which of `others` replaces the default, or the default; and the lower bound of the best one's advantage.

    Args:
        default, others: held-out log-probabilities, paired by demonstration.
        tried: how many others there were at the start, those that were dropped included.
    """
    name = max(others, key=lambda other: mean(others[other]))
    low = lower_bound([b - a for a, b in zip(default, others[name], strict=True)], LEVEL / tried)
    return (name if low > 0 else DEFAULT), low


def lasting(recipe: Recipe, steps: int, taken: int) -> Recipe:
    """The recipe with another number of steps, `taken` of them made. Where they are fewer, the rate does not rise any
    further: it decays from where it is."""
    if steps >= recipe.steps:
        return recipe.with_steps(steps)
    rising = recipe.warmup * recipe.steps
    reached = min(1.0, taken / rising) if rising > 0 else 1.0
    return replace(
        recipe,
        steps=steps,
        learning_rate=recipe.learning_rate * reached,
        warmup=min(recipe.warmup, taken / steps),
    )
