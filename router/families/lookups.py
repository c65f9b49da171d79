"""Secret tables: from four keys that every task shows to ciphers over an alphabet, and tables without end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

from router.families.codes import CITIES
from router.families.labels import ANIMALS, COLOURS, PLANTS, TOOLS
from router.families.procedure import Item, Make, collect, lot, secret, spaced

TOWNS = (*CITIES, "Milan", "Geneva", "Athens", "Warsaw", "Zurich", "Bonn")


def table(name: str, n_keys: int, values: Sequence[str]) -> Make:
    """A parcel for one of `n_keys` towns → the town's zone, from a secret table."""
    rng = secret(name)
    zones = {town: rng.choice(values) for town in TOWNS[:n_keys]}

    def make(rng: random.Random) -> Item:
        town = rng.choice(list(zones))
        return f"parcel of {rng.randint(1, 99)} kg for {town}", zones[town]

    return make


def two_keys(rng: random.Random) -> Item:
    first, second = rng.choice(COLOURS[:3]), rng.choice(("small", "large"))
    zone = _TWO[COLOURS.index(first) * 2 + (second == "large")]
    return f"{second} {first} {rng.choice(ANIMALS + TOOLS + PLANTS)}", zone


_TWO = secret("two keys").sample("ABCDEFGH", 6)
_DIGITS = dict(zip("0123456789", secret("digits").sample("0123456789", 10), strict=True))
_LETTERS = dict(zip(ascii_lowercase, secret("letters").sample(ascii_lowercase, 26), strict=True))
_SOME = dict(zip("abcdef", secret("six letters").sample("uvwxyz", 6), strict=True))
_SIGNS = dict(
    zip("+-*/=%", secret("signs").sample(("one", "two", "six", "ten", "four", "five"), 6), strict=True)
)
_PRICES = {
    fruit: secret(f"price {fruit}").randint(2, 9) for fruit in ("apple", "pear", "plum", "fig", "lime")
}
_ANIMALS = dict(zip(ANIMALS, secret("animals").sample(ANIMALS, len(ANIMALS)), strict=True))
_ODD = dict(zip(TOWNS[3:6], ("N7", "K2", "R9"), strict=True))


def cipher(key: dict[str, str], least: int, most: int) -> Make:
    def make(rng: random.Random) -> Item:
        row = rng.choices(list(key), k=rng.randint(least, most))
        return spaced(row), spaced([key[c] for c in row])

    return make


def price(rng: random.Random) -> Item:
    fruit, n = rng.choice(list(_PRICES)), rng.randint(2, 60)
    return f"{n} of {fruit}", str(n * _PRICES[fruit])


def renamed(rng: random.Random) -> Item:
    animal, n = rng.choice(ANIMALS), rng.randint(2, 99)
    return f"{n} of {animal}", f"{n} of {_ANIMALS[animal]}"


def exceptions(rng: random.Random) -> Item:
    """One label for all towns but three."""
    town = rng.choice((*_ODD, *(t for t in TOWNS if t not in _ODD)))
    return f"letter {rng.randint(1, 99)} to {town}", _ODD.get(town, "A1")


def endless(rng: random.Random) -> Item:
    """Every customer has a secret zone: what is shown says nothing of the others."""
    name = "".join(rng.choices(ascii_uppercase, k=3))
    return f"customer {name}", "ABCD"[lot(f"zone {name}", 4)]


def endless_code(rng: random.Random) -> Item:
    name = "".join(rng.choices(ascii_uppercase, k=3))
    return f"customer {name}", f"{lot(f'code {name}', 900) + 100}"


FAMILIES = collect(
    "lookups",
    four_keys=table("four", 4, ("A", "B", "C", "D")),
    eight_keys=table("eight", 8, ("A", "B", "C", "D")),
    sixteen_keys=table("sixteen", 16, ("A", "B", "C", "D")),
    eight_keys_in_words=table("words", 8, ("green", "north", "paper", "seven")),
    two_keys=two_keys,
    digit_cipher=cipher(_DIGITS, 4, 5),
    letter_cipher=cipher(_LETTERS, 4, 6),
    six_letter_cipher=cipher(_SOME, 4, 6),
    sign_cipher=cipher(_SIGNS, 3, 5),
    prices=price,
    renamed=renamed,
    exceptions=exceptions,
    endless=endless,
    endless_code=endless_code,
)
