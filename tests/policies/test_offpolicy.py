"""Estimates from logs, held against simulated logs whose truth is known."""

from __future__ import annotations

import math
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.offpolicy import Logged, off_policy

ARMS = ("icl", "train")


def simulated_log(
    seed: int, n_families: int = 120, per_family: int = 4
) -> tuple[list[Logged], list[dict[str, float]], list[dict[str, float]], float]:
    """A log, a target that trains where x > .5, a rough model of the reward, and the target's true value.

    The reward is Bernoulli: icl .3 + .4 x (+ what the family adds), train .7 − .4 x. Families differ, so that rows
    of one depend on each other.
    """
    rng = np.random.default_rng(seed)
    logs, target, model = [], [], []
    for f in range(n_families):
        shift = rng.normal(0, 0.08)
        for _ in range(per_family):
            x = rng.random()
            chance = {"icl": 0.3 + 0.4 * x, "train": 0.7 - 0.4 * x}
            trains = 0.2 + 0.6 * rng.random()
            arm = "train" if rng.random() < trains else "icl"
            reward = float(rng.random() < np.clip(chance[arm] + shift, 0, 1))
            logs.append(Logged(f"f{f}", arm, trains if arm == "train" else 1 - trains, reward))
            target.append({"train": 1.0, "icl": 0.0} if x < 0.5 else {"train": 0.2, "icl": 0.8})
            model.append({name: p + 0.05 for name, p in chance.items()})
    # x below .5: train, mean of .7 − .4 x = .6; above: .8 · (.3 + .4 x) + .2 · (.7 − .4 x), x = .75 on average.
    return logs, target, model, 0.5 * 0.6 + 0.5 * (0.8 * 0.6 + 0.2 * 0.4)


def test_intervals_cover_the_truth_about_as_often_as_they_say_and_ips_is_the_widest() -> None:
    covered: dict[str, list[bool]] = {"ips": [], "snips": [], "dr": []}
    width: dict[str, list[float]] = {"ips": [], "snips": [], "dr": []}
    errors: dict[str, list[float]] = {"ips": [], "snips": [], "dr": []}
    for seed in range(150):
        logs, target, model, truth = simulated_log(seed)
        for name, value in off_policy(logs, target, model, confidence=0.9).items():
            covered[name].append(value.low <= truth <= value.high)
            width[name].append(value.high - value.low)
            errors[name].append(value.mean - truth)
    for name, hits in covered.items():
        assert 0.82 <= mean(hits) <= 0.97, name
        assert abs(mean(errors[name])) < 0.01, name
    assert max(mean(width["dr"]), mean(width["snips"])) < 0.85 * mean(width["ips"])


def test_the_logging_policys_own_value_is_the_mean_reward() -> None:
    logs, _, _, _ = simulated_log(1)
    same = [
        {log.arm: log.propensity, ("icl" if log.arm == "train" else "train"): 1 - log.propensity}
        for log in logs
    ]
    found = off_policy(logs, same)
    assert set(found) == {"ips", "snips"}
    assert found["ips"].mean == pytest.approx(mean(log.reward for log in logs))
    assert found["ips"].effective_n == pytest.approx(len(logs))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(-5, 5), st.floats(0.1, 10))
def test_snips_moves_with_the_rewards_and_stays_within_them(seed: int, shift: float, scale: float) -> None:
    logs, target, _, _ = simulated_log(seed, 20, 3)
    plain = off_policy(logs, target)["snips"]
    moved = [Logged(log.family, log.arm, log.propensity, shift + scale * log.reward) for log in logs]
    assert off_policy(moved, target)["snips"].mean == pytest.approx(shift + scale * plain.mean)
    assert 0.0 <= plain.mean <= 1.0


def test_a_forced_decision_says_nothing_of_the_other_arm() -> None:
    logs = [Logged(f"f{i}", "icl", 1.0, 1.0) for i in range(50)]
    with pytest.raises(PolicyError, match="50 of 50 logged decisions were forced"):
        off_policy(logs, [{"train": 1.0}] * 50)
    assert off_policy(logs, [{"icl": 1.0}] * 50)["ips"].mean == 1.0


def test_a_log_that_hardly_overlaps_with_the_target_is_refused() -> None:
    logs = [Logged(f"f{i}", "train" if i < 3 else "icl", 0.05 if i < 3 else 0.95, 1.0) for i in range(60)]
    with pytest.raises(PolicyError, match="effective decisions"):
        off_policy(logs, [{"train": 1.0}] * 60)


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_propensity_is_refused(propensity: float) -> None:
    with pytest.raises(PolicyError, match="propensity"):
        Logged("f", "icl", propensity, 1.0)


def test_unequal_lengths_bad_probabilities_and_one_family_are_refused() -> None:
    logs = [Logged("f", "icl", 0.5, 1.0)] * 40
    with pytest.raises(PolicyError, match="another number"):
        off_policy(logs, [{"icl": 1.0}])
    with pytest.raises(PolicyError, match="add up to 1"):
        off_policy(logs, [{"icl": 0.4}] * 40)
    with pytest.raises(PolicyError, match="at least 2"):
        off_policy(logs, [{"icl": 1.0}] * 40)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused_by_name(value: float) -> None:
    logs = [Logged(f"f{i}", "icl", 0.5, 1.0) for i in range(40)]
    with pytest.raises(PolicyError, match="target's probability of icl is"):
        off_policy(logs, [{"icl": value}] * 40)
    with pytest.raises(PolicyError, match="model's reward of icl is"):
        off_policy(logs, [{"icl": 1.0}] * 40, [{"icl": value}] * 40)
