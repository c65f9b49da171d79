"""The signals that cost forward passes of their own, one after the other, each with its seconds; and, before any query is
asked, where the task lies among others."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from policies.types import LOCATION, MEASURED, SIGNAL_PARTS, Location, Signals
from router import events
from router import signals as measured
from router.context import Context
from router.receipt import Step
from router.state import State
from ttt.embedding import EMBEDDING, embed
from ttt.errors import Cancelled, ContextOverflow
from ttt.judging import leave_one_out, zero_shot
from ttt.views import consistency


async def locate(state: State, context: Context) -> dict[str, Any]:
    """Where the task lies, if the policy remembers families by it or everything is measured; nothing where nothing is to be
    decided, or an answer is due by a deadline."""
    request, task = state["request"], state["task"]
    wanted = LOCATION in context.policy.reads or context.settings.signals == "all"
    decides = request.arm == "auto" and request.when == "wait" and context.deadline == math.inf
    if not wanted or not decides or not task.demonstrations or context.should_stop():
        return {}
    started = time.perf_counter()
    try:
        update: dict[str, Any] = {"location": await located(state, context)}
        detail: dict[str, Any] = {}
    except ContextOverflow as error:
        update, detail = {}, {"skipped": str(error)}
    return update | {"steps": [Step(LOCATION, time.perf_counter() - started, detail)]}


async def located(state: State, context: Context) -> Location:
    """Where the task lies, as was found before or is now.

    Raises:
        ContextOverflow: no demonstration fits the model's context.
    """
    there = state.get("location")
    return there or Location(space_of(state, context), await embed(context.engine, state["task"]))


def space_of(state: State, context: Context) -> str:
    """Locations of one space are of one base model and prompt template, and embedded alike."""
    return f"{EMBEDDING} {context.engine.loaded.revision} {state['size'].template}"


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
        if should_stop():
            raise Cancelled("Measuring was cancelled; ask again.")
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
