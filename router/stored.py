"""Tasks that were asked before as tasks whose answers are known: one half of the demonstrations asks the other.

So outcomes arise with no label from anyone: a task's demonstrations are right answers that its user gave. Each half is
a task of its own, whose queries are the inputs of the other half (as in `ttt.crossfit`, but trained to the end). What is
seen so is training on half as many demonstrations, and it is judged on few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from router.evaluate import Drawn
from store import TaskRow
from ttt.crossfit import folds
from ttt.formats import Family, Item
from ttt.pools import Pools, Sample
from ttt.task import Demonstration, Query, Task, canonical_text, clean_task

LEAST = 8
"""Demonstrations of a task, at least: of fewer a half says little."""
COLLECTION = "stored"


def halves_of(rows: Iterable[TaskRow], seeds: Sequence[int], most_shown: int, most_asked: int) -> list[Drawn]:
    """For each family of stored tasks and each two seeds the two halves of its first task, one against the other.

    Tasks that share a demonstration, however many steps apart, are one family: they teach the same. Its first task that is
    large enough stands for it, so that the same command finds the same later.

    Args:
        rows: the first to be asked first.
        most_shown, most_asked: demonstrations and queries of a half, at most.
    """
    found = []
    for row in _first_of_each(rows):
        task = _task(row)
        for seed in seeds:
            part = folds(task, seed // 2)[seed % 2]
            shown = part.task.demonstrations[:most_shown]
            known = {canonical_text(d.input) for d in shown}
            asked = tuple(d for d in part.held_out if canonical_text(d.input) not in known)[:most_asked]
            if asked:
                found.append(_drawn(row, replace(task, demonstrations=shown), asked, seed))
    return found


def _task(row: TaskRow) -> Task:
    return clean_task(Task(tuple(Demonstration(*pair) for pair in row.demonstrations), row.instruction))[0]


def _first_of_each(rows: Iterable[TaskRow]) -> list[TaskRow]:
    from scipy.cluster.hierarchy import DisjointSet

    rows = list(rows)
    joined, having = DisjointSet(range(len(rows))), dict[tuple[str, str], int]()
    for i, row in enumerate(rows):
        for pair in row.demonstrations:
            joined.merge(i, having.setdefault(pair, i))
    chosen: dict[int, TaskRow] = {}
    for i, row in enumerate(rows):
        if joined[i] not in chosen and len(_task(row).demonstrations) >= LEAST:
            chosen[joined[i]] = row
    return list(chosen.values())


def _drawn(row: TaskRow, task: Task, held_out: Sequence[Demonstration], seed: int) -> Drawn:
    digits = row.fingerprint.rpartition(":")[2][:8]
    name = f"{row.name}-{digits}" if row.name else digits
    shown, asked = (tuple(Item(d.input, d.output) for d in half) for half in (task.demonstrations, held_out))
    family = Family(name, row.instruction, (*shown, *asked), True, "native", (), COLLECTION)
    queries, gold = tuple(Query(d.input) for d in held_out), tuple(d.output for d in held_out)
    pools = Pools(name, row.instruction, shown, asked)
    return Drawn(family, pools, seed, Sample(task, queries, gold))
