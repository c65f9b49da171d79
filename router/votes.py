"""Further views of the task vote on the answers of whichever arm answers.

Votes are paid for by every arm alike, so the policy's choice between arms does not hang on them. They are the
first thing that a deadline leaves out: the answers are there already.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from router.context import Context
from router.receipt import Step
from router.state import AdapterRef, Request, State
from ttt.augment import DEFAULT, space
from ttt.errors import Cancelled
from ttt.icl import ICLResult
from ttt.recipes import as_written
from ttt.views import vote_answers


async def vote(
    plain: ICLResult,
    adapter: str | None,
    in_context: bool,
    state: State,
    context: Context,
    worn: AdapterRef | None = None,
) -> dict[str, Any]:
    """What voting adds to the state: `answers`, the step with its seconds, and notes on what did not vote.

    Args:
        worn: what the store says of the adapter. The task is written as its training wrote it, and where the caller
            names no augmentations, none that it has judged and left out changes a view.

    Without votes wanted, the plain answers; they also stand, and the notes say so, when voting is cancelled or
    there is no time for it.
    """
    request, started = state["request"], time.perf_counter()
    task = as_written(state["task"], "plain" if worn is None else worn.rows)
    if request.votes == 1:
        return {"answers": plain}
    # Every view is read; at best all are decoded together, in as many steps as the plain one.
    least_s = (request.votes - 1) * plain.prefill_s + plain.decode_s
    if context.remaining_s < least_s:
        return _unchanged(
            plain, Step("vote", 0.0, {"skipped": True}), "was left out: the deadline is too near"
        )

    names, notes = _names(request, () if worn is None else worn.left_out), []
    here = space(task, names)
    if request.augmentations is not None and (idle := [name for name in names if name not in here.names]):
        notes.append(
            f"No view changes by {', '.join(idle)}, which does not apply to this task ({here.kind})."
        )

    def late() -> bool:
        return context.remaining_s < 0

    try:
        voted = await vote_answers(
            context.engine,
            task,
            request.queries,
            plain,
            request.votes,
            augmentations=names,
            seed=request.seed,
            adapter=adapter,
            in_context=in_context,
            should_stop=lambda: context.should_stop() or context.should_hurry() or late(),
            max_tokens=request.max_tokens,
        )
    except Cancelled:
        step = Step("vote", time.perf_counter() - started, {"cancelled": True})
        return _unchanged(plain, step, "was ended by the deadline" if late() else "was cancelled")
    detail = {
        "rule": voted.rule,
        "content": here.kind,
        "augmentations": list(here.names),
        "views": list(voted.views),
        "not_inverted": voted.not_inverted,
        "not_shown": voted.not_shown,
        "changed_answers": voted.changed,
        "prompt_tokens": voted.read,
        "answer_tokens": voted.written,
    }
    notes += voted.left_out
    if voted.not_inverted:
        notes.append(
            f"{voted.not_inverted} prediction(s) under other views could not be turned back and did not vote."
        )
    if voted.not_shown:
        notes.append(
            f"{voted.not_shown} query/queries had no form under another view and were not asked there."
        )
    step = Step("vote", time.perf_counter() - started, detail)
    return {"answers": replace(plain, answers=voted.answers), "steps": [step], "notes": notes}


def _names(request: Request, left_out: Collection[str]) -> tuple[str, ...]:
    if request.augmentations is not None:
        return request.augmentations
    return tuple(name for name in DEFAULT if name not in left_out)


def _unchanged(plain: ICLResult, step: Step, why: str) -> dict[str, Any]:
    note = f"Voting {why}; the answers are those of the task as it is."
    return {"answers": plain, "steps": [step], "notes": [note]}
