"""What a procedural family is: a name, a collection, and how one item is made. Knows nothing of models.

Every family is an endless supply of items from a seed, or as many as there are: a secret table has no more
inputs than keys. What a family keeps secret (a table, a cipher) hangs on its name alone, never on the seed,
so that all items of a family follow one rule.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from router.errors import RouterError

T = TypeVar("T")
Item = tuple[str, str]
"""Input and right output."""
Make = Callable[[random.Random], Item]

TRIES = 1000
"""So many draws in a row without a new input mean that there are no more."""


@dataclass(frozen=True, slots=True)
class Procedure:
    """One family."""

    name: str
    collection: str
    make: Make
    instruction: str = ""


def rule(
    draw: Callable[[random.Random], T], answer: Callable[[T], str], show: Callable[[T], str] = str
) -> Make:
    """Items whose output is a function of what was drawn."""

    def make(rng: random.Random) -> Item:
        drawn = draw(rng)
        return show(drawn), answer(drawn)

    return make


def collect(collection: str, **makes: Make | tuple[Make, str]) -> tuple[Procedure, ...]:
    """The procedures of one collection; a pair is a rule and its instruction."""
    found = []
    for key, given in makes.items():
        make, instruction = given if isinstance(given, tuple) else (given, "")
        found.append(Procedure(f"{collection}-{key.replace('_', '-')}", collection, make, instruction))
    return tuple(found)


def secret(name: str) -> random.Random:
    """Randomness that is the same in every run: for what a family keeps secret."""
    return random.Random(f"secret {name}")


def lot(text: str, n: int) -> int:
    """A number below `n` from the text: the same each time, and no rule that anyone could learn."""
    return int.from_bytes(hashlib.sha256(f"lot {text}".encode()).digest()[:8]) % n


def numbers(low: int, high: int, least: int, most: int | None = None) -> Callable[[random.Random], list[int]]:
    """Draws lists of `least` to `most` whole numbers."""
    return lambda rng: [rng.randint(low, high) for _ in range(rng.randint(least, most or least))]


def spaced(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def items(procedure: Procedure, n: int, seed: int = 0) -> list[Item]:
    """`n` items with distinct inputs, or all that there are.

    Raises:
        RouterError: `n` is below 1.
    """
    if n < 1:
        raise RouterError(f"{n} items of {procedure.name} can't be made; ask for at least 1.")
    rng = random.Random(f"{procedure.name} {seed}")
    found: dict[str, str] = {}
    failures = 0
    while len(found) < n and failures < TRIES:
        given, answer = procedure.make(rng)
        failures = failures + 1 if given in found else 0
        found.setdefault(given, answer)
    return list(found.items())


def write(procedures: Sequence[Procedure], folder: Path, n: int, seed: int = 0) -> list[Path]:
    """Each family as `folder/collection/name.json`, in the native form that `ttt.formats` reads.

    Raises:
        RouterError: `n` is below 1, or a file can't be written.
    """
    written = []
    for procedure in procedures:
        task = {
            "name": procedure.name,
            "instruction": procedure.instruction,
            "demonstrations": [{"input": x, "output": y} for x, y in items(procedure, n, seed)],
        }
        path = folder / procedure.collection / f"{procedure.name}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(task, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RouterError(
                f"{path} can't be written ({error.strerror}); choose another folder."
            ) from error
        written.append(path)
    return written
