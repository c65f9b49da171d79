"""The signals that cost forward passes of their own, one after the other, each with its seconds; and, before any query is
asked, where the task lies among others."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from policies.types import EMBEDDING, MEASURED, SIGNAL_PARTS, Signals
from router import events
from router import signals as measured
from router.context import Context
from router.receipt import Step
from router.state import State
from ttt.embedding import embed
from ttt.errors import Cancelled, ContextOverflow
from ttt.judging import leave_one_out, zero_shot
from ttt.views import consistency


async def locate(state: State, context: Context) -> dict[str, Any]:
    """The task's embedding, where the policy remembers families by it or everything is measured; nothing otherwise, and
    where nothing is to be decided."""
    request, task = state["request"], state["task"]
    wanted = EMBEDDING in context.policy.reads or context.settings.signals == "all"
    if not wanted or request.arm != "auto" or request.when != "wait" or not task.demonstrations:
        return {}
    started = time.perf_counter()
    try:
        point = await embed(context.engine, task)
    except ContextOverflow as error:
        return {"steps": [Step(EMBEDDING, time.perf_counter() - started, {"skipped": str(error)})]}
    return {"embedding": point, "steps": [Step(EMBEDDING, time.perf_counter() - started)]}


async def measure(
    state: State, context: Context, emit: Callable[[events.SignalsReady], None]
) -> dict[str, Any]:
    """What the policy reads, or with the setting `signals = "all"` everything: signals, step and notes. What can't be
    measured is left out with a note; a cancelled part ends the measuring.
    """
    task, engine, should_stop = state["task"], context.engine, context.should_stop
    wanted = MEASURED if context.settings.signals == "all" else context.policy.reads
    signals, notes = state["signals"], list[str]()
    detail: dict[str, Any] = {}
    started = time.perf_counter()

    async def part(name: str, key: str, found: Awaitable[Signals]) -> bool:
        """Whether measuring goes on."""
        nonlocal signals
        before = time.perf_counter()
        try:
            signals = await found
        except ContextOverflow as error:
            notes.append(f"{name} was not measured: {error}")
        except Cancelled:
            detail["cancelled"] = True
            notes.append("Measuring was cancelled; the decision rests on fewer signals.")
        detail[key] = time.perf_counter() - before
        return "cancelled" not in detail

    async def left_out() -> Signals:
        return measured.with_leave_one_out(
            signals, await leave_one_out(engine, task, should_stop=should_stop)
        )

    async def unshown() -> Signals:
        return measured.with_zero_shot(signals, await zero_shot(engine, task))

    async def voted() -> Signals:
        result = state["icl"]
        assert result is not None
        asked = [state["request"].queries[i] for i in state["asked"]]
        seen = await consistency(engine, task, asked, result, should_stop=should_stop)
        detail.update(views=list(seen.views), sampled_queries=len(seen.queries))
        return measured.with_consistency(signals, seen)

    goes_on = True
    if wanted & SIGNAL_PARTS["leave-one-out"] and len(task.demonstrations) > 1:
        goes_on = await part("Leave-one-out", "leave_one_out_s", left_out())
    if goes_on and wanted & SIGNAL_PARTS["zero-shot"] and task.demonstrations:
        goes_on = await part("Zero-shot", "zero_shot_s", unshown())
    if goes_on and wanted & SIGNAL_PARTS["consistency"]:
        goes_on = await part("Consistency", "consistency_s", voted())
    seconds = time.perf_counter() - started
    if goes_on:
        emit(events.SignalsReady(signals, seconds))
    return {"signals": signals, "steps": [Step("signals", seconds, detail)], "notes": notes}
