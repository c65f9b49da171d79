"""Greedy decoding and scoring of many continuations of shared prefixes.

Works on a `TokenTree`; knows token ids and stop strings, nothing of tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ttt.tree import Append, TokenTree

KEPT_BYTES = 2**28
"""Of logits that scoring holds at a time, in float32."""

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """One decoded continuation."""

    text: str
    """Up to and without the stop string."""
    logprob: float
    """Sum of the chosen tokens' log-probabilities, terminator included, nats."""
    n_tokens: int
    margin: float
    """Mean over tokens of top-1 minus top-2 log-probability, nats."""
    finished: bool
    """Whether a stop string or end token came before the token budget ran out."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the model thinks of one given answer, from one forward pass."""

    logprob: float
    """Sum over the answer's tokens but its hints, and the first token of its terminator, nats."""
    n_tokens: int
    """How many these are."""
    greedy: bool
    """Whether greedy decoding would give exactly this answer."""

    @property
    def logprob_per_token(self) -> float:
        return self.logprob / self.n_tokens


@dataclass(frozen=True, slots=True)
class Known:
    """An answer to score: its tokens, and the terminator's (first token scored; see `Score.greedy`)."""

    question: Sequence[int]
    answer: Sequence[int]
    terminator: Sequence[int]
    hints: Sequence[int] = ()
    """Positions in `answer` that do not count in the log-probability: they say nothing of what is answered."""


class Stopper:
    """Knows when a decoded text has ended, and which single tokens end an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._eos = frozenset(eos)
        self._enders: dict[int, bool] = {}

    def cut(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Text of `ids` up to the first end, and whether there was one."""
        ended = False
        for i, token in enumerate(ids):
            if token in self._eos:
                ids, ended = ids[:i], True
                break
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        for stop in self._stop:
            head, found, _ = text.partition(stop)
            if found:
                text, ended = head, True
        return text, ended

    def ends(self, token: int) -> bool:
        """Whether this one token, put after an answer, ends it."""
        if token not in self._enders:
            text = str(self._tokenizer.decode([token])).lstrip(" ")
            self._enders[token] = token in self._eos or any(text.startswith(s) for s in self._stop)
        return self._enders[token]


def grow(tree: TokenTree, parent: int, tokens: Sequence[int]) -> int:
    """A child of `parent` that holds `tokens`."""
    node = tree.child(parent)
    if tokens:
        tree.append([Append(node, tokens)])
    return node


def decode(
    tree: TokenTree,
    asked: Sequence[tuple[int, Sequence[int]]],
    stopper: Stopper,
    max_new_tokens: int,
    should_stop: Callable[[], bool] = lambda: False,
    step_seconds: list[float] | None = None,
    emit: Callable[[int, str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Generation]:
    """Greedy continuations of questions, each below its own parent node; finished rows leave the batch at once.

    Args:
        step_seconds: is given the seconds of each step; the first one reads the questions.
        emit: gets a row's number and its whole text so far, whenever it has grown.
    """
    rows = [_Row(tree.child(parent)) for parent, _ in asked]
    steps = [Append(row.node, question, keep=1) for row, (_, question) in zip(rows, asked, strict=True)]
    live = rows
    for _ in range(max_new_tokens):
        if not live or should_stop():
            break
        started = clock()
        logits = torch.stack([rows_[-1] for rows_ in tree.append(steps)])  # (live, vocabulary)
        top = torch.log_softmax(logits, dim=-1).topk(2, dim=-1)
        for row, best, pair in zip(live, top.indices[:, 0].tolist(), top.values.tolist(), strict=True):
            row.ids.append(best)
            row.logprob += pair[0]
            row.margin += pair[0] - pair[1]
            row.text, row.finished = stopper.cut(row.ids)
            if emit is not None and not row.finished:
                emit(rows.index(row), row.text)
        if step_seconds is not None:
            step_seconds.append(clock() - started)
        live = [row for row in live if not row.finished]
        steps = [Append(row.node, row.ids[-1:], keep=1) for row in live]
    return [row.result() for row in rows]


def score(tree: TokenTree, items: Sequence[tuple[int, Known]], stopper: Stopper) -> list[Score]:
    """Score known answers, each below its own parent node, in as few forward passes as fit. Logits of all answers at
    once can be gigabytes, so they are held for some at a time."""
    scores: list[Score] = []
    mark, most = tree.mark(), max(1, KEPT_BYTES // (4 * tree.vocabulary))
    for part in _parts(items, most):
        if scores:
            tree.rewind(mark)
        appends = []
        for parent, known in part:
            tokens = (*known.question, *known.answer, *known.terminator)
            appends.append(Append(tree.child(parent), tokens, keep=_kept(known)))
        found = zip(part, tree.append(appends), strict=True)
        scores += [_score(logits, known, stopper) for (_, known), logits in found]
    return scores


def _kept(known: Known) -> int:
    return len(known.answer) + len(known.terminator) + 1


def _parts(items: Sequence[tuple[int, Known]], most: int) -> Iterator[list[tuple[int, Known]]]:
    """In order, each of at most so many rows of logits, or of one item."""
    part: list[tuple[int, Known]] = []
    rows = 0
    for item in items:
        if part and rows + _kept(item[1]) > most:
            yield part
            part, rows = [], 0
        part.append(item)
        rows += _kept(item[1])
    if part:
        yield part


def _score(logits: torch.Tensor, known: Known, stopper: Stopper) -> Score:
    labels = torch.tensor([*known.answer, *known.terminator])
    logprobs = torch.log_softmax(logits[:-1], dim=-1)  # (labels, vocabulary); the last row predicts beyond
    best = logprobs.argmax(dim=-1)
    n = len(known.answer)
    given = logprobs.gather(1, labels[:, None])[:, 0]  # (labels,)
    # The answer ends where any token that decoding would stop at comes first, or the terminator in full.
    ended = stopper.ends(int(best[n])) or bool((best[n:] == labels[n:]).all())
    greedy = bool((best[:n] == labels[:n]).all()) and ended
    aside = set(known.hints)
    counted = [i for i in range(n + 1) if i not in aside]
    return Score(float(given[counted].sum()), len(counted), greedy)


class _Row:
    """One sequence being decoded."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.ids: list[int] = []
        self.text = ""
        self.logprob = 0.0
        self.margin = 0.0
        self.finished = False

    def result(self) -> Generation:
        n = len(self.ids)
        return Generation(self.text, self.logprob, n, self.margin / max(n, 1), self.finished)
