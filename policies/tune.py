"""Choose how eager a policy is from recorded tasks: for an accuracy, a budget, or a bound on harm.

Two knobs, both settings: `worth_s` (seconds that one more correct answer is worth: an accuracy or a budget
moves it) and `confidence` (of the bound that the policy acts on: harm moves it).

With a guarantee, learn-then-test (Angelopoulos et al. 2021) over a fixed sequence of settings, from the most
careful on; testing stops at the first that fails, so that no correction is needed:

- accuracy ≥ A: Hoeffding–Bentkus p-value of the mean loss over families, each loss in [0, 1];
- P(harm | trained) ≤ α: exact binomial p-value over the families that a setting trains.

A guarantee holds with probability 1 − δ for further families like these, so only families count that the
policy was not fitted on. Harm is measured on finitely many queries: a family that truly loses nothing may be
seen to lose, so the bound errs on the careful side. A budget has no such guarantee (seconds have no
largest value); it is held by the bootstrap's upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import betainc

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.evaluation import cross_fitted
from policies.families import FamilyBootstrap
from policies.harm import TOLERATED
from policies.learned import DEFAULT_CONFIDENCE, Learned
from policies.outcomes import TaskOutcome
from policies.rule import Rule
from policies.ways import Way, all_ways, common_arms, comparable, fixed, n_queries, replayed

WORTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1000.0, 3000.0)
"""Seconds per correct answer that are tried."""
CONFIDENCES = (0.999, 0.995, 0.99, 0.975, 0.95, 0.9, 0.8, 0.69, 0.6, 0.5)
"""Tried from the most careful on."""
MIN_FAMILIES = 8
MOST_FAMILIES = 1_000_000
"""A number of families beyond this is told as none."""
Goal = Literal["accuracy", "budget", "harm"]
Tunable = Rule | Learned


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the picture: a setting and what it did. Intervals are 95 %, over families."""

    worth_s: float
    confidence: float
    accuracy: tuple[float, float, float]
    """Mean, low, high; 0 to 1."""
    seconds: tuple[float, float, float]
    """Per task."""
    utility: float
    """Correct answers per task at the setting's own worth."""
    n_trained: int
    """Families in which any task was trained."""
    n_harmed: int
    """Of those, seen to lose more than the harm asked about."""
    p_value: float | None
    """Of the guarantee's test; None where none was asked for."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The chosen setting, or why there is none; and all that the picture shows."""

    chosen: Setting | None
    sentence: str
    settings: tuple[Setting, ...]
    baselines: dict[str, dict[str, Any]]
    """By name: accuracy and seconds, each (mean, low, high)."""
    n_families: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aim:
    """What is asked for.

    Raises:
        PolicyError: a figure out of its range.
    """

    goal: Goal
    value: float
    """Accuracy 0 to 1; seconds per task; or points (0 to 100) that count as harm."""
    alpha: float = 0.1
    """Of harm: the share of trained families that may be harmed."""
    delta: float | None = None
    """The guarantee may fail with this probability; None asks for none. Harm always has one (0.1)."""

    def __post_init__(self) -> None:
        low, high = {"accuracy": (0.0, 1.0), "budget": (0.0, math.inf), "harm": (0.0, 100.0)}[self.goal]
        name = {"accuracy": "The target accuracy", "budget": "The budget", "harm": "The harm"}[self.goal]
        check_finite(name, self.value, low, high)
        check_finite("alpha", self.alpha, 1e-3, 0.999)
        if self.delta is not None:
            check_finite("delta", self.delta, 1e-6, 0.5)

    @property
    def miss(self) -> float | None:
        return 0.1 if self.goal == "harm" and self.delta is None else self.delta


def with_confidence(policy: Tunable, confidence: float) -> Tunable:
    """The policy, acting on a bound of this one-sided confidence."""
    check_finite("confidence", confidence, 0.5, 0.999)
    if isinstance(policy, Learned):
        return replace(policy, confidence=confidence)
    from scipy.special import ndtri

    z = float(ndtri(confidence))
    return replace(policy, gain=replace(policy.gain, prior_z=z, probe_z=z))


def tune(
    policy: Tunable,
    rows: Sequence[TaskOutcome],
    aim: Aim,
    *,
    worth_s: float = 30.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Tuned:
    """Try every setting on the rows and choose.

    Args:
        policy: the one in force.
        worth_s: where harm is bounded, the worth that stays; and of the baselines.

    Raises:
        PolicyError: fewer than eight families, or rows without icl or an arm of training.
    """
    usable = comparable(rows)
    notes: list[str] = []
    deciders: list[Tunable]
    if isinstance(policy, Learned) and {row.family for row in usable} & set(policy.provenance.families):
        fresh = [row for row in usable if row.family not in policy.provenance.families]
        if aim.miss is not None:
            notes.append(
                f"{len({r.family for r in usable}) - len({r.family for r in fresh})} families are left out: the policy "
                "was fitted on them, so they can't guarantee anything."
            )
            usable, deciders = fresh, [policy] * len(fresh)
        else:
            notes.append(
                "The policy was fitted on some of these families: each is judged by a refit without it."
            )
            deciders = list(
                cross_fitted(
                    usable,
                    confidence=policy.confidence,
                    base_model=policy.provenance.base_model,
                    seed=seed,
                    progress=progress,
                )
            )
    else:
        deciders = [policy] * len(usable)
    n = len({row.family for row in usable})
    if n < MIN_FAMILIES:
        raise PolicyError(
            f"There are {n} families to tune on that the policy was not fitted on; at least {MIN_FAMILIES} are needed, "
            f"so {MIN_FAMILIES - n} more."
        )
    arms, families = common_arms(usable), FamilyBootstrap([row.family for row in usable], seed)
    settings: list[Setting] = []
    grid = (
        [(worth_s, c) for c in CONFIDENCES]
        if aim.goal == "harm"
        else [(w, _confidence(policy)) for w in (WORTHS if aim.goal == "budget" else WORTHS[::-1])]
    )
    for w, c in grid:
        eager = [with_confidence(d, c) if aim.goal == "harm" else d for d in deciders]
        way = replayed(usable, eager, arms.offered, w)
        settings.append(_setting(way, usable, families, aim, w, c))
    ways: dict[str, Way] = all_ways(usable, deciders, arms, worth_s, seed)
    baselines = {
        name: {
            "accuracy": families.interval(way.correct),
            "seconds": families.interval(way.seconds),
        }
        for name, way in ways.items()
        if name not in ("learned", "rule")
    }
    chosen, sentence = _choose(settings, aim, n)
    return Tuned(chosen, sentence, tuple(settings), baselines, n, tuple(notes))


def _confidence(policy: Tunable) -> float:
    return policy.confidence if isinstance(policy, Learned) else DEFAULT_CONFIDENCE


def _setting(
    way: Way,
    rows: Sequence[TaskOutcome],
    families: FamilyBootstrap,
    aim: Aim,
    worth_s: float,
    confidence: float,
) -> Setting:
    correct = families.by_family(way.correct)
    icl = families.by_family(fixed(rows, "icl").correct)
    trained = families.by_family(way.trained) > 0
    harm = aim.value / 100 if aim.goal == "harm" else TOLERATED
    harmed = trained & (correct - icl < -harm - 1e-12)
    p_value = None
    if aim.miss is not None and aim.goal == "accuracy":
        p_value = hoeffding_bentkus(float(1.0 - correct.mean()), families.n, 1.0 - aim.value)
    elif aim.miss is not None and aim.goal == "harm":
        p_value = binomial_tail(int(harmed.sum()), int(trained.sum()), aim.alpha)
    return Setting(
        worth_s,
        confidence,
        families.interval(way.correct),
        families.interval(way.seconds),
        families.mean(way.utility(n_queries(rows), worth_s)),
        int(trained.sum()),
        int(harmed.sum()),
        p_value,
    )


def _choose(settings: Sequence[Setting], aim: Aim, n: int) -> tuple[Setting | None, str]:
    if aim.goal == "accuracy":
        return _for_accuracy(settings, aim, n)
    return _for_budget(settings, aim, n) if aim.goal == "budget" else _for_harm(settings, aim, n)


def _for_accuracy(settings: Sequence[Setting], aim: Aim, n: int) -> tuple[Setting | None, str]:
    """Settings come from the dearest on; the cheapest that meets the target."""
    target = f"an accuracy of {aim.value:.0%}"
    best = max(settings, key=lambda s: s.accuracy[0])
    if aim.miss is None:
        met = [s for s in settings if s.accuracy[0] >= aim.value]
        if not met:
            reached = f"the best setting reached {best.accuracy[0]:.0%}"
            seen = f"{reached} (95 % interval {best.accuracy[1]:.0%} to {best.accuracy[2]:.0%})"
            return None, _not_met(f"{target[0].upper()}{target[1:]}", seen, best.accuracy, aim.value, n)
        chosen = min(met, key=lambda s: s.seconds[0])
        return chosen, f"{target[0].upper()}{target[1:]} was met on {n} families; no guarantee was asked for."
    passed = fixed_sequence(settings, aim.miss)
    if passed:
        chosen = min(passed, key=lambda s: s.seconds[0])
        return chosen, (
            f"{target[0].upper()}{target[1:]} on families like these {n} is guaranteed with {1 - aim.miss:.0%} confidence."
        )
    loss, allowed = 1.0 - best.accuracy[0], 1.0 - aim.value
    more = (
        _families_needed(lambda m: hoeffding_bentkus(loss, m, allowed), aim.miss, n)
        if loss < allowed
        else None
    )
    return None, _cannot(target, n, more, f"the best setting reached {best.accuracy[0]:.0%}")


def _for_budget(settings: Sequence[Setting], aim: Aim, n: int) -> tuple[Setting | None, str]:
    """The most accurate setting within the budget; with a guarantee its interval's upper end must be within."""
    end = 0 if aim.miss is None else 2
    within = [s for s in settings if s.seconds[end] <= aim.value]
    least = min(settings, key=lambda s: s.seconds[end])
    if not within:
        what = "its upper bound" if end else "on average"
        seen = f"the cheapest setting takes {least.seconds[end]:.3g} s ({what})"
        return None, _not_met(f"A budget of {aim.value:g} s per task", seen, least.seconds, aim.value, n)
    chosen = max(within, key=lambda s: (s.accuracy[0], -s.seconds[0]))
    how = "with the interval's upper end" if end else "on average"
    return chosen, f"A budget of {aim.value:g} s per task was kept {how}, on {n} families."


def _for_harm(settings: Sequence[Setting], aim: Aim, n: int) -> tuple[Setting | None, str]:
    """Settings come from the most careful on; the one of highest utility that passed."""
    assert aim.miss is not None
    target = f"harm of more than {aim.value:g} points in at most {aim.alpha:.0%} of the trained families"
    least = math.ceil(math.log(aim.miss) / math.log(1.0 - aim.alpha))
    # Which settings train enough families to be tested is known without their outcomes.
    testable = [s for s in settings if s.n_trained >= least]
    passed = fixed_sequence(testable, aim.miss)
    if passed:
        chosen = max(passed, key=lambda s: s.utility)
        return chosen, (
            f"{target[0].upper()}{target[1:]} is guaranteed with {1 - aim.miss:.0%} confidence: {chosen.n_harmed} of "
            f"{chosen.n_trained} were seen to be harmed."
        )
    tried = testable[0] if testable else max(settings, key=lambda s: s.n_trained)
    share = tried.n_harmed / max(tried.n_trained, 1)
    more = None
    if share < aim.alpha and tried.n_trained:
        needed = _families_needed(
            lambda m: binomial_tail(math.ceil(share * m), m, aim.alpha), aim.miss, max(tried.n_trained, least)
        )
        more = None if needed is None else math.ceil(needed * n / tried.n_trained)
    return None, _cannot(
        target, n, more, f"{tried.n_harmed} of {tried.n_trained} trained ones were seen to be harmed"
    )


def fixed_sequence(settings: Sequence[Setting], miss: float) -> list[Setting]:
    """Fixed-sequence testing: all settings before the first that fails."""
    passed = []
    for setting in settings:
        if setting.p_value is None or setting.p_value > miss:
            break
        passed.append(setting)
    return passed


def _cannot(target: str, n: int, would_do: int | None, seen: str) -> str:
    end = f"{would_do} would do" if would_do is not None else "no number like these would do"
    return f"{target[0].upper()}{target[1:]} can't be met with {n} families ({seen}); {end}."


def _not_met(what: str, seen: str, measured: tuple[float, float, float], wanted: float, n: int) -> str:
    """That a figure was not reached on `n` families, and whether more of them might show it; `measured` is its mean, low
    and high. An interval's width goes with one over the root of the number of families."""
    mean, low, high = measured
    gap, reach = abs(wanted - mean), high - mean if wanted > mean else mean - low
    if gap > reach:
        return f"{what} can't be met: {seen} on {n} families; no number like these would do."
    if gap * math.sqrt(MOST_FAMILIES / n) < reach:
        return f"{what} was not met: {seen} on {n} families, which is as good as that."
    enough = max(n + 1, math.ceil(n * (reach / gap) ** 2 - 1e-6))
    return (
        f"{what} was not met: {seen} on {n} families. That may be chance; about {enough} families would be as likely as "
        "not to tell."
    )


def _families_needed(p_value: Callable[[int], float], miss: float, start: int) -> int | None:
    n = max(start, 1)
    while p_value(n) > miss:
        n = math.ceil(n * 1.02) + 1
        if n > MOST_FAMILIES:
            return None
    return n


def binomial_tail(k: int, n: int, share: float) -> float:
    """P(X ≤ k) for n trials of probability `share`: the p-value of "the true share is above `share`"."""
    if k >= n:
        return 1.0
    return float(betainc(n - k, k + 1, 1.0 - share))


def hoeffding_bentkus(mean_loss: float, n: int, allowed: float) -> float:
    """P-value of "the true mean loss is above `allowed`", for n independent losses in [0, 1]
    (Bates et al. 2021, "Distribution-free, risk-controlling prediction sets")."""
    if allowed <= 0.0 or mean_loss >= allowed:
        return 1.0
    if allowed >= 1.0:
        return 0.0
    kl = (1 - mean_loss) * math.log((1 - mean_loss) / (1 - allowed))
    if mean_loss > 0:
        kl += mean_loss * math.log(mean_loss / allowed)
    bentkus = math.e * binomial_tail(math.ceil(n * mean_loss - 1e-9), n, allowed)
    return float(np.clip(min(math.exp(-n * kl), bentkus), 0.0, 1.0))
