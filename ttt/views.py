"""Several views of a task answered together: how far they agree, and what they vote for.

Views whose answers end alike share their passes: their prompts lie side by side in one tree, so that a
decoding step serves all of them. Knows nothing of which arm answers or why.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ttt.augment import DEFAULT, View, check_names, identity, space
from ttt.content import content_kind
from ttt.engine import Bench, Engine, Priority
from ttt.errors import ContextOverflow
from ttt.icl import BATCH, Answer, ICLResult, Prompt, run_prompts, write_prompt
from ttt.task import Query, Task
from ttt.transforms import Symmetry
from ttt.vote import Agreement, Vote, agreement, hierarchical, plurality

SHARED_TOKENS = 4096
"""Prompt tokens of one tree at most, unless one view alone has more: every token's mask spans all of them."""
SAMPLE = 8
"""Queries that an average over queries is taken of."""
DRAWS = 20
"""Tries for each further view that is not there yet; a short task has few."""


@dataclass(frozen=True, slots=True)
class ViewAnswers:
    """What one view said."""

    view: View
    answers: tuple[Answer | None, ...]
    """Turned back to the original task; None where there is no answer or it can't be turned back."""
    not_shown: int
    """Queries that this view has no form for (cells that are none, say), so that they were not asked."""
    not_inverted: int
    """Predictions that could not be turned back, such as rows of unequal length under a transposition."""
    read: int
    """Prompt tokens: the instruction, the demonstrations shown, once, and all queries."""
    written: int
    """Tokens of all answers."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Agreement of some views on some queries."""

    queries: tuple[int, ...]
    """Indices of the sampled queries."""
    views: tuple[str, ...]
    found: tuple[Agreement, ...]


@dataclass(frozen=True, slots=True)
class Voted:
    """Answers that several views voted for."""

    answers: tuple[Answer, ...]
    """Of each winner, the likeliest answer that said so."""
    views: tuple[str, ...]
    """All that voted, the plain one first."""
    rule: str
    """`hierarchical` or `plurality`."""
    not_shown: int
    not_inverted: int
    read: int
    written: int
    """As in `ViewAnswers`, over all views."""
    changed: int
    """Queries whose answer is not the plain view's."""
    left_out: tuple[str, ...]
    """Why there are fewer views than asked for, a sentence each."""


async def answer_views(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    views: Sequence[View],
    *,
    adapter: str | None = None,
    in_context: bool = True,
    priority: Priority = Priority.ANSWER,
    should_stop: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
) -> list[ViewAnswers]:
    """Answer all queries under each view; `max_tokens` as in `icl.answer`.

    Raises:
        ContextOverflow: a query does not fit under a view.
        Cancelled: `should_stop` said so.
    """
    shown = [[view.query(q) for q in queries] for view in views]
    prompts = [
        write_prompt(
            engine,
            view.task(task),
            [q for q in asked if q is not None],
            in_context=in_context,
            max_tokens=max_tokens,
        )
        for view, asked in zip(views, shown, strict=True)
    ]
    said: dict[int, tuple[Answer, ...]] = {}
    for together in _groups(prompts):
        found, _ = await run_prompts(engine, [prompts[i] for i in together], adapter, priority, should_stop)
        said.update(zip(together, found, strict=True))
    results = []
    for i, (view, asked) in enumerate(zip(views, shown, strict=True)):
        given = iter(said.get(i, ()))
        turned: list[Answer | None] = []
        for query, query_shown in zip(queries, asked, strict=True):
            answer = None if query_shown is None else next(given)
            text = None if answer is None else view.invert(answer.text, query.input)
            turned.append(None if answer is None or text is None else replace(answer, text=text))
        not_shown = sum(q is None for q in asked)
        read = len(prompts[i].prefix) + sum(map(len, prompts[i].questions)) if i in said else 0
        written = sum(a.n_tokens for a in said.get(i, ()))
        results.append(
            ViewAnswers(view, tuple(turned), not_shown, turned.count(None) - not_shown, read, written)
        )
    return results


def _groups(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of prompts that run in one tree: those that end alike and whose questions fit in one batch."""
    alike: defaultdict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        if prompt.questions:
            alike[prompt.fmt.stop, prompt.max_new_tokens].append(i)
    for members in alike.values():
        group: list[int] = []
        rows = tokens = 0
        for i in members:
            n, length = len(prompts[i].questions), len(prompts[i].prefix)
            if group and (rows + n > BATCH or tokens + length > SHARED_TOKENS):
                yield group
                group, rows, tokens = [], 0, 0
            group.append(i)
            rows, tokens = rows + n, tokens + length
        yield group


def draw_views(task: Task, names: Iterable[str], n: int, rng: random.Random) -> list[View]:
    """Up to `n` different views besides the plain one; fewer where the task has no more.

    Raises:
        TaskError: an unknown augmentation.
    """
    views = space(task, names)
    drawn = {identity(len(task.demonstrations)): None}
    for _ in range(n * DRAWS):
        if len(drawn) > n:
            break
        drawn[views.draw(rng)] = None
    return list(drawn)[1:]


async def vote_answers(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    plain: ICLResult,
    votes: int,
    *,
    augmentations: Iterable[str] = DEFAULT,
    seed: int = 0,
    adapter: str | None = None,
    in_context: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
) -> Voted:
    """Let `votes` views answer, of which `plain` is the first, and count: hierarchically for cells, else the
    plurality weighted by probability. `max_tokens` as in `icl.answer`.

    Raises:
        TaskError: an unknown augmentation.
        Cancelled: `should_stop` said so.
    """
    found, left_out = await gather_views(
        engine,
        task,
        queries,
        plain,
        votes,
        augmentations=augmentations,
        seed=seed,
        adapter=adapter,
        in_context=in_context,
        should_stop=should_stop,
        max_tokens=max_tokens,
    )
    of_cells = content_kind(task) in ("grid", "sequence")
    rule: Callable[[Iterable[Vote]], str] = hierarchical if of_cells else plurality
    answers = tuple(_elected(rule, found, i) for i in range(len(queries)))
    return Voted(
        answers,
        tuple(f.view.name for f in found),
        "hierarchical" if of_cells else "plurality",
        sum(f.not_shown for f in found),
        sum(f.not_inverted for f in found),
        sum(f.read for f in found),
        sum(f.written for f in found),
        sum(a.text != b.text for a, b in zip(answers, plain.answers, strict=True)),
        tuple(left_out),
    )


async def gather_views(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    plain: ICLResult | None,
    votes: int,
    *,
    augmentations: Iterable[str] = DEFAULT,
    seed: int = 0,
    adapter: str | None = None,
    in_context: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
) -> tuple[list[ViewAnswers], list[str]]:
    """What up to `votes` views answer, the plain one first, and why there are fewer; arguments and errors as in
    `vote_answers`. Where the plain one is None it answers now, in the same passes as the others.

    Raises:
        ContextOverflow: the plain view does not fit.
    """
    # Where no demonstration is shown, another order of them is no other view.
    names = [name for name in check_names(augmentations) if in_context or name != "order"]
    views, left_out = [], []
    if adapter is not None and await engine.run(partial(_is_prefix, name=adapter)):
        names = []  # the prefix shows the demonstrations as they are
    drawn = draw_views(task, names, votes - 1, random.Random(seed))
    if len(drawn) < votes - 1:
        left_out.append(f"{votes} views were asked for; this task has {len(drawn) + 1} different ones.")
    for view in drawn:
        try:
            asked = [q for q in map(view.query, queries) if q is not None]
            write_prompt(engine, view.task(task), asked, in_context=in_context, max_tokens=max_tokens)
            views.append(view)
        except ContextOverflow as error:
            left_out.append(f"The view {view.name} was left out: {error}")
    as_it_is = identity(len(task.demonstrations))
    found = await answer_views(
        engine,
        task,
        queries,
        views if plain is not None else [as_it_is, *views],
        adapter=adapter,
        in_context=in_context,
        should_stop=should_stop,
        max_tokens=max_tokens,
    )
    if plain is None:
        return found, left_out
    read = plain.head_tokens + plain.prompt_tokens + plain.question_tokens
    written = sum(a.n_tokens for a in plain.answers)
    first = ViewAnswers(as_it_is, plain.answers, 0, 0, read, written)
    return [first, *found], left_out


def _is_prefix(bench: Bench, name: str) -> bool:
    return bench.slots.prefix(name) is not None


def votes_on(found: Sequence[ViewAnswers], query: int) -> list[Vote]:
    """The votes that views cast on one query; predictions that could not be turned back cast none."""
    given = [(f.view, f.answers[query]) for f in found]
    return [Vote(a.text, a.logprob, a.n_tokens, view.transformation) for view, a in given if a is not None]


def _elected(rule: Callable[[Iterable[Vote]], str], found: Sequence[ViewAnswers], query: int) -> Answer:
    winner = rule(votes_on(found, query))
    said = [answer for f in found if (answer := f.answers[query]) is not None]
    return max((a for a in said if a.text == winner), key=lambda a: a.logprob)


def spread(n: int, k: int) -> tuple[int, ...]:
    """At most `k` of the numbers 0 to `n` − 1, evenly spread, first and last among them."""
    k = min(k, n)
    return tuple(dict.fromkeys(round(i * (n - 1) / max(k - 1, 1)) for i in range(k)))


async def consistency(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    plain: ICLResult,
    *,
    n_views: int = 2,
    n_queries: int = SAMPLE,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Consistency:
    """How far further views (other orders; for cells other symbols, every second one mirrored) agree with the
    plain one.

    At most `n_queries` queries, evenly spread, are looked at: the signal is an average.
    """
    sample = spread(len(queries), n_queries)
    rng, here = random.Random(seed), space(task)
    views = []
    for i in range(n_views):
        view = here.draw(rng)
        if i % 2 == 1 and here.kind in ("grid", "sequence"):
            view = replace(view, transforms=(*view.transforms, Symmetry("mirror")))
        views.append(view)
    found = await answer_views(
        engine, task, [queries[i] for i in sample], views, priority=Priority.SIGNALS, should_stop=should_stop
    )
    texts = [
        [plain.answers[i].text, *(a.text if (a := f.answers[row]) is not None else None for f in found)]
        for row, i in enumerate(sample)
    ]
    return Consistency(sample, tuple(v.name for v in views), tuple(map(agreement, texts)))
