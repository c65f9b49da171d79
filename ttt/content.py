"""What a task is made of, seen from its demonstrations: grids, rows of cells, options, labels or free text.

Decides which augmentations keep a task consistent; reads and writes the two forms that they change (rows of
cells, lists of options). Knows nothing of views, prompts' tokens or models.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ttt.prompts import is_cells
from ttt.task import Task

Kind = Literal["grid", "sequence", "choice", "labels", "text"]

MAX_LABELS = 10
"""More distinct outputs are no closed set."""

Rows = tuple[tuple[str, ...], ...]
"""Cells, row by row; rows may differ in length."""

_ROWS = re.compile(r"\S(?: \S)*(?:\n\S(?: \S)*)*")
_OPTION = re.compile(r"(?P<mark>\([A-Z]\)|[A-Z][).:]) (?P<text>\S.*)")
_ANSWER = re.compile(r"(?P<open>\(?)(?P<letter>[A-Z])(?P<close>[).:]?)")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with lettered options."""

    head: str
    """All that comes before the options, its last line feed included."""
    options: tuple[str, ...]
    """Without letters; the first is A."""
    mark: str = "(A)"
    """How the first is marked: `(A)`, `A)`, `A.` or `A:`."""

    def __str__(self) -> str:
        lines = (f"{self.mark.replace('A', letter(i))} {option}" for i, option in enumerate(self.options))
        return self.head + "\n".join(lines)


def read_rows(text: str) -> Rows | None:
    """Rows of single characters with one space between, one or more a row; None for anything else."""
    text = text.strip()
    if _ROWS.fullmatch(text) is None:
        return None
    return tuple(tuple(row.split(" ")) for row in text.split("\n"))


def write_rows(rows: Rows) -> str:
    return "\n".join(" ".join(row) for row in rows)


def rectangular(rows: Rows) -> bool:
    return len({len(row) for row in rows}) == 1


def read_choice(text: str) -> Choice | None:
    """A question that ends with two or more lines `(A) …`, `(B) …` in order, or with `A)`, `A.` or `A:` for marks, and has
    something before them; else None."""
    lines = text.strip().split("\n")
    options: list[str] = []
    mark = ""
    while lines and (found := _OPTION.fullmatch(lines[-1])) is not None:
        options.insert(0, found["text"])
        mark = found["mark"]
        lines.pop()
        if "A" in mark:
            break
    if "A" not in mark or len(options) < 2 or not lines:
        return None
    read = Choice("\n".join(lines) + "\n", tuple(options), mark)
    return read if str(read) == text.strip() else None


def letter(index: int) -> str:
    """0 → A, 25 → Z."""
    return chr(ord("A") + index)


def option_index(answer: str, n: int) -> int | None:
    """Which of `n` options an answer names that is a letter, marked or not, such as `(B)`; None if it is none of them."""
    found = _ANSWER.fullmatch(answer.strip())
    if found is None or (found["open"] == "(") != (found["open"] + found["close"] == "()"):
        return None
    index = ord(found["letter"]) - ord("A")
    return index if index < n else None


def other_option(answer: str, index: int) -> str:
    """An answer that names another option in the same way: `B.` and 0 → `A.`."""
    answer = answer.strip()
    return answer.replace(next(c for c in answer if c.isalpha()), letter(index))


def content_kind(task: Task) -> Kind:
    """The first of these that all demonstrations are:

    - `grid`: rows of cells ("0 0 5"), some text with several of them;
    - `sequence`: one row of cells each;
    - `choice`: each input ends with lettered options, and the output names one of them;
    - `labels`: at most ten distinct outputs of one line, two or more, each seen at least twice;
    - `text`: everything else, and a task without demonstrations.
    """
    texts = [t.strip() for d in task.demonstrations for t in (d.input, d.output)]
    if not texts:
        return "text"
    if all(is_cells(t) for t in texts):
        return "grid" if any("\n" in t for t in texts) else "sequence"
    if all(_is_choice(d.input, d.output) for d in task.demonstrations):
        return "choice"
    return "labels" if label_set(task) else "text"


def label_set(task: Task) -> tuple[str, ...]:
    """The distinct outputs, sorted, where they look like a closed set (see `content_kind`); else none."""
    counts = Counter(d.output.strip() for d in task.demonstrations)
    closed = 2 <= len(counts) <= MAX_LABELS and all(n > 1 and "\n" not in x for x, n in counts.items())
    return tuple(sorted(counts)) if closed else ()


def symbol_alphabet(task: Task) -> tuple[str, ...]:
    """Symbols that may be permuted: those of a task of cells, without the commonest (the background).

    Digits bring all of 1–9 with them, since the answer to a query may need one that no demonstration
    shows. Empty when the task is not made of cells.
    """
    if content_kind(task) not in ("grid", "sequence"):
        return ()
    symbols = set(symbol_counts(task))
    if all(c.isdigit() and c.isascii() for c in symbols):
        symbols |= set("123456789")
    return tuple(sorted(symbols - {background(task)}))


def background(task: Task) -> str:
    """The commonest symbol of a task of cells; the first seen of equals."""
    return symbol_counts(task).most_common(1)[0][0]


def symbol_counts(task: Task) -> Counter[str]:
    return Counter(c for d in task.demonstrations for t in (d.input, d.output) for c in t if not c.isspace())


def _is_choice(question: str, answer: str) -> bool:
    read = read_choice(question)
    return read is not None and option_index(answer, len(read.options)) is not None
