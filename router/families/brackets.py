"""Nesting and logic: brackets to close, to judge, to take off; truth values; a small stack machine."""

from __future__ import annotations

import random

from router.families.procedure import Item, collect, rule, spaced

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
TAGS = ("b", "i", "u", "p", "li", "em")


def opened(rng: random.Random, n: int) -> tuple[list[str], list[str]]:
    """`n` symbols of brackets that open, some closed again, and what is still open."""
    row: list[str] = []
    stack: list[str] = []
    for _ in range(n):
        if stack and rng.random() < 0.4:
            row.append(PAIRS[stack.pop()])
        else:
            stack.append(rng.choice("([{<"))
            row.append(stack[-1])
    return row, stack


def whole(rng: random.Random, n: int) -> list[str]:
    row, stack = opened(rng, n)
    return row + [PAIRS[s] for s in reversed(stack)]


def complete(rng: random.Random) -> Item:
    while True:
        row, stack = opened(rng, rng.randint(4, 7))
        if stack:
            return spaced(row), spaced([PAIRS[s] for s in reversed(stack)])


def balanced(rng: random.Random) -> Item:
    row = whole(rng, rng.randint(2, 5))
    if rng.random() < 0.5:
        return spaced(row), "yes"
    at = rng.randrange(len(row))
    others = [c for c in "()[]{}<>" if c != row[at]]
    return spaced([*row[:at], rng.choice(others), *row[at + 1 :]]), "no"


def nested(rng: random.Random) -> str:
    """Round brackets alone, of any depth."""
    row: list[str] = []
    depth = 0
    for _ in range(rng.randint(3, 8)):
        step = 1 if depth == 0 or rng.random() < 0.6 else -1
        depth += step
        row.append("(" if step > 0 else ")")
    return spaced(row + [")"] * depth)


def depth(row: str) -> int:
    found = level = 0
    for c in row.split():
        level += 1 if c == "(" else -1
        found = max(found, level)
    return found


def turned(rng: random.Random) -> Item:
    """Every bracket → its partner."""
    partner = PAIRS | {v: k for k, v in PAIRS.items()}
    row = rng.choices("()[]{}<>", k=rng.randint(4, 7))
    return spaced(row), spaced([partner[c] for c in row])


def inner(rng: random.Random) -> Item:
    words = ["".join(rng.choices("abcdefgh", k=3)) for _ in range(3)]
    return f"{words[0]} ({words[1]}) {words[2]}", words[1]


def tags(rng: random.Random) -> Item:
    names = rng.sample(TAGS, rng.randint(2, 3))
    return "".join(f"<{n}>" for n in names), "".join(f"</{n}>" for n in reversed(names))


def expression(rng: random.Random, size: int) -> tuple[str, bool]:
    if size == 1:
        value = rng.random() < 0.5
        text = "true" if value else "false"
        return (f"not {text}", not value) if rng.random() < 0.3 else (text, value)
    left, right = expression(rng, size - 1), expression(rng, 1)
    both = rng.random() < 0.5
    text = (
        f"({left[0]}) {'and' if both else 'or'} {right[0]}"
        if size > 2
        else (f"{left[0]} {'and' if both else 'or'} {right[0]}")
    )
    return text, (left[1] and right[1]) if both else (left[1] or right[1])


def logic(rng: random.Random) -> Item:
    text, value = expression(rng, rng.randint(2, 4))
    return text, "true" if value else "false"


def stack(rng: random.Random) -> Item:
    held: list[str] = []
    told: list[str] = []
    for _ in range(rng.randint(4, 6)):
        if held and rng.random() < 0.4:
            held.pop()
            told.append("pop")
        else:
            held.append(rng.choice("abcdefgh"))
            told.append(f"push {held[-1]}")
    return ", ".join(told), spaced(held) or "empty"


FAMILIES = collect(
    "brackets",
    complete=complete,
    balanced=balanced,
    depth=rule(nested, lambda row: str(depth(row))),
    pairs=rule(nested, lambda row: str(row.count("("))),
    turned=turned,
    inner=(inner, "What stands in the brackets?"),
    tags=tags,
    logic=logic,
    stack=stack,
)
