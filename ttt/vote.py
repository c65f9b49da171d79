"""Votes over inverted answers of several views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ballot:
    """What the views said of one query."""

    winner: str
    agreement: float
    """Share of the other views that gave the first view's answer, 0 to 1; 1 when there is one view."""
    entropy: float
    """Of the votes, nats."""


def vote(answers: Sequence[str], logprobs: Sequence[float]) -> Ballot:
    """Plurality over `answers` (the plain view first); ties go to the higher log-probability sum.

    Raises:
        ValueError: no answers, or lengths differ.
    """
    if not answers or len(answers) != len(logprobs):
        raise ValueError(
            f"vote() needs as many answers as log-probabilities, got {len(answers)} and {len(logprobs)}."
        )
    counts: dict[str, int] = {}
    weight: dict[str, float] = {}
    for answer, logprob in zip(answers, logprobs, strict=True):
        counts[answer] = counts.get(answer, 0) + 1
        weight[answer] = weight.get(answer, 0.0) + math.exp(logprob)
    winner = max(counts, key=lambda a: (counts[a], weight[a]))
    n = len(answers)
    entropy = -sum(c / n * math.log(c / n) for c in counts.values())
    agreement = sum(a == answers[0] for a in answers[1:]) / (n - 1) if n > 1 else 1.0
    return Ballot(winner, agreement, entropy)
