"""Votes over answers of several views, after they were turned back. Pure: the order of votes never matters.

A prediction that could not be turned back is no vote; whoever counts those says so.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TOP = 2
"""Candidates that each transformation sends into the vote over all."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One view's answer to one query, in the original task's form."""

    text: str
    logprob: float
    """Of the whole answer and its terminator, nats."""
    n_tokens: int
    transformation: tuple[str, ...] = ()
    """Names of the transforms of its view; views that differ only in order share theirs."""

    @property
    def probability(self) -> float:
        """Geometric mean over the answer's tokens, 0 to 1: whole answers of many tokens would all weigh nothing
        beside a short one."""
        return math.exp(self.logprob / max(self.n_tokens, 1))


def plurality(votes: Iterable[Vote]) -> str:
    """The answer with the highest sum of probabilities; ties go to the highest log-probability, then to the
    first in the alphabet.

    Raises:
        ValueError: no votes.
    """
    by_text = _by_text(votes)
    return max(by_text, key=lambda text: (_weight(by_text[text]), *_ties(text, by_text[text])))


def hierarchical(votes: Iterable[Vote], top: int = TOP) -> str:
    """The published vote for grids (arXiv 2411.07279): first within each transformation, where the `top`
    commonest answers go on, then over all that went on. What many views of one transformation babble, each
    something else, falls out in the first round.

    Ties go to the higher sum of probabilities, then as in `plurality`.

    Raises:
        ValueError: no votes.
    """
    return attempts(votes, 1, top)[0]


def attempts(votes: Iterable[Vote], n: int = 2, top: int = TOP) -> tuple[str, ...]:
    """The first `n` answers of the hierarchical vote, best first; fewer where there are no more. ARC counts a
    task as solved by either of two.

    Raises:
        ValueError: no votes.
    """
    groups: defaultdict[tuple[str, ...], list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[vote.transformation].append(vote)
    gone_on: list[Vote] = []
    for group in groups.values():
        by_text = _by_text(group)
        for text in sorted(by_text, key=lambda t: _rank(t, by_text[t]), reverse=True)[:top]:
            gone_on += by_text[text]
    by_text = _by_text(gone_on)
    return tuple(sorted(by_text, key=lambda text: _rank(text, by_text[text]), reverse=True)[:n])


def _by_text(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    by_text: defaultdict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_text[vote.text].append(vote)
    if not by_text:
        raise ValueError("There are no votes to count.")
    return by_text


def _rank(text: str, votes: Sequence[Vote]) -> tuple[float, ...]:
    return (len(votes), _weight(votes), *_ties(text, votes))


def _weight(votes: Sequence[Vote]) -> float:
    return math.fsum(vote.probability for vote in votes)  # rounded once, so the order does not count


def _ties(text: str, votes: Sequence[Vote]) -> tuple[float, ...]:
    return (max(vote.logprob for vote in votes), *(-ord(c) for c in text), math.inf)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far views agree on one query."""

    agreement: float
    """Share of the other views that gave the first view's answer, 0 to 1; 1 when there is one view."""
    entropy: float
    """Of the answers, nats."""


def agreement(answers: Sequence[str | None]) -> Agreement:
    """Compare answers, that of the plain view first. None, an answer that could not be turned back, agrees with
    nothing, another None included.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("agreement() needs at least one answer, got none.")
    n = len(answers)
    counts = [*Counter(a for a in answers if a is not None).values(), *(1 for a in answers if a is None)]
    entropy = -sum(c / n * math.log(c / n) for c in counts)
    agreeing = sum(a is not None and a == answers[0] for a in answers[1:])
    return Agreement(agreeing / (n - 1) if n > 1 else 1.0, entropy)
