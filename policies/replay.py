"""What a policy would have done on recorded tasks: every arm was run, so its choice has a known outcome.

A cascade has paid for ICL, or for a sample of it where that is enough and was timed, and for the signals it measured,
before it decides; a probe and an arm come on top. Staying after a sample pays for ICL as a whole besides, which is more
than the queries that were not asked yet. Training goes on from the probe, so what that has trained is paid for once; one without a probe begins by
it, as the guard asks for its evidence. An arm that is always taken pays for itself alone. The policy sees what
it would see in use: first what ICL gives by itself; then, unless it stays already, what costs forward passes;
then the probe, if it asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from policies.errors import PolicyError
from policies.outcomes import BY_PROBE, SAMPLE, ArmOutcome, TaskOutcome
from policies.types import LOCATION, MEASURED, SIGNAL_PARTS, ArmName, Costs, Decision, Policy, Situation

SIGNALS_STEP = "signals"
TRAIN_STEPS = ("search", "train")
FROM_ICL = frozenset({"query_logprob", "query_margin"})
"""Signals that in-context answers give by themselves."""
Asked = Literal["none", "sample", "all"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One task's decision and its outcome."""

    arm: ArmName
    probed: bool
    correct: float
    """Mean over the queries, 0 to 1."""
    seconds: float
    """Everything paid on the way."""
    decision: Decision
    """The last one."""


def situation_of(
    row: TaskOutcome,
    worth_s: float,
    *,
    asked: Asked = "all",
    measured: bool = True,
    probed: bool = False,
    repeats: float | None = None,
    arms: Sequence[ArmName] | None = None,
) -> Situation:
    """What a policy would have seen of the task.

    Args:
        asked: how many queries have been asked in context.
        measured: whether the signals that cost forward passes of their own have been measured.
        probed: whether the probe has been taken.
        repeats: further queries expected later; as many as were expected when None.
        arms: feasible ones; all that the row has when None.

    Raises:
        PolicyError: the row has no outcome of icl, from which a cascade starts.
    """
    if "icl" not in row.arms:
        raise PolicyError(
            f"The row of {row.family} (seed {row.seed}) has no outcome of icl; collect it with all arms."
        )
    signals = row.measured(probed=probed)
    if repeats is not None:
        signals = replace(signals, expected_repeats=repeats)
    if not measured:
        unmeasured: dict[str, Any] = dict.fromkeys(MEASURED if asked != "none" else MEASURED | FROM_ICL)
        signals = replace(signals, **unmeasured)
    feasible = ("icl", *(name for name in arms or row.arms if name in row.arms and name != "icl"))
    trained = {name: row.arms[name] for name in feasible if name.startswith("train:")}
    has_probe = row.probe is not None and row.measured(probed=True).probed
    probe_s = row.probe.seconds if row.probe is not None else 0.0
    rest_s = 0.0 if asked == "all" else row.arms["icl"].seconds
    costs = Costs(probe_s, 0.0, 0.0, rest_s=rest_s)
    if trained:
        (left_s, by_probe_s, answer_s), *_ = (_training_s(arm, has_probe) for arm in trained.values())
        others = {name: _training_s(arm, has_probe)[0] for name, arm in list(trained.items())[1:]}
        costs = Costs(probe_s, left_s, answer_s, by_probe_s, rest_s, others)
    return Situation(signals, costs, feasible, has_probe and not probed, worth_s)


def _training_s(arm: ArmOutcome, has_probe: bool) -> tuple[float, float, float]:
    """Seconds of an arm that trains: those left after a probe, those that the probe does, and of answering."""
    parts = [arm.seconds_parts[step] for step in TRAIN_STEPS if step in arm.seconds_parts]
    train_s = min(sum(parts), arm.seconds) if parts else arm.seconds
    by_probe_s = min(arm.seconds_parts.get(BY_PROBE, 0.0), train_s) if has_probe else 0.0
    return train_s - by_probe_s, by_probe_s, arm.seconds - train_s


def replay(
    policy: Policy,
    row: TaskOutcome,
    worth_s: float,
    *,
    repeats: float | None = None,
    arms: Sequence[ArmName] | None = None,
) -> Replayed:
    """The policy's way through one recorded task."""
    see = partial(situation_of, row, worth_s, repeats=repeats, arms=arms)
    asked: Asked = "all"
    sampled = "icl" in row.arms and SAMPLE in row.arms["icl"].seconds_parts
    if sampled and policy.decide(see(asked="none", measured=False)).arm != "icl":
        asked = "sample"
    decision = policy.decide(see(asked=asked, measured=False))
    in_context = row.arms["icl"]
    located_s = in_context.seconds_parts.get(LOCATION, 0.0) if LOCATION in policy.reads else 0.0
    seconds = in_context.seconds if asked == "all" else in_context.seconds_parts[SAMPLE]
    seconds += located_s
    stays = decision.arm == "icl" and decision.expected_gain is not None
    if policy.reads & MEASURED and not stays:
        seconds += signals_seconds(row, policy.reads)
        decision = policy.decide(see(asked=asked))
    probed = decision.step == "probe"
    if probed:
        assert row.probe is not None  # else the probe was not feasible
        seconds += row.probe.seconds
        decision = policy.decide(see(asked=asked, probed=True))
    arm = decision.arm
    if arm is None or arm not in row.arms:
        raise PolicyError(f"The policy took {arm!r}, which the row of {row.family} has no outcome of.")
    if arm == "icl":
        seconds += 0.0 if asked == "all" else in_context.seconds
    else:
        seconds += row.arms[arm].seconds + _for_probe(row, arm, probed)
    return Replayed(arm, probed, row.arms[arm].correct, seconds, decision)


def before_training_s(row: TaskOutcome) -> float:
    """Seconds of in-context learning that a cascade pays for before it trains: of the sample where one was timed."""
    in_context = row.arms["icl"]
    return in_context.seconds_parts.get(SAMPLE, in_context.seconds)


def _for_probe(row: TaskOutcome, arm: ArmName, probed: bool) -> float:
    """What an arm costs more, or less, beside a probe: less what that has trained, and the probe itself where the guard
    asks for it. Nothing where the row does not tell."""
    by_probe_s = row.arms[arm].seconds_parts.get(BY_PROBE)
    if by_probe_s is None or row.probe is None:
        return 0.0
    return -by_probe_s if probed else row.probe.seconds - by_probe_s


def signals_seconds(row: TaskOutcome, reads: frozenset[str]) -> float:
    """Seconds that measuring these signals took beyond ICL, from the parts of any arm's account."""

    def part(name: str) -> float | None:
        found = [arm.seconds_parts[name] for arm in row.arms.values() if name in arm.seconds_parts]
        return max(found, default=None)

    by_part = [part(name) for name, signals in SIGNAL_PARTS.items() if reads & signals]
    known = [seconds for seconds in by_part if seconds is not None]
    return sum(known) if len(known) == len(by_part) else part(SIGNALS_STEP) or 0.0
