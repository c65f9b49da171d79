"""Tasks that were asked before as tasks whose answers are known: one half of the demonstrations asks the other.

So outcomes arise with no label from anyone: a task's demonstrations are right answers that its user gave. Each half is
a task of its own, whose queries are the inputs of the other half (as in `ttt.crossfit`, but trained to the end). What is
seen so is training on half as many demonstrations, and it is judged on few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router.evaluate import Drawn
from store import TaskRow
from ttt.crossfit import folds
from ttt.formats import Family, Item
from ttt.pools import Pools, Sample
from ttt.task import Demonstration, Query, Task, clean_task

LEAST = 8
"""Demonstrations of a task, at least: a half of fewer than four can't be probed."""
COLLECTION = "stored"


def halves_of(rows: Iterable[TaskRow], seeds: Sequence[int]) -> list[Drawn]:
    """For each stored task and each two seeds its two halves, one against the other; tasks that are part of a larger
    one, or too small, are left out."""
    found = []
    for row in _whole(rows):
        task, _ = clean_task(
            Task(tuple(Demonstration(*pair) for pair in row.demonstrations), row.instruction)
        )
        if len(task.demonstrations) < LEAST:
            continue
        for seed in seeds:
            part = folds(task, seed // 2)[seed % 2]
            found.append(_drawn(row, part.task, part.held_out, seed))
    return found


def _whole(rows: Iterable[TaskRow]) -> list[TaskRow]:
    """Those whose demonstrations are not all among those of another, as when a chat grows by corrections."""
    rows = list(rows)
    shown = [frozenset(row.demonstrations) for row in rows]
    by_one: dict[tuple[str, tuple[str, str]], list[int]] = {}
    for i, row in enumerate(rows):
        for pair in shown[i]:
            by_one.setdefault((row.instruction, pair), []).append(i)

    def part_of_another(i: int) -> bool:
        some = min(shown[i], default=None)
        others = by_one[rows[i].instruction, some] if some is not None else []
        return any(shown[i] < shown[j] for j in others)

    return [row for i, row in enumerate(rows) if not part_of_another(i)]


def _drawn(row: TaskRow, task: Task, held_out: Sequence[Demonstration], seed: int) -> Drawn:
    name = row.name or row.fingerprint
    shown, asked = (tuple(Item(d.input, d.output) for d in half) for half in (task.demonstrations, held_out))
    family = Family(name, row.instruction, (*shown, *asked), True, "native", (), COLLECTION)
    queries, gold = tuple(Query(d.input) for d in held_out), tuple(d.output for d in held_out)
    pools = Pools(name, row.instruction, shown, asked)
    return Drawn(family, pools, seed, Sample(task, queries, gold))
