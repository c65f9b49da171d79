"""Training sequences from demonstrations: in-context, leave-one-out by construction.

Each sequence is a prompt of demonstrations in a random order (and under a random view); every answer
in it is a label and is predicted from the pairs before it (the published recipe's "loss on all outputs").
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from ttt.augment import random_view, symbol_alphabet
from ttt.prompts import PromptFormat, Segment, select
from ttt.recipes import Recipe
from ttt.task import Task


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids and which of them are labels (`labels[i]` says whether `ids[i]` is to be predicted)."""

    ids: tuple[int, ...]
    labels: tuple[bool, ...]


def sequence(head: tuple[int, ...], segments: list[Segment]) -> Sequence:
    """Concatenate; labels are each answer and the first token of its terminator."""
    ids: list[int] = list(head)
    labels = [False] * len(head)
    for s in segments:
        ids += s.ids
        labels += [False] * len(s.question) + [True] * (len(s.answer) + 1) + [False] * (len(s.terminator) - 1)
    return Sequence(tuple(ids), tuple(labels))


def sequences(task: Task, fmt: PromptFormat, recipe: Recipe, seed: int) -> Iterator[Sequence]:
    """An endless stream, the same for the same task, recipe and seed.

    Demonstrations that do not fit in one sequence are left for the next: over a few sequences all are
    used. One that alone is longer than `recipe.sequence_tokens` is a sequence of its own.
    """
    rng = random.Random(seed)
    alphabet = symbol_alphabet(task) if recipe.symbols else ()
    head = fmt.head()
    budget = recipe.sequence_tokens - len(head)
    left_out: list[int] = []
    while True:
        view = random_view(
            task, rng, alphabet, reverse=recipe.reverse and bool(alphabet) and rng.random() < 0.5
        )
        shown = dict(zip(view.order, view.demonstrations(task), strict=True))
        segments = [fmt.segment(shown[i]) for i in range(len(shown))]
        order = left_out + [i for i in view.order if i not in left_out]
        chosen = list(select(segments, max(budget, len(segments[order[0]])), order))[: recipe.shots]
        left_out = [i for i in left_out if i not in chosen] or [i for i in order if i not in chosen]
        rng.shuffle(chosen)
        yield sequence(head, [segments[i] for i in chosen])
