"""The policy that every learned one must beat: always one arm.

It estimates no gain and does not look at worth or cost. What can't be taken falls back to `icl` (or
`zero-shot`), and the reason says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.checks import answer, check_situation, stay_arm
from policies.types import ArmName, Decision, Situation


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


def _fall_back(situation: Situation, wanted: ArmName, policy: str) -> Decision:
    stay = stay_arm(situation)
    return answer(situation, stay, f"{wanted} is not feasible here, so {stay} answers instead.", policy)
