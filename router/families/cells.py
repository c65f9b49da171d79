"""Rows of cells, as in one-dimensional ARC: blocks that are filled, moved, mirrored, cleaned."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import groupby

from router.families.procedure import Item, Make, collect, spaced

CELLS = 12
COLOURS = "123456789"

Row = list[str]


def block(length: tuple[int, int], margin: tuple[int, int] = (0, 0)) -> Callable[[random.Random], Row]:
    """Draws one block of a colour, with at least `margin` empty cells to its left and right."""

    def draw(rng: random.Random) -> Row:
        n = rng.randint(*length)
        start = rng.randint(margin[0], CELLS - n - margin[1])
        colour = rng.choice(COLOURS)
        return ["0"] * start + [colour] * n + ["0"] * (CELLS - start - n)

    return draw


def pattern(rng: random.Random) -> Row:
    """Three to five cells of different colours somewhere."""
    n = rng.randint(3, 5)
    start = rng.randint(0, CELLS - n)
    return ["0"] * start + rng.sample(COLOURS, n) + ["0"] * (CELLS - start - n)


def two_blocks(rng: random.Random) -> Row:
    """Two blocks of different lengths and colours, at least one empty cell between them."""
    short, long = sorted(rng.sample(range(1, 5), 2))
    lengths = rng.sample([short, long], 2)
    first, second = rng.sample(COLOURS, 2)
    free = CELLS - sum(lengths) - 1
    before = rng.randint(0, free)
    between = rng.randint(0, free - before)
    row = ["0"] * before + [first] * lengths[0] + ["0"] * (between + 1) + [second] * lengths[1]
    return row + ["0"] * (CELLS - len(row))


def ends(rng: random.Random) -> Row:
    """Two lone cells of one colour."""
    first = rng.randrange(CELLS - 3)
    last = rng.randrange(first + 2, CELLS)
    row = ["0"] * CELLS
    row[first] = row[last] = rng.choice(COLOURS)
    return row


def scattered(rng: random.Random) -> Row:
    """Three to six lone cells of any colours."""
    row = ["0"] * CELLS
    for place in rng.sample(range(CELLS), rng.randint(3, 6)):
        row[place] = rng.choice(COLOURS)
    return row


def noisy(rng: random.Random) -> Item:
    """A block and lone cells beside it; the output is the block alone."""
    clean = block((3, 5))(rng)
    row = list(clean)
    colour = max(clean)
    for place in rng.sample(range(CELLS), 4):
        if all(row[near] == "0" for near in (place - 1, place, place + 1) if 0 <= near < CELLS):
            row[place] = colour
    return spaced(row), spaced(clean)


def moved(change: Callable[[Row], Row], draw: Callable[[random.Random], Row]) -> Make:
    """A row → the row after `change`."""

    def make(rng: random.Random) -> Item:
        row = draw(rng)
        return spaced(row), spaced(change(row))

    return make


def span(row: Row) -> tuple[int, int]:
    """First and last place that is not empty."""
    places = [i for i, cell in enumerate(row) if cell != "0"]
    return places[0], places[-1]


def shifted(by: int) -> Callable[[Row], Row]:
    return lambda row: row[-by:] + row[:-by]


def filled(row: Row) -> Row:
    first, last = span(row)
    return row[:first] + [row[first]] * (last + 1 - first) + row[last + 1 :]


def hollow(row: Row) -> Row:
    first, last = span(row)
    return [cell if i in (first, last) else "0" for i, cell in enumerate(row)]


def mirrored(row: Row) -> Row:
    first, last = span(row)
    return row[:first] + row[first : last + 1][::-1] + row[last + 1 :]


def grown(row: Row) -> Row:
    first, last = span(row)
    return [row[first] if first - 1 <= i <= last + 1 else cell for i, cell in enumerate(row)]


def fallen(row: Row) -> Row:
    there = [cell for cell in row if cell != "0"]
    return ["0"] * (CELLS - len(there)) + there


def longest(row: Row) -> Row:
    runs = [(cell, len(list(run))) for cell, run in groupby(row)]
    most = max(n for cell, n in runs if cell != "0")
    return [c for cell, n in runs for c in [cell if n == most else "0"] * n]


def exchanged(row: Row) -> Row:
    first, second = dict.fromkeys(cell for cell in row if cell != "0")
    return [{first: second, second: first}.get(cell, cell) for cell in row]


def inverted(row: Row) -> Row:
    colour = max(row)
    return [colour if cell == "0" else "0" for cell in row]


FAMILIES = collect(
    "cells",
    fill=moved(filled, ends),
    shift_one=moved(shifted(1), block((2, 5), (0, 1))),
    shift_three=moved(shifted(3), block((2, 5), (0, 3))),
    shift_left=moved(shifted(-1), pattern),
    mirror=moved(mirrored, pattern),
    flip=moved(lambda row: row[::-1], pattern),
    denoise=noisy,
    hollow=moved(hollow, block((3, 7))),
    grow=moved(grown, block((1, 5), (1, 1))),
    gravity=moved(fallen, scattered),
    longest=moved(longest, two_blocks),
    exchange=moved(exchanged, two_blocks),
    invert=moved(inverted, block((2, 8))),
)
