"""In-context learning: answer queries from demonstrations in the prompt, with or without an adapter.

The demonstrations are run once; all queries share their cache. Also the label-free and the
demonstration-only measurements that rest on it: consistency across views, and leave-one-out.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ttt.augment import View, identity, random_view, symbol_alphabet
from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, ContextOverflow
from ttt.prompts import PromptFormat, Segment, select
from ttt.task import Demonstration, Query, Task
from ttt.vote import Ballot, vote

BATCH = 32
"""Queries decoded together at most."""
BATCH_TOKENS = 1024
"""Question tokens of one batch at most, unless one question alone has more: what is packed together is masked
from one another, and masked attention is still paid for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One query's answer from one view."""

    text: str
    logprob: float
    """Of the whole answer and its terminator, nats."""
    n_tokens: int
    margin: float
    finished: bool

    @property
    def logprob_per_token(self) -> float:
        return self.logprob / max(self.n_tokens, 1)


@dataclass(frozen=True, slots=True)
class ICLResult:
    """Answers to all queries under one view."""

    answers: tuple[Answer, ...]
    prompt_tokens: int
    """Of the shared prefix."""
    n_shown: int
    """Demonstrations in the prompt; fewer than the task has where the context is too short."""
    question_tokens: int
    """Of all queries together."""
    prefill_s: float = field(compare=False)
    """Seconds of reading the prefix and the questions."""
    decode_s: float = field(compare=False)
    """Seconds of the decoding steps."""
    decode_steps: int
    """Each step serves a batch of queries."""
    head_tokens: int = 0
    """Of the instruction, before the shared prefix."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Votes of some views on some queries."""

    queries: tuple[int, ...]
    """Indices of the sampled queries."""
    views: tuple[str, ...]
    ballots: tuple[Ballot, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """Demonstrations predicted from contexts that have not seen them, in the task's order."""

    correct: tuple[bool, ...]
    logprob: tuple[float, ...]
    """Per token of each answer, nats."""


def _answer_budget(
    engine: Engine, fmt: PromptFormat, task: Task, questions: Sequence[Sequence[int]], max_tokens: int | None
) -> int:
    """Tokens that an answer may have. A plain question's answer may be as long as is asked for and fits."""
    own = fmt.max_new_tokens(task)
    if task.demonstrations or max_tokens is None:
        return own if max_tokens is None else min(own, max_tokens)
    free = engine.loaded.context_length - len(fmt.head()) - max(map(len, questions), default=0)
    return max(1, min(max_tokens, free))


def context_budget(
    engine: Engine, fmt: PromptFormat, questions: Sequence[Sequence[int]], answer_tokens: int
) -> int:
    """Tokens that demonstrations may take so that each question and its answer still fit.

    Raises:
        ContextOverflow: a query alone does not fit.
    """
    longest = max(map(len, questions), default=0)
    limit = engine.loaded.context_length
    free = limit - len(fmt.head()) - longest - answer_tokens
    if free < 0:
        raise ContextOverflow(
            f"The longest query takes {longest} tokens and its answer up to {answer_tokens}, but the model's "
            f"context holds {limit}; shorten the query or choose a model with a longer context."
        )
    return free


def shown_order(segments: Sequence[Segment], budget: int) -> tuple[int, ...]:
    """Which demonstrations a prompt shows: all in the given order or, where they do not fit, a fixed
    random choice of as many as fit, in the given order. The same for all queries, so the prefix is shared."""
    if sum(map(len, segments)) <= budget:
        return tuple(range(len(segments)))
    order = list(range(len(segments)))
    random.Random(0).shuffle(order)
    return tuple(sorted(select(segments, budget, order)))


async def answer(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    *,
    adapter: str | None = None,
    view: View | None = None,
    priority: Priority = Priority.ANSWER,
    should_stop: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
    until: float = math.inf,
    emit: Callable[[int, str], None] | None = None,
) -> ICLResult:
    """Answer `queries` by greedy decoding after the task's demonstrations.

    Args:
        max_tokens: of each answer, at most; the task's own budget is never exceeded where it has demonstrations.
        until: `time.monotonic()` after which decoding ends and the answers stay as they are, unfinished.
        emit: gets a query's number and what is sure of its answer so far, on the engine's thread; for the
            plain view.

    Raises:
        ContextOverflow: a query, or the shortest demonstration, does not fit.
        Cancelled: `should_stop` said so, or `until` came before there was any token of any answer.
    """
    fmt = PromptFormat(engine.loaded.tokenizer, task, queries)
    view = view or identity(len(task.demonstrations))
    segments = [fmt.segment(d) for d in view.demonstrations(task)]
    questions = [fmt.asked(replace(q, input=view.apply(q.input))) for q in queries]
    budget = _answer_budget(engine, fmt, task, questions, max_tokens)
    shown = shown_order(segments, context_budget(engine, fmt, questions, budget))
    prefix = [t for i in shown for t in segments[i].ids]
    by_length = sorted(range(len(queries)), key=lambda i: len(questions[i]))
    results: dict[int, Answer] = {}
    reading: list[float] = []
    steps: list[float] = []

    def cut_off() -> bool:
        return should_stop() or time.monotonic() > until

    def start(bench: Bench) -> _Prefix | None:
        started = time.perf_counter()
        if time.monotonic() > until:
            return None
        with bench.slots.active(adapter):
            begun = _Prefix(bench, fmt, [*fmt.head(), *prefix], adapter)
        reading.append(time.perf_counter() - started)
        return begun

    tree = await engine.run(start, priority)
    too_late = "The time was up before there was a word of an answer; give more time."
    if tree is None:
        raise Cancelled(too_late)

    def batch(bench: Bench, chosen: Sequence[int]) -> None:
        from ttt.generate import decode

        told = None if emit is None else _Sure(fmt, chosen, emit)
        asked = [questions[i] for i in chosen]
        seconds: list[float] = []
        with bench.slots.active(adapter):
            rows = decode(tree.tree, tree.node, asked, tree.stopper, budget, cut_off, seconds, told)
            tree.tree.rewind(tree.mark)
        reading.extend(seconds[:1])
        steps.extend(seconds[1:])
        for i, row in zip(chosen, rows, strict=True):
            text = view.invert(fmt.parse(row.text))
            results[i] = Answer(text, row.logprob, row.n_tokens, row.margin, row.finished)

    for chosen in _batches(by_length, [len(q) for q in questions]):
        await engine.run(partial(batch, chosen=chosen), priority)
        cut_short = any(not results[i].finished and results[i].n_tokens < budget for i in chosen)
        if should_stop() and (cut_short or len(results) < len(queries)):
            raise Cancelled("Answering was cancelled before all queries were done; ask again.")
    if queries and not any(a.n_tokens for a in results.values()):
        raise Cancelled(too_late)
    answers = tuple(results[i] for i in range(len(queries)))
    asked_tokens = sum(map(len, questions))
    return ICLResult(
        answers,
        len(prefix),
        len(shown),
        asked_tokens,
        sum(reading),
        sum(steps),
        len(steps),
        len(fmt.head()),
    )


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and (len(batch) == BATCH or tokens + lengths[i] > BATCH_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += lengths[i]
    if batch:
        yield batch


async def consistency(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    plain: ICLResult,
    *,
    n_views: int = 2,
    n_queries: int = 8,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Consistency:
    """How far further views (other orders; where valid other symbols, reversed) agree with the plain one.

    At most `n_queries` queries, evenly spread, are looked at: the signal is an average.
    """
    n = min(n_queries, len(queries))
    sample = tuple(round(i * (len(queries) - 1) / max(n - 1, 1)) for i in range(n))
    sample = tuple(dict.fromkeys(sample))
    rng = random.Random(seed)
    alphabet = symbol_alphabet(task)
    views = [random_view(task, rng, alphabet, reverse=bool(alphabet) and i % 2 == 1) for i in range(n_views)]
    texts = [[plain.answers[i].text] for i in sample]
    logprobs = [[plain.answers[i].logprob] for i in sample]
    for view in views:
        asked = [queries[i] for i in sample]
        result = await answer(
            engine, task, asked, view=view, priority=Priority.SIGNALS, should_stop=should_stop
        )
        for row, given in enumerate(result.answers):
            texts[row].append(given.text)
            logprobs[row].append(given.logprob)
    ballots = tuple(vote(t, p) for t, p in zip(texts, logprobs, strict=True))
    return Consistency(sample, tuple(v.name for v in views), ballots)


async def leave_one_out(engine: Engine, task: Task, *, priority: Priority = Priority.SIGNALS) -> Judged:
    """Predict each demonstration from all others, by forward passes alone.

    Contexts are built by halving: one half is put before the other's demonstrations, and so on, so that
    n demonstrations cost about n·log₂n segments instead of n². No context ever held the judged one.
    Where the demonstrations do not fit in the model's context together, a fixed random choice of them
    makes up the contexts.

    Raises:
        ContextOverflow: a demonstration does not fit at all.
    """
    fmt = PromptFormat(engine.loaded.tokenizer, task)
    segments = [fmt.segment(d) for d in task.demonstrations]
    if not segments:
        return Judged((), ())
    budget = engine.loaded.context_length - len(fmt.head()) - max(map(len, segments))
    usable = set(shown_order(segments, budget))

    def work(bench: Bench) -> Judged:
        from ttt.generate import Known, score
        from ttt.tree import Append

        with bench.slots.active(None):
            root = _Prefix(bench, fmt, fmt.head(), None)
            leaves: dict[int, int] = {}
            level = [(root.node, list(range(len(segments))))]
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
                    root.tree.append(grown)
                level = below
            order = sorted(leaves)
            known = [(leaves[i], Known(segments[i].question, segments[i].answer, fmt.ending)) for i in order]
            scores = score(root.tree, known, root.stopper)
        return Judged(tuple(s.greedy for s in scores), tuple(s.logprob_per_token for s in scores))

    return await engine.run(work, priority)


async def judge(
    engine: Engine,
    task: Task,
    held_out: Sequence[Demonstration],
    *,
    adapter: str | None,
    priority: Priority = Priority.SIGNALS,
) -> Judged:
    """Score `held_out` demonstrations after the (other) demonstrations of `task`, by forward passes."""
    fmt = PromptFormat(engine.loaded.tokenizer, Task((*task.demonstrations, *held_out), task.instruction))
    segments = [fmt.segment(d) for d in task.demonstrations]
    judged = [fmt.segment(d) for d in held_out]
    budget = engine.loaded.context_length - len(fmt.head()) - max(map(len, judged))
    prefix = [t for i in shown_order(segments, budget) for t in segments[i].ids]

    def work(bench: Bench) -> Judged:
        from ttt.generate import Known, score

        with bench.slots.active(adapter):
            root = _Prefix(bench, fmt, [*fmt.head(), *prefix], adapter)
            known = [(root.node, Known(s.question, s.answer, fmt.ending)) for s in judged]
            scores = score(root.tree, known, root.stopper)
        return Judged(tuple(s.greedy for s in scores), tuple(s.logprob_per_token for s in scores))

    return await engine.run(work, priority)


class _Sure:
    """Hands on the part of each growing answer that what follows can no longer change."""

    def __init__(self, fmt: PromptFormat, chosen: Sequence[int], emit: Callable[[int, str], None]) -> None:
        self._fmt, self._chosen, self._emit = fmt, chosen, emit
        self._said: dict[int, str] = {}

    def __call__(self, row: int, text: str) -> None:
        held = [n for stop in self._fmt.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        text = text[: len(text) - max(held, default=0)].rstrip("\ufffd")  # half a character is decoded so
        text = self._fmt.parse(text)
        said = self._said.get(row, "")
        if text.startswith(said) and text != said:
            self._said[row] = text
            self._emit(self._chosen[row], text)


class _Prefix:
    """A shared prefix that has been run; lives on the owner thread."""

    def __init__(self, bench: Bench, fmt: PromptFormat, tokens: Sequence[int], adapter: str | None) -> None:
        from ttt.generate import Stopper, grow
        from ttt.tree import TokenTree

        loaded = bench.loaded
        self.tree = TokenTree(bench.runner(adapter))
        tokens = tokens or ()
        self.node = grow(self.tree, TokenTree.ROOT, tokens)
        self.mark = self.tree.mark()
        self.stopper = Stopper(loaded.tokenizer, fmt.stop, loaded.eos_ids)
