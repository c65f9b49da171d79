"""Whether predicted gains mean what they say, and how well they rank tasks.

The observed gain is noisy (finitely many queries), so predictions are judged with that noise added: the
probability that training is *seen* to help, and intervals of the *seen* gain.

PGR at a share of strong calls is what part of always-strong's gain over ICL those calls win, the most
promising tasks first; APGR is its mean over all shares (random: .5), CPT(x) the least share that wins x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from policies.errors import PolicyError
from policies.estimator import sampling_variance
from policies.families import FamilyBootstrap
from policies.features import Array
from policies.learned import Learned
from policies.outcomes import TaskOutcome
from policies.types import ArmName, Signals

BINS = 5


def calibration(
    rows: Sequence[TaskOutcome], policies: Sequence[Learned], arm: ArmName, families: FamilyBootstrap
) -> dict[str, Any]:
    """Reliability of P(the arm is seen to beat icl) in bins, Brier scores, coverage of 90 % intervals.

    Args:
        policies: one a row, each without that row's family.
    """
    fitted = [(row, p.arms[arm]) for row, p in zip(rows, policies, strict=True) if arm in p.arms]
    if len(fitted) < len(rows):
        raise PolicyError(f"{arm} could not be fitted in every fold; collect more families.")
    estimates = [model.estimate(row.measured(probed=True))[0] for row, model in fitted]
    expected = np.array([e.expected for e in estimates])
    sd = np.sqrt([e.sd**2 + sampling_variance(row, arm) for e, row in zip(estimates, rows, strict=True)])
    gains = seen_gains(rows, arm)
    predicted = ndtr(expected / sd)
    better = (gains > 0).astype(float)
    base = families.mean(better)
    bins = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), BINS):
        if len(part):
            bins.append(
                {
                    "predicted": float(predicted[part].mean()),
                    "observed": float(better[part].mean()),
                    "n": len(part),
                }
            )
    return {
        "arm": arm,
        "bins": bins,
        "brier": families.mean((predicted - better) ** 2),
        "brier_of_base_rate": base * (1.0 - base),
        "coverage_90": families.mean((np.abs(gains - expected) <= 1.645 * sd).astype(float)),
        "bias": families.mean(expected - gains),
        "rmse": float(np.sqrt(families.mean((expected - gains) ** 2))),
        "rmse_of_mean": float(np.sqrt(families.mean((gains - families.mean(gains)) ** 2))),
    }


def ranking(rows: Sequence[TaskOutcome], policies: Sequence[Learned], arm: ArmName) -> dict[str, Any]:
    """APGR and CPT of ranking tasks by the expected gain, before and after the probe.

    Intervals resample families. `None` where training gains nothing over all, so that there is nothing to recover.
    """
    gains = seen_gains(rows, arm)
    names, index = np.unique([row.family for row in rows], return_inverse=True)
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(300)]
    found: dict[str, Any] = {}
    for label, probed in (("before the probe", False), ("after the probe", True)):
        score = np.array(
            [_above_usual(p, arm, row.measured(probed=probed)) for row, p in zip(rows, policies, strict=True)]
        )
        whole = recovered(score, gains, np.ones(len(rows)))
        if whole is None:
            found[label] = None
            continue
        shares, pgr = whole
        areas = [a for d in draws if (a := area(recovered(score, gains, d[index].astype(float)))) is not None]
        low, high = np.quantile(areas, [0.025, 0.975])
        found[label] = {
            "apgr": [area(whole), float(low), float(high)],
            "cpt_50": float(shares[np.argmax(pgr >= 0.5)]),
            "cpt_80": float(shares[np.argmax(pgr >= 0.8)]),
            "curve": [[float(s), float(np.interp(s, shares, pgr))] for s in np.linspace(0, 1, 11)],
        }
    return found


def _above_usual(policy: Learned, arm: ArmName, signals: Signals) -> float:
    """The expected gain over the mean gain of the families that this policy was fitted on.

    That mean leaves out the family to rank, so it is low where the family's own gain is high: kept in the
    score, it would rank families backwards wherever signals say little.
    """
    model = policy.arms[arm]
    estimate, stage, _ = model.estimate(signals)
    return round(estimate.expected - model.stages[stage].intercept, 5)  # the rest is rounding


def recovered(score: Array, gains: Array, weights: Array) -> tuple[Array, Array] | None:
    """Shares of strong calls and PGR at each, the highest score first; None when all gains add up to ≤ 0."""
    total = float((weights * gains).sum())
    if total <= 1e-9:
        return None
    order = np.argsort(-score, kind="stable")
    shares = np.concatenate([[0.0], np.cumsum(weights[order])]) / weights.sum()
    return shares, np.concatenate([[0.0], np.cumsum((weights * gains)[order])]) / total


def area(curve: tuple[Array, Array] | None) -> float | None:
    """APGR: the area under PGR against the share of strong calls."""
    if curve is None:
        return None
    shares, pgr = curve
    return float(((pgr[1:] + pgr[:-1]) / 2 * np.diff(shares)).sum())


def seen_gains(rows: Sequence[TaskOutcome], arm: ArmName) -> Array:
    """Accuracy of the arm − that of icl, shape (rows,)."""
    return np.array([row.arms[arm].correct - row.arms["icl"].correct for row in rows])
