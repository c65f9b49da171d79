"""One function a step, in the order of the graph. Each returns what it adds to the state."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.baselines import AlwaysArm
from policies.guard import CrossFit, TrainingSummary, Verdict
from policies.guard import guard as judge_evidence
from router import events
from router import signals as measured
from router.arms import shown, taken
from router.asking import answer_rest
from router.context import Context
from router.episodes import episode_of, receipt_of
from router.measuring import locate, measure
from router.neighbours import may_start, seek_start
from router.probing import seek
from router.receipt import READY, Step
from router.reuse import (
    adapter_key,
    adapter_keys,
    in_use,
    knows_a_query,
    recipe_of,
    serves,
    subset_candidate,
    uses_ready,
    verified,
)
from router.state import State
from router.timing import cut_short, grower, in_time, not_waited_for
from router.votes import vote
from store import TaskRow
from ttt.crossfit import MIN_DEMONSTRATIONS, cross_fit
from ttt.errors import AdapterError, Cancelled, ContextOverflow, TrainingFailed
from ttt.icl import answer as answer_queries
from ttt.measure import task_size
from ttt.recipes import as_written, fitting, probing
from ttt.task import clean_task, fingerprint
from ttt.train import TrainStep

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

SMOOTHED_STEPS = 3
"""Losses averaged at either end of a training, for the guard."""


async def prepare(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Clean the task, name it, measure it."""
    request = state["request"]
    task, notes = clean_task(request.task)
    task = shown(task, request)
    size = task_size(runtime.context.engine, task, request.queries)
    name = fingerprint(task)
    notes += tuple(runtime.context.engine.take_notices())
    runtime.stream_writer(events.Started(name, notes, request.episode_id))
    return {
        "task": task,
        "notes": list(notes),
        "fingerprint": name,
        "size": size,
        "icl": None,
        "asked": (),
        "fallback": "",
    }


async def look_up(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """An adapter for exactly this task, or else one of a subset of its demonstrations, checked on the rest."""
    request, started = state["request"], time.perf_counter()
    adapters, notes = runtime.context.store.adapters, []
    hit = ready = candidate = checked = None
    steps = []
    if request.arm in ("auto", "ttt") and state["task"].demonstrations:
        for key in adapter_keys(state, runtime.context):
            row = adapters.find(key)
            if row is None or not (row.accepted or request.outright):
                continue
            if knows_a_query(row, state):
                notes.append(
                    "A cached adapter is not used: it began at another that has learned from a query."
                )
                continue
            found, note = verified(row, runtime.context)
            notes += note
            if found is None or not in_use(row, runtime.context):
                continue
            if serves(row, state):
                hit = found
                runtime.stream_writer(events.CacheHit(hit.content_hash))
                break
            ready = found
        detail = {"hit": hit is not None} | ({READY: True} if hit is None and ready is not None else {})
        steps.append(Step("look-up", time.perf_counter() - started, detail))
        if hit is None and request.arm == "auto":
            candidate, checked, more = await subset_candidate(state, runtime.context)
            steps += more
    update: dict[str, Any] = {
        "hit": hit,
        "ready": ready,
        "candidate": candidate,
        "checked": checked,
        "steps": steps,
        "notes": notes,
    }
    if hit is not None:
        return update | {"arm": f"reuse:{hit.content_hash[:12]}", "adapter": hit.content_hash}
    located = await locate(state, runtime.context)
    return update | located | {"steps": steps + located.get("steps", [])}


def after_look_up(state: State) -> str:
    if state["hit"] is not None:
        return "answer"
    if state["request"].arm != "ttt":
        return "icl"
    return "neighbours" if may_start(state) else "decide"


def after_icl(state: State) -> str:
    forced = state["request"].arm != "auto" or not state["task"].demonstrations
    return "decide" if forced else "signals"


async def signals(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Measure what costs forward passes, unless the policy stays without it."""
    context = in_time(state, runtime.context)
    recipe = fitting(state["request"].recipes, state["task"])
    first = context.policy.decide(measured.situation(state, context.costs, recipe, context.remaining_s))
    if first.step == "answer" and first.arm == "icl" and first.expected_gain is not None:
        # The rule is optimistic about what is unmeasured; a learned policy knows what it is worth on average. Those that
        # estimate no gain only lack a figure.
        return {"steps": [Step("signals", 0.0, {"skipped": first.reason})]}
    return await measure(state, context, runtime.stream_writer)


def after_signals(state: State) -> str:
    """Other tasks' adapters are tried where training could pay, or is not waited for."""
    skipped = "skipped" in state["steps"][-1].detail and state["request"].when == "wait"
    tried = may_start(state) and state["candidate"] is None and not skipped
    return "neighbours" if tried else "decide"


async def neighbours(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Adapters of like tasks, tried on this task's demonstrations: to answer, or to begin a training at."""
    update = await seek_start(state, in_time(state, runtime.context))
    if update.get("evidence") is not None and "signals" in state:
        update["signals"] = measured.with_probe(state["signals"], update["evidence"])
    return update


async def decide(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Ask the policy, or obey the caller's arm."""
    context, request = runtime.context, state["request"]
    recipe = fitting(request.recipes, state["task"])
    if "signals" not in state:  # training was asked for, nothing was measured
        state = {**state, "signals": measured.known_before(state)}
    here = measured.situation(state, context.costs, recipe, context.remaining_s)
    forced = {"icl": "icl", "ttt": f"train:{recipe_of(state).name}", "zero-shot": "zero-shot"}.get(
        request.arm
    )
    solved = state.get("candidate") if state.get("solved") else None
    if solved is not None:
        forced = f"reuse:{solved.content_hash[:12]}"
    decision = AlwaysArm(forced).decide(here) if forced else context.policy.decide(here)
    runtime.stream_writer(events.Decided(decision))
    update: dict[str, Any] = {"decisions": [decision], "signals": state["signals"]}
    if not any(arm.startswith("train:") and arm != here.ready for arm in here.feasible):
        update["notes"] = not_waited_for(state, context)
    if decision.step == "answer" and decision.arm is not None:
        update["arm"] = taken(decision.arm, request, state["fallback"])
        candidate = state.get("candidate")
        if decision.arm.startswith("reuse:") and candidate is not None:
            update["adapter"] = candidate.content_hash
    return update


def after_decide(state: State) -> str:
    decision = state["decisions"][-1]
    if decision.step == "probe":
        return "probe"
    return "train" if (decision.arm or "").startswith("train:") else "answer"


async def probe(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Cross-fitted evidence: the first steps of trainings on halves of the demonstrations, judged on the others. Of
    several recipes where the one that was asked for says so."""
    context, started = in_time(state, runtime.context), time.perf_counter()

    def emit(step: TrainStep) -> None:
        runtime.stream_writer(events.TrainingStep("probe", step.step, step.of, step.loss))

    try:
        found = await seek(state, context, emit)
    except (TrainingFailed, ContextOverflow) as error:
        seconds = time.perf_counter() - started
        runtime.stream_writer(events.FellBack(str(error)))
        step = Step("probe", seconds, {"failed": str(error)})
        return {"steps": [step], "fallback": str(error), "arm": "icl", "evidence": None}
    step = Step("probe", time.perf_counter() - started, found.detail)
    return found.added_to(state) | {"steps": [step]}


def after_probe(state: State) -> str:
    return "answer" if state["fallback"] else "decide"


def after_train(state: State) -> str:
    """Training that was asked for outright is not guarded, nor what the guard has accepted before."""
    guarded = state["request"].arm == "auto" and not uses_ready(state)
    return "guard" if state["trained"] is not None and guarded else "answer"


async def guard(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Accept the trained adapter on cross-fitted evidence, or veto it and fall back to ICL."""
    context, started = in_time(state, runtime.context), time.perf_counter()
    evidence, trained = state.get("evidence"), state["trained"]
    assert trained is not None
    if evidence is None and len(state["task"].demonstrations) >= MIN_DEMONSTRATIONS:
        seed, stop = state["request"].seed, context.should_stop
        recipe = probing(fitting(state["request"].recipes, state["task"]), state["task"])
        try:
            evidence = await cross_fit(context.engine, state["task"], recipe, seed, should_stop=stop)
            verdict = _verdict(evidence, state)
        except (TrainingFailed, ContextOverflow) as error:
            verdict = Verdict(False, f"There is no evidence to judge it by: {error}", 0)
    else:
        verdict = _verdict(evidence, state)
    row = context.store.adapters.find(replace(adapter_key(state, context), recipe=trained.recipe))
    if row is not None:
        context.store.adapters.set_accepted(row, verdict.accept)
    runtime.stream_writer(events.GuardDone(verdict.accept, verdict.reason))
    step = Step(
        "guard", time.perf_counter() - started, {"accepted": verdict.accept, "reason": verdict.reason}
    )
    update: dict[str, Any] = {"accepted": verdict.accept, "steps": [step]}
    if not verdict.accept:
        runtime.stream_writer(events.FellBack(verdict.reason))
        update |= {"arm": "icl", "fallback": f"The guard vetoed the adapter: {verdict.reason}"}
    return update


async def answer(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Answers of the arm that was settled on: those of ICL, the queries asked now that were not before, or anew with
    the adapter. Where the caller wants votes, further views answer, too."""
    context, request, started = runtime.context, state["request"], time.perf_counter()
    chosen, in_context = state["hit"] or None, True
    if chosen is None and state["arm"].startswith("train:"):
        chosen = state["trained"]
    if chosen is not None:  # an adapter of this very recipe; a candidate's was checked in context
        in_context = fitting(request.recipes, state["task"]).form != "direct"
    if chosen is None and state["arm"].startswith("reuse:"):
        chosen = state["candidate"]
    if chosen is None:
        return await _in_context(state, runtime)
    alone = state["icl"] is None

    def should_stop() -> bool:  # in-context learning's answers are there to fall back to, or nothing is
        return context.should_stop() or (not alone and context.remaining_s < 0)

    try:
        async with context.engine.adapter(Path(chosen.folder)) as name:
            attach_s = time.perf_counter() - started
            result = await answer_queries(
                context.engine,
                as_written(state["task"], chosen.rows),
                request.queries,
                adapter=name,
                in_context=in_context,
                priority=context.priority,
                should_stop=should_stop,
                max_tokens=request.max_tokens,
                until=context.deadline if alone else math.inf,
                emit=grower(runtime) if alone and request.votes == 1 else None,
            )
            if result.decode_steps:
                context.costs.observe("decode", result.decode_steps, result.decode_s)
            notes = cut_short(context) if alone else []
            seconds = time.perf_counter() - started
            voted = await vote(result, name, in_context, state, context, chosen)
    except (Cancelled, AdapterError, ContextOverflow) as error:
        if state["icl"] is None:
            raise
        runtime.stream_writer(events.FellBack(str(error)))
        failed = Step("answer", time.perf_counter() - started, {"failed": str(error)})
        result, update = await answer_rest(state, runtime)
        update |= {"arm": "icl", "adapter": "", "fallback": str(error), "steps": [failed, *update["steps"]]}
        return {**update, "answers": result}
    detail = {"adapter": chosen.content_hash[:12], "attach_s": attach_s}
    if not in_context:
        detail["demonstrations"] = 0
    steps = [Step("answer", seconds, detail), *voted.pop("steps", [])]
    notes += voted.pop("notes", [])
    return {"adapter": chosen.content_hash, "steps": steps, "notes": notes, **voted}


async def _in_context(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    result, update = await answer_rest(state, runtime)
    voted = await vote(result, None, True, state, runtime.context)
    steps = [*update["steps"], *voted.pop("steps", [])]
    return {**update, "adapter": "", "steps": steps, **voted}


async def record(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
    """Write the episode, once, and send the receipt."""
    context, task = runtime.context, state["task"]
    receipt = receipt_of(state, context.engine.loaded)
    shown = tuple((d.input, d.output) for d in task.demonstrations)
    row = TaskRow(state["fingerprint"], task.instruction, shown, task.name)
    context.store.episodes.record(episode_of(state, receipt), row)
    runtime.stream_writer(events.Done(receipt))
    return {}


def _verdict(evidence: Any, state: State) -> Verdict:
    if evidence is None:
        n = len(state["task"].demonstrations)
        return Verdict(
            False, f"Too few demonstrations to tell: {n}, at least {MIN_DEMONSTRATIONS} needed.", 0
        )
    trained = state["trained"]
    losses = trained.losses if trained is not None else ()
    k = min(SMOOTHED_STEPS, len(losses))
    first, last = (sum(part) / max(k, 1) for part in (losses[:k], losses[-k:]))
    if (
        state.get("start") is not None
    ):  # low from the first step on: what it must not rise above is the base model's
        first = max(first, -sum(evidence.logprob_before) / len(evidence.logprob_before))
    summary = TrainingSummary(len(losses), first, last)
    pairs = CrossFit(
        evidence.correct_before, evidence.correct_after, evidence.logprob_before, evidence.logprob_after
    )
    decisions = state.get("decisions", [])
    weighed = bool(decisions) and decisions[-1].weighed and state.get("start") is None
    return judge_evidence(pairs, summary, weighed=weighed)
