"""The learned policy: the step whose utility is highest by a lower bound of the learned gain.

With V = expected queries × worth (seconds), and for each arm a gain g with its lower bound g₋ and cost c, beyond that of the
queries that staying would still ask in context:

    stay              0
    an arm now        g₋ · V − c − cost of the probe, by which its training begins: where this is best the probe is next,
                      and what it tells may still end the training
    probe, then       E[max(0, (m − margin) · V − c)] − cost of the probe,     m ~ Normal(g, τ²)

g₋ bounds what tasks like this one gain on average, not what this one will. In g is what its family is remembered for
(`recall.py`), if its location tells one.
m is what the gain will look like after the probe: today's expectation, moved by as much as the probe can
tell (τ² = variance now − variance after it). As a step of its own a probe counts only where it can change the decision
and is worth its cost; every training begins by one. More queries, or a larger worth, never turn another step into staying.

The built-in rule stands in for what was not fitted (an arm without outcomes, an adapter to reuse); the
reason says so. Deterministic: exploration is `explore.py`. Knows nothing of how signals were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from scipy.special import ndtr, stdtrit

from policies.checks import (
    beyond_staying,
    check_finite,
    check_situation,
    content_hash,
    further_seconds,
    spent,
    stay_arm,
)
from policies.errors import PolicyError
from policies.estimator import MIN_FAMILIES, UNKNOWN_MODEL_SPREAD, ArmModel, Estimate, arm_as_json, fit_arms
from policies.features import Stage
from policies.outcomes import TaskOutcome, hash_rows
from policies.rule import Rule
from policies.types import LOCATION, ArmName, Decision, Situation
from policies.utility import breakeven, expected_queries

DEFAULT_CONFIDENCE = 0.69
"""One-sided confidence of the bound that is acted on: half a standard error, as in the rule after a probe."""
FEWEST_DEMONSTRATIONS = 4
"""With fewer the built-in rule decides: outcomes are of tasks with more, and three held-out demonstrations are a hint. Of nine
families with three, six gained by training and one lost 25 points, which its probe had shown (docs/results.md)."""
EXPLORED_SDS = 1.0
"""Standard deviations above the expected gain at which a task that stays still counts as near the threshold."""
REUSE = "reuse:"
BY_RULE = "by_rule"
"""In a decision's details: the built-in rule has made it, so that no promise of the learned policy is in it."""
REMEMBERED = 0.01
"""Gain that a family adds, from which on the reason names it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a policy was fitted on."""

    rows_sha256: str
    n_rows: int
    families: tuple[str, ...]
    collections: tuple[str, ...]
    base_models: tuple[str, ...]
    """Those of which enough families were seen to be known."""
    base_model: str | None = None
    """Whose rows counted more than others'."""


@dataclass(frozen=True)
class Learned:
    """Decides by fitted gains. Make it with `fit`; `persist.py` writes and reads it.

    Raises:
        PolicyError: a confidence outside 0.5 to 0.999, or no arm.
    """

    arms: Mapping[ArmName, ArmModel]
    provenance: Provenance
    confidence: float = DEFAULT_CONFIDENCE
    rule: Rule = field(default_factory=Rule)
    base_model_known: bool = True
    """False widens every spread; see `for_model`."""
    names: frozenset[str] = field(default=frozenset(), compare=False)
    """What the base model at hand goes by; empty is any."""

    def __post_init__(self) -> None:
        check_finite("confidence", self.confidence, 0.5, 0.999)
        if not self.arms:
            raise PolicyError("The policy has no fitted arm; fit it on rows that compare an arm with icl.")

    @cached_property
    def version(self) -> str:
        """`learned-1-` and the start of the hash of all that decides."""
        body = {
            "arms": {name: arm_as_json(model) for name, model in self.arms.items()},
            "rows": self.provenance.rows_sha256,
            "confidence": self.confidence,
            "rule": self.rule.version,
        }
        return f"learned-1-{content_hash(body)[:12]}"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({LOCATION}) if self._remembers else frozenset()

    @cached_property
    def _remembers(self) -> bool:
        """Whether it knows families of this base model by where their tasks lie."""
        stages = [stage for arm in self.arms.values() for stage in arm.stages.values()]
        spaces = {stage.memory.space for stage in stages if stage.memory is not None}
        at_hand = [space for space in spaces if not self.names or self.names & set(space.split())]
        return self.base_model_known and bool(at_hand)

    def for_model(self, *names: str) -> Learned:
        """The policy for a base model that goes by these names (name, revision): on one that too few
        families are known of (`Provenance.base_models`), every spread is doubled."""
        known = bool(set(names) & set(self.provenance.base_models))
        if (known, frozenset(names)) == (self.base_model_known, self.names):
            return self
        return replace(self, base_model_known=known, names=frozenset(names))

    def estimate(self, arm: ArmName, situation: Situation) -> tuple[Estimate, Stage, list[str]]:
        """The gain of a fitted arm here, the stage that it rests on, and what was absent."""
        return self.arms[arm].estimate(situation.signals, self._spread)

    @property
    def _spread(self) -> float:
        return 1.0 if self.base_model_known else UNKNOWN_MODEL_SPREAD

    def decide(self, situation: Situation) -> Decision:
        """The next step.

        Raises:
            PolicyError: a signal, cost or worth that is not finite or out of range.
        """
        check_situation(situation)
        signals, stay = situation.signals, stay_arm(situation)
        arms = [arm for arm in situation.feasible if arm in self.arms and arm != stay]
        trainable = [arm for arm in situation.feasible if arm.startswith("train:")]
        unfitted = bool(trainable) and not set(trainable) & set(arms)
        if stay != "icl" or signals.n_demonstrations < FEWEST_DEMONSTRATIONS or unfitted:
            return self._by_rule(situation, trainable if unfitted else ())
        options = [self._now(situation, arm) for arm in arms]
        options += [self._reuse(situation, arm) for arm in situation.feasible if arm.startswith(REUSE)]
        if situation.probe_feasible and not signals.probed:
            options += [
                o
                for arm in trainable
                if arm in self.arms
                and arm != situation.ready
                and (o := self._probe(situation, arm)) is not None
            ]
        if not options:
            reason = f"No other arm is feasible: {stay} answers."
            rest_s = situation.costs.rest_s
            return Decision("answer", stay, 1.0, 0.0, 0.0, rest_s, reason, self.version)
        best = max(options, key=lambda option: option.net_s)
        return self._stay(situation, best, options) if best.net_s <= 0 else self._take(situation, best)

    def _now(self, situation: Situation, arm: ArmName) -> _Option:
        estimate, stage, lacking = self.estimate(arm, situation)
        low = max(-1.0, estimate.low(self.confidence))
        seconds = further_seconds(situation, arm)
        net = low * _value(situation) - beyond_staying(situation, seconds)
        return _Option(
            "answer",
            arm,
            net,
            estimate.expected,
            low,
            seconds,
            stage,
            tuple(lacking),
            estimate.sd,
            estimate.remembered,
        )

    def _reuse(self, situation: Situation, arm: ArmName) -> _Option:
        gain, seconds = (
            self.rule.gain.estimate_reuse(situation.signals, situation.checked),
            further_seconds(situation, arm),
        )
        net = gain.low * _value(situation) - beyond_staying(situation, seconds)
        return _Option("answer", arm, net, gain.expected, gain.low, seconds, None, (), 0.0)

    def _probe(self, situation: Situation, arm: ArmName) -> _Option | None:
        """What looking first is worth; None where no probe was ever fitted."""
        model = self.arms[arm]
        after = model.after_probe(situation.signals, self._spread)
        if after is None:
            return None
        now, stage, lacking = self.estimate(arm, situation)
        sd, unsure = after
        told = math.sqrt(max(0.0, now.sd**2 - sd**2))
        margin = float(stdtrit(model.stages["probe"].df, self.confidence)) * unsure
        value, cost = _value(situation), situation.costs.left_s(arm) + situation.costs.answer_s
        paid = beyond_staying(situation, cost)
        net = _mean_above_zero((now.expected - margin) * value - paid, told * value) - situation.costs.probe_s
        low = max(-1.0, now.low(self.confidence))
        return _Option(
            "probe",
            arm,
            net,
            now.expected,
            low,
            situation.costs.probe_s + cost,
            stage,
            tuple(lacking),
            now.sd,
            now.remembered,
        )

    def _take(self, situation: Situation, best: _Option) -> Decision:
        details = _details(situation, best)
        looks = situation.probe_feasible and not situation.signals.probed and best.arm in self.arms
        looks = looks and best.arm != situation.ready
        if best.step == "probe" or (looks and "probe" in self.arms[best.arm].stages):
            why = (
                "can change the decision and is worth its cost"
                if best.step == "probe"
                else "is how training begins"
            )
            reason = f"{self._account(situation, best)} A probe of {situation.costs.probe_s:.3g} s {why}."
            seconds = situation.costs.probe_s
            return Decision("probe", None, 1.0, None, None, seconds, reason, self.version, details)
        reason = self._account(situation, best)
        weighed = best.stage == "probe" and self.base_model_known
        return Decision(
            "answer",
            best.arm,
            1.0,
            best.expected,
            best.low,
            best.seconds,
            reason,
            self.version,
            details,
            weighed,
        )

    def _stay(self, situation: Situation, best: _Option, options: Sequence[_Option]) -> Decision:
        """Answer with icl. How much training might gain at the upper end is told, too, whatever was the best option."""
        reason = f"{self._account(situation, best)} That does not pay: icl answers."
        details = _details(situation, best)
        arm = next((name for name in situation.feasible if name.startswith("train:")), None)
        trained = next((option for option in options if option.arm == arm), None)
        if trained is not None:
            details["gain_high"] = trained.expected + EXPLORED_SDS * trained.sd
        rest_s = situation.costs.rest_s
        return Decision("answer", "icl", 1.0, 0.0, 0.0, rest_s, reason, self.version, details)

    def _account(self, situation: Situation, best: _Option) -> str:
        n = expected_queries(situation)
        queries = f"{n:g} query" if n == 1 else f"{n:g} queries"
        text = (
            f"{best.arm} is expected to add {best.expected:.2f} (at least {best.low:.2f}, "
            f"{self.confidence:.0%} sure) correct answers per query over {queries}, learned from "
            f"{len(self.provenance.families)} families; it costs {spent(situation, best.seconds)}, worth "
            f"{situation.worth_s:g} s per correct answer: break-even {breakeven(situation, best.seconds):.3g}."
        )
        if best.stage is None:
            text = text.replace(
                f", learned from {len(self.provenance.families)} families", ", by the built-in rule"
            )
            text = text.replace(f", {self.confidence:.0%} sure", "")
        if abs(best.remembered) >= REMEMBERED:
            text += f" Of that gain {best.remembered:+.2f} is what tasks that lie here gained beyond their signals."
        if best.lacking:
            text += f" Not measured, so the usual value stands for it: {', '.join(best.lacking)}."
        if not self.base_model_known:
            text += (
                f" No or too few outcomes are of this base model (they are of {', '.join(self.provenance.base_models) or 'of several'}), so "
                "the estimate counts for less: its spread is doubled."
            )
        return text

    def _by_rule(self, situation: Situation, unfitted: Sequence[ArmName]) -> Decision:
        """The built-in rule decides where nothing was learned."""
        decision = self.rule.decide(situation)
        why = (
            f" No outcomes of {unfitted[0]} were learned from, so the built-in rule decides."
            if unfitted
            else ""
        )
        details = {**decision.details, BY_RULE: 1.0}
        return replace(decision, reason=decision.reason + why, policy=self.version, details=details)


@dataclass(frozen=True, slots=True)
class _Option:
    step: str
    arm: ArmName
    net_s: float
    """Utility over staying, in seconds."""
    expected: float
    low: float
    seconds: float
    """All that would still be paid if the arm is taken in the end."""
    stage: Stage | None
    lacking: tuple[str, ...]
    sd: float
    remembered: float = 0.0
    """How much of `expected` its family's past gains have added."""


def fit(
    rows: Sequence[TaskOutcome],
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    base_model: str | None = None,
    seed: int = 0,
) -> tuple[Learned, list[str]]:
    """A policy from outcome rows, and notes on what was left out.

    Args:
        confidence: one-sided, of the bound that it acts on.
        base_model: revision; rows of it count more than others'.
        seed: of the cross-fitting.

    Raises:
        PolicyError: too few families, one kind of outcome only, or no row that compares an arm with icl.
    """
    arms, notes = fit_arms(rows, base_model, seed)
    families: dict[str, set[str]] = {}
    for row in rows:
        if arms.keys() & row.arms.keys():
            families.setdefault(row.model, set()).add(row.family)
    provenance = Provenance(
        hash_rows(rows),
        len(rows),
        tuple(sorted({row.family for row in rows})),
        tuple(sorted({row.collection for row in rows})),
        tuple(sorted(model for model, seen in families.items() if len(seen) >= MIN_FAMILIES)),
        base_model,
    )
    notes += [
        f"Known of the base model {model}: {len(seen)} of the {MIN_FAMILIES} families that it takes to count as known."
        for model, seen in sorted(families.items())
        if len(seen) < MIN_FAMILIES
    ]
    if base_model is not None and base_model not in families:
        notes.append(
            f"No row is of the base model {base_model!r}, so all weigh the same; rows name its revision, and these are of "
            f"{', '.join(sorted(families))}."
        )
    return Learned(arms, provenance, confidence), notes


def _mean_above_zero(mean: float, sd: float) -> float:
    """E[max(0, x)] for x ~ Normal(mean, sd²)."""
    if sd == 0.0:
        return max(0.0, mean)
    k = mean / sd
    return mean * float(ndtr(k)) + sd * math.exp(-0.5 * k * k) / math.sqrt(2.0 * math.pi)


def _value(situation: Situation) -> float:
    """Seconds that a gain of 1 in P(correct) is worth here."""
    return expected_queries(situation) * situation.worth_s


def _details(situation: Situation, best: _Option) -> dict[str, float]:
    """The estimate behind the decision; gains are P(correct) per query."""
    return {
        "gain_expected": best.expected,
        "gain_low": best.low,
        "gain_sd": best.sd,
        "gain_remembered": best.remembered,
        "gain_breakeven": breakeven(situation, best.seconds),
        "net_s": best.net_s,
        "n_expected": expected_queries(situation),
        "worth_s": situation.worth_s,
        "cost_s": best.seconds,
    }
