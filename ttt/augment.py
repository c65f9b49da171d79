"""Augmentations: which views of a task there are, and how one is drawn.

A view shows the demonstrations in another order and, where the content allows it, transformed (see
`transforms`). Demonstrations and queries are transformed alike, so each view is a task that is consistent
in itself, and `View.invert` takes an answer back to the original task. Which augmentations apply follows
from the task's content; which of them are wanted is a tuple of names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ttt.content import Kind, background, content_kind, label_set, read_rows, rectangular, symbol_alphabet
from ttt.errors import TaskError
from ttt.task import Demonstration, Query, Task
from ttt.transforms import Labels, Options, Scale, Shift, Symbols, Symmetry, SymmetryName, Tile, Transform

__all__ = ["AUGMENTATIONS", "DEFAULT", "Space", "View", "check_names", "identity", "space", "symbol_alphabet"]

AUGMENTATIONS: dict[str, tuple[Kind, ...]] = {
    "order": ("grid", "sequence", "choice", "labels", "text"),
    "symbols": ("grid", "sequence"),
    "symmetry": ("grid", "sequence"),
    "shift": ("grid", "sequence"),
    "scale": ("grid", "sequence"),
    "tile": ("grid", "sequence"),
    "options": ("choice",),
    "labels": ("labels",),
}
"""All names, in the order in which they are drawn and applied, and the kinds of content they apply to."""

DEFAULT = ("order", "symbols")
"""What training and votes use unless told otherwise; the recipe for cells adds `symmetry` and `shift`."""

OF_RECTANGLES = ("symmetry", "shift", "scale", "tile")
ENLARGING = ("shift", "scale", "tile")
"""At most one of these in a view: together they would make a prompt eight times as long."""
MAX_MARGIN = 2
"""Cells that a shift adds on a side, at most."""
MAX_OPTIONS = 26


@dataclass(frozen=True, slots=True)
class View:
    """One way to show a task: an order of its demonstrations, and transforms that are applied in turn."""

    order: tuple[int, ...]
    """Position i of the view shows demonstration `order[i]`."""
    transforms: tuple[Transform, ...] = ()

    @property
    def name(self) -> str:
        """E.g. `order+symbols+mirror`; `plain` for the task as it is."""
        shuffled = ("order",) if self.order != tuple(range(len(self.order))) else ()
        return "+".join((*shuffled, *self.transformation)) or "plain"

    @property
    def transformation(self) -> tuple[str, ...]:
        """Names of the transforms alone."""
        return tuple(t.name for t in self.transforms)

    def question(self, text: str) -> str | None:
        """An input as this view shows it; None where it has no such form (cells that are none, say)."""
        return self._chain(text)[-1]

    def demonstration(self, d: Demonstration) -> Demonstration | None:
        output: str | None = d.output
        *givens, question = self._chain(d.input)
        for transform, given in zip(self.transforms, givens, strict=True):
            if output is None or given is None:
                return None
            output = transform.output(output, given)
        return None if question is None or output is None else Demonstration(question, output)

    def invert(self, answer: str, question: str) -> str | None:
        """What this view's `answer` to the original input `question` says of the original task; None where it
        can't be turned back."""
        text: str | None = answer
        givens = self._chain(question)[:-1]
        for transform, given in zip(reversed(self.transforms), reversed(givens), strict=True):
            if text is None or given is None:
                return None
            text = transform.invert(text, given)
        return text

    def task(self, task: Task) -> Task:
        """The task as this view shows it.

        Raises:
            TaskError: a demonstration has no such form; views drawn from the task's own `space` never do this.
        """
        shown = []
        for i in self.order:
            turned = self.demonstration(task.demonstrations[i])
            if turned is None:
                raise TaskError(
                    f"Demonstration {i + 1} can't be shown under {self.name}; leave that augmentation out."
                )
            shown.append(turned)
        return replace(task, demonstrations=tuple(shown))

    def query(self, query: Query) -> Query | None:
        text = self.question(query.input)
        return None if text is None else replace(query, input=text)

    def _chain(self, text: str) -> list[str | None]:
        """The input before each transform and after the last."""
        steps: list[str | None] = [text]
        for transform in self.transforms:
            before = steps[-1]
            steps.append(None if before is None else transform.input(before))
        return steps


def identity(n: int) -> View:
    return View(tuple(range(n)))


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each, in the order of application.

    Raises:
        TaskError: one is unknown.
    """
    given = tuple(names)
    for name in given:
        if name not in AUGMENTATIONS:
            raise TaskError(f"Unknown augmentation {name!r}; choose from: {', '.join(AUGMENTATIONS)}.")
    return tuple(name for name in AUGMENTATIONS if name in given)


@dataclass(frozen=True, slots=True)
class Space:
    """The views of one task that some augmentations give."""

    kind: Kind
    names: tuple[str, ...]
    """Those asked for that apply to this task."""
    n: int
    """Demonstrations."""
    alphabet: tuple[str, ...] = ()
    background: str = ""
    labels: tuple[str, ...] = ()
    ragged: tuple[str, ...] = ()
    """Names that would apply, were all rows of a text of one length."""

    def draw(self, rng: random.Random) -> View:
        """A random view. The same names draw the same numbers, whatever else there is to choose from."""
        order = list(range(self.n))
        if "order" in self.names:
            rng.shuffle(order)
        drawn: list[Transform] = []
        if "symbols" in self.names:
            drawn += [Symbols(moved)] if (moved := _permuted(self.alphabet, rng)) else []
        if "symmetry" in self.names:
            drawn += _symmetry(self.kind, rng)
        enlarging = [name for name in ENLARGING if name in self.names]
        if enlarging:
            drawn += self._enlarged(rng.choice(["", *enlarging]), rng)
        if "options" in self.names:
            ranks = list(range(MAX_OPTIONS))
            rng.shuffle(ranks)
            drawn.append(Options(tuple(ranks)))
        if "labels" in self.names:
            drawn += [Labels(moved)] if (moved := _permuted(self.labels, rng)) else []
        return View(tuple(order), tuple(drawn))

    def _enlarged(self, name: str, rng: random.Random) -> list[Transform]:
        grid = self.kind == "grid"
        if name == "shift":
            down, right = rng.randint(1, MAX_MARGIN) if grid else 0, rng.randint(1, MAX_MARGIN)
            above, left = (rng.randint(0, n) for n in (down, right))
            return [Shift((above, right - left, down - above, left), self.background)]
        if name == "scale":
            return [Scale(high=grid)]
        return [Tile(down=grid and rng.random() < 0.5)] if name == "tile" else []


def space(task: Task, names: Iterable[str] = DEFAULT) -> Space:
    """The views of `task` under those of the augmentations `names` that apply to its content.

    Those of whole grids need each text to be a rectangle.

    Raises:
        TaskError: an unknown name.
    """
    kind = content_kind(task)
    chosen = [name for name in check_names(names) if kind in AUGMENTATIONS[name]]
    labels = label_set(task) if kind == "labels" else ()
    alphabet: tuple[str, ...] = ()
    ragged: tuple[str, ...] = ()
    commonest = ""
    if kind in ("grid", "sequence"):
        alphabet, commonest = symbol_alphabet(task), background(task)
        rows = [read_rows(t) for d in task.demonstrations for t in (d.input, d.output)]
        if not all(r is not None and rectangular(r) for r in rows):
            ragged = tuple(name for name in chosen if name in OF_RECTANGLES)
            chosen = [name for name in chosen if name not in ragged]
    return Space(kind, tuple(chosen), len(task.demonstrations), alphabet, commonest, labels, ragged)


def _permuted(values: Sequence[str], rng: random.Random) -> tuple[tuple[str, str], ...]:
    """A random permutation as the pairs that it moves; nothing is drawn where there is nothing to permute."""
    if len(values) < 2:
        return ()
    image = list(values)
    rng.shuffle(image)
    return tuple((a, b) for a, b in zip(values, image, strict=True) if a != b)


def _symmetry(kind: Kind, rng: random.Random) -> list[Transform]:
    """One of the eight symmetries of the square; of two for single rows."""
    there: tuple[SymmetryName, ...] = get_args(SymmetryName) if kind == "grid" else ("mirror",)
    index = rng.randrange(len(there) + 1)
    return [Symmetry(there[index - 1])] if index else []
