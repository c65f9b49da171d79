"""The learned policy: better than the rule on families it never saw, cautious, and never from nothing."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.estimator import MIN_FAMILIES, StageModel
from policies.features import Stage
from policies.learned import BY_RULE, Learned, fit
from policies.outcomes import TaskOutcome
from policies.replay import replay, situation_of
from policies.rule import Rule
from policies.types import Costs, Decision, Policy
from tests.policies.simulated import TRAIN, simulate
from tests.policies.situations import REUSE, signals, situation

SEEN = simulate(100, 2, seed=1)
UNSEEN = simulate(150, seed=2)
POLICY, _ = fit(SEEN.rows)
PROBED = [situation_of(row, 30.0, probed=True) for row in UNSEEN.rows]


def utility(policy: Policy, rows: list[TaskOutcome], worth_s: float) -> float:
    done = [replay(policy, row, worth_s) for row in rows]
    return mean(32 * r.correct - r.seconds / worth_s for r in done)


def fixed(arm: str, rows: list[TaskOutcome], worth_s: float) -> float:
    return mean(32 * row.arms[arm].correct - row.arms[arm].seconds / worth_s for row in rows)


@pytest.mark.parametrize("worth_s", [5.0, 30.0, 300.0])
def test_on_unseen_families_it_beats_every_fixed_arm_and_the_rule(worth_s: float) -> None:
    learned = utility(POLICY, UNSEEN.rows, worth_s)
    assert learned > max(fixed(arm, UNSEEN.rows, worth_s) for arm in ("icl", TRAIN, "zero-shot"))
    assert learned > utility(Rule(), UNSEEN.rows, worth_s)


def test_the_expected_gain_is_right_on_average_and_its_spread_covers_the_truth() -> None:
    true = [t[TRAIN] - t["icl"] for t in UNSEEN.truth]
    estimates = [POLICY.estimate(TRAIN, here)[0] for here in PROBED]
    assert abs(mean(e.expected - g for e, g in zip(estimates, true, strict=True))) < 0.03
    assert all(e.unsure < e.sd for e in estimates), "the mean is surer than any one task"
    assert mean(true) - 0.1 < mean(e.low(0.9) for e in estimates) < mean(true)
    above = mean(g >= e.expected - 1.3 * e.sd for e, g in zip(estimates, true, strict=True))
    assert 0.85 <= above <= 0.97
    inside = [abs(e.expected - g) <= 1.645 * e.sd for e, g in zip(estimates, true, strict=True)]
    assert 0.83 <= mean(inside) <= 0.97


def test_the_probability_of_a_gain_is_calibrated() -> None:
    rows = [
        (POLICY.estimate(TRAIN, h)[0].p_better, t[TRAIN] > t["icl"])
        for h, t in zip(PROBED, UNSEEN.truth, strict=True)
    ]
    sure = [better for p, better in rows if p > 0.95]
    assert len(sure) > 20 and mean(sure) > 0.9
    base = mean(better for _, better in rows)
    assert mean((p - better) ** 2 for p, better in rows) < 0.85 * base * (1 - base)


def test_the_same_task_is_decided_by_how_many_queries_it_will_serve() -> None:
    row = next(
        r
        for r, t in zip(UNSEEN.rows, UNSEEN.truth, strict=True)
        if t[TRAIN] - t["icl"] > 0.4 and r.prompt_tokens > 500
    )

    def taken(n: float) -> str:
        here = situation_of(row, 30.0)
        decision = POLICY.decide(replace(here, signals=replace(here.signals, n_queries=n)))
        return decision.arm or decision.step

    assert taken(1) == "icl"
    assert taken(32) == "probe"
    assert taken(100_000) != "icl"


@given(st.integers(0, 149), st.floats(0.5, 1e5), st.floats(1.0, 50.0), st.booleans())
def test_more_worth_never_turns_training_into_staying(
    i: int, worth_s: float, factor: float, probed: bool
) -> None:
    here = situation_of(UNSEEN.rows[i], worth_s, probed=probed)
    decision = POLICY.decide(here)
    richer = POLICY.decide(replace(here, worth_s=min(1e6, worth_s * factor)))
    assert decision.arm == "icl" or richer.arm != "icl"


@given(
    st.integers(0, 149),
    st.floats(1.0, 1e3),
    st.sampled_from(["loo_accuracy", "query_logprob", "query_margin"]),
    st.booleans(),
)
def test_what_was_not_measured_never_breaks_a_decision_and_is_named_where_it_counts(
    i: int, worth_s: float, name: str, probed: bool
) -> None:
    here = situation_of(UNSEEN.rows[i], worth_s, probed=probed)
    absent: dict[str, Any] = {name: None}
    decision = POLICY.decide(replace(here, signals=replace(here.signals, **absent)))
    assert decision.propensity == 1.0 and decision.expected_cost_s >= 0.0
    assert ("Not measured" in decision.reason) == name.startswith("query"), (
        "leave-one-out is nothing it looks at"
    )


def test_what_is_decided_after_a_probe_was_weighed_with_its_evidence() -> None:
    after = [POLICY.decide(here) for here in PROBED]
    assert {d.arm for d in after} == {"icl", TRAIN} and all(d.weighed == (d.arm == TRAIN) for d in after)
    before = [POLICY.decide(situation_of(row, 1e5)) for row in UNSEEN.rows]
    assert not any(d.weighed for d in before)
    stranger = POLICY.for_model("other-1b", "abc")
    assert not any(stranger.decide(here).weighed for here in PROBED), "it knows other models' tasks"


def test_nan_is_refused_by_name() -> None:
    here = situation_of(UNSEEN.rows[0], 30.0)
    with pytest.raises(PolicyError, match="Signal loo_accuracy is nan"):
        POLICY.decide(replace(here, signals=replace(here.signals, loo_accuracy=float("nan"))))


@pytest.mark.parametrize("worth_s", [0.0, -1.0, 1e9])
def test_a_worth_out_of_range_is_refused(worth_s: float) -> None:
    with pytest.raises(PolicyError, match="worth_s is"):
        POLICY.decide(situation_of(UNSEEN.rows[0], worth_s))


def test_on_an_unknown_base_model_it_counts_for_less_and_says_so() -> None:
    here = PROBED[0]
    stranger = POLICY.for_model("other-1b", "abc")
    assert POLICY.for_model("simulated-1", "abc") == POLICY
    decision = stranger.decide(here)
    assert "too few outcomes are of this base model (they are of simulated-1)" in decision.reason
    assert stranger.estimate(TRAIN, here)[0].sd == pytest.approx(2 * POLICY.estimate(TRAIN, here)[0].sd)
    trained = [sum(p.decide(h).arm == TRAIN for h in PROBED) for p in (POLICY, stranger)]
    assert trained[1] < trained[0]


def test_a_few_outcomes_do_not_make_a_base_model_known() -> None:
    def own(n: int) -> list[TaskOutcome]:
        return [replace(row, family=f"mine-{row.family}", model="mine") for row in SEEN.rows[:n]]

    one, (note,) = fit([*SEEN.rows, *own(1)], base_model="mine")
    assert (
        not one.for_model("mine").base_model_known
        and "Known of the base model mine: 1 of the 8 families" in note
    )
    enough, notes = fit([*SEEN.rows, *own(40)], base_model="mine")
    assert enough.for_model("mine").base_model_known and not notes


def test_rows_of_the_model_at_hand_count_more_than_those_of_another() -> None:
    def shifted(row: TaskOutcome) -> TaskOutcome:
        worse = replace(row.arms[TRAIN], correct=row.arms["icl"].correct * 0.5)
        return replace(row, family=f"mine-{row.family}", model="mine", arms={**row.arms, TRAIN: worse})

    both = [*SEEN.rows, *(shifted(row) for row in SEEN.rows[:40])]
    own, _ = fit(both, base_model="mine")
    plain, _ = fit(both)
    gains = [mean(p.estimate(TRAIN, h)[0].expected for h in PROBED) for p in (own, plain)]
    assert gains[0] < gains[1] - 0.03


def test_an_arm_that_nothing_was_learned_of_is_left_to_the_rule_and_said() -> None:
    here = situation(signals(), feasible=("icl", "train:cells"))
    decision = POLICY.decide(here)
    assert decision.step == Rule().decide(here).step
    assert decision.reason.endswith(
        "No outcomes of train:cells were learned from, so the built-in rule decides."
    )
    assert decision.policy == POLICY.version


@pytest.mark.parametrize("n,feasible", [(0, ("zero-shot",)), (3, ("icl", TRAIN))])
def test_too_few_demonstrations_are_left_to_the_rule(n: int, feasible: tuple[str, ...]) -> None:
    here = situation(signals(n_demonstrations=n, loo_accuracy=None, loo_logprob=None), feasible=feasible)
    decision = POLICY.decide(here)
    by_rule = POLICY.rule.decide(here)
    told = {**by_rule.details, BY_RULE: 1.0}
    assert decision == replace(by_rule, policy=POLICY.version, details=told) and not decision.weighed


def test_a_checked_adapter_is_reused_where_it_pays_and_training_promises_less() -> None:
    here = situation(signals(), feasible=("icl", REUSE, TRAIN), probe_feasible=False, worth_s=30.0)
    dear = replace(here, costs=Costs(probe_s=10.0, train_s=1e5, answer_s=10.0))
    decision: Decision = POLICY.decide(dear)
    assert decision.arm == REUSE
    assert "built-in rule" in decision.reason


def test_too_few_families_say_how_many_more_are_needed() -> None:
    with pytest.raises(
        PolicyError,
        match=rf"on 5 families \(10 rows\); at least {MIN_FAMILIES} families are needed, so 3 more",
    ):
        fit(simulate(5, 2, seed=1).rows)


def test_outcomes_of_one_kind_only_are_refused() -> None:
    def never(row: TaskOutcome) -> TaskOutcome:
        return replace(row, arms={"icl": row.arms["icl"], TRAIN: replace(row.arms[TRAIN], correct=0.0)})

    with pytest.raises(PolicyError, match="never better than icl in all 200 rows"):
        fit([never(row) for row in SEEN.rows])


def test_rows_without_a_pair_of_arms_are_refused() -> None:
    alone = [replace(row, arms={"icl": row.arms["icl"]}) for row in SEEN.rows]
    with pytest.raises(PolicyError, match="another arm"):
        fit(alone)


def test_an_arm_that_can_not_be_fitted_is_left_out_with_a_note() -> None:
    rows = [
        row if i < 6 else replace(row, arms={k: v for k, v in row.arms.items() if k != "zero-shot"})
        for i, row in enumerate(SEEN.rows)
    ]
    policy, notes = fit(rows)
    assert set(policy.arms) == {TRAIN}
    assert "zero-shot was compared with icl on 3 families" in notes[0]


def test_a_fit_is_the_same_for_the_same_rows_and_another_for_others() -> None:
    again, _ = fit(SEEN.rows)
    assert again == POLICY and again.version == POLICY.version
    assert fit(SEEN.rows[:-1])[0].version != POLICY.version


def test_ten_seeds_of_a_family_do_not_count_as_ten_families() -> None:
    crowded = [*SEEN.rows, *(replace(SEEN.rows[0], seed=s, task=f"task1:more-{s}") for s in range(10, 200))]
    policy, _ = fit(crowded)
    assert isinstance(policy, Learned)
    gains = [mean(p.estimate(TRAIN, h)[0].expected for h in PROBED) for p in (policy, POLICY)]
    assert gains[0] == pytest.approx(gains[1], abs=0.02)


def test_one_judged_query_a_row_does_not_make_a_gain_look_sure() -> None:
    rows = simulate(80, n_queries=1, seed=5).rows
    policy, _ = fit(rows)
    here = [situation_of(row, 30.0, probed=True) for row in rows]
    seen = [row.arms[TRAIN].correct - row.arms["icl"].correct for row in rows]
    true = mean(policy.estimate(TRAIN, h)[0].sd for h in here)
    assert true > 0.2, f"the spread is {true:.2f} where seen gains are {min(seen):g} to {max(seen):g}"


def test_bounds_count_the_families_that_their_stage_was_fitted_on() -> None:
    def unprobed(row: TaskOutcome) -> TaskOutcome:
        kept = {k: None if k.startswith("probe_") else v for k, v in row.signals.items()}
        return replace(row, signals=kept, probe=None)

    rows = [row if i < 20 else unprobed(row) for i, row in enumerate(SEEN.rows)]
    policy, _ = fit(rows)
    before, after = situation_of(rows[0], 30.0), situation_of(rows[0], 30.0, probed=True)
    assert policy.estimate(TRAIN, before)[0].df == 99
    assert policy.estimate(TRAIN, after)[0].df == 9, "ten families were probed"


def test_a_base_model_that_no_row_is_of_is_told() -> None:
    policy, (note,) = fit(SEEN.rows, base_model="smollm2-135m")
    assert "No row is of the base model 'smollm2-135m'" in note and "simulated-1" in note
    assert (
        policy.provenance.base_model == "smollm2-135m" and fit(SEEN.rows, base_model="simulated-1")[1] == []
    )


def test_looking_first_and_training_at_once_cost_the_same() -> None:
    here = situation(signals(), feasible=("icl", TRAIN), worth_s=1e5)
    looked = POLICY.decide(here)
    assert looked.step == "probe" and looked.details["cost_s"] == 12.0 + 50.0 + 10.0
    blind = replace(POLICY, arms={TRAIN: replace(POLICY.arms[TRAIN], stages=_without_probe(POLICY))})
    at_once = blind.decide(here)
    assert at_once.arm == TRAIN and at_once.expected_cost_s == 72.0


def _without_probe(policy: Learned) -> dict[Stage, StageModel]:
    return {name: model for name, model in policy.arms[TRAIN].stages.items() if name != "probe"}
