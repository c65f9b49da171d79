"""Answering in context: all queries at once or, where training is likely, a sample of them first.

Where training answers in the end, what in-context learning says of the queries is thrown away but for its signals, and
for those a sample will do. The others are asked when it has turned out that their answers are needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router import events
from router import signals as measured
from router.context import Context
from router.episodes import answered
from router.receipt import Step
from router.state import State
from router.timing import cut_short, grower, no_chat_template, stands
from ttt.calibrate import answer_calibrated, labels_of
from ttt.icl import ICLResult
from ttt.icl import answer as answer_queries
from ttt.recipes import fitting
from ttt.views import SAMPLE, spread

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

LEAST = 3 * SAMPLE
"""Queries below which all are asked at once: the demonstrations would be read twice to save little."""
NOT_CALIBRATED = (
    "Calibration needs a closed set of labels, each seen twice, or lettered options; answered without it."
)


async def icl(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Answer in context: all queries, or a sample where that will do for the decision. Where all signals are wanted, to
    learn from, both are done: the signals are those that a decision would see, and every answer is there."""
    context, request, steps = runtime.context, state["request"], list[Step]()
    every = tuple(range(len(request.queries)))
    asked = _sample(state, context)
    fallback = NOT_CALIBRATED if request.calibrated and not labels_of(state["task"]) else ""
    if fallback:
        runtime.stream_writer(events.FellBack(fallback))
    seen: ICLResult | None = None
    if asked:
        seen, step = await _ask(state, runtime, asked)
        all_s = measured.icl_seconds(context.costs, state["size"], len(every), len(every))
        steps.append(Step("sample", step.seconds, {**step.detail, "all_s": all_s}))
        runtime.stream_writer(events.Sampled(len(asked), len(every), step.seconds))
    if seen is None or context.settings.signals == "all":
        asked = every
        result, step = await _ask(state, runtime, every)
        steps.append(step)
        runtime.stream_writer(events.ICLDone(answered(result), step.seconds))
    else:
        result = seen
    signals = measured.cheap_signals(measured.known_before(state), seen or result)
    update = {"icl": result, "asked": asked, "signals": signals, "fallback": fallback, "steps": steps}
    return {**update, "notes": [*cut_short(context), *_notes(state, result)]}


async def answer_rest(state: State, runtime: Runtime[Context]) -> tuple[ICLResult, dict[str, Any]]:
    """In-context answers to all queries, those that are there and now the others, and what that adds to the state. Told to stop, training has: these are
    what is wanted in its place, as long as somebody waits.

    Raises:
        Cancelled: nobody waits any more.
    """
    there, asked = state["icl"], state["asked"]
    assert there is not None
    rest = tuple(sorted(set(range(len(state["request"].queries))) - set(asked)))
    if not rest:
        return there, {"steps": []}
    found, step = await _ask(state, runtime, rest)
    whole = _together(there, asked, found, rest)
    before_s = sum(s.seconds for s in state["steps"] if s.name == "sample")
    runtime.stream_writer(events.ICLDone(answered(whole), before_s + step.seconds))
    return whole, {"icl": whole, "asked": tuple(sorted((*asked, *rest))), "steps": [step]}


def _sample(state: State, context: Context) -> tuple[int, ...]:
    """Queries to ask first; none where all are asked. What is known before anything was asked must promise training,
    this machine's speed must be known, and there must be time to ask the others should training fail."""
    request, n = state["request"], len(state["request"].queries)
    if request.arm != "auto" or stands(state) or n < LEAST or context.deadline < math.inf:
        return ()
    if not context.costs.observed("train") and context.settings.signals != "all":
        return ()
    before: State = {**state, "signals": measured.known_before(state), "asked": ()}
    recipe = fitting(request.recipes, state["task"])
    first = context.policy.decide(measured.situation(before, context.costs, recipe))
    stays = first.step == "answer" and first.arm in ("icl", "zero-shot")
    return () if stays else spread(n, SAMPLE)


async def _ask(state: State, runtime: Runtime[Context], which: Sequence[int]) -> tuple[ICLResult, Step]:
    context, request, task = runtime.context, state["request"], state["task"]
    started, detail = time.perf_counter(), dict[str, Any]()
    stop = context.should_stop if state["icl"] is None else context.abandoned
    if request.calibrated and labels_of(task):
        calibrated = await answer_calibrated(
            context.engine, task, request.queries, should_stop=context.should_stop
        )
        result, detail["prior"] = calibrated.result, calibrated.prior
    else:
        result = await answer_queries(
            context.engine,
            task,
            request.queries,
            only=which,
            priority=context.priority,
            should_stop=stop,
            max_tokens=request.max_tokens,
            until=context.deadline,
            emit=grower(runtime) if stands(state) else None,
        )
    context.costs.observe("prefill", result.prompt_tokens + result.question_tokens, result.prefill_s)
    if result.decode_steps and len(which) >= min(len(request.queries), LEAST):  # few queries make short steps
        context.costs.observe("decode", result.decode_steps, result.decode_s)
    if len(which) < len(request.queries):
        detail["queries"] = len(which)
    detail |= {"demonstrations": result.n_shown, "prompt_tokens": result.prompt_tokens}
    return result, Step("icl", time.perf_counter() - started, detail)


def _notes(state: State, result: ICLResult) -> list[str]:
    task, notes = state["task"], list[str]()
    if state["size"].template != "chat" and any(q.turns is not None for q in state["request"].queries):
        notes += no_chat_template(task)
    if result.n_shown < len(task.demonstrations):
        notes.append(
            f"The prompt shows {result.n_shown} of {len(task.demonstrations)} demonstrations, the same random choice "
            "for every query: more do not fit the model's context. Training uses all of them."
        )
    return notes


def _together(first: ICLResult, asked: Sequence[int], second: ICLResult, rest: Sequence[int]) -> ICLResult:
    """The answers of both in the queries' order; tokens and seconds of both."""
    answers = dict(zip((*asked, *rest), (*first.answers, *second.answers), strict=True))
    return replace(
        second,
        answers=tuple(answers[i] for i in range(len(answers))),
        question_tokens=first.question_tokens + second.question_tokens,
        prefill_s=first.prefill_s + second.prefill_s,
        decode_s=first.decode_s + second.decode_s,
        decode_steps=first.decode_steps + second.decode_steps,
    )
