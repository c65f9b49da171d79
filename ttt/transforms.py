"""Invertible transforms of inputs and outputs, as plain values.

Each turns an input and the output that belongs to it into the same question asked otherwise, and takes an
answer to that back. What can't be turned comes back as None: an input that is not of the form, or a
prediction that no answer of the original task would have become (after arXiv 2411.07279, which inverts
predictions before it votes). Texts are read without surrounding white space, as prompts write them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ttt.content import (
    Rows,
    option_index,
    other_option,
    read_choice,
    read_rows,
    rectangular,
    write_rows,
)

SymmetryName = Literal[
    "mirror", "flip", "rotate-90", "rotate-180", "rotate-270", "transpose", "anti-transpose"
]


class Transform(Protocol):
    """One change of a task; the texts of `given` are those before it."""

    @property
    def name(self) -> str: ...

    def input(self, text: str) -> str | None:
        """An input as the view shows it; None where it has no such form."""
        ...

    def output(self, text: str, given: str) -> str | None:
        """The output that belongs to the input `given`, as the view shows it."""
        ...

    def invert(self, text: str, given: str) -> str | None:
        """A view's answer to `given` turned back; None where it is no answer in the view's form."""
        ...


@dataclass(frozen=True, slots=True)
class Symbols:
    """A bijection of single characters, in inputs and outputs alike. Any text can be mapped and turned back."""

    mapping: tuple[tuple[str, str], ...]
    """As (from, to); no symbol comes twice on a side, and both sides hold the same symbols."""
    name = "symbols"

    def input(self, text: str) -> str:
        return text.translate({ord(a): b for a, b in self.mapping})

    def output(self, text: str, given: str) -> str:
        return self.input(text)

    def invert(self, text: str, given: str) -> str:
        return text.translate({ord(b): a for a, b in self.mapping})


class OfRows:
    """A transform of rows of cells, the same for inputs and outputs."""

    __slots__ = ()

    def forward(self, rows: Rows) -> Rows | None:
        raise NotImplementedError

    def backward(self, rows: Rows) -> Rows | None:
        raise NotImplementedError

    def input(self, text: str) -> str | None:
        rows = read_rows(text)
        turned = None if rows is None else self.forward(rows)
        return None if turned is None else write_rows(turned)

    def output(self, text: str, given: str) -> str | None:
        return self.input(text)

    def invert(self, text: str, given: str) -> str | None:
        rows = read_rows(text)
        turned = None if rows is None else self.backward(rows)
        return None if turned is None else write_rows(turned)


INVERSES: dict[SymmetryName, SymmetryName] = {"rotate-90": "rotate-270", "rotate-270": "rotate-90"}
"""The others are their own."""


@dataclass(frozen=True, slots=True)
class Symmetry(OfRows):
    """One of the seven symmetries of the square other than the identity. For a single row: `mirror`."""

    name: SymmetryName

    def forward(self, rows: Rows) -> Rows | None:
        return _symmetry(self.name, rows)

    def backward(self, rows: Rows) -> Rows | None:
        return _symmetry(INVERSES.get(self.name, self.name), rows)


def _symmetry(name: SymmetryName, rows: Rows) -> Rows | None:
    if name == "flip":
        return rows[::-1]
    if name == "mirror":
        return tuple(row[::-1] for row in rows)
    if name == "rotate-180":
        return tuple(row[::-1] for row in rows[::-1])
    if not rectangular(rows):
        return None
    match name:
        case "transpose":
            return tuple(zip(*rows, strict=True))
        case "rotate-90":  # clockwise
            return tuple(zip(*rows[::-1], strict=True))
        case "rotate-270":
            return tuple(zip(*rows, strict=True))[::-1]
        case "anti-transpose":
            return tuple(column[::-1] for column in zip(*rows, strict=True))[::-1]


@dataclass(frozen=True, slots=True)
class Shift(OfRows):
    """Translation: background cells are added on one or more sides, in inputs and outputs alike.

    Not a cyclic shift: that cuts an object in two where it crosses the edge, and "fill what is between the
    markers" is then another rule. Added background moves objects and leaves them whole. A prediction
    without that margin is refused.
    """

    margins: tuple[int, int, int, int]
    """Cells above, right, below, left."""
    background: str
    name = "shift"

    def forward(self, rows: Rows) -> Rows | None:
        if not rectangular(rows):
            return None
        above, right, below, left = self.margins
        width = left + len(rows[0]) + right
        blank = (self.background,) * width
        middle = tuple((self.background,) * left + row + (self.background,) * right for row in rows)
        return (blank,) * above + middle + (blank,) * below

    def backward(self, rows: Rows) -> Rows | None:
        above, right, below, left = self.margins
        if not rectangular(rows) or len(rows) <= above + below or len(rows[0]) <= left + right:
            return None
        inner = tuple(row[left : len(row) - right] for row in rows[above : len(rows) - below])
        return inner if self.forward(inner) == rows else None


@dataclass(frozen=True, slots=True)
class Scale(OfRows):
    """Resolution × 2: each cell becomes 2 × 2, in a task of single rows 2 × 1. Other predictions are refused."""

    high: bool
    """Whether rows are doubled, too."""
    name = "scale"

    def forward(self, rows: Rows) -> Rows:
        wide = tuple(tuple(cell for cell in row for _ in range(2)) for row in rows)
        return tuple(row for row in wide for _ in range(2)) if self.high else wide

    def backward(self, rows: Rows) -> Rows | None:
        small = tuple(row[::2] for row in rows[:: 2 if self.high else 1])
        return small if self.forward(small) == rows else None


@dataclass(frozen=True, slots=True)
class Tile(OfRows):
    """Repeated twice, side by side or one above the other. Predictions of two unequal halves are refused."""

    down: bool
    name = "tile"

    def forward(self, rows: Rows) -> Rows:
        return rows + rows if self.down else tuple(row + row for row in rows)

    def backward(self, rows: Rows) -> Rows | None:
        half = rows[: len(rows) // 2] if self.down else tuple(row[: len(row) // 2] for row in rows)
        return half if self.forward(half) == rows else None


@dataclass(frozen=True, slots=True)
class Options:
    """Another order of lettered options; the letter in the answer follows. Answers without a letter are refused."""

    order: tuple[int, ...]
    """A permutation of 0–25: of n options, position i shows the i-th of those of its entries below n."""
    name = "options"

    def input(self, text: str) -> str | None:
        read = read_choice(text)
        if read is None:
            return None
        return str(replace(read, options=tuple(read.options[i] for i in self._order(len(read.options)))))

    def output(self, text: str, given: str) -> str | None:
        order, index = self._read(text, given)
        return None if index is None else other_option(text, order.index(index))

    def invert(self, text: str, given: str) -> str | None:
        order, index = self._read(text, given)
        return None if index is None else other_option(text, order[index])

    def _order(self, n: int) -> tuple[int, ...]:
        return tuple(i for i in self.order if i < n)

    def _read(self, answer: str, given: str) -> tuple[tuple[int, ...], int | None]:
        read = read_choice(given)
        n = 0 if read is None else len(read.options)
        return self._order(n), option_index(answer, n)


@dataclass(frozen=True, slots=True)
class Labels:
    """A permutation of the names of a closed label set: only whole outputs change, inputs never do.

    So the view asks for another name of the same class. An output that is no label stays as it is.
    """

    mapping: tuple[tuple[str, str], ...]
    """As (from, to), both sides the same labels."""
    name = "labels"

    def input(self, text: str) -> str:
        return text

    def output(self, text: str, given: str) -> str:
        return dict(self.mapping).get(text.strip(), text)

    def invert(self, text: str, given: str) -> str:
        return {b: a for a, b in self.mapping}.get(text.strip(), text)
