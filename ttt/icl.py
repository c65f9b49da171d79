"""In-context learning: answer queries from demonstrations in the prompt, with or without an adapter.

The demonstrations are run once; all queries share their cache. How demonstrations are predicted from one another is in
`judging`, what several views of a task say in `views`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, ContextOverflow
from ttt.prompts import PromptFormat, Segment, select
from ttt.task import Query, Task

BATCH = 32
"""Queries decoded together at most."""
BATCH_TOKENS = 1024
"""Question tokens of one batch at most, unless one question alone has more: what is packed together is masked
from one another, and masked attention is still paid for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One query's answer."""

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
    """Answers to the queries of a task that were asked."""

    answers: tuple[Answer, ...]
    prompt_tokens: int
    """Of the shared prefix."""
    n_shown: int
    """Demonstrations in the prompt; fewer than the task has where the context is too short."""
    question_tokens: int
    """Of these queries together."""
    prefill_s: float = field(compare=False)
    """Seconds of reading the prefix and the questions."""
    decode_s: float = field(compare=False)
    """Seconds of the decoding steps."""
    decode_steps: int
    """Each step serves a batch of queries."""
    head_tokens: int = 0
    """Of the instruction, before the shared prefix."""


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task and its queries as tokens: what is read before the first token of an answer."""

    fmt: PromptFormat
    prefix: tuple[int, ...]
    """Instruction and demonstrations."""
    n_shown: int
    questions: tuple[tuple[int, ...], ...]
    max_new_tokens: int


@dataclass(slots=True)
class Passes:
    """What answering took: seconds of reading, and of each decoding step."""

    reading: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def write_prompt(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    *,
    in_context: bool = True,
    max_tokens: int | None = None,
) -> Prompt:
    """The prompt of `queries` after the task's demonstrations, or after the instruction alone (answers are then
    still expected in the demonstrations' form); `max_tokens` as in `answer`.

    Raises:
        ContextOverflow: a query, or the shortest demonstration, does not fit.
    """
    fmt = PromptFormat(engine.loaded.tokenizer, task, queries, engine.loaded.as_turns)
    questions = tuple(map(fmt.asked, queries))
    budget = _answer_budget(engine, fmt, task, questions, max_tokens)
    segments = [fmt.segment(d) for d in task.demonstrations] if in_context else []
    shown = shown_order(segments, context_budget(engine, fmt, questions, budget))
    prefix = tuple(t for i in shown for t in segments[i].ids)
    return Prompt(fmt, (*fmt.head(), *prefix), len(shown), questions, budget)


async def answer(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    *,
    only: Sequence[int] | None = None,
    adapter: str | None = None,
    in_context: bool = True,
    priority: Priority = Priority.ANSWER,
    should_stop: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
    until: float = math.inf,
    emit: Callable[[int, str], None] | None = None,
) -> ICLResult:
    """Answer `queries` by greedy decoding after the task's demonstrations, or without them.

    Args:
        only: numbers of the queries to answer, after the very prompt that all of them have; all when None.
        max_tokens: of each answer, at most; the task's own budget is never exceeded where it has demonstrations.
        until: `time.monotonic()` after which decoding ends and the answers stay as they are, unfinished.
        emit: gets a query's number, among those that are answered, and what is sure of its answer so far, on the
            engine's thread.

    Raises:
        ContextOverflow: a query, or the shortest demonstration, does not fit.
        Cancelled: `should_stop` said so, or `until` came before there was any token of any answer.
    """
    prompt = write_prompt(engine, task, queries, in_context=in_context, max_tokens=max_tokens)
    if only is not None:
        prompt = replace(prompt, questions=tuple(prompt.questions[i] for i in only))
    (answers,), passes = await run_prompts(engine, [prompt], adapter, priority, should_stop, until, emit)
    n_head = len(prompt.fmt.head())
    return ICLResult(
        answers,
        len(prompt.prefix) - n_head,
        prompt.n_shown,
        sum(map(len, prompt.questions)),
        sum(passes.reading),
        sum(passes.steps),
        len(passes.steps),
        n_head,
    )


async def run_prompts(
    engine: Engine,
    prompts: Sequence[Prompt],
    adapter: str | None,
    priority: Priority,
    should_stop: Callable[[], bool],
    until: float = math.inf,
    emit: Callable[[int, str], None] | None = None,
) -> tuple[list[tuple[Answer, ...]], Passes]:
    """Decode the answers of several prompts in shared passes; the prompts stop at the same strings and have the
    same token budget.

    Args:
        until: as in `answer`.
        emit: as in `answer`, for one prompt alone.

    Raises:
        Cancelled: as in `answer`.
    """
    asked = [(p, question) for p, prompt in enumerate(prompts) for question in prompt.questions]
    by_length = sorted(range(len(asked)), key=lambda i: len(asked[i][1]))
    fmt, budget = prompts[0].fmt, prompts[0].max_new_tokens
    results: dict[int, Answer] = {}
    passes = Passes()

    def cut_off() -> bool:
        return should_stop() or time.monotonic() > until

    def start(bench: Bench) -> Prefixes | None:
        started = bench.clock()
        if time.monotonic() > until:
            return None
        with bench.wearing(adapter):
            begun = Prefixes(bench, fmt, [p.prefix for p in prompts], adapter, priority)
        taken = begun.tree.n_begun + max((len(q) for _, q in asked), default=0) + budget
        if begun.tree.n_begun and taken > engine.loaded.context_length:
            raise ContextOverflow(
                f"The trained prefix, the longest query and its answer take up to {taken} tokens, but the model's "
                f"context holds {engine.loaded.context_length}; shorten the query or answer by another arm."
            )
        passes.reading.append(bench.clock() - started)
        if priority == Priority.ANSWER:
            engine.expect_answer()
        return begun

    begun = await engine.run(start, priority)
    too_late = "The time was up before there was a word of an answer; give more time."
    if begun is None:
        raise Cancelled(too_late)

    def batch(bench: Bench, chosen: Sequence[int]) -> None:
        from ttt.generate import decode

        told = None if emit is None else _Sure(fmt, chosen, emit)
        rows = [(begun.nodes[asked[i][0]], asked[i][1]) for i in chosen]
        seconds: list[float] = []
        with bench.wearing(adapter):
            found = decode(begun.tree, rows, begun.stopper, budget, cut_off, seconds, told, bench.clock)
            begun.tree.rewind(begun.mark)
        passes.reading.extend(seconds[:1])
        passes.steps.extend(seconds[1:])
        for i, row in zip(chosen, found, strict=True):
            text = prompts[asked[i][0]].fmt.parse(row.text)
            results[i] = Answer(text, row.logprob, row.n_tokens, row.margin, row.finished)

    for chosen in batches(by_length, [len(question) for _, question in asked]):
        await engine.run(partial(batch, chosen=chosen), priority)
        cut_short = any(not results[i].finished and results[i].n_tokens < budget for i in chosen)
        if should_stop() and (cut_short or len(results) < len(asked)):
            raise Cancelled("Answering was cancelled before all queries were done; ask again.")
    if asked and not any(a.n_tokens for a in results.values()):
        raise Cancelled(too_late)
    in_order = iter(results[i] for i in range(len(asked)))
    return [tuple(islice(in_order, len(p.questions))) for p in prompts], passes


def batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of `order` in parts of at most `BATCH`, and of at most `BATCH_TOKENS` by their `lengths` unless one
    alone has more."""
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


class Prefixes:
    """Prefixes that have been run, side by side in one tree; lives on the owner thread. An adapter that is a trained
    prefix takes the place of each."""

    def __init__(
        self,
        bench: Bench,
        fmt: PromptFormat,
        prefixes: Sequence[Sequence[int]],
        adapter: str | None,
        priority: Priority = Priority.ANSWER,
    ) -> None:
        from ttt.generate import Stopper, grow
        from ttt.tree import TokenTree

        loaded = bench.loaded
        self.tree = TokenTree(bench.runner(adapter, priority))
        if self.tree.n_begun:  # a trained prefix stands for all of them
            self.nodes = [TokenTree.ROOT] * len(prefixes)
        else:
            self.nodes = [grow(self.tree, TokenTree.ROOT, tokens) for tokens in prefixes]
        self.mark = self.tree.mark()
        self.stopper = Stopper(loaded.tokenizer, fmt.stop, loaded.eos_ids)
