"""The words between signals and actions. Plain values: readable without torch, SQL or scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

SIGNALS_VERSION = 1
"""Goes up when a signal changes its meaning; decisions of different versions are never mixed."""


@dataclass(frozen=True, slots=True)
class Location:
    """An embedding of a task's demonstrations."""

    space: str
    """How it was made, and by which base model: points of two spaces are never compared."""
    point: Sequence[float]
    """Of length 1."""


@dataclass(frozen=True, slots=True)
class Signals:
    """The policy's context. `None` means "not measured", never zero.

    No signal is computed from a query's answer key; demonstrations are judged only from contexts
    and adapters that have not seen them.
    """

    n_demonstrations: float
    """Demonstrations after cleaning."""
    n_queries: float
    """Queries asked now."""
    expected_repeats: float
    """Further queries of the same task that the caller expects later."""
    prompt_tokens: float
    """Tokens of the demonstration prefix."""
    answer_tokens: float
    """Mean tokens of a demonstration's output."""
    label_set_size: float
    """Distinct outputs ÷ demonstrations: near 0 for a closed label set, 1 for free outputs."""
    train_steps: float | None = None
    """Steps that training would take, by the recipe that fits what the task is made of; None where none is feasible."""
    query_logprob: float | None = None
    """Mean over queries of the ICL answer's log-probability per token, nats (≤ 0)."""
    query_margin: float | None = None
    """Mean over answered tokens of top-1 minus top-2 log-probability, nats (≥ 0)."""
    answer_entropy: float | None = None
    """Entropy of the votes across augmentations, nats, mean over the sampled queries."""
    agreement: float | None = None
    """Share of augmented views whose inverted answer equals the plain view's, 0 to 1."""
    loo_accuracy: float | None = None
    """Leave-one-out ICL accuracy on the demonstrations, 0 to 1."""
    loo_logprob: float | None = None
    """Leave-one-out log-probability per answer token on the demonstrations, nats (≤ 0)."""
    zero_shot_accuracy: float | None = None
    """Accuracy on the demonstrations with no other one shown, 0 to 1."""
    zero_shot_logprob: float | None = None
    """Log-probability per answer token of the demonstrations with no other one shown, nats (≤ 0)."""
    probe_accuracy_before: float | None = None
    """Cross-fitted held-out accuracy of the base model, half of the demonstrations as context, 0 to 1."""
    probe_accuracy_after: float | None = None
    """The same after a short training on that half, 0 to 1."""
    probe_logprob_before: float | None = None
    """Cross-fitted held-out log-probability per answer token of the base model, nats."""
    probe_logprob_after: float | None = None
    """The same after a short training, nats."""
    probe_logprob_gain_low: float | None = None
    """One-sided lower 90 % bound (paired, over demonstrations) of the change of log-probability per token, nats."""
    probe_loss_before: float | None = None
    """Training loss at the first step of the short training, nats per token trained on (≥ 0)."""
    probe_loss_after: float | None = None
    """The same at its last step."""
    location: Location | None = None
    """Where the task lies among others; no figure, so in neither `as_dict` nor `SCALARS`."""

    @property
    def probe_relative_gain(self) -> float | None:
        """Share of the held-out negative log-probability that the probe removed: 1 is all, < 0 is harm."""
        if self.probe_logprob_before is None or self.probe_logprob_after is None:
            return None
        before, after = -self.probe_logprob_before, -self.probe_logprob_after
        return (before - after) / max(before, 1e-6)

    @property
    def probed(self) -> bool:
        return self.probe_logprob_after is not None

    def as_dict(self) -> dict[str, float | None]:
        """All figures, by name."""
        return {name: getattr(self, name) for name in SCALARS}


SCALARS: tuple[str, ...] = tuple(f.name for f in fields(Signals) if f.name != "location")
"""Names of the signals that are one figure each."""
LOCATION = "location"
"""Names, in `Policy.reads`, the signal that is measured before the model is asked anything."""


ArmName = str
"""`zero-shot`, `icl`, `reuse:<adapter>`, `train:<recipe>`, `train:<recipe>-short`."""
SHORT = "-short"
"""Ends the name of the arm that is a recipe's shorter training."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Expected seconds on this machine of what is still to be paid."""

    probe_s: float
    train_s: float
    """What is left of a training after its probe, whether that has been taken or not; all of it where none is
    feasible."""
    answer_s: float
    """Answering all queries once more with an adapter."""
    by_probe_s: float = 0.0
    """What a probe does for the training after it, beside `train_s`; a training of its own does it itself."""
    rest_s: float = 0.0
    """Answering in context the queries that were not asked yet: what staying still takes."""
    others: Mapping[ArmName, float] = field(default_factory=dict)
    """What is left, in place of `train_s`, of other trainings that begin by the same probe."""

    def left_s(self, arm: ArmName) -> float:
        """What is left of this arm's training after the probe."""
        return self.others.get(arm, self.train_s)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a policy may look at."""

    signals: Signals
    costs: Costs
    feasible: tuple[ArmName, ...]
    """Arms that can be taken now; `icl` or `zero-shot` always among them."""
    probe_feasible: bool
    worth_s: float
    """Seconds of compute that one more correct answer is worth."""
    ready: ArmName | None = None
    """One of them that trains and whose adapter is there: it costs an answer, and needs no probe."""
    checked: Signals | None = None
    """The signals with the check of the adapter that may be reused in place of a probe, on the demonstrations that it has
    not seen; None where none may be, or one demonstration has judged it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step: answer with an arm, or probe."""

    step: Literal["answer", "probe"]
    arm: ArmName | None
    """The arm when `step` is `answer`, else None."""
    propensity: float
    """Probability with which this policy takes this step here, over the feasible ones; 1 when forced."""
    expected_gain: float | None
    """Expected P(correct | this arm) − P(correct | icl), per query; None when the policy makes no estimate."""
    expected_gain_low: float | None
    """Lower bound of it that the policy acted on."""
    expected_cost_s: float
    """Expected further seconds of this step."""
    reason: str
    """One sentence for people."""
    policy: str
    """Name and version of the policy."""
    details: Mapping[str, float] = field(default_factory=dict)
    weighed: bool = False
    """Whether the gain is what outcomes have taught to expect after this very probe; the guard then does not judge its
    evidence once more."""
    shadow: ArmName | None = None
    """An arm to try behind this answer, for the log alone."""
    shadow_propensity: float = 0.0
    """Probability with which one was drawn here."""


SIGNAL_PARTS = {
    "leave-one-out": frozenset({"loo_accuracy", "loo_logprob"}),
    "zero-shot": frozenset({"zero_shot_accuracy", "zero_shot_logprob"}),
    "consistency": frozenset({"agreement", "answer_entropy"}),
}
"""What the step `signals` consists of, where its parts were timed, and which signals each gives."""
MEASURED = frozenset().union(*SIGNAL_PARTS.values())
"""Signals that cost forward passes of their own, apart from the probe's."""


class Policy(Protocol):
    """The estimator seam: whatever decides."""

    @property
    def version(self) -> str: ...

    @property
    def reads(self) -> frozenset[str]:
        """Those of `MEASURED`, and `LOCATION`, that can change what it decides; others need not be paid for."""
        ...

    def decide(self, situation: Situation) -> Decision: ...
