"""Checks that every policy shares, and the hash that names a set of parameters.

Reason: a NaN compares false with everything, so an unchecked one would silently mean "stay". Here it is
an error that names the value. Knows nothing of what the values mean beyond their range.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import fields

from policies.errors import PolicyError
from policies.types import ArmName, Decision, Situation

WORTH_MAX_S = 1e6
"""Largest accepted worth, seconds per additional correct answer (eleven days)."""

_SHARES = frozenset(
    {"agreement", "loo_accuracy", "zero_shot_accuracy", "probe_accuracy_before", "probe_accuracy_after"}
)
"""Signals that are shares, 0 to 1."""
_COUNTS = frozenset(
    {
        "n_demonstrations",
        "n_queries",
        "expected_repeats",
        "prompt_tokens",
        "answer_tokens",
        "label_set_size",
        "train_steps",
    }
)
"""Signals that are counts, or means of counts."""


def check_finite(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float in [low, high].

    Raises:
        PolicyError: not a number, not finite, or out of range; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{name} is {value!r}, but it must be a number.")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise PolicyError(
            f"{name} is {value}, but it must be a finite number; use None for what was not measured."
        )
    if not low <= value <= high:
        within = f"be {low:g} or more" if math.isinf(high) else f"lie between {low:g} and {high:g}"
        raise PolicyError(f"{name} is {value:g}, but it must {within}.")
    return float(value)


def check_signal(name: str, value: float, where: str) -> float:
    """The figure of a signal as a float.

    Raises:
        PolicyError: not finite, or out of its range; the message begins with `where`.
    """
    low = 0.0 if name in _SHARES or name in _COUNTS else -math.inf
    return check_finite(where, value, low, 1.0 if name in _SHARES else math.inf)


def check_situation(situation: Situation) -> None:
    """Raise PolicyError, naming the value, for anything that no decision can be made from."""
    signals = situation.signals
    for name, value in signals.as_dict().items():
        if value is not None:
            check_signal(name, value, f"Signal {name}")
    for value in signals.location.point if signals.location is not None else ():
        check_finite("Signal location", value, -1.0, 1.0)
    for field in fields(situation.costs):
        if field.name != "others":
            check_finite(f"Cost {field.name}", getattr(situation.costs, field.name), 0.0)
    for arm, seconds in situation.costs.others.items():
        check_finite(f"Cost of {arm}", seconds, 0.0)
    check_finite("worth_s", situation.worth_s, math.ulp(0.0), WORTH_MAX_S)
    stay_arm(situation)


def stay_arm(situation: Situation) -> ArmName:
    """The arm to fall back to: `icl`, or `zero-shot` where `icl` is not feasible.

    Raises:
        PolicyError: neither is feasible.
    """
    for arm in ("icl", "zero-shot"):
        if arm in situation.feasible:
            return arm
    raise PolicyError(
        f"The feasible arms are {list(situation.feasible)}; icl or zero-shot must be among them."
    )


def further_seconds(situation: Situation, arm: ArmName) -> float:
    """Expected seconds still to be paid for `arm`; what ICL has answered costs no more. A training that no probe
    came before begins by one: the guard judges it by that."""
    costs = situation.costs
    if arm == stay_arm(situation):
        return costs.rest_s
    if not arm.startswith("train:") or arm == situation.ready:
        return costs.answer_s
    probe_s = costs.probe_s if situation.probe_feasible and not situation.signals.probed else 0.0
    return probe_s + costs.left_s(arm) + costs.answer_s


def beyond_staying(situation: Situation, seconds: float) -> float:
    """How many of an arm's `seconds` staying would save, at least 0."""
    return max(0.0, seconds - situation.costs.rest_s)


def spent(situation: Situation, seconds: float) -> str:
    """An arm's seconds, for people; beside them what staying still takes."""
    rest_s = situation.costs.rest_s
    return f"{seconds:.3g} s" + (f" (in context {rest_s:.3g} s)" if rest_s else "")


def answer(situation: Situation, arm: ArmName, reason: str, policy: str, propensity: float = 1.0) -> Decision:
    """Answer with `arm`, for a policy that makes no estimate of the gain."""
    return Decision("answer", arm, propensity, None, None, further_seconds(situation, arm), reason, policy)


def content_hash(value: object) -> str:
    """SHA-256 (64 hex digits) of `value` as canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
