"""What families gained beyond their signals is found again by where a task lies, and only there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from policies.errors import PolicyError
from policies.evaluation import cross_fitted
from policies.learned import Learned, fit
from policies.outcomes import TaskOutcome, as_json, parse_row
from policies.persist import from_payload, to_json
from policies.recall import MIN_REPEATED, Memory, memory_from_json
from policies.replay import replay, situation_of
from policies.types import LOCATION, Location
from policies.ways import replayed
from tests.policies.simulated import SIZE, TRAIN, located, simulate

ROWS = located(simulate(36, 3, seed=3).rows)
SEEN = [row for row in ROWS if row.seed > 0]
FRESH = [row for row in ROWS if row.seed == 0]
POLICY, _ = fit(SEEN)


def memory(policy: Learned = POLICY) -> Memory:
    found = policy.arms[TRAIN].stages["cheap"].memory
    assert found is not None
    return found


def gains(rows: list[TaskOutcome]) -> np.ndarray:
    return np.array([row.arms[TRAIN].correct - row.arms["icl"].correct for row in rows])


def foretold(policy: Learned, rows: list[TaskOutcome]) -> np.ndarray:
    return np.array(
        [policy.estimate(TRAIN, situation_of(row, 30.0, measured=False))[0].expected for row in rows]
    )


def test_other_tasks_of_families_that_were_seen_are_foretold_far_better() -> None:
    blind, _ = fit([replace(row, location=None) for row in SEEN])
    error, without = (np.mean((foretold(p, FRESH) - gains(FRESH)) ** 2) for p in (POLICY, blind))
    assert error < 0.5 * without
    sds = [[p.estimate(TRAIN, situation_of(row, 30.0))[0].sd for row in FRESH] for p in (POLICY, blind)]
    assert np.mean(sds[0]) < 0.7 * np.mean(sds[1]), "and it knows"
    assert memory().share > 0.5, "a simulated family has one gain"


def test_a_task_that_is_like_nothing_seen_is_left_to_its_signals() -> None:
    (far,) = located([FRESH[0]], seed=99)
    assert far.location is not None
    assert max(np.array(memory().points) @ np.array(far.location.point)) < 0.9
    blind = replace(far, location=None)
    assert foretold(POLICY, [far]) == pytest.approx(foretold(POLICY, [blind]), abs=0.02)
    assert memory().recall(Location(memory().space, (0.6, 0.8))) == (0.0, 0.0), "of another size"


def test_what_few_rows_say_is_shrunk() -> None:
    found = memory()
    extra, settled = found.recall(Location(found.space, found.points[0]))
    assert settled == pytest.approx(2 / (2 + found.shrink), abs=0.05), "others are a little alike"
    assert extra == pytest.approx(found.residuals[0] * settled, abs=0.03)


def test_without_families_of_several_tasks_nothing_is_remembered() -> None:
    once, _ = fit(FRESH)
    assert once.arms[TRAIN].stages["cheap"].memory is None and once.reads == frozenset()
    few = [
        row for row in ROWS if row.seed == 0 or row.family in {f"family-{i}" for i in range(MIN_REPEATED - 1)}
    ]
    assert fit(few)[0].arms[TRAIN].stages["cheap"].memory is None
    assert POLICY.reads == {LOCATION}


def test_locations_of_another_base_model_say_nothing() -> None:
    assert POLICY.for_model("simulated-1").reads == {LOCATION}
    assert POLICY.for_model("other").reads == frozenset()
    stranger = POLICY.for_model("other")
    here = situation_of(FRESH[0], 30.0)
    unlocated = replace(here, signals=replace(here.signals, location=None))
    assert stranger.estimate(TRAIN, here)[0] == stranger.estimate(TRAIN, unlocated)[0]
    others = [replace(row, model="other") for row in located(ROWS, space="way-1 other qa1")]
    for first, space in (("simulated-1", SEEN[0].location), ("other", others[0].location)):
        mixed, _ = fit([*SEEN, *others], base_model=first)
        assert space is not None and memory(mixed).space == space.space
        assert set(mixed.provenance.base_models) == {"simulated-1", "other"}
        for name in ("simulated-1", "other"):
            assert mixed.for_model(name).reads == ({LOCATION} if name == first else frozenset())
    row = replace(FRESH[0], model="other", location=Location("way-1 else qa1", FRESH[0].location.point))  # type: ignore[union-attr]
    assert foretold(POLICY, [row]) == pytest.approx(foretold(POLICY, [replace(row, location=None)]))


def test_where_too_few_rows_are_of_the_base_model_nothing_is_remembered_of_others() -> None:
    few = [replace(row, model="other") for row in located(ROWS[:3], space="way-1 other qa1")]
    mixed, _ = fit([*SEEN, *few], base_model="other")
    assert mixed.arms[TRAIN].stages["cheap"].memory is None


def test_what_foretells_too_little_is_not_remembered() -> None:
    rng = np.random.default_rng(2)
    shuffled = [row.location for row in SEEN]
    rng.shuffle(shuffled)
    anywhere = [replace(row, location=at) for row, at in zip(SEEN, shuffled, strict=True)]
    assert fit(anywhere)[0].reads == frozenset()


def test_many_families_that_are_a_little_like_it_do_not_pass_for_its_own() -> None:
    rng = np.random.default_rng(1)
    common = np.eye(SIZE)[0]
    points = common * 0.8 + 0.6 * np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0][1:]
    points = np.repeat(points / np.linalg.norm(points, axis=1, keepdims=True), 20, axis=0)
    n = len(points)
    many = Memory("s", tuple(map(tuple, points.tolist())), (5,) * n, (0.3,) * n, 0.2, 1.3, 0.9)
    extra, settled = many.recall(Location("s", tuple(common.tolist())))
    likeness = np.exp(-(1 - (points @ common).max()) / 0.2)
    assert settled <= likeness < 0.9 and extra <= 0.3 * likeness


def test_where_a_task_lies_is_paid_for_where_it_is_read() -> None:
    blind, _ = fit([replace(row, location=None) for row in SEEN])
    row = FRESH[0]
    paid, free = (replay(p, row, 1e-3) for p in (POLICY, blind))
    assert paid.arm == free.arm == "icl" and paid.seconds == pytest.approx(free.seconds + 0.25)


def test_held_out_tasks_of_seen_families_win_more_than_tasks_of_unseen_ones() -> None:
    queries = np.array([row.n_expected for row in ROWS])
    by_task, by_family = (
        replayed(ROWS, cross_fitted(ROWS, by), ("icl", TRAIN), 5.0).utility(queries, 5.0).mean()
        for by in ("task", "family")
    )
    assert by_task > by_family + 0.1


def test_it_survives_json_and_a_changed_one_is_refused() -> None:
    again = from_payload(json.loads(to_json(POLICY)))
    assert again == POLICY and isinstance(again, Learned)
    assert foretold(again, FRESH) == pytest.approx(foretold(POLICY, FRESH))
    plain = asdict(memory())
    for change, message in (
        ({"width": 0.0}, "width"),
        ({"counts": [1]}, "different lengths"),
        ({"share": 1.5}, "share"),
        ({"residuals": [float("nan")] * 36}, "finite"),
        ({"counts": [0] * 36}, "without rows"),
        ({"more": 1}, "can't be read"),
    ):
        with pytest.raises(PolicyError, match=message):
            memory_from_json({**plain, **change})


def test_a_row_with_an_impossible_embedding_is_refused() -> None:
    plain = as_json(FRESH[0])
    assert parse_row(plain) == FRESH[0] and parse_row(plain).location is not None
    for bad, message in (
        ({"space": "s", "point": [2.0]}, "between -1 and 1"),
        ({"space": "s", "point": []}, "list of numbers"),
        ({"space": "", "point": [1.0]}, "name of a space"),
        ({"point": [1.0]}, "lacks 'space'"),
        ([1.0], "JSON object"),
    ):
        with pytest.raises(PolicyError, match=message):
            parse_row(plain | {"location": bad})


def test_the_reason_says_what_the_family_added() -> None:
    reasons = [POLICY.decide(situation_of(row, 30.0)).reason for row in FRESH]
    assert any("is what tasks that lie here gained beyond their signals" in reason for reason in reasons)
