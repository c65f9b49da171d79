"""Promotion only on paired evidence; a promise that is not kept shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies import evaluation
from policies.baselines import AlwaysArm
from policies.errors import PolicyError
from policies.gate import MIN_EVIDENCE, gate, kept
from policies.learned import fit
from policies.outcomes import TaskOutcome
from policies.rule import Rule
from tests.policies.simulated import TRAIN, simulate

CANDIDATE, _ = fit(simulate(100, 2, seed=1).rows)


def fresh(n: int, seed: int = 2) -> list[TaskOutcome]:
    """Rows of families that the candidate has not seen."""
    return [replace(row, family=f"fresh-{row.family}") for row in simulate(n, seed=seed).rows]


def test_a_candidate_that_beats_a_weak_incumbent_on_fresh_families_is_promoted() -> None:
    found = gate(CANDIDATE, AlwaysArm("icl"), fresh(60), 30.0)
    assert found.promote and found.advantage_low > 0 and found.n_families == 60
    assert "at least +" in found.reason and "95% sure" in found.reason


def test_a_candidate_like_its_incumbent_stays_out() -> None:
    found = gate(CANDIDATE, CANDIDATE, fresh(60), 30.0)
    assert not found.promote and found.advantage == 0.0 and found.more_families is None
    assert "no number of tasks like these" in found.reason


def test_a_small_advantage_says_how_many_more_families_would_show_it() -> None:
    other = replace(CANDIDATE, confidence=0.999)
    rows = fresh(16, seed=21)
    found = max(
        gate(CANDIDATE, other, rows, 30.0), gate(other, CANDIDATE, rows, 30.0), key=lambda g: g.advantage
    )
    assert found.advantage > 0 >= found.advantage_low
    assert not found.promote and found.more_families is not None and found.more_families > 0
    assert f"about {found.more_families} more families" in found.reason


def test_too_few_families_are_no_evidence_however_good() -> None:
    found = gate(CANDIDATE, AlwaysArm("zero-shot"), fresh(6), 300.0)
    assert not found.promote and f"at least {MIN_EVIDENCE} families" in found.reason
    assert found.more_families is not None and found.more_families >= MIN_EVIDENCE - 6


def test_a_fixed_arm_that_is_better_bars_the_way() -> None:
    def perfect(row: TaskOutcome) -> TaskOutcome:
        return replace(
            row, arms={**row.arms, "zero-shot": replace(row.arms["zero-shot"], correct=1.0, seconds=0.1)}
        )

    rows = [perfect(row) for row in fresh(60)]
    found = gate(CANDIDATE, AlwaysArm("icl"), rows, 30.0)
    assert not found.promote and "always zero-shot brings" in found.reason


def test_no_policy_wins_by_an_arm_that_a_router_does_not_offer() -> None:
    rows = fresh(30)
    found = [gate(CANDIDATE, AlwaysArm(arm), rows, 30.0).advantage for arm in ("icl", "zero-shot")]
    assert found[0] == found[1], "zero-shot falls back to icl"


def test_on_the_rows_of_its_own_fit_each_family_is_decided_without_it() -> None:
    rows = simulate(40, seed=1).rows
    rng = np.random.default_rng(5)

    def luck(row: TaskOutcome) -> TaskOutcome:
        correct = float(np.clip(row.arms["icl"].correct + rng.normal(0, 0.2), 0, 1))
        return replace(row, arms={**row.arms, TRAIN: replace(row.arms[TRAIN], correct=correct)})

    lucky = [luck(row) for row in rows]
    candidate, _ = fit(lucky)
    found = gate(candidate, AlwaysArm("icl"), lucky, 300.0)
    assert found.n_families == 40 and not found.promote
    with pytest.raises(PolicyError, match="fitted on all 39 families"):
        gate(candidate, Rule(), lucky[:-1], 30.0)


def test_a_refit_weighs_base_models_as_the_fit_did(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = simulate(20, seed=1).rows
    candidate, _ = fit(rows, base_model="simulated-1")
    asked: list[Any] = []

    def spied(*given: Any, **options: Any) -> Any:
        asked.append(options["base_model"])
        return fit(*given, **options)

    monkeypatch.setattr(evaluation, "fit", spied)
    gate(candidate, Rule(), rows, 30.0)
    assert asked == ["simulated-1"] * 20


def test_seen_families_among_others_are_left_out() -> None:
    mixed = [*simulate(100, 2, seed=1).rows[:50], *fresh(30)]
    assert gate(CANDIDATE, Rule(), mixed, 30.0).n_families == 30


def test_a_promise_that_came_true_is_kept_and_one_far_off_is_not() -> None:
    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(40)]
    promised = rng.uniform(0.1, 0.6, 40)
    true = kept(promised.tolist(), (promised + rng.normal(0, 0.1, 40)).tolist(), names)
    assert true is not None and not true.below and "no evidence" in true.sentence
    less = kept(promised.tolist(), (promised - 0.2 + rng.normal(0, 0.1, 40)).tolist(), names)
    assert less is not None and less.below and "below the promise." in less.sentence
    assert less.realised_low < less.realised < less.realised_high
    assert kept([0.5] * 40, [0.0] * 40, ["one"] * 40) is None
