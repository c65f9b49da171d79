"""Extremely randomised trees as plain numbers: what a line can't say of signals that count only together.

Fitted by scikit-learn (Geurts et al. 2006, doi:10.1007/s10994-006-6226-1), kept as arrays, read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.checks import check_finite
from policies.errors import PolicyError
from policies.features import Array

TREES = 30
LEAVES = 32
"""Of a tree, at most."""
LEAF_FAMILIES = 3
"""Families' worth of rows in a leaf, at least."""
MAX_ROWS = 20_000
"""That trees are grown on; of more an even choice."""
DIGITS = 6


@dataclass(frozen=True)
class Trees:
    """All nodes of all trees, one after the other. A value, and JSON.

    A row goes left from a node where its feature is at most the threshold. A leaf has feature −1, and itself on both sides.
    """

    roots: tuple[int, ...]
    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]
    """What a leaf says; of other nodes 0."""

    def __post_init__(self) -> None:
        n = len(self.feature)
        if not self.roots or any(len(v) != n for v in (self.threshold, self.left, self.right, self.value)):
            raise PolicyError("A policy's trees have arrays of different lengths; fit it again.")
        for number in (*self.threshold, *self.value):
            check_finite("A number in the policy's trees", number)
        whole = (*self.roots, *self.feature, *self.left, *self.right)
        if not all(isinstance(i, int) and not isinstance(i, bool) and -1 <= i < n for i in whole):
            raise PolicyError("A policy's trees point to nodes that are not there; fit it again.")
        for i, (f, a, b) in enumerate(zip(self.feature, self.left, self.right, strict=True)):
            if (f < 0) != (a == b == i) or (f >= 0 and min(a, b) <= i):
                raise PolicyError(f"The node {i} of a policy's trees leads nowhere; fit it again.")

    def predict(self, values: Array) -> Array:
        """Mean over the trees, of rows of shape (rows, features): (rows,)."""
        roots, feature, threshold, left, right, value = self._arrays
        node = np.repeat(roots[None], len(values), axis=0)
        seen, every = values.astype(np.float32), np.arange(len(values))[:, None]
        while (feature[node] >= 0).any():
            node = np.where(seen[every, feature[node]] <= threshold[node], left[node], right[node])
        mean: Array = value[node].mean(axis=1)
        return mean

    @property
    def n_features(self) -> int:
        """How many features a row must have, at least."""
        return max(self.feature, default=-1) + 1

    @cached_property
    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return tuple(np.array(getattr(self, f.name)) for f in fields(self))


def grow(values: Array, gains: Array, weights: Array, n_families: int, seed: int) -> Trees:
    """Trees over features of shape (rows, features).

    Args:
        weights: of each row.
        n_families: how many kinds of task the rows are of.
    """
    from sklearn.tree import ExtraTreeRegressor

    chosen = np.unique(np.linspace(0, len(gains) - 1, min(len(gains), MAX_ROWS)).astype(int))
    least = max(1, round(LEAF_FAMILIES * len(chosen) / n_families))
    x, y, w = values[chosen].astype(np.float32), gains[chosen], weights[chosen]
    grown = []
    for number in range(
        TREES
    ):  # one by one without checks: an ensemble takes three times as long on few rows
        tree = ExtraTreeRegressor(
            max_leaf_nodes=LEAVES, min_samples_leaf=least, max_features=1.0, random_state=seed + number
        )
        grown.append(tree.fit(x, y, sample_weight=w, check_input=False).tree_)
    return _flat(grown)


def _flat(trees: Sequence[Any]) -> Trees:
    roots: list[int] = []
    parts: dict[str, list[Any]] = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
    for tree in trees:
        start = len(parts["feature"])
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        roots.append(start)
        parts["feature"] += np.where(leaf, -1, tree.feature).tolist()
        parts["threshold"] += np.where(leaf, 0.0, tree.threshold).tolist()
        parts["left"] += (start + np.where(leaf, own, tree.children_left)).tolist()
        parts["right"] += (start + np.where(leaf, own, tree.children_right)).tolist()
        parts["value"] += np.where(leaf, tree.value[:, 0, 0], 0.0).round(DIGITS).tolist()
    return Trees(tuple(roots), **{name: tuple(values) for name, values in parts.items()})


def trees_from_json(data: Any) -> Trees:
    """
    Raises:
        PolicyError: missing or unknown keys, or nodes that are impossible.
    """
    try:
        if set(data) != {f.name for f in fields(Trees)}:
            raise KeyError("trees")
        return Trees(**{name: tuple(values) for name, values in data.items()})
    except (KeyError, TypeError) as error:
        raise PolicyError(f"The policy's trees can't be read ({error!r}); fit it again.") from error
