"""Adapters that are there already: by key, by a subset of the demonstrations, or from another caller.

Nothing here answers a query; what a node may use is returned as plain values.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from router.context import Context
from router.receipt import Step
from router.state import AdapterRef, State
from store import AdapterKey, AdapterRow, Lease
from store.errors import AdapterDamaged, NotFound
from ttt.crossfit import CrossFitResult
from ttt.errors import AdapterError, Cancelled, ContextOverflow
from ttt.judging import judge
from ttt.recipes import Recipe, as_written, fitting
from ttt.task import Demonstration, Task, canonical_text, fingerprint

LEASE_S = 30.0
"""A training owner that has not been heard of for so long has lost its right."""
POLL_S = 0.25
STARTED = "+start"
"""Ends the recipe in the key of an adapter whose training began at other tasks' adapters."""
VALUE = "value_s"
"""Of a shorter training's adapter: what the dearest question was worth for which the policy has decided on it."""
SEEN = "seen_inputs"
"""Of such an adapter's report: hashes of all inputs that those have learned from. The report is published with the row."""


def recipe_of(state: State) -> Recipe:
    """What is or would be trained by: the recipe that was asked for, or its shorter training where that was asked for or
    decided on."""
    request = state["request"]
    recipe = fitting(request.recipes, state["task"])
    decided = [decision.arm for decision in state.get("decisions", [])[-1:]]
    short = recipe.shorter
    if short is not None and (request.short or decided == [f"train:{short.name}"]):
        return short
    return recipe


def adapter_key(state: State, context: Context) -> AdapterKey:
    request = state["request"]
    return AdapterKey(
        state["fingerprint"],
        context.engine.loaded.revision,
        state["size"].template,
        recipe_of(state).id,
        request.seed,
    )


def adapter_keys(state: State, context: Context) -> list[AdapterKey]:
    """Keys of adapters that are for exactly this question: of a training from nothing, where adapters of like tasks
    are tried of one that began at such, and where the policy may choose it of the shorter training."""
    request, key = state["request"], adapter_key(state, context)
    short = fitting(request.recipes, state["task"]).shorter
    begun = [from_start(key)] if request.reuse else []
    chosen = request.arm == "auto" and not request.outright
    shorter = [replace(key, recipe=short.id)] if short is not None and chosen else []
    return [key, *begun, *shorter]


def value_s(state: State) -> float:
    """Seconds that getting all queries right would be worth, over those asked now and those expected later."""
    request = state["request"]
    return (len(request.queries) + request.expected_repeats) * request.worth_s


def uses_ready(state: State) -> bool:
    """Whether the adapter answers that was there already, of the shorter training that was decided on."""
    ready, trained = state.get("ready"), state.get("trained")
    return ready is not None and trained is not None and ready.content_hash == trained.content_hash


def serves(row: AdapterRow, state: State) -> bool:
    """Whether an adapter of this very task will do without asking the policy. That of a shorter training does for questions
    that are worth no more than the dearest that it was decided on for, and where nothing is trained."""
    dearest, request = row.report.get(VALUE), state["request"]
    return dearest is None or request.short or request.when == "never" or value_s(state) <= dearest


def from_start(key: AdapterKey) -> AdapterKey:
    """The same, of a training that began at other tasks' adapters. At which ones, the row's report says."""
    return replace(key, recipe=f"{key.recipe}{STARTED}")


def verified(row: AdapterRow, context: Context) -> tuple[AdapterRef | None, list[str]]:
    """The adapter's files, after checking their hash; a damaged one is named and not used."""
    try:
        context.store.adapters.path(row)
    except AdapterDamaged as error:
        return None, [f"A cached adapter is not used: {error}"]
    return reference(row, context), []


def in_use(row: AdapterRow, context: Context) -> bool:
    """Note that the adapter is needed now, so that it is not evicted; False where it was just before."""
    try:
        context.store.adapters.touch(row)
    except NotFound:
        return False
    return True


def reference(row: AdapterRow, context: Context) -> AdapterRef:
    """The stored adapter by values."""
    folder = context.store.adapters.path(row, verify=False)
    losses = tuple(float(loss) for loss in row.report.get("losses", ()))
    left_out = tuple(str(name) for name in row.report.get("left_out", ()))
    rows = rows_of(row)
    return AdapterRef(row.content_hash, str(folder), row.key.recipe, row.accepted, losses, rows, left_out)


def written_rows(task: Task, recipe: Recipe) -> str:
    """How a training by the recipe writes the task's rows of cells."""
    return "indexed" if as_written(task, recipe.rows).indexed else "plain"


def rows_of(row: AdapterRow) -> str:
    """How the adapter's training wrote rows of cells."""
    return str(row.report.get("rows", "plain"))


def knows_a_query(row: AdapterRow, state: State) -> bool:
    """Whether an adapter for these demonstrations has learned from one of the queries, at another task's adapter that it
    began at. Where that is not known, it is taken to have."""
    if not row.key.recipe.endswith(STARTED):
        return False
    if SEEN not in row.report:
        return True
    others = set(row.report[SEEN]) - set(input_hashes(d.input for d in state["task"].demonstrations))
    return bool(others.intersection(input_hashes(q.input for q in state["request"].queries)))


def input_hashes(texts: Iterable[str]) -> list[str]:
    """A hash of each input as it is compared: canonical, without its output or instruction."""
    return [hashlib.sha256(canonical_text(text).encode()).hexdigest()[:32] for text in texts]


def demonstration_hashes(task: Task) -> tuple[str, ...]:
    return tuple(fingerprint(Task((d,), task.instruction)) for d in task.demonstrations)


def decided_for(key: AdapterKey, state: State, context: Context) -> None:
    """Note what this question is worth, where the policy has decided on an adapter of a shorter training that is there though
    it could have had the longer."""
    row = context.store.adapters.find(key)
    free = state["request"].when == "wait" and context.deadline == math.inf
    if free and row is not None and value_s(state) > row.report.get(VALUE, math.inf):
        with suppress(NotFound):  # evicted just now; it is answered with what is attached
            context.store.adapters.set_report(row, {**row.report, VALUE: value_s(state)})


async def subset_candidate(
    state: State, context: Context
) -> tuple[AdapterRef | None, CrossFitResult | None, list[Step]]:
    """An accepted adapter of fewer of these demonstrations that does better than the base on the others, and how well both
    do there."""
    task, started = state["task"], time.perf_counter()
    hashes = demonstration_hashes(task)
    revision, template = context.engine.loaded.revision, state["size"].template
    rows = [r for r in context.store.adapters.find_subset(hashes, revision, template) if r.accepted]
    if not rows:
        return None, None, []
    row = rows[0]
    ref, notes = verified(row, context)
    if ref is None:
        return None, None, [Step("reuse-check", time.perf_counter() - started, {"skipped": notes[0]})]
    known, unseen = _split(task.demonstrations, hashes, row.demonstration_hashes)
    part = as_written(replace(task, demonstrations=known), ref.rows)
    try:
        async with context.engine.adapter(Path(ref.folder)) as name:
            base = await judge(context.engine, replace(part, indexed=False), unseen, adapter=None)
            tried = await judge(context.engine, part, unseen, adapter=name)
    except (AdapterError, ContextOverflow) as error:
        return None, None, [Step("reuse-check", time.perf_counter() - started, {"skipped": str(error)})]
    better = sum(tried.logprob) > sum(base.logprob) and sum(tried.correct) >= sum(base.correct)
    better = better and in_use(row, context)
    detail = {
        "adapter": ref.content_hash[:12],
        "unseen_demonstrations": len(unseen),
        "logprob_base": sum(base.logprob) / len(unseen),
        "logprob_adapter": sum(tried.logprob) / len(unseen),
        "passed": better,
    }
    step = Step("reuse-check", time.perf_counter() - started, detail)
    if not better:
        return None, None, [step]
    found = CrossFitResult(base.correct, tried.correct, base.logprob, tried.logprob, tokens=0, train_s=0.0)
    return ref, found, [step]


def _split(
    demonstrations: Sequence[Demonstration], hashes: Sequence[str], seen: Sequence[str]
) -> tuple[tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    old = set(seen)
    pairs = list(zip(demonstrations, hashes, strict=True))
    return tuple(d for d, h in pairs if h in old), tuple(d for d, h in pairs if h not in old)


async def lease_or_adapter(
    key: AdapterKey, state: State, context: Context
) -> tuple[Lease | None, AdapterRef | None]:
    """The right to train this adapter or, where there is one with sound files that has not learned from a query, the
    adapter itself.

    While another caller trains it, waits for that.

    Raises:
        Cancelled: `should_stop` said so while waiting.
    """
    while True:
        lease = context.store.leases.acquire(f"train:{key.hash}", context.owner, LEASE_S)
        row = context.store.adapters.find(key)
        ref = None
        if row is not None and not knows_a_query(row, state) and in_use(row, context):
            ref = verified(row, context)[0]
        if ref is not None:
            if lease is not None:
                context.store.leases.release(lease)
            return None, ref
        if lease is not None:
            return lease, None
        if context.should_stop():
            raise Cancelled("Waiting for another caller's training was cancelled; ask again.")
        await asyncio.sleep(POLL_S)
