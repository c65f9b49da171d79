"""The guard: does a trained adapter get to answer, judged on demonstrations that training held out?

Cross-fitted evidence: train on one half of the demonstrations, judge the other, swap (of three: on each two). Each demonstration
yields one pair (before, after). The guard vetoes on evidence of harm; the caller then answers with ICL.

**What few items can't tell.** With two held-out demonstrations an adapter that does nothing wins 32 % of
the time and ties 37 %; so below three there is no evidence, and a veto. Three are a hint: a harmful one (60 → 40 %,
−0.2 ± 0.5 nats) is accepted in about half of the cases, so the rule that trains there tolerates no loss. With ten, simulated (the tests
repeat it; log-probability changes in nats per token):

| adapter | accepted |
|---|---|
| useful: accuracy 20 → 60 %, log-probability change 0.4 ± 0.5 | 99 % |
| useless: accuracy 50 → 50 %, change 0 ± 0.5 | 70 % |
| harmful: accuracy 60 → 40 %, change −0.2 ± 0.5 | 18 % |
| harmful in accuracy only: 60 → 40 %, change 0 ± 0.5 | 45 % |

A useless adapter does no harm, so accepting it costs nothing that was not already paid. A harmful one that
the log-probability does not betray passes nearly every second time: the guard is a second line behind a
rule that trains on positive evidence only. What a learned policy has weighed is not judged again. Training loss is no evidence of help (it falls even where
training hurts); only its failure counts here.

Knows nothing of models or tokens, or whether the held-out demonstrations resemble the queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.special import stdtrit

from policies.errors import PolicyError

MIN_HELD_OUT = 3
"""Fewer held-out demonstrations than this are no evidence."""
LOGPROB_CONFIDENCE = 0.90
"""One-sided confidence of the bounds on the mean change of log-probability (Student's t)."""
ACCURACY_LEVEL = 0.20
"""Level of the one-sided exact McNemar test after shrinkage: with one imagined demonstration gained and one
lost, it takes three lost and none gained (p = .19), where the plain test would say p = .125."""


@dataclass(frozen=True, slots=True)
class CrossFit:
    """One entry per held-out demonstration, paired by position.

    Raises:
        PolicyError: the four differ in length, or a log-probability before training is not finite.
    """

    correct_before: tuple[bool, ...]
    correct_after: tuple[bool, ...]
    logprob_before: tuple[float, ...]
    """Log-probability per answer token of the base model, nats."""
    logprob_after: tuple[float, ...]

    def __post_init__(self) -> None:
        parts = (self.correct_before, self.correct_after, self.logprob_before, self.logprob_after)
        if len({len(part) for part in parts}) != 1:
            lengths = ", ".join(str(len(part)) for part in parts)
            raise PolicyError(
                f"The cross-fitted evidence has {lengths} entries; it needs one of each per demonstration."
            )
        for number, value in enumerate(self.logprob_before, start=1):
            if not math.isfinite(value):
                raise PolicyError(
                    f"Held-out demonstration {number} has log-probability {value} "
                    "before training; it must be finite."
                )


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What the guard looks at in a training of the adapter that would answer."""

    steps: int
    first_loss: float
    """Mean loss per answer token over the first few steps, nats."""
    last_loss: float
    """The same over the last few."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accept the adapter, or veto it; and what that rests on."""

    accept: bool
    reason: str
    n_held_out: int
    gained: int = 0
    """Held-out demonstrations wrong before and right after."""
    lost: int = 0
    """Right before and wrong after."""
    p_harm: float | None = None
    """Shrunk one-sided exact McNemar p-value: small means that accuracy fell. None when not judged."""
    logprob_change: float | None = None
    """Mean change of log-probability per token, nats, with its one-sided 90 % bounds."""
    logprob_change_low: float | None = None
    logprob_change_high: float | None = None


def guard(evidence: CrossFit, training: TrainingSummary, *, weighed: bool = False) -> Verdict:
    """Veto an adapter on evidence of harm, or on no evidence at all; else accept it.

    Args:
        weighed: a policy that was fitted on outcomes has decided for training after this very evidence. It knows what
            became of tasks with evidence like that, so only what it has not seen counts: how the training went.

    Vetoes, in order: training took no step, its loss is not finite or rose; fewer than three held-out
    demonstrations; a log-probability after training that is not finite; the mean change of
    log-probability has an upper bound below 0; accuracy fell significantly; accuracy and log-probability
    both fell, each within noise.
    """
    n = len(evidence.correct_before)
    failure = _training_failure(training)
    if failure:
        return Verdict(False, failure, n)
    if n < MIN_HELD_OUT:
        return Verdict(
            False, f"Too few demonstrations to tell: {n} held out, at least {MIN_HELD_OUT} needed.", n
        )
    if not all(math.isfinite(value) for value in evidence.logprob_after):
        return Verdict(False, "After training a held-out log-probability is not finite.", n)

    if weighed:
        return Verdict(True, "The policy has weighed the evidence, and training went well.", n)
    pairs = list(zip(evidence.correct_before, evidence.correct_after, strict=True))
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    p_harm = shrunk_mcnemar(lost, gained)
    changes = [a - b for b, a in zip(evidence.logprob_before, evidence.logprob_after, strict=True)]
    change = mean(changes)
    reach = float(stdtrit(n - 1, LOGPROB_CONFIDENCE)) * stdev(changes) / math.sqrt(n)

    flips = f"of {n} held-out demonstrations {lost} were lost and {gained} gained"
    bounds = f"90 % bounds {change - reach:+.2f} to {change + reach:+.2f}"
    moved = f"the held-out log-probability changed by {change:+.2f} nats per token ({bounds})"
    if change + reach < 0:
        accept, reason = False, f"Harm: {moved}."
    elif p_harm <= ACCURACY_LEVEL:
        accept, reason = False, f"Harm: {flips} (p = {p_harm:.2f})."
    elif lost > gained and change < 0:
        accept, reason = False, f"Both point to harm: {flips}, and {moved}."
    else:
        accept, reason = True, f"No evidence of harm: {flips}; {moved}."
    return Verdict(accept, reason, n, gained, lost, p_harm, change, change - reach, change + reach)


def shrunk_mcnemar(lost: int, gained: int) -> float:
    """One-sided exact McNemar p-value that more is lost than gained, with one pair more on either side.

    P(X ≥ lost + 1) for X binomial with lost + gained + 2 trials of probability ½.
    """
    trials = lost + gained + 2
    tail = sum(math.comb(trials, k) for k in range(lost + 1, trials + 1))
    return float(tail / 2**trials)


def _training_failure(training: TrainingSummary) -> str:
    first, last = training.first_loss, training.last_loss
    if training.steps < 1:
        return f"Training took {training.steps} steps, so there is no adapter to judge."
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"The training loss is not finite (first {first}, last {last} nats per token)."
    if last > first:
        return f"The training loss rose from {first:.2f} to {last:.2f} nats per token."
    return ""
