"""Lists of numbers or words: sorted, filtered, thinned out, combined."""

from __future__ import annotations

import random

from router.families.counting import NOUNS
from router.families.procedure import Item, collect, numbers, rule, spaced

NAMES = (
    *("Adam", "Bella", "Carl", "Dora", "Emil", "Fay", "Gus", "Hanna", "Ivan", "Jane", "Kurt", "Lena"),
    *("Mark", "Nina", "Otto", "Paula", "Quinn", "Rosa", "Sam", "Tess"),
)
few = numbers(1, 99, 4, 6)
digits = numbers(0, 9, 5, 8)


def names(rng: random.Random) -> list[str]:
    return rng.sample(NAMES, rng.randint(3, 5))


def nouns(rng: random.Random) -> list[str]:
    return rng.choices(NOUNS, k=rng.randint(4, 6))


def joined(row: list[str]) -> str:
    return ", ".join(row)


def median(rng: random.Random) -> Item:
    row = rng.sample(range(1, 100), 5)
    return spaced(row), str(sorted(row)[2])


def nth(rng: random.Random) -> Item:
    row = names(rng)
    at = rng.randrange(len(row))
    return f"{at + 1}: {joined(row)}", row[at]


def difference(rng: random.Random) -> Item:
    first = rng.sample(range(10), 5)
    second = [*rng.sample(first, 2), *rng.sample([x for x in range(10) if x not in first], 2)]
    rng.shuffle(second)
    return f"{spaced(first)} / {spaced(second)}", spaced([x for x in first if x not in second])


FAMILIES = collect(
    "lists",
    ascending=(rule(few, lambda row: spaced(sorted(row)), spaced), "Sort."),
    descending=rule(few, lambda row: spaced(sorted(row, reverse=True)), spaced),
    alphabetical=(
        rule(names, lambda row: joined(sorted(row)), joined),
        "Put the names in alphabetical order.",
    ),
    reverse=rule(names, lambda row: joined(row[::-1]), joined),
    every_second=rule(names, lambda row: joined(row[::2]), joined),
    last=rule(names, lambda row: row[-1], joined),
    swap_ends=rule(names, lambda row: joined([row[-1], *row[1:-1], row[0]]), joined),
    unique=rule(nouns, lambda row: joined(list(dict.fromkeys(row))), joined),
    largest=(rule(few, lambda row: str(max(row)), spaced), "Which number is the largest?"),
    second_largest=rule(few, lambda row: str(sorted(row)[-2]), spaced),
    even=rule(digits, lambda row: spaced([x for x in row if x % 2 == 0]) or "none", spaced),
    above_five=rule(digits, lambda row: spaced([x for x in row if x > 5]) or "none", spaced),
    median=median,
    nth=nth,
    difference=difference,
)
