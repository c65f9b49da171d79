"""Invertible augmentations: views of a task whose answers can be turned back.

A view transforms demonstrations and queries alike, so each view is a task that is consistent in
itself; `invert` takes a prediction back to the original task. Which apply is seen from the content:
orders always, symbol permutation and reversal only where every text is a row of single-character cells.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ttt.prompts import is_cells
from ttt.task import Demonstration, Task


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation: an order of the demonstrations, a bijection of symbols, a reversal."""

    order: tuple[int, ...]
    """Position i of the view shows demonstration `order[i]`."""
    symbols: tuple[tuple[str, str], ...] = ()
    """Bijection of single characters, as (from, to); empty for the identity."""
    reverse: bool = False
    """Whether each row of cells is read from right to left."""

    def apply(self, text: str) -> str:
        return self._reversed(self._mapped(text, dict(self.symbols)))

    def invert(self, text: str) -> str:
        return self._mapped(self._reversed(text), {b: a for a, b in self.symbols})

    def demonstrations(self, task: Task) -> tuple[Demonstration, ...]:
        shown = (task.demonstrations[i] for i in self.order)
        return tuple(Demonstration(self.apply(d.input), self.apply(d.output)) for d in shown)

    @property
    def name(self) -> str:
        parts = ["order"] + ["symbols"] * bool(self.symbols) + ["reverse"] * self.reverse
        return "+".join(parts)

    def _mapped(self, text: str, mapping: dict[str, str]) -> str:
        return text.translate({ord(a): b for a, b in mapping.items()}) if mapping else text

    def _reversed(self, text: str) -> str:
        return "\n".join(row[::-1] for row in text.split("\n")) if self.reverse else text


def symbol_alphabet(task: Task) -> tuple[str, ...]:
    """Symbols that may be permuted: those of a task of cells, without the commonest (the background).

    Digits bring all of 1–9 with them, since the answer to a query may need one that no demonstration
    shows. Empty when the task is not made of cells.
    """
    texts = [t.strip() for d in task.demonstrations for t in (d.input, d.output)]
    if not texts or not all(is_cells(t) for t in texts):
        return ()
    counts = Counter(c for t in texts for c in t if not c.isspace())
    background = counts.most_common(1)[0][0]
    symbols = set(counts)
    if all(c.isdigit() and c.isascii() for c in symbols):
        symbols |= set("123456789")
    return tuple(sorted(symbols - {background}))


def identity(n: int) -> View:
    return View(tuple(range(n)))


def random_view(task: Task, rng: random.Random, alphabet: Sequence[str], *, reverse: bool = False) -> View:
    """A random order, and a random permutation of `alphabet` (see `symbol_alphabet`) where there is one."""
    order = list(range(len(task.demonstrations)))
    rng.shuffle(order)
    if len(alphabet) < 2:
        return View(tuple(order), (), reverse)
    image = list(alphabet)
    rng.shuffle(image)
    moved = tuple((a, b) for a, b in zip(alphabet, image, strict=True) if a != b)
    return View(tuple(order), moved, reverse)
