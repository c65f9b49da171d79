"""How much training is expected to add to P(correct), from signals, with a lower bound.

    expected gain = headroom × share,     headroom = 1 − max(held-out accuracies of the base model)

`share` is the part of the headroom that training wins. Without a probe it is a prior. With one,

    evidence = a · relative removal of held-out negative log-probability + b · change of held-out accuracy
    share    = (n · evidence + k · prior) ÷ (n + k),     clipped to [−1, 1]

with n demonstrations. The log-probability counts even where accuracy has not moved: a probe is a short
training on half of the demonstrations, and the full one wins more than it shows.

Does not know: the task. Difficulty alone hardly predicts the gain, so the prior's spread is wide. And
headroom is measured on a handful of demonstrations: ten of ten right may still be 80 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.types import Signals

Z_90 = 1.2816
"""Standard errors of a one-sided 90 % bound; `Signals.probe_logprob_gain_low` is read as one."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Expected P(correct | train) − P(correct | icl), per query."""

    expected: float
    low: float
    """Lower bound: `prior_z` or, after a probe, `probe_z` standard errors below."""
    optimistic: float
    """What training could win at best, before anything was tried: headroom × optimistic share."""
    headroom: float


@dataclass(frozen=True, slots=True)
class GainModel:
    """The constants; refit them where measurements are at hand. All are shares of the headroom unless told.

    Raises:
        PolicyError: a constant that is not finite or out of its range; the message names it.
    """

    prior_share: float = 0.19
    """Mean share that training wins, before a probe. Over 22 task families on a 135M model, mean accuracy
    rose from 16 % to 32 %: 16 of 84 points."""
    prior_share_sd: float = 0.28
    """Standard deviation of that share between tasks (families ranged from about −0.4 to 0.6)."""
    prior_demonstrations: float = 4.0
    """Weight of the prior, k, in demonstrations."""
    optimistic_share: float = 0.75
    """Share that training wins on tasks made for it (the best families: 0.5 to 0.98)."""
    logprob_weight: float = 1.3
    """a: share won per share of held-out negative log-probability that the probe removed. The probe is the first
    quarter of a training on cells and the first three eighths of one on texts: removed and won were 0.33 and 0.37,
    0.29 and 0.77, 0.25 and 0.5, 0.2 and 0.2, 0.35 and 0.36, 0.15 and 0 on six families (SmolLM2-135M)."""
    accuracy_weight: float = 0.5
    """b: share won per point (0 to 1) of held-out accuracy that the probe added."""
    model_sd: float = 0.10
    """What the line above misses even with endless demonstrations."""
    prior_z: float = Z_90
    """Standard errors between the expected gain and its lower bound before a probe (one-sided 90 %)."""
    probe_z: float = 0.5
    """The same after a probe (one-sided 69 %). A more cautious bound on ten demonstrations would stay where
    training doubles the accuracy; keeping harm out is left to the guard."""
    reuse_share: float = 0.25
    """Share that an adapter of a like task wins which passed its check on unseen demonstrations."""
    reuse_share_low: float = 0.10
    """Lower bound of it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = (-1.0, 1.0) if field.name == "prior_share" or "reuse" in field.name else (0.0, 100.0)
            check_finite(f"GainModel.{field.name}", getattr(self, field.name), low, high)
        if self.reuse_share_low > self.reuse_share:
            raise PolicyError(
                f"GainModel.reuse_share_low is {self.reuse_share_low:g}, "
                f"but it must not exceed reuse_share, {self.reuse_share:g}."
            )

    def estimate(self, signals: Signals) -> Gain:
        """Gain of training, from the prior or, where there was a probe, from its evidence.

        Raises:
            PolicyError: there was a probe, but one of its signals is missing.
        """
        room = headroom(signals)
        share, sd = self._from_probe(signals) if signals.probed else (self.prior_share, self.prior_share_sd)
        low = share - (self.probe_z if signals.probed else self.prior_z) * sd
        return Gain(room * _clip(share), room * _clip(low), room * self.optimistic_share, room)

    def estimate_reuse(self, signals: Signals, checked: Signals | None = None) -> Gain:
        """Gain of answering with an adapter that exists already and has passed its check.

        Args:
            checked: the signals with that check as their probe; they then say what it wins, with nothing to be
                extrapolated as from a short training.

        Raises:
            PolicyError: `checked`, but one of these signals is missing.
        """
        room = headroom(signals if checked is None else checked)
        if checked is not None:
            share, sd = replace(self, logprob_weight=1.0)._from_probe(checked)
            low = _clip(share - self.probe_z * sd)
            return Gain(room * _clip(share), room * low, room * self.optimistic_share, room)
        return Gain(room * self.reuse_share, room * self.reuse_share_low, room * self.optimistic_share, room)

    def _from_probe(self, signals: Signals) -> tuple[float, float]:
        """Share of the headroom and its standard error, shrunk towards the prior."""
        n = signals.n_demonstrations
        before, after = _probed(signals, "probe_logprob_before"), _probed(signals, "probe_logprob_after")
        gain_low = _probed(signals, "probe_logprob_gain_low")
        correct_before = _probed(signals, "probe_accuracy_before")
        correct_after = _probed(signals, "probe_accuracy_after")
        relative = signals.probe_relative_gain
        assert relative is not None  # before and after are there
        relative_se = max(0.0, (after - before) - gain_low) / Z_90 / max(-before, 1e-6)
        accuracy_se = math.sqrt(_variance(correct_before, n) + _variance(correct_after, n))
        evidence = self.logprob_weight * relative + self.accuracy_weight * (correct_after - correct_before)
        weight = n / (n + self.prior_demonstrations)
        share = weight * evidence + (1.0 - weight) * self.prior_share
        noise = math.hypot(self.logprob_weight * relative_se, self.accuracy_weight * accuracy_se)
        return share, math.hypot(weight * noise, (1.0 - weight) * self.prior_share_sd, self.model_sd)


def headroom(signals: Signals) -> float:
    """1 − the better of the base model's held-out accuracies; 1 where neither was measured."""
    measured = [a for a in (signals.loo_accuracy, signals.probe_accuracy_before) if a is not None]
    return 1.0 - max(measured, default=0.0)


def _probed(signals: Signals, name: str) -> float:
    value: float | None = getattr(signals, name)
    if value is None:
        raise PolicyError(f"The probe left {name} unmeasured; a probe must measure all of its signals.")
    return value


def _variance(accuracy: float, n: float) -> float:
    """Variance of an accuracy over n items, one right and one wrong added: 0 of n is not certain."""
    p = (accuracy * n + 1.0) / (n + 2.0)
    return p * (1.0 - p) / (n + 2.0)


def _clip(share: float) -> float:
    return max(-1.0, min(1.0, share))
