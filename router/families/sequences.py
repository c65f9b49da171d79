"""Numbers that follow a rule: the output is the next one, or one that is missing."""

from __future__ import annotations

import random
from collections.abc import Callable

from router.families.procedure import Item, Make, collect, spaced


def following(draw: Callable[[random.Random], list[int]]) -> Make:
    """All numbers but the last → the last."""

    def make(rng: random.Random) -> Item:
        *shown, last = draw(rng)
        return spaced(shown), str(last)

    return make


def steps(first: tuple[int, int], by: tuple[int, int], n: int = 5) -> Callable[[random.Random], list[int]]:
    def draw(rng: random.Random) -> list[int]:
        start, step = rng.randint(*first), rng.randint(*by)
        return [start + i * step for i in range(n)]

    return draw


def geometric(rng: random.Random) -> list[int]:
    start, factor = rng.randint(1, 60), rng.randint(2, 5)
    return [start * factor**i for i in range(4)]


def sums(modulus: int = 0) -> Callable[[random.Random], list[int]]:
    """Each number is the sum of the two before it."""

    def draw(rng: random.Random) -> list[int]:
        found = [rng.randint(0, 19 if not modulus else modulus - 1) for _ in range(2)]
        for _ in range(4):
            total = found[-2] + found[-1]
            found.append(total % modulus if modulus else total)
        return found

    return draw


def growing(rng: random.Random) -> list[int]:
    """Differences of d, d + 1, d + 2, …"""
    found, step = [rng.randint(0, 40)], rng.randint(1, 9)
    for i in range(5):
        found.append(found[-1] + step + i)
    return found


def alternating(rng: random.Random) -> list[int]:
    """Up by one step, down by another, in turns."""
    found, up, down = [rng.randint(10, 40)], rng.randint(3, 9), rng.randint(1, 4)
    for i in range(6):
        found.append(found[-1] + (-down if i % 2 else up))
    return found


def interleaved(rng: random.Random) -> list[int]:
    a, b, step = rng.randint(1, 30), rng.randint(50, 90), rng.randint(1, 5)
    return [x for i in range(4) for x in (a + i * step, b - i)][:7]


def periodic(rng: random.Random) -> list[int]:
    period = rng.sample(range(1, 10), 3)
    n = rng.randint(6, 8)
    return [period[i % 3] for i in range(n)]


def twice_and_one(rng: random.Random) -> list[int]:
    found = [rng.randint(1, 99)]
    for _ in range(3):
        found.append(2 * found[-1] + 1)
    return found


def gap(rng: random.Random) -> Item:
    row = steps((1, 60), (2, 9))(rng)
    place = rng.randrange(1, 4)
    return spaced(["?" if i == place else x for i, x in enumerate(row)]), str(row[place])


FAMILIES = collect(
    "sequences",
    arithmetic=(following(steps((1, 60), (2, 9))), "Which number comes next?"),
    descending=following(steps((60, 99), (-9, -2))),
    geometric=following(geometric),
    sums=following(sums()),
    sums_mod_ten=following(sums(10)),
    growing=following(growing),
    alternating=following(alternating),
    interleaved=following(interleaved),
    periodic=following(periodic),
    twice_and_one=following(twice_and_one),
    gap=(gap, "Which number is missing?"),
)
