"""What another policy would have earned, from the log of one that explored: IPS, SNIPS and DR.

With reward r, the logged arm's propensity p and the target policy's probability π of that arm, w = π ÷ p:

    IPS    mean(w · r)                        unbiased; wide where w is large
    SNIPS  Σ w · r ÷ Σ w                      a little biased, narrower (Swaminathan & Joachims 2015)
    DR     mean(q(π) + w · (r − q(arm)))      narrower still with a good model q of the reward, and right
                                              if either q or p is (Dudík, Langford & Li 2011)

Intervals are Student's t over families (rows of a family depend on one another). A decision of propensity
1 says nothing of what was not taken: where the target would have taken it, the estimate is refused. With
fewer than about 2,000 decisions such estimates can't certify small wins; paired outcomes (`gate.py`) can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.features import Array
from policies.types import ArmName

MIN_EFFECTIVE = 20.0
"""Fewer effective decisions than this are no evidence."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision that was taken.

    Raises:
        PolicyError: a propensity outside 0 (excluded) to 1, or a reward that is not finite.
    """

    family: str
    arm: ArmName
    propensity: float
    """Probability with which the logging policy took this arm here."""
    reward: float

    def __post_init__(self) -> None:
        check_finite("The propensity of a logged decision", self.propensity, math.ulp(0.0), 1.0)
        check_finite("The reward of a logged decision", self.reward)


@dataclass(frozen=True, slots=True)
class Value:
    """Mean reward per decision under the target policy."""

    mean: float
    low: float
    high: float
    """Interval of the asked confidence."""
    effective_n: float
    """(Σ w)² ÷ Σ w²: decisions that the estimate rests on."""


def off_policy(
    logs: Sequence[Logged],
    target: Sequence[Mapping[ArmName, float]],
    model: Sequence[Mapping[ArmName, float]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Value]:
    """Estimates by name: `ips`, `snips` and, with a model, `dr`.

    Args:
        logs: decisions of the logging policy.
        target: for each decision, the target policy's probability of each arm.
        model: for each decision, the expected reward of each arm, from a model that has not seen it.

    Raises:
        PolicyError: unequal lengths, probabilities that do not add up to 1, fewer than two families, or a
            log that does not support the target (forced decisions, or too few effective ones).
    """
    if len(target) != len(logs) or (model is not None and len(model) != len(logs)):
        raise PolicyError(
            f"There are {len(logs)} logged decisions, but the target or the model has another number."
        )
    for chances in target:
        for arm, share in chances.items():
            check_finite(f"The target's probability of {arm}", share, 0.0, 1.0 + 1e-6)
        if abs(sum(chances.values()) - 1.0) > 1e-6:
            raise PolicyError(f"The target's probabilities {dict(chances)} must add up to 1.")
    for rewards in model or ():
        for arm, foretold in rewards.items():
            check_finite(f"The model's reward of {arm}", foretold)
    families = np.unique([log.family for log in logs], return_inverse=True)[1]
    if len(logs) == 0 or families.max() < 1:
        raise PolicyError(
            f"The log holds {len(set(families.tolist()))} families; at least 2 are needed for an interval."
        )
    chance = np.array([t.get(log.arm, 0.0) for log, t in zip(logs, target, strict=True)])
    propensity = np.array([log.propensity for log in logs])
    unsupported = int(((propensity >= 1.0) & (chance < 1.0)).sum())
    if unsupported:
        raise PolicyError(
            f"{unsupported} of {len(logs)} logged decisions were forced (propensity 1) where the target would "
            "choose otherwise: they say nothing of it. Log with exploration, or leave them out."
        )
    reward = np.array([log.reward for log in logs])
    weight = chance / propensity
    effective = float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300))
    if effective < MIN_EFFECTIVE:
        raise PolicyError(
            f"The log has {effective:.1f} effective decisions for this target; at least {MIN_EFFECTIVE:g} are needed."
        )
    found = {"ips": _value(weight * reward, families, effective, confidence)}
    snips = float((weight * reward).sum() / weight.sum())
    spread = _value(weight * (reward - snips) / weight.mean(), families, effective, confidence)
    found["snips"] = Value(snips, snips + spread.low, snips + spread.high, effective)
    if model is not None:
        logged = np.array([m[log.arm] for log, m in zip(logs, model, strict=True)])
        expected = np.array(
            [sum(p * m[arm] for arm, p in t.items() if p > 0) for t, m in zip(target, model, strict=True)]
        )
        found["dr"] = _value(expected + weight * (reward - logged), families, effective, confidence)
    return found


def _value(terms: Array, families: NDArray[np.intp], effective: float, confidence: float) -> Value:
    """Mean of the terms with an interval that lets terms of one family depend on one another."""
    mean = float(terms.mean())
    sums = np.bincount(families, weights=terms - mean)
    n = len(sums)
    error = math.sqrt(n / (n - 1) * float((sums**2).sum())) / len(terms)
    reach = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Value(mean, mean - reach, mean + reach, effective)
