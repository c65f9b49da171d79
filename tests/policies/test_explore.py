"""Shadow training: within its budget, near the threshold only, with its true probability logged."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.baselines import AlwaysArm
from policies.errors import PolicyError
from policies.explore import MAX_PROPENSITY, Exploring
from policies.learned import fit
from policies.replay import situation_of
from policies.rule import Rule
from tests.policies.simulated import TRAIN, simulate

ROWS = simulate(100, 2, seed=1).rows
POLICY, _ = fit(ROWS)
PROBED = [situation_of(row, 30.0, probed=True) for row in ROWS]


def test_the_answer_is_the_policys_own_and_only_staying_has_a_shadow() -> None:
    exploring = Exploring(POLICY, budget_s=1e6)
    for here in PROBED:
        decision, plain = exploring.decide(here), POLICY.decide(here)
        assert replace(decision, shadow=None, shadow_propensity=0.0) == plain
        if plain.arm != "icl":
            assert decision.shadow is None and decision.shadow_propensity == 0.0
    assert exploring.version == POLICY.version and exploring.reads == POLICY.reads


def test_shadows_come_as_often_as_the_logged_probability_says() -> None:
    near = max(PROBED, key=lambda h: Exploring(POLICY, 10.0).decide(h).shadow_propensity)
    exploring = Exploring(POLICY, budget_s=10.0, seed=3)
    drawn = [exploring.decide(near) for _ in range(4000)]
    chance = drawn[0].shadow_propensity
    assert 0.0 < chance <= MAX_PROPENSITY
    assert mean(d.shadow == TRAIN for d in drawn) == pytest.approx(chance, abs=0.03)


@given(st.floats(0.0, 1e4), st.integers(0, 199))
def test_the_expected_seconds_stay_within_the_budget(budget_s: float, i: int) -> None:
    here = PROBED[i]
    decision = Exploring(POLICY, budget_s).decide(here)
    cost = here.costs.train_s + here.costs.answer_s
    assert decision.shadow_propensity * cost <= budget_s * (1 + 1e-9)
    if budget_s == 0:
        assert decision.shadow is None


def test_every_start_draws_anew() -> None:
    near = max(PROBED, key=lambda h: Exploring(POLICY, 10.0).decide(h).shadow_propensity)
    first = [Exploring(POLICY, budget_s=1e6).decide(near) for _ in range(200)]
    assert first[0].shadow_propensity == MAX_PROPENSITY
    assert mean(d.shadow == TRAIN for d in first) == pytest.approx(0.5, abs=0.15)


def test_the_shadow_hangs_on_what_training_might_gain_though_a_reuse_was_the_best_option() -> None:
    found = []
    for here in PROBED:
        dear = replace(here, costs=replace(here.costs, answer_s=1e4))
        beside = replace(dear, feasible=(*dear.feasible, "reuse:abc"))
        alone, chosen = POLICY.decide(dear), POLICY.decide(beside)
        assert alone.arm == chosen.arm == "icl"
        if chosen.reason.startswith("reuse:abc"):
            found.append(chosen.details["gain_high"] == alone.details["gain_high"])
    assert len(found) > 10 and all(found)


def test_a_shadow_is_priced_as_a_whole_training_though_a_probe_came_before() -> None:
    exploring, found = Exploring(POLICY, 5.0), []
    for here in PROBED:
        half = here.costs.train_s / 2
        begun = replace(here, costs=replace(here.costs, train_s=half, by_probe_s=half))
        whole, rest = exploring.decide(here), exploring.decide(begun)
        if whole.arm == rest.arm == "icl" and 0 < whole.shadow_propensity < MAX_PROPENSITY:
            found.append(rest.shadow_propensity == pytest.approx(whole.shadow_propensity))
    assert len(found) > 3 and all(found)


def test_a_task_that_training_can_not_help_is_never_shadowed() -> None:
    here = replace(PROBED[0], worth_s=1e-3)
    assert Exploring(POLICY, 1e6).decide(here).shadow_propensity == 0.0
    assert Exploring(AlwaysArm("icl"), 1e6).decide(PROBED[0]).shadow_propensity == 0.0


def test_the_rule_can_be_explored_around_too() -> None:
    chances = [Exploring(Rule(), 10.0).decide(here).shadow_propensity for here in PROBED]
    assert max(chances) > 0 and min(chances) == 0


@pytest.mark.parametrize("budget_s", [-1.0, float("nan"), float("inf")])
def test_an_impossible_budget_is_refused(budget_s: float) -> None:
    with pytest.raises(PolicyError, match="budget for exploration"):
        Exploring(POLICY, budget_s)


def test_what_staying_still_takes_is_beside_a_shadow_and_does_not_make_it_cheaper() -> None:
    near = max(PROBED, key=lambda h: Exploring(POLICY, 10.0).decide(h).shadow_propensity)
    owed = replace(near, costs=replace(near.costs, rest_s=0.5))
    chance = Exploring(POLICY, 10.0).decide(near).shadow_propensity
    assert chance > 0 and Exploring(POLICY, 10.0).decide(owed).shadow_propensity == chance
