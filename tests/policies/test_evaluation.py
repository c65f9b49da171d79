"""The report on unseen families: every baseline, honest oracle, ranking, calibration, and who was held out."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.baselines import AlwaysArm
from policies.calibration import area, ranking, recovered
from policies.errors import PolicyError
from policies.evaluation import cross_fitted, evaluate, learning_curve
from policies.families import FamilyBootstrap
from policies.outcomes import TaskOutcome
from policies.ways import all_ways, at_random, common_arms, fixed, oracle, threshold
from router.cli.policy_report import report_lines
from tests.policies.simulated import TRAIN, simulate

SIMULATED = simulate(60, 2, seed=7)
ROWS = SIMULATED.rows


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return evaluate(ROWS, worths={"balanced": 30.0})


def test_the_report_has_every_baseline_with_intervals_around_its_figures(report: dict[str, Any]) -> None:
    ways = report["worths"]["balanced"]["ways"]
    assert set(ways) == {
        "always icl",
        f"always {TRAIN}",
        "always zero-shot",
        "rule",
        "learned",
        "random at equal budget",
        "confidence threshold",
        "oracle",
    }
    for way in ways.values():
        for figure in ("accuracy", "seconds", "utility"):
            middle, low, high = way[figure]
            assert low <= middle <= high
    assert (report["n_families"], report["n_rows"], report["strong_arm"]) == (60, 120, TRAIN)


def test_the_learned_policy_stands_between_its_baselines_and_the_oracle(report: dict[str, Any]) -> None:
    found = report["worths"]["balanced"]
    utility = {name: way["utility"][0] for name, way in found["ways"].items()}
    assert utility[found["best_fixed"]] < utility["learned"] < utility["oracle"]
    assert utility["random at equal budget"] < utility["learned"]
    assert found["oracle_over_best_fixed"][1] > 0  # else there is no share to speak of
    won, low, high = found["won_of_oracle"]
    assert 0 < won < 1 and low < won < high
    assert found["advantage"]["random at equal budget"]["utility"][1] > 0


def test_random_spends_what_the_learned_policy_spends(report: dict[str, Any]) -> None:
    ways = report["worths"]["balanced"]["ways"]
    assert ways["random at equal budget"]["seconds"][0] == pytest.approx(
        ways["learned"]["seconds"][0], rel=0.02
    )


def test_ranking_by_the_probe_beats_ranking_without_it(report: dict[str, Any]) -> None:
    before, after = report["ranking"]["before the probe"], report["ranking"]["after the probe"]
    assert max(0.6, before["apgr"][0]) < after["apgr"][0]
    assert after["cpt_80"] < 0.8


def test_predictions_are_calibrated_and_better_than_the_base_rate(report: dict[str, Any]) -> None:
    found = report["calibration"]
    assert found["brier"] < found["brier_of_base_rate"]
    assert 0.8 <= found["coverage_90"] <= 1.0
    assert abs(found["bias"]) < 0.05 and found["rmse"] < found["rmse_of_mean"]
    assert sum(b["n"] for b in found["bins"]) == 120


def test_families_that_no_signal_tells_apart_are_ranked_at_random_not_backwards() -> None:
    """Leaving a family out lowers the mean of the others where its own gain is high."""
    rng = np.random.default_rng(4)

    def lucky(row: TaskOutcome) -> TaskOutcome:
        correct = min(1.0, row.arms["icl"].correct + 0.5 * (rng.random() < 0.4))
        arms = {"icl": row.arms["icl"], TRAIN: replace(row.arms[TRAIN], correct=correct)}
        return replace(row, signals=ROWS[0].signals, arms=arms)

    alike = [lucky(row) for row in ROWS[::2]]
    found = ranking(alike, cross_fitted(alike), TRAIN)["before the probe"]
    assert 0.35 < found["apgr"][0] < 0.65


def test_no_policy_has_seen_the_family_that_it_decides() -> None:
    policies = cross_fitted(ROWS)
    for row, policy in zip(ROWS, policies, strict=True):
        assert row.family not in policy.provenance.families
        assert len(policy.provenance.families) == 59


def test_a_collection_is_held_out_whole_and_so_are_its_families_elsewhere() -> None:
    twin = [replace(row, collection="collection-9", task=f"{row.task}-twin") for row in ROWS[:30]]
    rows = [*ROWS, *twin]
    for row, policy in zip(rows, cross_fitted(rows, "collection"), strict=True):
        assert row.collection not in policy.provenance.collections
        assert row.family not in policy.provenance.families
    with pytest.raises(PolicyError, match="only one collection"):
        cross_fitted(simulate(20, collections=1).rows, "collection")


def test_the_oracle_is_not_flattered_by_noise_where_the_arms_are_equal() -> None:
    equal = [
        replace(
            row, arms={name: replace(arm, seconds=0.0) for name, arm in row.arms.items() if name != TRAIN}
        )
        for row in simulate(400, seed=5, n_queries=16).rows
    ]
    rng = np.random.default_rng(0)
    flat = [
        replace(row, arms={n: replace(a, correct=rng.binomial(16, 0.5) / 16) for n, a in row.arms.items()})
        for row in equal
    ]
    way = oracle(flat, ("icl", "zero-shot"), 30.0, seed=0)
    best_seen = mean(max(arm.correct for arm in row.arms.values()) for row in flat)
    assert best_seen > 0.55
    assert abs(way.correct.mean() - 0.5) < 0.02


def test_the_threshold_of_a_family_does_not_know_its_outcomes() -> None:
    changed = [
        replace(
            row, arms={**row.arms, TRAIN: replace(row.arms[TRAIN], correct=1.0 - row.arms[TRAIN].correct)}
        )
        if row.family == "family-3"
        else row
        for row in ROWS
    ]
    here = [i for i, row in enumerate(ROWS) if row.family == "family-3"]
    before, after = threshold(ROWS, TRAIN, 30.0), threshold(changed, TRAIN, 30.0)
    assert (before.trained[here] == after.trained[here]).all()


def test_a_sample_in_place_of_all_queries_is_cheaper_before_training_and_dearer_before_staying() -> None:
    def timed(row: TaskOutcome) -> TaskOutcome:
        icl = row.arms["icl"]
        parts = {**icl.seconds_parts, "sample": 1.5}
        return replace(row, arms={**row.arms, "icl": replace(icl, seconds_parts=parts)})

    rows, arms = [timed(row) for row in ROWS], ("icl", TRAIN)
    icl_s, trained_s = fixed(ROWS, "icl").seconds, fixed(ROWS, TRAIN).seconds
    knowing, knew = oracle(rows, arms, 1e9, seed=0), oracle(ROWS, arms, 1e9, seed=0)
    always = knew.trained == 1.0
    assert always.any() and (knowing.correct == knew.correct).all()
    assert knowing.seconds[always] == pytest.approx(1.5 + trained_s[always])
    assert knew.seconds[always] == pytest.approx(icl_s[always] + trained_s[always])
    limited = threshold(rows, TRAIN, 12.0)
    taken = limited.trained == 1.0
    assert taken.any() and not taken.all()
    assert limited.seconds[taken] == pytest.approx(1.5 + trained_s[taken])
    assert limited.seconds[~taken] == pytest.approx(1.5 + icl_s[~taken])


def test_policies_choose_between_icl_and_one_arm_of_training_as_in_a_router() -> None:
    other = "train:other"
    rows = [replace(row, arms={**row.arms, other: replace(row.arms[TRAIN], correct=0.0)}) for row in ROWS]
    arms = common_arms(rows)
    assert arms.strong == TRAIN
    for never in ("zero-shot", other):
        way = all_ways(rows, [AlwaysArm(never)] * len(rows), arms, 30.0)["learned"]
        assert (way.correct == fixed(rows, "icl").correct).all() and not way.trained.any()
    taken = all_ways(rows, [AlwaysArm(TRAIN)] * len(rows), arms, 30.0)["learned"]
    assert taken.trained.all()


def test_there_is_no_oracle_where_of_a_task_one_query_was_judged() -> None:
    arms = {name: replace(arm, n_queries=1, correct=1.0) for name, arm in ROWS[0].arms.items()}
    found = evaluate([replace(ROWS[0], arms=arms), *ROWS[1:]], worths={"balanced": 30.0})
    shown = found["worths"]["balanced"]
    assert "oracle" not in shown["ways"] and "oracle" not in shown["advantage"]
    assert shown["won_of_oracle"] is None and shown["oracle_over_best_fixed"] is None
    assert any(line.startswith("There is no oracle") for line in report_lines(found))


def test_random_never_spends_more_than_always_and_as_much_as_the_budget_in_the_mean_that_counts() -> None:
    weak, strong, budget = fixed(ROWS, "icl"), fixed(ROWS, TRAIN), fixed(ROWS, "icl")
    heavy = np.arange(1.0, len(ROWS) + 1)
    assert at_random(weak, strong, strong, np.mean).seconds == pytest.approx(strong.seconds)
    assert at_random(weak, strong, weak, np.mean).correct == pytest.approx(weak.correct)
    budget = replace(budget, seconds=2.0 * weak.seconds)
    mixed = at_random(weak, strong, budget, lambda seconds: float(np.average(seconds, weights=heavy)))
    assert np.average(mixed.seconds, weights=heavy) == pytest.approx(
        np.average(budget.seconds, weights=heavy)
    )


def test_too_few_families_name_the_one_that_was_held_out() -> None:
    with pytest.raises(PolicyError, match=r"With the family '.+' held out: .* on 7 families .* so 1 more"):
        cross_fitted(simulate(8, 2, seed=1).rows)


def test_rows_without_a_common_arm_of_training_are_refused() -> None:
    bare = [replace(row, arms={"icl": row.arms["icl"]}) for row in ROWS]
    with pytest.raises(PolicyError, match="arm of training"):
        common_arms(bare)


@given(st.lists(st.floats(-0.5, 1.0), min_size=3, max_size=40), st.integers(0, 99))
def test_ranking_by_the_true_gain_is_never_worse_than_another_order(gains: list[float], seed: int) -> None:
    values = np.array(gains)
    best = area(recovered(values, values, np.ones(len(values))))
    other = area(recovered(np.random.default_rng(seed).random(len(values)), values, np.ones(len(values))))
    if values.sum() <= 1e-9:
        assert best is None and other is None
    else:
        assert best is not None and other is not None and other <= best + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.integers(1, 5))
def test_repeated_rows_of_a_family_change_neither_mean_nor_interval(values: list[float], times: int) -> None:
    names = [f"f{i}" for i in range(len(values))]
    once = FamilyBootstrap(names, resamples=200).interval(np.array(values))
    often = FamilyBootstrap(names * times, resamples=200).interval(np.array(values * times))
    assert often == pytest.approx(once)


def test_more_families_to_learn_from_do_not_hurt() -> None:
    rows = simulate(120, seed=11).rows
    curve = learning_curve(rows, [10, 40], worth_s=30.0, repeats=8)
    assert [point["families"] for point in curve] == [10, 40]
    assert curve[1]["utility"] > curve[0]["utility"]
    with pytest.raises(PolicyError, match="more than the 120"):
        learning_curve(rows, [120], worth_s=30.0)
    assert all(point["draws"] == 8 for point in curve)
    won = [
        (row, replace(row.arms[TRAIN], correct=1.0), replace(row.arms["icl"], correct=0.0))
        for row in rows[:9]
    ]
    few = [replace(row, arms={"icl": icl, TRAIN: trained}) for row, trained, icl in won]
    assert learning_curve(few, [8], worth_s=30.0) == [], "of one kind only: no draw can be fitted on"
