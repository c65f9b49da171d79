"""Adapters of like tasks: found by embedding, tried on this task's demonstrations, used as far as they pass.

The nearest ones are tried one by one; where none is of use, the mean of several, and the mean of some from the whole
stream so far. What passes best may answer (if it is one that is stored), and is where a training begins that is the
shorter, the better it does already (`ttt.warm`). No demonstration is judged by what has learned from it, and no adapter
is tried that has ever learned from one of the queries. Off unless the setting `reuse` asks for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.context import Context
from router.measuring import located, space_of
from router.receipt import Step
from router.reuse import (
    SEEN,
    demonstration_hashes,
    in_use,
    input_hashes,
    reference,
    rows_of,
    verified,
    written_rows,
)
from router.state import AdapterRef, Start, State
from store import AdapterRow, Near
from ttt.carry import undoubted
from ttt.crossfit import folds
from ttt.errors import AdapterError, ContextOverflow
from ttt.judging import Judged
from ttt.recipes import Recipe, as_written, fitting
from ttt.train import Beginning
from ttt.warm import LEAST_UNSEEN, Check, attached, begin_at, check, judge_halves, shortened

NEAREST = 0.85
"""Cosine from which on an adapter is tried by itself. On SmolLM2-135M the nearest of the same family had .93 to 1.00, the
nearest of another kind of task .40 to .85 (docs/reuse.md)."""
ALONE = 2
"""Adapters that are tried by themselves, at most."""
MERGED = 3
"""Near adapters that are merged, where none alone is of much use."""
SHARED = 4
"""Adapters, evenly from all that were kept so far, that make up the shared one."""
LOOKED_AT = 32
"""Neighbours that are considered, and so many more while too few of them can be used …"""
LOOKED_AT_MOST = 512
"""… up to this."""
MAX_SEEN = 1000
"""Demonstrations that an adapter has learned from, with all that it began at: no line of descent grows for ever."""
SAID = 8
"""Skipped neighbours that the receipt names."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An adapter that may be tried here."""

    row: AdapterRow
    near: Near

    @property
    def seen(self) -> frozenset[str]:
        return seen_by(self.row, self.near)


@dataclass(frozen=True, slots=True)
class Passed:
    """What does best on the demonstrations so far."""

    parts: tuple[Neighbour, ...]
    check: Check
    beginning: Beginning


@dataclass(slots=True)
class Account:
    """What goes into the receipt."""

    tried: list[dict[str, Any]]
    skipped: dict[str, str]
    """By adapter, why it was not tried."""


def seen_by(row: AdapterRow, near: Near) -> frozenset[str]:
    """Hashes of all inputs that the adapter has learned from; its report is as new as its files, an embedding may be older."""
    return near.seen_inputs.union(row.report.get(SEEN, ()))


def may_start(state: State) -> bool:
    """Whether adapters of like tasks can be of use here."""
    request, task = state["request"], state["task"]
    return (
        request.reuse
        and len(task.demonstrations) >= LEAST_UNSEEN
        and fitting(request.recipes, task).form == "in-context"
    )


async def seek_start(state: State, context: Context) -> dict[str, Any]:
    """What the adapters of like tasks add to the state: a candidate, a start, its evidence, and the account of it.

    `context.beginnings` then has where the training begins.
    """
    begun = time.perf_counter()
    request, task = state["request"], state["task"]
    recipe = fitting(request.recipes, task)
    try:
        here = await located(state, context)
    except ContextOverflow as error:
        return {"start": None, "steps": [_step(begun, {"skipped": str(error)})]}
    detail: dict[str, Any] = {"embed_s": time.perf_counter() - begun}
    vector = here.point
    update: dict[str, Any] = {"location": here, "start": None}
    account = Account([], {})
    usable = _usable(state, context, vector, recipe, account)
    passed: Passed | None = None
    if usable:
        try:
            passed = await _try_all(state, context, vector, usable, recipe, account)
        except ContextOverflow as error:
            detail["failed"] = str(error)
    detail["neighbours"] = len(usable)
    if usable:
        detail["nearest"] = usable[0].near.cosine
    if account.tried:
        detail["tried"] = account.tried
    if account.skipped:
        detail["skipped"] = [f"{name}: {why}" for name, why in list(account.skipped.items())[:SAID]]
        detail["not_used"] = len(account.skipped)
    detail["chosen"] = "nothing"
    if passed is not None:
        update |= _use(passed, state, context, recipe, detail)
    return update | {"steps": [_step(begun, detail)]}


def _step(begun: float, detail: dict[str, Any]) -> Step:
    return Step("neighbours", time.perf_counter() - begun, detail)


def _use(
    passed: Passed, state: State, context: Context, recipe: Recipe, detail: dict[str, Any]
) -> dict[str, Any]:
    rows = [part.row for part in passed.parts]
    alone = reference(rows[0], context) if len(rows) == 1 else None
    answers = alone is not None and passed.check.use == "answers"
    rest = shortened(undoubted(state["task"], recipe))
    context.beginnings[state["request"].episode_id] = passed.beginning
    hashes = {h for row in rows for h in row.demonstration_hashes}
    seen = {h for part in passed.parts for h in part.seen}
    start = Start(tuple(row.content_hash for row in rows), tuple(sorted(hashes)), tuple(sorted(seen)))
    names = " + ".join(row.content_hash[:12] for row in rows)
    detail["chosen"] = names if answers else f"{names}, and {rest.steps} steps from there"
    solved = answers and state["request"].arm == "ttt"
    return {
        "start": start,
        "candidate": alone if alone is not None and (alone.accepted or solved) else None,
        "solved": solved,
        "evidence": passed.check.evidence,
        "chosen": rest,
    }


def _usable(
    state: State, context: Context, vector: Sequence[float], recipe: Recipe, account: Account
) -> list[Neighbour]:
    """Adapters that may be tried, nearest first."""
    space, embeddings = space_of(state, context), context.store.embeddings
    looked_at = LOOKED_AT
    while True:
        nearest = embeddings.nearest(space, vector, looked_at)
        account.skipped.clear()
        found = _fit(nearest, state, context, recipe, account)
        if len(found) >= MERGED or len(nearest) < looked_at or looked_at >= LOOKED_AT_MOST:
            return found
        looked_at *= 4


def _fit(
    nearest: Iterable[Near], state: State, context: Context, recipe: Recipe, account: Account
) -> list[Neighbour]:
    """Those that may be tried; the account says why others are not."""
    nearest = list(nearest)
    rows = context.store.adapters.find_hashed([near.key_hash for near in nearest])
    found = []
    for near in nearest:
        row = rows.get(near.key_hash)
        if row is None:  # gone since then
            continue
        why = _unusable(row, near, state, recipe)
        if why:
            account.skipped[row.content_hash[:12]] = why
        else:
            found.append(Neighbour(row, near))
    return found


def _unusable(row: AdapterRow, near: Near, state: State, recipe: Recipe) -> str:
    """Why this adapter must not be tried here; empty where it may be."""
    if not row.accepted and state["request"].arm != "ttt":
        return "the guard has not accepted it"
    trained = row.report.get("recipe")
    if not isinstance(trained, dict):
        return "its report has no recipe"
    for key, wanted in (("rank", recipe.rank), ("alpha", recipe.alpha), ("form", recipe.form)):
        if trained.get(key) != wanted:
            return f"its {key} is {trained.get(key)}, here it is {wanted}"
    if rows_of(row) != (rows := written_rows(state["task"], recipe)):
        return f"it was trained on rows that are {rows_of(row)}, here they are {rows}"
    if set(trained.get("targets", ())) != set(recipe.targets):
        return "it adapts other layers"
    seen = seen_by(row, near)
    if seen.intersection(input_hashes(q.input for q in state["request"].queries)):
        return "it has learned from one of the queries"
    own = input_hashes(d.input for d in state["task"].demonstrations)
    if sum(h not in seen for h in own) < LEAST_UNSEEN:
        return "it has learned from these demonstrations, so that nothing could judge it"
    if len(own) + len(row.demonstration_hashes) > MAX_SEEN:
        return f"with all that it began at it has learned from {len(row.demonstration_hashes)} demonstrations"
    return ""


async def _try_all(
    state: State,
    context: Context,
    vector: Sequence[float],
    usable: list[Neighbour],
    recipe: Recipe,
    account: Account,
) -> Passed | None:
    """The best of what passes; means are tried only where nothing near is of any use."""
    trial = _Trial(state, context, recipe, account)
    near = [n for n in usable if n.near.cosine >= NEAREST]
    for neighbour in near[:ALONE]:
        if await trial.try_one("nearest", [neighbour]):
            return trial.best
    if trial.best is None and len(near) > 1:
        await trial.try_one("merged", near[:MERGED])
    if trial.best is not None or context.should_stop():
        return trial.best
    spread = context.store.embeddings.spread(space_of(state, context), vector, 4 * SHARED)
    fit = _fit(spread, state, context, recipe, account)
    shared = fit[:: max(1, len(fit) // SHARED)][:SHARED]
    if {n.row.content_hash for n in shared} - {n.row.content_hash for n in near[:MERGED]}:
        await trial.try_one("shared", shared)
    return trial.best


class _Trial:
    """Adapters on one task's demonstrations, beside the base model, which is judged once."""

    def __init__(self, state: State, context: Context, recipe: Recipe, account: Account) -> None:
        self.context, self.recipe, self.account = context, recipe, account
        self.task, seed = state["task"], state["request"].seed
        self.plain, self.parts = folds(self.task, seed), folds(as_written(self.task, recipe.rows), seed)
        """The halves as in-context learning writes them, and as a training does."""
        self.hashes = input_hashes(d.input for d in self.task.demonstrations)
        self.base: Judged | None = None
        self.best: Passed | None = None

    async def try_one(self, kind: str, wanted: Sequence[Neighbour]) -> bool:
        """Judge one, or the mean of several; whether it solves the task, or there is no time left."""
        context, begun = self.context, time.perf_counter()
        if context.should_stop():
            return True
        sound: list[tuple[Neighbour, AdapterRef]] = []
        for neighbour in wanted:
            ref, notes = verified(neighbour.row, context)
            if ref is None:
                self.account.skipped[neighbour.row.content_hash[:12]] = notes[0]
            elif not in_use(neighbour.row, context):
                self.account.skipped[ref.content_hash[:12]] = "it was evicted just now"
            else:
                sound.append((neighbour, ref))
        if not sound or (kind != "nearest" and len(sound) < 2):
            return False
        parts = tuple(neighbour for neighbour, _ in sound)
        learned = {h for part in parts for h in part.seen}
        seen = [i for i, h in enumerate(self.hashes) if h in learned]
        line: dict[str, Any] = {
            "start": kind,
            "adapters": " + ".join(part.row.content_hash[:12] for part in parts),
            "cosine": max(part.near.cosine for part in parts),
        }
        try:
            if self.base is None:
                self.base = await judge_halves(context.engine, self.plain, None)
            async with attached(context.engine, [Path(ref.folder) for _, ref in sound]) as name:
                found = await check(context.engine, self.parts, self.base, name, seen)
                if found is None:
                    return False
                if found.use != "none" and self._better(found):
                    beginning = await begin_at(context.engine, name, self.recipe)
                    self.best = Passed(parts, found, beginning)
        except AdapterError as error:
            self.account.skipped[line["adapters"]] = str(error)
            return False
        line |= _figures(found) | {"seconds": time.perf_counter() - begun}
        self.account.tried.append(line)
        return found.use == "answers"

    def _better(self, found: Check) -> bool:
        return self.best is None or found.removed > self.best.check.removed


def _figures(found: Check) -> dict[str, Any]:
    e = found.evidence
    n = len(e.correct_before)
    after = sum(e.logprob_after) / n
    told = {"answers": "solves it", "start": "of some use", "none": "of no use"}
    return {
        "unseen": n,
        "logprob_before": sum(e.logprob_before) / n,
        "logprob_after": after if math.isfinite(after) else None,
        "correct_before": sum(e.correct_before),
        "correct_after": sum(e.correct_after),
        "outcome": told[found.use],
    }


async def remember(state: State, context: Context, row: AdapterRow) -> None:
    """Let tasks to come find the adapter that was just trained."""
    start = state.get("start")
    here = await located(state, context)
    seen = {
        *input_hashes(d.input for d in state["task"].demonstrations),
        *(start.seen_inputs if start else ()),
    }
    context.store.embeddings.put(row.key, here.space, here.point, seen)


def learned_from(state: State) -> tuple[str, ...]:
    """Hashes of all demonstrations behind this task's training: its own, and those behind where it begins."""
    start = state.get("start")
    own = demonstration_hashes(state["task"])
    return tuple(dict.fromkeys((*own, *(start.demonstration_hashes if start else ()))))
