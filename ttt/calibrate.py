"""Answers from a closed set of labels, corrected by what the model says when nothing is asked.

In context a model leans towards labels that are common, or came last, whatever the question. How far is
measured with inputs that say nothing (contextual calibration: Zhao et al. 2021, arXiv 2102.09690): a label's
probability after a question is divided by its mean probability after content-free inputs, and the largest
quotient wins. Needs the demonstrations alone; no query's answer and no other query.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ttt.content import content_kind, label_set, other_option, read_choice
from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled
from ttt.icl import Answer, ICLResult, Prefixes, batches, write_prompt
from ttt.task import Query, Task

CONTENT_FREE = ("N/A", "", "[MASK]")
"""As published."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Calibrated answers, and what they were calibrated by."""

    result: ICLResult
    prior: dict[str, float]
    """Label → mean probability after content-free inputs; sums to 1."""


def labels_of(task: Task) -> tuple[str, ...]:
    """The closed set of answers that the demonstrations show: labels, or the letters of all options. Empty where
    there is none."""
    if content_kind(task) == "choice":
        read = [read_choice(d.input) for d in task.demonstrations]
        most = max(len(choice.options) for choice in read if choice is not None)
        return tuple(other_option(task.demonstrations[0].output, i) for i in range(most))
    return label_set(task)


async def answer_calibrated(
    engine: Engine,
    task: Task,
    queries: Sequence[Query],
    *,
    priority: Priority = Priority.ANSWER,
    should_stop: Callable[[], bool] = lambda: False,
) -> Calibrated:
    """The calibrated label of each query. An answer's `logprob` is the label's own, uncorrected; its `margin` the
    corrected lead over the second label, nats.

    A question with options is answered by one of its own.

    Raises:
        ValueError: the task has no closed set of answers; ask `labels_of` first.
        ContextOverflow: a query does not fit.
        Cancelled: `should_stop` said so.
    """
    labels = labels_of(task)
    if not labels:
        raise ValueError("This task has no closed set of labels; answer it in context.")
    prompt = write_prompt(engine, task, queries)
    fmt = prompt.fmt
    free = tuple(fmt.question(text) for text in CONTENT_FREE)
    questions = (*free, *prompt.questions)
    answers = [(fmt.answer(label), fmt.ending) for label in labels]
    label_tokens = sum(len(a) + len(end) for a, end in answers)
    started = time.perf_counter()

    def begin(bench: Bench) -> Prefixes:
        with bench.wearing(None):
            return Prefixes(bench, fmt, [prompt.prefix], None, priority)

    begun = await engine.run(begin, priority)
    found: dict[int, list[tuple[float, int]]] = {}

    def score_batch(bench: Bench, chosen: Sequence[int]) -> None:
        from ttt.generate import Known, grow, score

        with bench.wearing(None):
            asked = []
            for i in chosen:  # a question is read once for all labels
                node = grow(begun.tree, begun.nodes[0], questions[i][:-1])
                asked += [(node, Known(questions[i][-1:], a, end)) for a, end in answers]
            scores = score(begun.tree, asked, begun.stopper)
            begun.tree.rewind(begun.mark)
        for row, i in enumerate(chosen):
            own = scores[row * len(labels) : (row + 1) * len(labels)]
            found[i] = [(s.logprob, s.n_tokens) for s in own]

    for chosen in batches(range(len(questions)), [len(q) + label_tokens for q in questions]):
        if should_stop():
            raise Cancelled("Answering was cancelled before all queries were done; ask again.")
        await engine.run(partial(score_batch, chosen=chosen), priority)
    seconds = time.perf_counter() - started
    rows = [_shares([logprob for logprob, _ in found[i]]) for i in range(len(free))]
    prior = {label: math.fsum(row[j] for row in rows) / len(rows) for j, label in enumerate(labels)}
    of_options = content_kind(task) == "choice"
    said = []
    for number, query in enumerate(queries):
        own = found[len(free) + number]
        choice = read_choice(query.input) if of_options else None
        possible = range(len(labels)) if choice is None else range(min(len(choice.options), len(labels)))
        lead = {j: own[j][0] - math.log(max(prior[labels[j]], 1e-12)) for j in possible}
        best = max(lead, key=lead.__getitem__)
        second = max((v for j, v in lead.items() if j != best), default=lead[best])
        logprob, n_tokens = own[best]
        said.append(Answer(labels[best], logprob, n_tokens, lead[best] - second, True))
    n_head = len(fmt.head())
    n_asked = sum(map(len, prompt.questions))
    result = ICLResult(
        tuple(said), len(prompt.prefix) - n_head, prompt.n_shown, n_asked, seconds, 0.0, 0, n_head
    )
    return Calibrated(result, prior)


def _shares(logprobs: Sequence[float]) -> list[float]:
    """Probabilities among the labels alone."""
    top = max(logprobs)
    weights = [math.exp(x - top) for x in logprobs]
    total = math.fsum(weights)
    return [w / total for w in weights]
