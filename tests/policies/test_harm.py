"""Harm: exact tests of families, Holm's correction, and losses on other queries of the same tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.harm import below, check_fresh, holm, on_fresh, p_below
from policies.outcomes import TaskOutcome
from router.cli.policy_report import report_lines
from tests.policies.simulated import TRAIN, simulate

ROWS = simulate(30, 2, seed=11).rows


def _with(row: TaskOutcome, icl: float, trained: float, n: int) -> TaskOutcome:
    arms = {
        "icl": replace(row.arms["icl"], correct=icl, n_queries=n),
        TRAIN: replace(row.arms[TRAIN], correct=trained, n_queries=n),
    }
    return replace(row, arms=arms)


def test_holm_steps_down_in_the_given_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()
    with pytest.raises(ValueError, match=r"1\.5 is not a p-value"):
        holm([0.1, 1.5])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_the_raw_and_the_bonferroni_values(p_values: list[float]) -> None:
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12


def test_a_family_is_tested_over_all_its_rows_as_fisher_does() -> None:
    first, second = (row for row in ROWS if row.family == ROWS[0].family)
    rows = [_with(first, 0.75, 0.25, 32), _with(second, 0.5, 0.25, 32)]
    p = p_below(rows, np.array([row.arms[TRAIN].correct for row in rows]))
    table = [[16, 48], [40, 24]]  # right and wrong: trained, in context
    assert p == pytest.approx({first.family: fisher_exact(table, "less").pvalue})
    assert below(p) == [first.family]
    assert p_below(rows, np.array([row.arms["icl"].correct for row in rows]))[first.family] > 0.5


def test_one_loss_among_many_families_that_chance_explains_is_not_named() -> None:
    rows = [_with(row, 0.5, 0.3125 if row is ROWS[0] else 0.5, 32) for row in ROWS[::2]]
    p = p_below(rows, np.array([row.arms[TRAIN].correct for row in rows]))
    assert 0.05 < p[rows[0].family] < 0.15
    assert below(p) == []


def test_losses_on_other_queries_are_those_of_the_arms_that_were_taken() -> None:
    rows = [_with(row, 0.5, 0.9, 32) for row in ROWS[:20:2]]
    fresh = [_with(row, 0.5, 0.45, 1000) for row in rows[:8]]
    taken = [TRAIN if i < 3 else "icl" for i in range(len(rows))]
    check_fresh(rows, fresh, ["icl", TRAIN])
    elsewhere = [replace(row, machine="another") for row in fresh]
    found = on_fresh(rows, fresh, taken)
    assert on_fresh(rows, elsewhere, taken) == found
    assert (found["n_families"], found["n_queries"]) == (8, 1000)
    assert found["share_trained"] == found["share_harmed"][0] == 3 / 8
    assert found["change"][0] == pytest.approx(-0.05 * 3 / 8)
    assert 0 < found["least_p"] < 0.05 and found["families_below"] == []  # 1.3 % times eight


def test_fresh_rows_of_other_tasks_or_without_the_arm_are_refused() -> None:
    other = [replace(row, task="another") for row in ROWS[:3]]
    with pytest.raises(PolicyError, match="None of the 3 fresh rows is of a task of the 10 rows"):
        check_fresh(ROWS[:10], other, ["icl", TRAIN])
    bare = [replace(ROWS[0], arms={"icl": ROWS[0].arms["icl"]})]
    with pytest.raises(PolicyError, match=f"lacks an outcome of {TRAIN}; collect it"):
        check_fresh(ROWS[:1], bare, ["icl", TRAIN])


def test_the_report_judges_harm_on_fresh_rows_where_they_are_given() -> None:
    fresh = [_with(row, 0.9, 0.1, 256) for row in ROWS]
    report = evaluate(ROWS, worths={"balanced": 30.0}, fresh=fresh)
    found = report["worths"]["balanced"]
    trained = found["ways"]["learned"]["share_trained"]
    assert found["fresh"]["share_trained"] == pytest.approx(trained) and trained > 0
    assert found["fresh"]["change"][0] == pytest.approx(-0.8 * trained)
    text = "\n".join(report_lines(report))
    assert "On fresh rows, 256 queries or more of each of 30 families" in text
    assert f"Holm, 5 %): {', '.join(found['fresh']['families_below'])}; least p" in text
