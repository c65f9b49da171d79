"""Trees as numbers say what scikit-learn's say, and impossible ones are refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.tree import ExtraTreeRegressor

from policies.errors import PolicyError
from policies.trees import LEAVES, MAX_ROWS, TREES, Trees, grow, trees_from_json

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
Y = np.where((X[:, 0] > 0) & (X[:, 1] > 0), 1.0, 0.0)
EVEN = np.ones(300)
GROWN = grow(X, Y, EVEN, 300, 7)


def test_they_say_what_scikit_learn_says() -> None:
    fresh = RNG.normal(size=(500, 4))
    told = [
        ExtraTreeRegressor(max_leaf_nodes=LEAVES, min_samples_leaf=3, max_features=1.0, random_state=7 + i)
        .fit(X, Y)
        .predict(fresh)
        for i in range(TREES)
    ]
    assert GROWN.predict(fresh) == pytest.approx(np.mean(told, axis=0), abs=1e-5)


def test_what_counts_only_together_is_learned() -> None:
    fresh = RNG.normal(size=(2000, 4))
    truth = (fresh[:, 0] > 0) & (fresh[:, 1] > 0)
    line = np.column_stack([fresh, np.ones(2000)]) @ np.linalg.lstsq(np.column_stack([X, EVEN]), Y)[0]
    errors = [np.mean((said - truth) ** 2) for said in (GROWN.predict(fresh), line)]
    assert errors[0] < 0.5 * errors[1]


def test_a_leaf_holds_several_families() -> None:
    twins, answers = np.repeat(X[:60], 5, axis=0), np.repeat(Y[:60], 5)
    trees = grow(twins, answers, EVEN, 60, 0)
    leaves = trees.feature.count(-1) / TREES
    assert leaves <= 300 / 15, "three families of five rows each"


def test_of_very_many_rows_a_part_is_grown_on() -> None:
    n = 3 * MAX_ROWS
    x = np.arange(n, dtype=np.float64)[:, None]
    trees = grow(x, (x[:, 0] > n / 2).astype(float), np.ones(n), n, 0)
    assert trees.predict(np.array([[0.0], [n - 1.0]])) == pytest.approx([0, 1])


def test_they_survive_json_and_impossible_ones_are_refused() -> None:
    plain = json.loads(json.dumps(asdict(GROWN)))
    assert trees_from_json(plain) == GROWN
    one = {"roots": [0], "feature": [-1], "threshold": [0.0], "left": [0], "right": [0], "value": [0.5]}
    assert Trees.predict(trees_from_json(one), np.zeros((2, 1))).tolist() == [0.5, 0.5]
    for change, message in (
        ({"roots": []}, "different lengths"),
        ({"value": [0.5, 0.5]}, "different lengths"),
        ({"value": [float("inf")]}, "finite"),
        ({"left": [3]}, "not there"),
        ({"roots": [True]}, "not there"),
        ({"feature": [0]}, "leads nowhere"),
        ({"more": []}, "can't be read"),
        ({"left": None}, "can't be read"),
    ):
        with pytest.raises(PolicyError, match=message):
            trees_from_json({**one, **change})
    with pytest.raises(PolicyError, match="can't be read"):
        trees_from_json(None)
