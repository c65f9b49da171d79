"""The learned gain of an arm: expected P(correct | arm) − P(correct | icl), with how sure that is.

For each arm and stage (see `features.py`) the mean of a Bayesian linear regression and of extremely randomised trees
(`trees.py`), fitted by scikit-learn over outcome rows; and what a task's family has gained beyond it (`recall.py`). Two
things keep it honest:

- **Families, not rows.** All rows of a family together weigh as one: ten seeds of a task are not ten tasks.
- **The spread is measured, not assumed.** Each family is predicted by a model that never saw it (grouped
  cross-fitting). What those errors exceed the noise of finitely many queries by is the spread of the gain,
  fitted as variance = coefficients' variance + a + b · headroom². Bounds are Student's t with as many
  degrees of freedom as families that the stage was fitted on, less one: few families give wide bounds.

A fitted model is numbers only: it is written as JSON and decides without scikit-learn. Knows nothing of
costs or of what a correct answer is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.features import STAGES, Array, Columns, Stage, columns, features, headroom, reached, stage_of
from policies.outcomes import TaskOutcome
from policies.recall import Memory, memory_from_json, remember
from policies.trees import Trees, grow, trees_from_json
from policies.types import ArmName, Signals

MIN_FAMILIES = 8
"""Fewer families than this say nothing of a further one."""
FOLDS = 5
"""Of the grouped cross-fitting that measures the spread."""
SD_FLOOR = 0.02
"""Least spread of a gain that is believed: two points."""
UNKNOWN_MODEL_SPREAD = 2.0
"""Factor on the spread where no row is of the base model at hand."""
OTHER_MODEL_WEIGHT = 0.25
"""Weight of a row of another base model, once there are rows of the one at hand."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A gain per query."""

    expected: float
    sd: float
    """Of one task's gain: between tasks that look alike, and what the next one leaves open."""
    unsure: float
    """Standard error of what the signals say: what more families would tell."""
    df: float
    """Degrees of freedom of the bounds."""
    remembered: float = 0.0
    """How much of `expected` is what the task's family gained beyond its signals."""

    def low(self, confidence: float) -> float:
        """One-sided lower bound of the expected gain: of what tasks like this gain on average. That this task may be
        unlike them is no reason to stay: over many, the mean is what counts."""
        return self.expected - float(stdtrit(self.df, confidence)) * self.unsure

    @property
    def p_better(self) -> float:
        """Probability that the gain is above 0."""
        return float(stdtr(self.df, self.expected / self.sd))


@dataclass(frozen=True, slots=True)
class StageModel:
    """A model of the gain: half a line, half trees. Arrays are tuples, so that it is a value and JSON."""

    names: tuple[str, ...]
    medians: tuple[float, ...]
    """Stand for what is absent. (features,)"""
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    """Of the standardised features. (features,)"""
    intercept: float
    floor: float
    """By signals no gain is expected below this: a line runs under what training does even to tasks that it is no use for."""
    covariance: tuple[tuple[float, ...], ...]
    """Of the coefficients. (features, features)"""
    variance: float
    """a: variance of the gain that does not depend on the headroom."""
    variance_headroom: float
    """b: variance per squared headroom."""
    mean_variance: float
    """Mean variance of the gain between tasks that look alike."""
    mean_leverage: float
    """Mean variance that the coefficients' uncertainty adds."""
    n_families: int
    """That it was fitted on."""
    trees: Trees
    """Say the other half of what is expected."""
    memory: Memory | None = None
    """What families gained beyond that."""

    def __post_init__(self) -> None:
        d, n = len(self.names), self.n_families
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise PolicyError(f"A gain model's n_families is {n!r}, but it must be a count; fit it again.")
        vectors = (self.medians, self.centre, self.scale, self.coefficients, *self.covariance)
        if any(len(v) != d for v in vectors) or len(self.covariance) != d or self.trees.n_features > d:
            raise PolicyError(f"A gain model has {d} features, but arrays of other lengths; fit it again.")
        numbers = (self.variance, self.variance_headroom, self.mean_variance, self.mean_leverage)
        for v in (*vectors, (self.intercept, self.floor, *numbers)):
            for value in v:
                check_finite("A parameter of the gain model", value)
        if min(numbers) < 0 or min(self.scale) <= 0:
            raise PolicyError("A gain model has a negative variance or scale; fit it again.")

    def predict(self, values: Array, room: Array) -> tuple[Array, Array, Array, list[str]]:
        """Expected gain by the signals alone, its spread and its standard error, each of shape (rows,), and the names of what
        was absent in any row.

        Args:
            values: (rows, features), NaN where absent.
            room: headroom, (rows,).
        """
        absent = np.isnan(values)
        lacking = [name for name, column in zip(self.names, absent.T, strict=True) if column.any()]
        filled = np.where(absent, np.asarray(self.medians), values)
        z = (filled - np.asarray(self.centre)) / np.asarray(self.scale)
        line = self.intercept + z @ np.asarray(self.coefficients)
        expected = np.maximum((line + self.trees.predict(filled)) / 2, self.floor)
        leverage = np.maximum(np.einsum("ij,jk,ik->i", z, np.asarray(self.covariance), z), 0.0)
        own = self.own_variance(room)
        error = np.sqrt(leverage + own / self.n_families)
        return np.clip(expected, -1.0, 1.0), np.sqrt(leverage + own), error, lacking

    @property
    def df(self) -> float:
        """Degrees of freedom of its bounds."""
        return float(self.n_families - 1)

    def recall(self, signals: Signals) -> tuple[float, float]:
        """What tasks that lie where this one does gained beyond the line, and how much of the variance between tasks that
        look alike this settles, 0 to 1."""
        if self.memory is None:
            return 0.0, 0.0
        extra, settled = self.memory.recall(signals.location)
        return extra, settled * self.memory.share

    def own_variance(self, room: Array) -> Array:
        """Variance of the gain between tasks that look alike, shape of `room`."""
        return np.maximum(self.variance + self.variance_headroom * room**2, SD_FLOOR**2)


@dataclass(frozen=True, slots=True)
class ArmModel:
    """The gain of one arm, by stage. `cheap` is always there; others where enough families reached them."""

    stages: Mapping[Stage, StageModel]
    n_families: int
    """That compare the arm with icl; a stage may rest on fewer."""

    def estimate(self, signals: Signals, spread: float = 1.0) -> tuple[Estimate, Stage, list[str]]:
        """Gain for one task, the stage that it rests on, and features that were absent. What its family is remembered
        for is in it, but not where the base model is unknown.

        Args:
            spread: factor on the standard deviation; where it is not 1 the expectation is as unsure as that, since
                nothing is known of how tasks do on that model.
        """
        stage = self.stage(signals)
        of = columns([signals])
        _, values = features(of, stage)
        model = self.stages[stage]
        room = headroom(of, stage)
        expected, sds, errors, lacking = model.predict(values, room)
        sd, gain = float(sds[0]), float(expected[0])
        if spread != 1.0:
            return Estimate(gain, sd * spread, sd * spread, model.df), stage, lacking
        extra, settled = model.recall(signals)
        sd = math.sqrt(max(sd**2 - settled * float(model.own_variance(room)[0]), SD_FLOOR**2))
        gain = min(max(gain + extra, -1.0), 1.0)
        return Estimate(gain, sd, float(errors[0]), model.df, extra), stage, lacking

    def stage(self, signals: Signals) -> Stage:
        """The richest stage that the signals reach and that was fitted."""
        best = STAGES.index(stage_of(signals))
        return next(stage for stage in reversed(STAGES[: best + 1]) if stage in self.stages)

    def after_probe(self, signals: Signals, spread: float = 1.0) -> tuple[float, float] | None:
        """Spread, and standard error of the expectation, that usually remain once the probe has been seen; None where no
        model of it was fitted. `spread` as in `estimate`."""
        model = self.stages.get("probe")
        if model is None:
            return None
        own, leverage = model.mean_variance, model.mean_leverage
        if spread != 1.0:
            sd = math.sqrt(own + leverage) * spread
            return sd, sd
        _, settled = model.recall(signals)
        return math.sqrt(own * (1.0 - settled) + leverage), math.sqrt(leverage + own / model.n_families)


def fit_arms(
    rows: Sequence[TaskOutcome], base_model: str | None = None, seed: int = 0
) -> tuple[dict[ArmName, ArmModel], list[str]]:
    """Models of every arm that rows compare with `icl`, and notes on arms that were left out.

    Args:
        base_model: where rows of it are among others, those weigh four times as much.
        seed: of the cross-fitting's folds.

    Raises:
        PolicyError: fewer than eight families, or outcomes of one kind only, for every arm.
    """
    compared = [row for row in rows if "icl" in row.arms]
    names = sorted({name for row in compared for name in row.arms} - {"icl"})
    if not names:
        raise PolicyError(
            f"None of the {len(rows)} rows has outcomes of icl and of another arm; a gain needs both on the same task."
        )
    of = columns([row.measured(probed=True) for row in compared])
    fitted: dict[ArmName, ArmModel] = {}
    notes: list[str] = []
    for name in names:
        has = np.array([name in row.arms for row in compared])
        chosen = [row for row, there in zip(compared, has, strict=True) if there]
        try:
            fitted[name] = _fit_arm(name, chosen, {k: v[has] for k, v in of.items()}, base_model, seed)
        except PolicyError as error:
            notes.append(str(error))
    if not fitted:
        raise PolicyError(notes[0])
    return fitted, notes


def _fit_arm(
    name: ArmName, rows: Sequence[TaskOutcome], of: Columns, base_model: str | None, seed: int
) -> ArmModel:
    families = np.array([row.family for row in rows])
    gains = np.array([row.arms[name].correct - row.arms["icl"].correct for row in rows])
    n_families = len(set(families))
    if n_families < MIN_FAMILIES:
        raise PolicyError(
            f"{name} was compared with icl on {n_families} families ({len(rows)} rows); at least {MIN_FAMILIES} "
            f"families are needed, so {MIN_FAMILIES - n_families} more."
        )
    if not (gains > 0).any() or not (gains <= 0).any():
        what = "always better than" if (gains > 0).all() else "never better than"
        raise PolicyError(
            f"{name} was {what} icl in all {len(rows)} rows; outcomes of both kinds are needed to tell them apart."
        )
    noise = np.array([sampling_variance(row, name, smoothed=False) for row in rows])
    own = np.array([base_model is None or row.model == base_model for row in rows])
    weights = np.where(own, 1.0, OTHER_MODEL_WEIGHT) if own.any() else np.ones(len(rows))
    stages: dict[Stage, StageModel] = {}
    for stage in STAGES:
        there = reached(stage, of)
        if len(set(families[there])) >= MIN_FAMILIES:
            cut = {k: v[there] for k, v in of.items()}
            cut_rows = [row for row, kept in zip(rows, there, strict=True) if kept]
            model, left = _fit_stage(
                stage, cut, gains[there], noise[there], families[there], weights[there], seed
            )
            spread = model.own_variance(headroom(cut, stage))
            memory = remember(cut_rows, left, noise[there], spread, base_model)
            stages[stage] = replace(model, memory=memory)
    return ArmModel(stages, n_families)


def _fit_stage(
    stage: Stage, of: Columns, gains: Array, noise: Array, families: Any, weights: Array, seed: int
) -> tuple[StageModel, Array]:
    """The model, without a memory, and what each row gained beyond what a model without its family expected."""
    from scipy.optimize import nnls
    from sklearn.model_selection import GroupKFold

    names, values = features(of, stage)
    known = ~np.isnan(values)
    medians = np.array([np.median(v[k]) if k.any() else 0.0 for v, k in zip(values.T, known.T, strict=True)])
    values = np.where(known, values, medians)
    _, index, counts = np.unique(families, return_inverse=True, return_counts=True)
    weights = weights / counts[index]  # a family weighs as one, however many rows it has

    predicted, leverage = np.zeros(len(gains)), np.zeros(len(gains))
    folds = GroupKFold(min(FOLDS, len(counts)), shuffle=True, random_state=seed)
    for seen, held_out in folds.split(values, gains, families):
        line = _Line(values[seen], gains[seen], weights[seen])
        trees = grow(values[seen], gains[seen], weights[seen], len(np.unique(index[seen])), seed)
        said, leverage[held_out] = line.predict(values[held_out])
        predicted[held_out] = (said + trees.predict(values[held_out])) / 2
    floor = _floor(predicted, gains, weights)
    left = gains - np.clip(predicted, floor, 1.0)
    excess = left**2 - noise - leverage
    room = headroom(of, stage)
    root = np.sqrt(weights)
    design = np.column_stack([np.ones(len(gains)), room**2])
    (a, b), _ = nnls(design * root[:, None], excess * root)

    line = _Line(values, gains, weights)
    model = StageModel(
        names,
        tuple(medians.tolist()),
        tuple(line.centre.tolist()),
        tuple(line.scale.tolist()),
        tuple(line.coefficients.tolist()),
        line.intercept,
        floor,
        tuple(tuple(row) for row in line.covariance.tolist()),
        float(a),
        float(b),
        float(np.average(np.maximum(a + b * room**2, SD_FLOOR**2), weights=weights)),
        float(np.average(line.predict(values)[1], weights=weights)),
        len(counts),
        grow(values, gains, weights, len(counts), seed),
    )
    return model, left


def _floor(predicted: Array, gains: Array, weights: Array) -> float:
    """What came of the fifth of the tasks of which least was predicted, by models that had not seen their families."""
    lowest = np.argsort(predicted)[: max(5, len(predicted) // 5)]
    mean = np.average(gains, weights=weights)
    return float(np.clip(np.average(gains[lowest], weights=weights[lowest]), -1.0, mean))


class _Line:
    """A Bayesian ridge regression over standardised features."""

    def __init__(self, values: Array, gains: Array, weights: Array) -> None:
        from sklearn.linear_model import BayesianRidge

        self.centre = np.average(values, axis=0, weights=weights)
        spread = np.sqrt(np.average((values - self.centre) ** 2, axis=0, weights=weights))
        self.scale = np.where(spread > 1e-9, spread, 1.0)
        # A weight is a share of an independent task: their sum is the number of families.
        model = BayesianRidge().fit((values - self.centre) / self.scale, gains, sample_weight=weights)
        self.coefficients: Array = model.coef_
        self.covariance: Array = model.sigma_
        self.intercept = float(model.intercept_)

    def predict(self, values: Array) -> tuple[Array, Array]:
        """Expected gains, and the variance that the coefficients' uncertainty adds; each (rows,)."""
        z = (values - self.centre) / self.scale
        leverage = np.einsum("ij,jk,ik->i", z, self.covariance, z)  # below 0 only by rounding
        return self.intercept + z @ self.coefficients, np.maximum(leverage, 0.0)


def sampling_variance(row: TaskOutcome, name: ArmName, *, smoothed: bool = True) -> float:
    """Variance of the measured gain that finitely many queries explain, as if the arms were independent.

    Args:
        smoothed: one right and one wrong added, so that 0 of n is not certain. To be added to a spread, not taken off
            one: of few queries it says more than there is.
    """
    total, added = 0.0, 1.0 if smoothed else 0.0
    for arm in (row.arms[name], row.arms["icl"]):
        p = (arm.correct * arm.n_queries + added) / (arm.n_queries + 2.0 * added)
        total += p * (1.0 - p) / arm.n_queries
    return total


def arm_as_json(model: ArmModel) -> dict[str, Any]:
    return {"n_families": model.n_families, "stages": {k: asdict(v) for k, v in model.stages.items()}}


def arm_from_json(data: Any) -> ArmModel:
    """
    Raises:
        PolicyError: missing or unknown keys, or a parameter that is impossible.
    """
    wanted = {f.name for f in fields(StageModel)}
    try:
        n_families, given = data["n_families"], dict(data["stages"])
        if set(data) != {"n_families", "stages"} or "cheap" not in given or not set(given) <= set(STAGES):
            raise KeyError("stages")
        if isinstance(n_families, bool) or not isinstance(n_families, int) or n_families < 2:
            raise KeyError("n_families")
        stages: dict[Stage, StageModel] = {}
        for stage in STAGES:
            if stage in given:
                if set(given[stage]) != wanted:
                    raise KeyError(stage)
                trees, memory = (
                    trees_from_json(given[stage]["trees"]),
                    memory_from_json(given[stage]["memory"]),
                )
                line = {k: _tuples(v) for k, v in given[stage].items() if k not in ("trees", "memory")}
                stages[stage] = StageModel(**line, trees=trees, memory=memory)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"The policy's gain model can't be read ({error!r}); fit it again.") from error
    return ArmModel(stages, n_families)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
