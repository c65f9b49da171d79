"""Situations that the tests of several policies start from, and a policy that looks at what it is told to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.checks import answer
from policies.types import MEASURED, Costs, Decision, Signals, Situation

TRAIN = "train:paper"
REUSE = "reuse:like-task"


def signals(**changes: Any) -> Signals:
    """Ten demonstrations of which ICL gets none right, 32 queries, no probe yet."""
    values: dict[str, Any] = {
        "n_demonstrations": 10,
        "n_queries": 32,
        "expected_repeats": 0,
        "prompt_tokens": 500,
        "answer_tokens": 12,
        "label_set_size": 1.0,
        "loo_accuracy": 0.0,
        "loo_logprob": -1.0,
    }
    return Signals(**(values | changes))


def probed(**changes: Any) -> Signals:
    """The same after a probe that helped: 60 % of the negative log-probability gone, 0 to 3 of 10 right."""
    values: dict[str, Any] = {
        "probe_accuracy_before": 0.0,
        "probe_accuracy_after": 0.3,
        "probe_logprob_before": -1.0,
        "probe_logprob_after": -0.4,
        "probe_logprob_gain_low": 0.5,
    }
    return signals(**(values | changes))


def situation(of: Signals, **changes: Any) -> Situation:
    """Training feasible, 12 s probe, 50 s training, 10 s answer, 30 s per correct answer."""
    values: dict[str, Any] = {
        "costs": Costs(probe_s=12.0, train_s=50.0, answer_s=10.0),
        "feasible": ("icl", TRAIN),
        "probe_feasible": True,
        "worth_s": 30.0,
    }
    return Situation(of, **(values | changes))


@dataclass(frozen=True)
class Looking:
    """Has one signal measured, by a probe where it is one of a probe's, and then takes `arm` whatever it says."""

    signal: str
    arm: str
    version: str = "looking-1"

    @property
    def reads(self) -> frozenset[str]:
        return MEASURED & {self.signal}

    def decide(self, here: Situation) -> Decision:
        if self.signal.startswith("probe_") and here.probe_feasible and not here.signals.probed:
            return Decision("probe", None, 1.0, None, None, here.costs.probe_s, "To look.", self.version)
        return answer(here, self.arm, "It has looked.", self.version)
