"""Nothing to learn: each output is drawn by lot, if always the same one for the same input.

A good router does not train here, and does not pay long to find that out.
"""

from __future__ import annotations

import random

from router.families.cells import block
from router.families.edits import sentence
from router.families.lists import NAMES
from router.families.procedure import Item, collect, lot, spaced


def lottery(rng: random.Random) -> Item:
    ticket = f"Ticket {rng.randint(10000, 99999)}"
    return ticket, ("red", "blue", "green", "gold")[lot(ticket, 4)]


def coin(rng: random.Random) -> Item:
    throw = f"throw {rng.randint(1, 9999)}"
    return throw, ("heads", "tails")[lot(throw, 2)]


def dice(rng: random.Random) -> Item:
    text = f"roll {rng.randint(1, 9999)}"
    return text, str(lot(text, 6) + 1)


def recolour(rng: random.Random) -> Item:
    row = block((2, 6))(rng)
    colour = str(lot(spaced(row), 9) + 1)
    return spaced(row), spaced([colour if cell != "0" else "0" for cell in row])


def which_word(rng: random.Random) -> Item:
    text = sentence(rng)
    words = text.split()
    return text, words[lot(text, len(words))]


def choice(rng: random.Random) -> Item:
    first, second = rng.sample(NAMES, 2)
    text = f"{first} or {second}?"
    return text, (first, second)[lot(text, 2)]


def order(rng: random.Random) -> Item:
    names = rng.sample(NAMES, 3)
    text = ", ".join(names)
    return text, ", ".join(sorted(names, key=lambda name: lot(f"{text} {name}", 2**32)))


FAMILIES = collect(
    "chance",
    lottery=lottery,
    coin=coin,
    dice=dice,
    recolour=recolour,
    which_word=which_word,
    choice=choice,
    order=order,
)
