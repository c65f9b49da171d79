"""Demonstrations predicted from one another, by forward passes over answers that are known: no decoding, no training.

What is judged was never in its own context. Leave-one-out judges each from all others; `judge` some after some others, with
or without an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, ContextOverflow
from ttt.icl import Prefixes, shown_order
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Judged:
    """Demonstrations predicted from contexts that have not seen them, in the task's order."""

    correct: tuple[bool, ...]
    logprob: tuple[float, ...]
    """Per token of each answer, nats."""


async def leave_one_out(
    engine: Engine,
    task: Task,
    *,
    priority: Priority = Priority.SIGNALS,
    should_stop: Callable[[], bool] = lambda: False,
) -> Judged:
    """Predict each demonstration from all others, by forward passes alone: one slice of work each.

    Contexts are built by halving: one half is put before the other's demonstrations, and so on, so that
    n demonstrations cost about n·log₂n segments instead of n². No context ever held the judged one.
    Where the demonstrations do not fit in the model's context together, a fixed random choice of them
    makes up the contexts.

    Args:
        should_stop: asked before each forward pass.

    Raises:
        ContextOverflow: a demonstration does not fit at all.
        Cancelled: `should_stop` said so.
    """
    from ttt.generate import Known, score
    from ttt.tree import Append

    fmt = PromptFormat(engine.loaded.tokenizer, task, as_turns=engine.loaded.as_turns)
    segments = [fmt.segment(d) for d in task.demonstrations]
    if not segments:
        return Judged((), ())
    budget = engine.loaded.context_length - len(fmt.head()) - max(map(len, segments))
    usable = set(shown_order(segments, budget))

    async def run(slice_: Callable[[Bench], T]) -> T:
        if should_stop():
            raise Cancelled("Leave-one-out was cancelled; ask again.")

        def plain(bench: Bench) -> T:
            with bench.wearing(None):
                return slice_(bench)

        return await engine.run(plain, priority)

    root = await run(lambda bench: Prefixes(bench, fmt, [fmt.head()], None, priority))
    leaves: dict[int, int] = {}
    level = [(root.nodes[0], list(range(len(segments))))]
    while level:
        below: list[tuple[int, list[int]]] = []
        grown: list[Append] = []
        for node, members in level:
            if len(members) == 1:
                leaves[members[0]] = node
                continue
            left, right = members[: len(members) // 2], members[len(members) // 2 :]
            for context, judged in ((right, left), (left, right)):
                tokens = [t for i in context if i in usable for t in segments[i].ids]
                child = root.tree.child(node) if tokens else node
                if tokens:
                    grown.append(Append(child, tokens))
                below.append((child, judged))
        if grown:
            await run(lambda _, grown=grown: root.tree.append(grown))  # type: ignore[misc]
        level = below
    order = sorted(leaves)
    known = [
        (leaves[i], Known(segments[i].question, segments[i].answer, fmt.ending, segments[i].hints))
        for i in order
    ]
    scores = await run(lambda _: score(root.tree, known, root.stopper))
    return Judged(tuple(s.greedy for s in scores), tuple(s.logprob_per_token for s in scores))


async def zero_shot(engine: Engine, task: Task) -> Judged:
    """Score each demonstration with no other one shown, in the format of the task's prompts.

    Raises:
        ContextOverflow: a demonstration does not fit.
    """
    alone = replace(task, demonstrations=())
    return await judge(engine, alone, task.demonstrations, adapter=None, written=task)


async def judge(
    engine: Engine,
    task: Task,
    held_out: Sequence[Demonstration],
    *,
    adapter: str | None,
    priority: Priority = Priority.SIGNALS,
    written: Task | None = None,
) -> Judged:
    """Score `held_out` demonstrations after the (other) demonstrations of `task`, by forward passes.

    Args:
        written: the task whose prompts are written alike; both sorts of demonstrations together if left out.

    Raises:
        ContextOverflow: one of them does not fit.
    """
    whole = written or replace(task, demonstrations=(*task.demonstrations, *held_out))
    fmt = PromptFormat(engine.loaded.tokenizer, whole, as_turns=engine.loaded.as_turns)
    segments = [fmt.segment(d) for d in task.demonstrations]
    judged = [fmt.segment(d) for d in held_out]
    limit, longest = engine.loaded.context_length, max(map(len, judged))
    budget = limit - len(fmt.head()) - longest
    if budget < 0:
        raise ContextOverflow(
            f"The longest demonstration takes {longest} tokens beside the instruction's {len(fmt.head())}, but the model's "
            f"context holds {limit}; shorten it or choose a model with a longer context."
        )
    prefix = [t for i in shown_order(segments, budget) for t in segments[i].ids]

    def work(bench: Bench) -> Judged:
        from ttt.generate import Known, score

        with bench.wearing(adapter):
            root = Prefixes(bench, fmt, [[*fmt.head(), *prefix]], adapter, priority)
            known = [(root.nodes[0], Known(s.question, s.answer, fmt.ending, s.hints)) for s in judged]
            scores = score(root.tree, known, root.stopper)
        return Judged(tuple(s.greedy for s in scores), tuple(s.logprob_per_token for s in scores))

    return await engine.run(work, priority)
