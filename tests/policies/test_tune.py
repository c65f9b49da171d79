"""The chosen setting does what was asked, a guarantee holds as often as it says, and what can't be met says so."""

from __future__ import annotations

import re
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.risk_control.fwer_control import control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binom

from policies.errors import PolicyError
from policies.learned import fit
from policies.outcomes import TaskOutcome
from policies.replay import replay
from policies.rule import Rule
from policies.tune import (
    CONFIDENCES,
    Aim,
    Setting,
    _not_met,
    binomial_tail,
    fixed_sequence,
    hoeffding_bentkus,
    tune,
)
from tests.policies.simulated import TRAIN, simulate

POLICY, _ = fit(simulate(100, 2, seed=1).rows)


def fresh(n: int, seed: int = 2, **how: Any) -> list[TaskOutcome]:
    return [replace(row, family=f"fresh-{row.family}") for row in simulate(n, seed=seed, **how).rows]


ROWS = fresh(80)
NONE = (0.0, 0.0, 0.0)


def test_a_budget_is_kept_by_the_most_accurate_setting_within_it() -> None:
    found = tune(POLICY, ROWS, Aim("budget", 25.0))
    assert found.chosen is not None and found.chosen.seconds[0] <= 25.0
    within = [s for s in found.settings if s.seconds[0] <= 25.0]
    assert found.chosen.accuracy[0] == max(s.accuracy[0] for s in within)
    done = [replay(POLICY, row, found.chosen.worth_s) for row in ROWS]
    assert mean(d.seconds for d in done) == pytest.approx(found.chosen.seconds[0])
    assert {
        "always icl",
        f"always {TRAIN}",
        "random at equal budget",
        "confidence threshold",
        "oracle",
    } <= set(found.baselines)


def test_a_budget_below_the_cheapest_setting_can_not_be_met() -> None:
    found = tune(POLICY, ROWS, Aim("budget", 0.5))
    assert found.chosen is None and "can't be met: the cheapest setting takes" in found.sentence


def test_a_target_is_met_by_the_cheapest_setting_that_reaches_it() -> None:
    found = tune(POLICY, ROWS, Aim("accuracy", 0.42))
    assert found.chosen is not None and found.chosen.accuracy[0] >= 0.42
    assert all(s.seconds[0] >= found.chosen.seconds[0] for s in found.settings if s.accuracy[0] >= 0.42)
    never = tune(POLICY, ROWS, Aim("accuracy", 0.99))
    assert never.chosen is None and "the best setting reached" in never.sentence


def test_what_few_families_leave_open_says_how_many_would_tell() -> None:
    """Just above what the best setting reaches, the interval does not decide; far above, no number would do."""
    few = fresh(20, seed=5)
    best = max(s.accuracy for s in tune(POLICY, few, Aim("accuracy", 0.99)).settings)
    near = tune(POLICY, few, Aim("accuracy", (best[0] + best[2]) / 2))
    assert near.chosen is None and "was not met: the best setting reached" in near.sentence
    told = re.search(r"about (\d+) families would be as likely as not to tell", near.sentence)
    assert told is not None and int(told[1]) == 80, "half of the way to the end takes four times as many"
    least = min(s.seconds for s in tune(POLICY, few, Aim("budget", 1000.0)).settings)
    end = least[0] + (least[2] - least[0]) / 3  # its upper end is to come there
    narrow = tune(POLICY, few, Aim("budget", end, delta=0.1))
    assert narrow.chosen is None and "about 180 families" in narrow.sentence
    assert "can't be met" in tune(POLICY, few, Aim("budget", 0.5)).sentence
    assert "no number like these would do" in tune(POLICY, few, Aim("budget", 0.5)).sentence


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (0.5, "as good as that"),
        (0.6, "about 90 families"),  # the upper side is three times as far off
        (0.45, "about 40 families"),  # the lower one twice
        (0.81, "no number like these"),
        (0.39, "no number like these"),
    ],
)
def test_of_a_skewed_interval_the_side_that_matters_counts(wanted: float, told: str) -> None:
    assert told in _not_met("It", "it was", (0.5, 0.4, 0.8), wanted, 10)


def test_a_guaranteed_target_leaves_a_margin_or_says_how_many_families_would_do() -> None:
    sure = tune(POLICY, ROWS, Aim("accuracy", 0.30, delta=0.1))
    assert sure.chosen is not None and sure.chosen.accuracy[0] > 0.35
    assert "guaranteed with 90% confidence" in sure.sentence
    near = tune(POLICY, ROWS, Aim("accuracy", 0.47, delta=0.1))
    assert (
        near.chosen is None
        and "can't be met with 80 families" in near.sentence
        and "would do" in near.sentence
    )
    never = tune(POLICY, ROWS, Aim("accuracy", 0.95, delta=0.1))
    assert never.chosen is None and "no number like these would do" in never.sentence


def test_harm_can_not_be_bounded_with_few_families_and_says_so() -> None:
    found = tune(POLICY, fresh(20), Aim("harm", 2.0))
    assert found.chosen is None and "can't be met with 20 families" in found.sentence


@pytest.mark.parametrize("n", [25, 60, 200])
def test_the_guarantee_on_harm_fails_no_more_often_than_it_says(n: int) -> None:
    """Settings of known harm, on simulated families: how often is one chosen that harms more than a tenth?"""
    shares = (0.02, 0.06, 0.09, 0.11, 0.15, 0.3)
    rng = np.random.default_rng(n)
    broken = met = 0
    for _ in range(1500):
        luck = rng.random(n)  # the same families under every setting
        tried = [
            Setting(30.0, 0.9, NONE, NONE, 0.0, n, k, binomial_tail(k, n, 0.1))
            for k in (int((luck < share).sum()) for share in shares)
        ]
        passed = fixed_sequence(tried, 0.1)
        met += bool(passed)
        broken += any(share > 0.1 for share, _ in zip(shares, passed, strict=False))
    assert met > 0 and broken / 1500 <= 0.1 + 0.02


def test_harm_is_bounded_end_to_end_where_there_are_enough_families() -> None:
    found = tune(POLICY, fresh(150, seed=7, n_queries=128), Aim("harm", 5.0, alpha=0.25))
    assert found.chosen is not None and found.chosen.p_value is not None and found.chosen.p_value <= 0.1
    assert "is guaranteed with 90% confidence" in found.sentence
    testable = [s for s in found.settings if s.n_trained >= 9]
    before = testable[: testable.index(found.chosen) + 1]
    assert all(s.p_value is not None and s.p_value <= 0.1 for s in before)


def test_the_built_in_rule_can_be_tuned_too() -> None:
    found = tune(Rule(), ROWS, Aim("harm", 5.0, alpha=0.3))
    assert len(found.settings) == len(CONFIDENCES)
    trained = [s.n_trained for s in found.settings]
    assert trained == sorted(trained)


def test_families_that_the_policy_was_fitted_on_can_not_guarantee_anything() -> None:
    mixed = [*simulate(100, 2, seed=1).rows[:40], *ROWS]
    found = tune(POLICY, mixed, Aim("accuracy", 0.3, delta=0.1))
    assert found.n_families == 80 and "left out" in found.notes[0]
    refitted = tune(POLICY, simulate(30, seed=1).rows, Aim("budget", 25.0))
    assert "refit without it" in refitted.notes[0]
    with pytest.raises(PolicyError, match="so 8 more"):
        tune(POLICY, simulate(100, 2, seed=1).rows, Aim("harm", 2.0))


def test_too_few_families_say_how_many_more() -> None:
    with pytest.raises(PolicyError, match="There are 5 families .* so 3 more"):
        tune(POLICY, fresh(5), Aim("budget", 25.0))


@pytest.mark.parametrize(
    "values,says",
    [
        ({"goal": "accuracy", "value": 1.5}, "target accuracy is 1.5"),
        ({"goal": "budget", "value": -1.0}, "budget is -1, but it must be 0 or more"),
        ({"goal": "harm", "value": 2.0, "alpha": 0.0}, "alpha is 0"),
        ({"goal": "harm", "value": 2.0, "delta": 0.9}, "delta is 0.9"),
    ],
)
def test_an_impossible_aim_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Aim(**values)


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_binomial_tail_is_scipys(k: int, n: int, share: float) -> None:
    assert binomial_tail(k, n, share) == pytest.approx(float(binom.cdf(k, n, share)), abs=1e-9)


@given(st.floats(0.0, 1.0), st.integers(1, 500), st.floats(0.0, 1.0))
def test_a_p_value_is_one_and_falls_with_more_families(loss: float, n: int, allowed: float) -> None:
    p = hoeffding_bentkus(loss, n, allowed)
    assert 0.0 <= p <= 1.0
    if loss >= allowed:
        assert p == 1.0
    assert hoeffding_bentkus(0.0, n + 1, allowed) <= hoeffding_bentkus(0.0, n, allowed)


def test_twenty_two_families_without_harm_are_just_enough_for_a_tenth() -> None:
    assert binomial_tail(0, 22, 0.1) <= 0.1 < binomial_tail(0, 21, 0.1)


@pytest.mark.parametrize("n", [12, 80])
def test_p_values_and_their_order_are_those_of_mapie(n: int) -> None:
    losses = np.linspace(
        0.0031, 0.8969, 19
    )  # n times none is whole: MAPIE's ceiling takes rounding for one more
    allowed = np.array([0.1, 0.35, 0.6])
    theirs = compute_hoeffding_bentkus_p_value(losses, n, allowed)
    ours = [[hoeffding_bentkus(float(loss), n, a) for a in allowed] for loss in losses]
    assert np.clip(theirs, 0.0, 1.0) == pytest.approx(np.array(ours), abs=1e-9)
    p_values = np.array([0.01, 0.04, 0.2, 0.03])
    settings = [Setting(1.0, 0.9, NONE, NONE, 0.0, 0, 0, float(p)) for p in p_values]
    rejected = control_fwer(p_values, 0.1, "fixed_sequence")
    assert fixed_sequence(settings, 0.1) == [settings[i] for i in rejected]
