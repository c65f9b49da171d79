"""Strings of letters, one token each: turned round, shifted along the alphabet, thinned out, doubled."""

from __future__ import annotations

import random
from collections.abc import Callable
from string import ascii_lowercase

from router.families.procedure import Make, collect, rule, spaced

VOWELS = "aeiou"


def row(least: int, most: int, alphabet: str = ascii_lowercase) -> Callable[[random.Random], list[str]]:
    return lambda rng: rng.choices(alphabet, k=rng.randint(least, most))


SOME = row(4, 6)


def to(change: Callable[[list[str]], list[str]], draw: Callable[[random.Random], list[str]] = SOME) -> Make:
    """Letters with spaces between → letters with spaces between."""
    return rule(draw, lambda letters: spaced(change(letters)), spaced)


def along(by: int) -> Callable[[list[str]], list[str]]:
    return lambda letters: [ascii_lowercase[(ascii_lowercase.index(c) + by) % 26] for c in letters]


def without_repeats(letters: list[str]) -> list[str]:
    return [c for i, c in enumerate(letters) if i == 0 or letters[i - 1] != c]


def swapped_pairs(letters: list[str]) -> list[str]:
    return [letters[i ^ 1] for i in range(len(letters))]


FAMILIES = collect(
    "letters",
    reverse=to(lambda s: s[::-1]),
    rotate_left=to(lambda s: s[1:] + s[:1]),
    rotate_right=to(lambda s: s[-1:] + s[:-1]),
    next_letter=to(along(1)),
    three_on=to(along(3)),
    ends=to(lambda s: [s[0], s[-1]]),
    no_vowels=(
        to(lambda s: [c for c in s if c not in VOWELS] or ["-"], row(5, 7, "aeioubcdfg")),
        "Leave out the vowels.",
    ),
    double=to(lambda s: [c for c in s for _ in range(2)], row(3, 4)),
    swap_pairs=to(swapped_pairs, lambda rng: rng.choices(ascii_lowercase, k=rng.choice((4, 6)))),
    alphabetical=(to(sorted), "Put the letters in alphabetical order."),
    squeeze=to(without_repeats, row(6, 8, "abc")),
    middle=to(lambda s: [s[len(s) // 2]], lambda rng: rng.choices(ascii_lowercase, k=rng.choice((3, 5, 7)))),
)
