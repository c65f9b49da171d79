"""Policies that every learned one must beat: always one arm, one threshold, random at a budget.

They estimate no gain and do not look at worth or cost. What can't be taken falls back to `icl` (or
`zero-shot`), and the reason says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

from policies.checks import answer, check_finite, check_situation, stay_arm
from policies.errors import PolicyError
from policies.types import MEASURED, ArmName, Decision, Signals, Situation

SIGNAL_NAMES: tuple[str, ...] = (*(f.name for f in fields(Signals)), "probe_relative_gain")
"""Signals that a threshold may be put on."""


@dataclass(frozen=True, slots=True)
class AlwaysArm:
    """Takes `arm` whenever it is feasible. Forced, so it supports no counterfactual."""

    arm: ArmName

    @property
    def version(self) -> str:
        return f"always({self.arm})-1"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def decide(self, situation: Situation) -> Decision:
        check_situation(situation)
        if self.arm in situation.feasible:
            return answer(situation, self.arm, f"This policy always takes {self.arm}.", self.version)
        return _fall_back(situation, self.arm, self.version)


@dataclass(frozen=True, slots=True)
class FixedThreshold:
    """Takes `arm` where one signal lies below (or above) a threshold, else stays.

    A threshold on a probe signal asks for the probe first where that is feasible. A signal that was not
    measured never trains.

    Raises:
        PolicyError: unknown signal or direction, or a threshold that is not finite.
    """

    signal: str
    threshold: float
    direction: Literal["below", "above"]
    arm: ArmName

    def __post_init__(self) -> None:
        if self.signal not in SIGNAL_NAMES:
            raise PolicyError(f"Unknown signal {self.signal!r}; choose one of {', '.join(SIGNAL_NAMES)}.")
        if self.direction not in ("below", "above"):
            raise PolicyError(f"The direction is {self.direction!r}, but it must be 'below' or 'above'.")
        check_finite("threshold", self.threshold)

    @property
    def version(self) -> str:
        return f"threshold({self.signal} {self.direction} {self.threshold:g}: {self.arm})-1"

    @property
    def reads(self) -> frozenset[str]:
        return MEASURED & {self.signal}

    def decide(self, situation: Situation) -> Decision:
        check_situation(situation)
        if self.arm not in situation.feasible:
            return _fall_back(situation, self.arm, self.version)
        signals, stay = situation.signals, stay_arm(situation)
        value = getattr(signals, self.signal)
        if (
            value is None
            and self.signal.startswith("probe_")
            and not signals.probed
            and situation.probe_feasible
        ):
            reason = f"The threshold is on {self.signal}, which only a probe measures."
            return Decision("probe", None, 1.0, None, None, situation.costs.probe_s, reason, self.version)
        if value is None:
            reason = f"{self.signal} was not measured, so the threshold can't be judged: staying with {stay}."
            return answer(situation, stay, reason, self.version)
        met = value < self.threshold if self.direction == "below" else value > self.threshold
        arm = self.arm if met else stay
        side = self.direction if met else f"not {self.direction}"
        reason = f"{self.signal} is {value:.3g}, {side} {self.threshold:g}: {arm}."
        return answer(situation, arm, reason, self.version)


@dataclass(frozen=True, slots=True)
class RandomAtBudget:
    """Takes `arm` with probability `share`, whatever the signals say, and logs the true propensity.

    Each decision uses up exactly one draw of this policy's own generator, feasible or not: the k-th
    decision is the same for the same seed.

    Raises:
        PolicyError: a share outside 0 to 1.
    """

    share: float
    arm: ArmName
    seed: int
    _random: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_finite("share", self.share, 0.0, 1.0)
        object.__setattr__(self, "_random", np.random.default_rng(self.seed))

    @property
    def version(self) -> str:
        return f"random({self.share:g}: {self.arm}, seed {self.seed})-1"

    @property
    def reads(self) -> frozenset[str]:
        return MEASURED  # what it decides is logged to learn from

    def decide(self, situation: Situation) -> Decision:
        check_situation(situation)
        taken = bool(self._random.random() < self.share)
        stay = stay_arm(situation)
        if self.arm not in situation.feasible:
            return _fall_back(situation, self.arm, self.version)
        if self.arm == stay:
            return answer(situation, stay, f"{stay} is both the arm and the fall-back.", self.version)
        arm, propensity = (self.arm, self.share) if taken else (stay, 1.0 - self.share)
        reason = f"Drawn at random: {self.arm} with probability {self.share:g}, else {stay}."
        return answer(situation, arm, reason, self.version, propensity)


def _fall_back(situation: Situation, wanted: ArmName, policy: str) -> Decision:
    stay = stay_arm(situation)
    return answer(situation, stay, f"{wanted} is not feasible here, so {stay} answers instead.", policy)
