"""Exploration without risk: now and then, train in the shadow of an answer that ICL has given.

Only a task that stays hides what training would have brought; one that trains shows both arms, on the queries that
were asked in context, too. So where a
policy stays although training might pay (at the upper end of its estimate), a shadow training is drawn with
probability min(½, budget ÷ its seconds). The answer stays ICL's; the shadow's is kept beside it, so that
later evidence judges both. In expectation no task costs more than the budget. The true probability is
logged with every decision, drawn or not. Off unless a budget is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from policies.checks import check_finite
from policies.types import SHORT, Decision, Policy, Situation
from policies.utility import expected_queries

MAX_PROPENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Exploring:
    """`policy`, with shadow trainings of at most `budget_s` seconds per task in expectation.

    Raises:
        PolicyError: a budget that is negative or not finite.
    """

    policy: Policy
    budget_s: float
    seed: int | None = None
    """Of the draws, for tests; None draws anew in every process, so that the probability is that of each task, asked
    in whatever order."""
    _random: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_finite("The budget for exploration, in seconds per task,", self.budget_s, 0.0)
        object.__setattr__(self, "_random", np.random.default_rng(self.seed))

    @property
    def version(self) -> str:
        return self.policy.version

    @property
    def reads(self) -> frozenset[str]:
        return self.policy.reads

    def decide(self, situation: Situation) -> Decision:
        """The policy's own decision; where it stays, perhaps with an arm to train in its shadow."""
        drawn = float(self._random.random())
        decision = self.policy.decide(situation)
        arm = next((a for a in situation.feasible if a.startswith("train:") and not a.endswith(SHORT)), None)
        if arm is None or decision.step != "answer" or decision.arm != "icl":
            return decision
        chance = self._chance(situation, decision.details)
        taken = arm if drawn < chance else None
        return replace(decision, shadow=taken, shadow_propensity=chance)

    def _chance(self, situation: Situation, details: Mapping[str, Any]) -> float:
        """0 where training could not pay even at best, or where the policy makes no estimate."""
        best, costs = details.get("gain_high", details.get("gain_optimistic")), situation.costs
        # A training of its own: it does not go on from a probe.
        seconds = costs.by_probe_s + costs.train_s + costs.answer_s
        if best is None or best * expected_queries(situation) * situation.worth_s <= seconds:
            return 0.0
        return min(MAX_PROPENSITY, self.budget_s / max(seconds, 1e-9))
