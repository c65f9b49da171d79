"""The one mapper between the state, receipts and stored episodes."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from policies.outcomes import location_as_json
from policies.types import SIGNALS_VERSION, Decision
from router.receipt import Answered, Receipt
from router.state import State
from store import EpisodeRow
from ttt.icl import ICLResult

if TYPE_CHECKING:
    from ttt.model import LoadedModel

CACHED_POLICY = "verified-hit"
"""Stands for the policy where an accepted adapter answers at once and nothing is decided."""


def answered(result: ICLResult | None) -> tuple[Answered, ...]:
    """Public form of answers."""
    return (
        tuple(Answered(a.text, a.logprob, a.finished, a.n_tokens) for a in result.answers)
        if result is not None
        else ()
    )


def _in_context(state: State) -> tuple[Answered | None, ...]:
    said = dict(zip(state["asked"], answered(state["icl"]), strict=True))
    return tuple(said.get(i) for i in range(len(state["request"].queries))) if said else ()


def plain_decision(decision: Decision) -> dict[str, Any]:
    return asdict(decision) | {"details": dict(decision.details)}


def receipt_of(state: State, loaded: LoadedModel) -> Receipt:
    """The account of what the graph has done."""
    request = state["request"]
    signals, answers = state.get("signals"), state["answers"]
    read = 0 if answers is None else answers.head_tokens + answers.prompt_tokens + answers.question_tokens
    return Receipt(
        episode_id=request.episode_id,
        fingerprint=state["fingerprint"],
        task_name=state["task"].name,
        base_model=loaded.name,
        base_revision=loaded.revision,
        arm=state["arm"],
        answers=answered(answers),
        icl_answers=_in_context(state),
        steps=tuple(state["steps"]),
        decisions=tuple(plain_decision(d) for d in state.get("decisions", [])),
        signals=signals.as_dict() if signals is not None else {},
        adapter=state["adapter"],
        fallback=state["fallback"],
        notes=tuple(state["notes"]),
        worth_s=request.worth_s,
        n_queries=len(request.queries),
        created_at=time.time(),
        prompt_tokens=read,
        location=location_as_json(state.get("location")),
    )


def episode_of(state: State, receipt: Receipt) -> EpisodeRow:
    """One row of the log; a hit that nothing decided has propensity 1."""
    decisions = state.get("decisions", [])
    last = decisions[-1] if decisions else None
    return EpisodeRow(
        episode_id=receipt.episode_id,
        fingerprint=receipt.fingerprint,
        base_model=receipt.base_revision,
        arm=receipt.arm,
        seconds=receipt.seconds,
        decision=plain_decision(last) if last is not None else {},
        signals=dict(receipt.signals) or None,
        signals_version=SIGNALS_VERSION,
        policy=last.policy if last is not None else CACHED_POLICY,
        propensity=last.propensity if last is not None else 1.0,
        receipt=receipt.as_dict(),
        created_at=receipt.created_at,
    )
