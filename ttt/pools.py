"""From a family to tasks: one split into a demonstration and a query pool, then draws by seed.

The split hangs on the content alone, so an item that is a demonstration under one seed is never a query
under another, on any machine. Knows nothing of models, prompts or scores.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from math import fsum

from ttt.errors import TaskError
from ttt.formats import Family, Item
from ttt.task import Demonstration, Query, Task, canonical_text

DEMONSTRATION_SHARE = 0.4
"""Expected share of items (of files, where a folder is one family) in the demonstration pool."""

CLOSED_SET_LABELS = 10
"""At most so many distinct outputs make a closed label set …"""
CLOSED_SET_ITEMS = 50
"""… if there are at least so many items to judge by."""
OPTION_SHARE = 0.95
"""A family is multiple choice if at least this share of its outputs is an option, like `(B)`."""

_OPTION = re.compile(r"\([A-Z]\)")
_OPTION_LINE = re.compile(r"^\s*(\([A-Z]\))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pools:
    """A family's items after deduplication, in two parts that share no input (and no file)."""

    name: str
    instruction: str
    demonstrations: tuple[Item, ...]
    queries: tuple[Item, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One task drawn from a family's pools."""

    task: Task
    queries: tuple[Query, ...]
    gold: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BaselineRates:
    """Accuracy that needs no model, 0 to 1; to be shown beside every figure."""

    chance: float
    """Expected accuracy of a uniform guess among the labels or options; 0 for free outputs."""
    majority: float
    """Accuracy on the query pool of always giving the demonstration pool's commonest output."""


def split(family: Family) -> Pools:
    """Deduplicate a family by canonical input (the first is kept) and split it once.

    An item is in the demonstration pool if the hash of its canonical input, or of its file's name where
    a folder is one family, falls in the lowest `DEMONSTRATION_SHARE`; otherwise it is in the query pool.
    """
    kept: dict[str, Item] = {}
    conflicts = 0
    for item in family.items:
        first = kept.setdefault(canonical_text(item.input), item)
        conflicts += canonical_text(first.output) != canonical_text(item.output)
    dropped = len(family.items) - len(kept)
    notes = list(family.notes)
    if dropped:
        note = f"{dropped} of {len(family.items)} items dropped, as their input came before"
        notes.append(f"{note}; {conflicts} of them with another output." if conflicts else f"{note}.")
    demonstrations: list[Item] = []
    queries: list[Item] = []
    for text, item in kept.items():
        is_demonstration = _hash("split", item.group or text) < DEMONSTRATION_SHARE * 2**256
        (demonstrations if is_demonstration else queries).append(item)
    return Pools(family.name, family.instruction, tuple(demonstrations), tuple(queries), tuple(notes))


def sample(pools: Pools, n_demonstrations: int, n_queries: int, seed: int) -> Sample:
    """Draw a task and its queries, without replacement, the same on every machine.

    Under one seed a smaller draw is the beginning of a larger one. If the query pool holds fewer than
    `n_queries`, all of it is used, and `notes` says so.

    Raises:
        TaskError: the demonstration pool is too small, the query pool is empty, or a number is out of range.
    """
    if n_demonstrations < 0 or n_queries < 1:
        raise TaskError(
            f"{n_demonstrations} demonstrations and {n_queries} queries can't be drawn; "
            "ask for at least 0 demonstrations and 1 query."
        )
    if n_demonstrations > len(pools.demonstrations):
        raise TaskError(
            f"The family {pools.name!r} has {len(pools.demonstrations)} demonstrations to draw from, "
            f"{n_demonstrations} were asked for; ask for fewer or give more items."
        )
    if not pools.queries:
        raise TaskError(f"The family {pools.name!r} has no items left as queries; give it more items.")
    demonstrations = _shuffled(pools.demonstrations, seed)[:n_demonstrations]
    queries = _shuffled(pools.queries, seed)[:n_queries]
    notes: tuple[str, ...] = ()
    if len(queries) < n_queries:
        notes = (f"{n_queries} queries were asked for; all {len(queries)} of the pool are used.",)
    return Sample(
        task=Task(
            tuple(Demonstration(d.input, d.output) for d in demonstrations), pools.instruction, pools.name
        ),
        queries=tuple(Query(item.input) for item in queries),
        gold=tuple(item.output for item in queries),
        notes=notes,
    )


def mislabelled(task: Task, share: float, seed: int) -> tuple[Task, tuple[int, ...]]:
    """`task` with `share` of its demonstrations (rounded, 0 to 1) given the output of another one, and which they
    are: what a careless labeller does. The same for the same seed, on any machine.

    Where all outputs are the same there is nothing to exchange, and nothing changes.

    Raises:
        TaskError: the share is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise TaskError(f"{share:g} of the demonstrations can't be mislabelled; give a share from 0 to 1.")
    shown = list(task.demonstrations)
    order = sorted(range(len(shown)), key=lambda i: _hash(f"flip {seed}", canonical_text(shown[i].input)))
    flipped = []
    for i in order[: round(share * len(shown))]:
        own = canonical_text(shown[i].output)
        others = sorted({d.output for d in task.demonstrations if canonical_text(d.output) != own})
        if others:
            wrong = others[_hash(f"wrong {seed}", canonical_text(shown[i].input)) % len(others)]
            shown[i] = Demonstration(shown[i].input, wrong)
            flipped.append(i)
    return replace(task, demonstrations=tuple(shown)), tuple(sorted(flipped))


def baseline_rates(pools: Pools) -> BaselineRates:
    """Chance and majority rate of a family.

    Chance: for multiple choice, the mean of 1 ÷ the number of options that the input lists; else, for
    a closed label set, 1 ÷ the number of labels; else 0.
    """
    items = pools.demonstrations + pools.queries
    labels = Counter(canonical_text(item.output) for item in items)
    chance = 0.0
    if sum(n for label, n in labels.items() if _OPTION.fullmatch(label)) >= OPTION_SHARE * max(len(items), 1):
        options = [len(set(_OPTION_LINE.findall(item.input))) for item in items]
        chance = fsum(1 / n for n in options if n) / max(len(options), 1)
    elif len(items) >= CLOSED_SET_ITEMS and len(labels) <= CLOSED_SET_LABELS:
        chance = 1 / len(labels)
    majority = 0.0
    if pools.demonstrations and pools.queries:
        seen = Counter(canonical_text(item.output) for item in pools.demonstrations)
        commonest = max(sorted(seen), key=seen.__getitem__)
        majority = sum(canonical_text(item.output) == commonest for item in pools.queries) / len(
            pools.queries
        )
    return BaselineRates(chance, majority)


def _shuffled(items: tuple[Item, ...], seed: int) -> list[Item]:
    return sorted(items, key=lambda item: _hash(f"draw {seed}", canonical_text(item.input)))


def _hash(purpose: str, text: str) -> int:
    """A 256-bit number that looks random, from content."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{text}".encode()).digest())
