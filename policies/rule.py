"""The first rule: probe where training could pay, train where the probe says that it does.

1. No arm but ICL, or too few demonstrations to hold any out: answer with ICL (or zero-shot).
2. Before the probe: if even an optimistic gain can't pay for probe, training and answer, answer at once.
3. After it: train if the lower bound of the gain pays for training and answer, and nothing shows harm.

A `reuse:` arm costs an answer only; it is taken where its own lower bound pays and training promises less.
Of several arms of a kind the first feasible one counts. Everything is monotone: more queries, or a larger
worth, never turns training into staying. Deterministic: every propensity is 1 and supports no counterfactual.
Knows nothing of how signals and costs were measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from policies.checks import beyond_staying, check_situation, content_hash, further_seconds, spent, stay_arm
from policies.errors import PolicyError
from policies.gain import Gain, GainModel
from policies.types import ArmName, Decision, Situation
from policies.utility import breakeven, expected_queries

MIN_DEMONSTRATIONS = 3
"""Cross-fitting trains on at least two and judges another."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Probe, then train by the lower bound of the gain."""

    gain: GainModel = field(default_factory=GainModel)
    tolerated_losses: int = 1
    """Net demonstrations that held-out accuracy may lose in a probe before it counts as harm: of ten, one
    flips by chance in most probes, and a probe that is too short moves the log-probability first. Of three none."""

    def __post_init__(self) -> None:
        losses = self.tolerated_losses
        if isinstance(losses, bool) or not isinstance(losses, int) or losses < 0:
            raise PolicyError(f"tolerated_losses is {losses!r}, but it must be a whole number of at least 0.")

    @property
    def version(self) -> str:
        """`rule-1-` and the start of the hash of all parameters."""
        return f"rule-1-{content_hash(asdict(self))[:12]}"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"loo_accuracy"})

    def decide(self, situation: Situation) -> Decision:
        """The next step.

        Raises:
            PolicyError: a signal, cost or worth that is not finite or out of range, or an incomplete probe.
        """
        check_situation(situation)
        signals, stay = situation.signals, stay_arm(situation)
        train, reuse = _first(situation, "train:"), _first(situation, "reuse:") or situation.ready
        if signals.n_demonstrations == 0:
            return self._stay(situation, f"There are no demonstrations to learn from: {stay} answers.")
        few = signals.n_demonstrations < MIN_DEMONSTRATIONS
        why_not = ""
        if train is None:
            why_not = "training is not feasible here"
        elif few:
            why_not = (
                f"{signals.n_demonstrations:g} demonstrations are too few to hold any out (at least "
                f"{MIN_DEMONSTRATIONS}), so nothing could tell whether training helps"
            )
        elif not signals.probed and situation.probe_feasible:
            if self._worth_probing(situation, reuse):
                return self._probe(situation)
            why_not = self._too_dear(situation)
        else:
            why_not = self._harm(situation)

        choices: list[tuple[float, ArmName, Gain]] = []
        if reuse is not None:
            choices.append(
                self._choice(situation, reuse, self.gain.estimate_reuse(signals, situation.checked))
            )
        if train is not None and not why_not:
            choices.append(self._choice(situation, train, self.gain.estimate(signals)))
        if not choices and (train is None or few):
            return self._stay(situation, f"{_sentence(why_not)}: {stay} answers.")
        if not choices:
            return self._stay(
                situation, f"{_sentence(why_not)}: {stay} answers.", self.gain.estimate(signals), train
            )
        net_s, arm, gain = max(choices, key=lambda choice: choice[0])
        account = self._account(situation, arm, gain)
        if net_s > 0:
            return self._take(situation, arm, gain, account)
        also = f" {_sentence(why_not)}." if why_not else ""
        return self._stay(situation, f"{account} That does not pay: {stay} answers.{also}", gain, arm)

    def _choice(self, situation: Situation, arm: ArmName, gain: Gain) -> tuple[float, ArmName, Gain]:
        """What `arm` surely brings, in seconds: lower bound × queries × worth − seconds."""
        value_s = gain.low * expected_queries(situation) * situation.worth_s
        return value_s - beyond_staying(situation, further_seconds(situation, arm)), arm, gain

    def _worth_probing(self, situation: Situation, reuse: ArmName | None) -> bool:
        """Could training, at best, win more than all that it costs, and more than reuse surely does?"""
        costs, signals = situation.costs, situation.signals
        best = self.gain.estimate(signals).optimistic
        sure_s = 0.0
        if reuse is not None:
            sure_s = max(
                0.0,
                self._choice(situation, reuse, self.gain.estimate_reuse(signals, situation.checked))[0],
            )
        best_s = best * expected_queries(situation) * situation.worth_s
        return (
            best_s - beyond_staying(situation, costs.probe_s + _left_s(situation) + costs.answer_s) > sure_s
        )

    def _too_dear(self, situation: Situation) -> str:
        costs, n = situation.costs, expected_queries(situation)
        seconds = costs.probe_s + _left_s(situation) + costs.answer_s
        best = self.gain.estimate(situation.signals).optimistic
        return (
            f"training could add at best {best:.2f} correct answers per query over {_queries(n)}; "
            f"probe, training and answer cost {spent(situation, seconds)}, worth {situation.worth_s:g} s per correct "
            f"answer: break-even {breakeven(situation, seconds):.3g}"
        )

    def _harm(self, situation: Situation) -> str:
        """What the probe shows against training, or nothing."""
        signals = situation.signals
        if not signals.probed:
            return ""
        self.gain.estimate(signals)  # names what an incomplete probe lacks
        before, after = signals.probe_accuracy_before, signals.probe_accuracy_after
        relative = signals.probe_relative_gain
        assert before is not None and after is not None and relative is not None
        if relative <= 0:
            return (
                "the probe did not improve the held-out log-probability "
                f"({signals.probe_logprob_before:.3g} to {signals.probe_logprob_after:.3g} nats per token)"
            )
        tolerated = self.tolerated_losses if signals.n_demonstrations > MIN_DEMONSTRATIONS else 0
        if round((before - after) * signals.n_demonstrations, 6) > tolerated:
            return f"under the probe held-out accuracy fell from {before:.0%} to {after:.0%}"
        return ""

    def _account(self, situation: Situation, arm: ArmName, gain: Gain) -> str:
        seconds, n = further_seconds(situation, arm), expected_queries(situation)
        what = "training" if arm.startswith("train:") else f"the checked adapter {arm.removeprefix('reuse:')}"
        if arm == situation.ready:
            what = "the adapter of a shorter training"
        if what == "training" and not situation.signals.probed:
            what = "training, judged without a probe,"
        return (
            f"{_sentence(what)} is expected to add {gain.expected:.2f} (at least {gain.low:.2f}) correct "
            f"answers per query over {_queries(n)}; it costs {spent(situation, seconds)}, worth {situation.worth_s:g} s "
            f"per correct answer: break-even {breakeven(situation, seconds):.3g}."
        )

    def _probe(self, situation: Situation) -> Decision:
        gain, n = self.gain.estimate(situation.signals), expected_queries(situation)
        reason = (
            f"Training could add up to {gain.optimistic:.2f} correct answers per query over {_queries(n)}; "
            f"a probe of {situation.costs.probe_s:.3g} s tells whether it does."
        )
        seconds = situation.costs.probe_s
        details = _details(situation, gain, seconds + _left_s(situation) + situation.costs.answer_s)
        return Decision("probe", None, 1.0, None, None, seconds, reason, self.version, details)

    def _take(self, situation: Situation, arm: ArmName, gain: Gain, reason: str) -> Decision:
        seconds = further_seconds(situation, arm)
        details = _details(situation, gain, seconds)
        return Decision("answer", arm, 1.0, gain.expected, gain.low, seconds, reason, self.version, details)

    def _stay(
        self,
        situation: Situation,
        reason: str,
        declined: Gain | None = None,
        declined_arm: ArmName | None = None,
    ) -> Decision:
        """Answer with ICL; its gain over itself is 0. Of zero-shot this rule makes no estimate."""
        arm = stay_arm(situation)
        zero = 0.0 if arm == "icl" else None
        details: dict[str, float] = {}
        if declined is not None and declined_arm is not None:
            details = _details(situation, declined, further_seconds(situation, declined_arm))
        rest_s = situation.costs.rest_s
        return Decision("answer", arm, 1.0, zero, zero, rest_s, reason, self.version, details)


def _first(situation: Situation, prefix: str) -> ArmName | None:
    arms = (arm for arm in situation.feasible if arm.startswith(prefix) and arm != situation.ready)
    return next(arms, None)


def _left_s(situation: Situation) -> float:
    """Of the training that counts here, after its probe."""
    return situation.costs.left_s(_first(situation, "train:") or "")


def _details(situation: Situation, gain: Gain, seconds: float) -> dict[str, float]:
    """The estimate behind the decision; gains are P(correct) per query."""
    return {
        "headroom": gain.headroom,
        "gain_expected": gain.expected,
        "gain_low": gain.low,
        "gain_optimistic": gain.optimistic,
        "gain_breakeven": breakeven(situation, seconds),
        "n_expected": expected_queries(situation),
        "worth_s": situation.worth_s,
        "cost_s": seconds,
    }


def _queries(n: float) -> str:
    return f"{n:g} query" if n == 1 else f"{n:g} queries"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
