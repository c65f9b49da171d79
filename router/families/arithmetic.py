"""Sums of all kinds: plain, with units, in words, modular, and with an operator that means something else."""

from __future__ import annotations

import random
from collections.abc import Callable

from router.families.procedure import Make, collect, numbers, rule

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
TEENS = (
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")
THINGS = ("apples", "pens", "books", "coins", "cards", "keys")
UNITS = (("kg", "g"), ("km", "m"), ("l", "ml"))


def spelled(n: int) -> str:
    """0 to 99 in words."""
    if n < 20:
        return (*ONES, *TEENS)[n]
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def two(sign: str, answer: Callable[[int, int], int], low: int, high: int) -> Make:
    """`a sign b`, both within the bounds, the larger first."""

    def draw(rng: random.Random) -> tuple[int, int]:
        a, b = sorted((rng.randint(low, high), rng.randint(low, high)))
        return b, a

    return rule(draw, lambda ab: str(answer(*ab)), lambda ab: f"{ab[0]} {sign} {ab[1]}")


def in_words(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 49), rng.randint(1, 49)
    return f"{spelled(a)} plus {spelled(b)}", spelled(a + b)


def units(rng: random.Random) -> tuple[str, str]:
    large, small = rng.choice(UNITS)
    whole, rest = rng.randint(1, 9), rng.randint(100, 999)
    return f"{whole} {large} {rest} {small}", f"{1000 * whole + rest} {small}"


def change(rng: random.Random) -> tuple[str, str]:
    price = rng.randint(101, 999)
    left = 1000 - price
    return f"price {price // 100}.{price % 100:02d}, paid 10.00", f"{left // 100}.{left % 100:02d}"


def story(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    has, gets = rng.randint(5, 30), rng.randint(2, 20)
    if rng.random() < 0.5:
        return f"{name} has {has} {thing} and gets {gets} more.", f"{has + gets} {thing}"
    gets = min(gets, has - 1)
    return f"{name} has {has} {thing} and loses {gets}.", f"{has - gets} {thing}"


def minutes(rng: random.Random) -> tuple[str, str]:
    hours, rest = rng.randint(1, 9), rng.randint(0, 59)
    return f"{hours} h {rest} min", f"{60 * hours + rest} min"


FAMILIES = collect(
    "arithmetic",
    add=(two("+", lambda a, b: a + b, 10, 99), "Add."),
    subtract=two("-", lambda a, b: a - b, 10, 99),
    multiply=two("*", lambda a, b: a * b, 3, 29),
    secret_operator=two("#", lambda a, b: 2 * a + b, 1, 30),
    other_sign=two("+", lambda a, b: a - b, 10, 99),
    mod_seven=rule(lambda rng: rng.randint(10, 999), lambda n: str(n % 7)),
    three_times_and_one=rule(lambda rng: rng.randint(2, 999), lambda n: str(3 * n + 1)),
    digit_sum=rule(lambda rng: rng.randint(100, 9999), lambda n: str(sum(map(int, str(n))))),
    total=rule(numbers(1, 9, 3, 5), lambda row: str(sum(row)), lambda row: " + ".join(map(str, row))),
    in_words=in_words,
    units=units,
    minutes=minutes,
    change=change,
    story=(story, "How many are there now?"),
)
