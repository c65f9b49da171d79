"""How nodes keep a deadline, and how answers grow on the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING

from router import events
from router.context import Context
from router.signals import expected_costs
from router.state import State
from ttt.recipes import fitting
from ttt.task import Task

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

DEADLINE_SLACK = 1.25
"""Seconds kept for answering before a deadline ÷ those that it is expected to take."""


def in_time(state: State, context: Context) -> Context:
    """`context` whose work ends when it is told to hurry, and early enough to answer with the adapter before the
    deadline."""
    recipe = fitting(state["request"].recipes, state["task"])
    n = len(state["request"].queries)
    reserve_s = DEADLINE_SLACK * expected_costs(context.costs, state["size"], n, recipe).answer_s

    def should_stop() -> bool:
        return context.should_stop() or context.should_hurry() or context.remaining_s < reserve_s

    return replace(context, should_stop=should_stop)


def not_waited_for(state: State, context: Context) -> list[str]:
    """Why training was not feasible, where it is not for want of demonstrations."""
    request = state["request"]
    if request.arm != "auto" or not state["size"].n_demonstrations:
        return []
    told = {
        "wait": f"The deadline left {max(context.remaining_s, 0):.3g} s, too little for training.",
        "background": "Training is decided on behind this answer; later queries have its adapter.",
        "never": "Training was ruled out by the caller.",
    }
    return [told[request.when]]


def cut_short(context: Context) -> list[str]:
    """A note where the deadline has passed."""
    late = context.remaining_s < 0
    return ["The deadline came while answers were written; they may be cut short."] if late else []


def no_chat_template(task: Task) -> list[str]:
    """A note for plain questions to a model that has no template for them."""
    if task.demonstrations:
        return []
    return ["The model has no chat template: the question alone was put to it, between `Q:` and `A:`."]


def stands(state: State) -> bool:
    """Whether in-context learning's answer is the last word: it was asked for, or nothing is trained now and
    nothing can be reused; and no other views vote."""
    request = state["request"]
    forced = request.arm != "auto" or not state["task"].demonstrations
    waits = request.when == "wait" or request.reuse
    return request.votes == 1 and (
        forced or (not waits and state["candidate"] is None and state.get("ready") is None)
    )


def grower(runtime: Runtime[Context]) -> Callable[[int, str], None]:
    """Hands growing answers from the engine's thread to the stream."""
    loop, write = asyncio.get_running_loop(), runtime.stream_writer
    here = copy_context()  # LangGraph looks up there whose stream it is

    def grow(query: int, text: str) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(write, events.AnswerGrew(query, text), context=here)

    return grow
