"""Another task's adapter on this task: is it of use as it is, and how much training is left where it is a start?

An adapter that has never seen these demonstrations can be judged on all of them without training anything: each
demonstration after the half that it is not in, as in `crossfit`, beside the base model in the same context. Several
adapters can be merged into one (PEFT's own merging). A training may begin at either. Knows nothing of where adapters
are kept, or of which tasks are alike.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Literal

from ttt.crossfit import CrossFitResult, Fold
from ttt.engine import Bench, Engine, Priority
from ttt.icl import Prefixes, shown_order
from ttt.judging import Judged
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe
from ttt.train import Beginning

if TYPE_CHECKING:
    from ttt.generate import Score

SOLVED = ((0.5, 0.6), (0.75, 0.4))
"""Of an adapter that answers as it is: share of the base model's held-out negative log-probability that it removes, and share of
the unseen demonstrations that it has right, both at least; either pair will do. Long answers are seldom right as a whole in the
context of half of the demonstrations, even where little is left to learn."""
LEAST_UNSEEN = 4
"""Demonstrations that an adapter must not have seen, to be judged on them."""
LITTLE = 0.2
"""Share of the negative log-probability below which beginning at it saves nothing."""
STEPS_LEFT = 0.5
"""Share of a recipe's steps that are left where a training begins at an adapter of use."""
WARMUP = 0.5
"""Share of these with a rising rate, at least: AdamW begins without moments, and its first steps, as large as the rate,
undo what the adapter has learned (docs/log.md)."""

Use = Literal["answers", "start", "none"]
"""What an adapter is good for: to answer as it is, to begin a training at, or nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    """An adapter on demonstrations that it has not seen, beside the base model."""

    evidence: CrossFitResult
    """Of those demonstrations alone, in the task's order. No tokens were trained."""

    @property
    def removed(self) -> float:
        """Share of the base model's negative log-probability that the adapter removes: 1 is all, below 0 is harm."""
        before, after = (-mean(p) for p in (self.evidence.logprob_before, self.evidence.logprob_after))
        return (before - after) / max(before, 1e-6)

    @property
    def use(self) -> Use:
        e = self.evidence
        if self.removed < LITTLE or sum(e.correct_after) < sum(e.correct_before):
            return "none"
        right = mean(map(float, e.correct_after))
        solved = any(self.removed >= removed and right >= least for removed, least in SOLVED)
        return "answers" if solved else "start"


async def judge_halves(engine: Engine, parts: tuple[Fold, ...], adapter: str | None) -> Judged:
    """Every demonstration after the half that it is not in, as `crossfit.judge_folds` under one adapter: in one go,
    so that it is merged into a copy of the base once, and not into the copy that decodes."""
    whole = replace(parts[0].task, demonstrations=(*parts[0].task.demonstrations, *parts[0].held_out))
    fmt = PromptFormat(engine.loaded.tokenizer, whole, as_turns=engine.loaded.as_turns)
    head = fmt.head()
    prefixes: list[list[int]] = []
    asked = [[fmt.segment(d) for d in part.held_out] for part in parts]
    for part, judged in zip(parts, asked, strict=True):
        segments = [fmt.segment(d) for d in part.task.demonstrations]
        room = engine.loaded.context_length - len(head) - max(map(len, judged))
        prefixes.append([*head, *(t for i in shown_order(segments, room) for t in segments[i].ids)])

    def work(bench: Bench) -> dict[int, Score]:
        from ttt.generate import Known, score

        with bench.wearing(adapter):
            begun = Prefixes(replace(bench, decoding=None), fmt, prefixes, adapter, Priority.SIGNALS)
            known = [
                (node, Known(s.question, s.answer, fmt.ending, s.hints))
                for node, judged in zip(begun.nodes, asked, strict=True)
                for s in judged
            ]
            found = score(begun.tree, known, begun.stopper)
        return dict(zip((at for part in parts for at in part.positions), found, strict=True))

    scores = await engine.run(work, Priority.SIGNALS)
    in_order = [scores[i] for i in range(len(scores))]
    return Judged(tuple(s.greedy for s in in_order), tuple(s.logprob_per_token for s in in_order))


async def check(
    engine: Engine, parts: tuple[Fold, ...], base: Judged, adapter: str, seen: Collection[int] = ()
) -> Check | None:
    """An attached adapter on the demonstrations of both halves, or None where too few are new to it.

    Args:
        base: the base model on the same halves (`judge_halves`).
        seen: positions of demonstrations that the adapter was trained on; they do not count.
    """
    new = [i for i in range(len(base.logprob)) if i not in seen]
    if len(new) < LEAST_UNSEEN:
        return None
    found = await judge_halves(engine, parts, adapter)
    after = tuple(p if math.isfinite(p) else -math.inf for p in found.logprob)
    return Check(
        CrossFitResult(
            tuple(base.correct[i] for i in new),
            tuple(found.correct[i] for i in new),
            tuple(base.logprob[i] for i in new),
            tuple(after[i] for i in new),
            0,
            0.0,
        )
    )


def shortened(recipe: Recipe) -> Recipe:
    """The recipe of a training that begins at an adapter of use: fewer steps, none on halves, a schedule of their own."""
    steps = math.ceil(STEPS_LEFT * recipe.steps)
    return replace(recipe, steps=steps, warmup=max(recipe.warmup, WARMUP), search=0.0)


@asynccontextmanager
async def attached(engine: Engine, folders: Sequence[Path]) -> AsyncIterator[str]:
    """A saved adapter, or the mean of several, attached as long as the block lasts, under the name that is yielded.

    Raises:
        AdapterError: a folder is no adapter for this model, or they are not of one shape.
    """
    async with AsyncExitStack() as stack:
        names = [await stack.enter_async_context(engine.adapter(folder)) for folder in folders]
        if len(names) == 1:
            yield names[0]
            return
        merged = f"merged-{uuid.uuid4().hex[:12]}"
        await engine.run(lambda bench: bench.slots.merge(merged, names), Priority.SIGNALS)
        try:
            yield merged
        finally:
            await engine.clean_up(lambda bench: bench.slots.drop(merged))


async def begin_at(engine: Engine, adapter: str, recipe: Recipe) -> Beginning:
    """Where a training by `recipe` begins that goes on from an attached adapter.

    Raises:
        AdapterError: it is not of the recipe's rank or layers.
    """
    from ttt.gradients import weights_like

    def work(bench: Bench) -> Beginning:
        return Beginning(weights_like(bench, adapter, recipe), {}, ())

    return await engine.run(work, Priority.SIGNALS)
