"""Training sequences from demonstrations.

By default each sequence is a prompt of demonstrations in a random order (and under a random view), and every
answer in it is a label, predicted from the pairs before it: leave-one-out by construction, the published
recipe's "loss on all outputs". A recipe may instead ask for explicit leave-one-out tasks, for another loss,
or for questions without demonstrations before them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ttt.augment import AUGMENTATIONS, Space, space
from ttt.content import content_kind
from ttt.prompts import PromptFormat, Segment, select
from ttt.recipes import Loss, Recipe
from ttt.task import Task


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids and which of them are labels (`labels[i]` says whether `ids[i]` is to be predicted)."""

    ids: tuple[int, ...]
    labels: tuple[bool, ...]
    hidden: tuple[int, int] = (0, 0)
    """First token, and the one after the last, of the trained prefix that this sequence does not see."""


def sequence(head: tuple[int, ...], segments: list[Segment], loss: Loss = "all-outputs") -> Sequence:
    """Concatenate. Labels are each answer and the first token of its terminator; only those of the last
    segment for `last-output`, and all tokens after the head for `all-tokens`."""
    ids: list[int] = list(head)
    labels = [False] * len(head)
    for number, s in enumerate(segments, start=1):
        ids += s.ids
        if loss == "all-tokens":
            labels += [True] * len(s)
            continue
        wanted = loss == "all-outputs" or number == len(segments)
        labels += [False] * len(s.question) + [wanted] * (len(s.answer) + 1)
        labels += [False] * (len(s.terminator) - 1)
    if not head:
        labels[0] = False  # nothing predicts the first token
    return Sequence(tuple(ids), tuple(labels))


def sequences(
    task: Task, fmt: PromptFormat, recipe: Recipe, seed: int, written: Task | None = None
) -> Iterator[Sequence]:
    """An endless stream, the same for the same task, recipe and seed.

    Args:
        written: of which `task` is a part: only what applies to the whole is applied to the part.
    """
    rng = random.Random(seed)
    kind = content_kind(written or task)
    views = space(task, [name for name in recipe.augmentations if kind in AUGMENTATIONS[name]])
    if recipe.data == "sampled" or recipe.form == "direct" or len(task.demonstrations) < 2:
        return _sampled(task, fmt, recipe, views, rng)
    return _left_out(task, fmt, recipe, views, rng)


@dataclass(frozen=True, slots=True)
class Shown:
    """The prompt whose keys and values a prefix is, and where in it each demonstration stands."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """By demonstration: first token and the one after the last; (0, 0) where it did not fit."""


def shown_prefix(fmt: PromptFormat, segments: list[Segment], chosen: tuple[int, ...]) -> Shown:
    """Instruction and the `chosen` demonstrations, as a prompt shows them."""
    ids = list(fmt.head())
    spans = [(0, 0)] * len(segments)
    for i in chosen:
        spans[i] = (len(ids), len(ids) + len(segments[i]))
        ids += segments[i].ids
    return Shown(tuple(ids), tuple(spans))


def after_prefix(segments: list[Segment], shown: Shown, recipe: Recipe, seed: int) -> Iterator[Sequence]:
    """An endless stream of demonstrations to predict, in rounds of new orders; each hides itself in the prefix."""
    rng = random.Random(seed)
    while True:
        for i in rng.sample(range(len(segments)), len(segments)):
            yield replace(sequence((), [segments[i]], recipe.loss), hidden=shown.spans[i])


def _sampled(
    task: Task, fmt: PromptFormat, recipe: Recipe, views: Space, rng: random.Random
) -> Iterator[Sequence]:
    """Some demonstrations at a time.

    Those that do not fit in one sequence are left for the next: over a few sequences all are used. One
    that alone is longer than `recipe.sequence_tokens` is a sequence of its own.
    """
    head = fmt.head()
    budget = recipe.sequence_tokens - len(head)
    shots = 1 if recipe.form == "direct" else recipe.shots
    left_out: list[int] = []
    while True:
        view = views.draw(rng)
        shown = dict(zip(view.order, view.task(task).demonstrations, strict=True))
        segments = [fmt.segment(shown[i]) for i in range(len(shown))]
        order = left_out + [i for i in view.order if i not in left_out]
        chosen = list(select(segments, max(budget, len(segments[order[0]])), order))[:shots]
        left_out = [i for i in left_out if i not in chosen] or [i for i in order if i not in chosen]
        if "order" in views.names:
            rng.shuffle(chosen)
        else:
            chosen.sort()
        yield sequence(head, [segments[i] for i in chosen], recipe.loss)


def _left_out(
    task: Task, fmt: PromptFormat, recipe: Recipe, views: Space, rng: random.Random
) -> Iterator[Sequence]:
    """A fixed set of leave-one-out tasks, passed over again and again in a new order each time.

    The set ends at the recipe's `data_tokens`, and at as many sequences as the training can ever see.
    """
    made: list[Sequence] = []
    tokens = 0
    for last, without in _tasks(len(task.demonstrations), recipe, rng):
        made.append(_one_left_out(task, fmt, recipe, views, rng, last, without))
        tokens += len(made[-1].ids)
        if len(made) == recipe.steps * recipe.batch or tokens >= recipe.data_tokens > 0:
            break
    while True:
        rng.shuffle(made)
        yield from made


def _tasks(n: int, recipe: Recipe, rng: random.Random) -> Iterator[tuple[int, int | None]]:
    """Which demonstration comes last, and which is not shown at all: leave-one-out tasks in rounds, each round
    in a new order, so that wherever this is cut off all come about as often; then leave-two-out."""
    for _ in range(recipe.copies):
        yield from ((last, None) for last in rng.sample(range(n), n))
    if recipe.data == "leave-two-out":
        pairs = list(itertools.permutations(range(n), 2))
        for _ in range(recipe.copies):
            yield from rng.sample(pairs, len(pairs))


def _one_left_out(
    task: Task,
    fmt: PromptFormat,
    recipe: Recipe,
    views: Space,
    rng: random.Random,
    last: int,
    without: int | None,
) -> Sequence:
    view = views.draw(rng)
    shown = dict(zip(view.order, view.task(task).demonstrations, strict=True))
    segments = {i: fmt.segment(d) for i, d in shown.items() if i != without}
    head, asked = fmt.head(), segments[last]
    budget = recipe.sequence_tokens - len(head) - len(asked)
    before: list[Segment] = []
    for i in view.order:  # as many as fit, in the view's order
        if i in (last, without) or len(before) + 1 >= recipe.shots or len(segments[i]) > budget:
            continue
        before.append(segments[i])
        budget -= len(segments[i])
    return sequence(head, [*before, asked], recipe.loss)
