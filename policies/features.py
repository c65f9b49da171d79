"""Signals → numbers that a gain can be fitted on, in two stages by what has been measured.

| stage | needs | adds |
|---|---|---|
| `cheap` | nothing beyond ICL | sizes, label set, length of training, how sure ICL was |
| `probe` | the probe | what it changed, also as a share of what was left to win |

Leave-one-out is not among them: on the shipped outcomes it told nothing of the gain that ICL's own figures and the probe do not
(docs/log.md), and it costs half as much as ICL.

Each stage has its own model, so that what was not measured is never taken for zero. Within a stage a
signal may still be absent (ICL gave no answer, say): its column is NaN
here, the fit's median stands for it there, and the decision says so. The number of queries is no feature:
it changes what a gain is worth, not the gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from policies.types import SCALARS, Signals

Stage = Literal["cheap", "probe"]
STAGES: tuple[Stage, ...] = get_args(Stage)
NEEDS: dict[Stage, tuple[str, ...]] = {
    "cheap": (),
    "probe": (
        "probe_accuracy_before",
        "probe_accuracy_after",
        "probe_logprob_before",
        "probe_logprob_after",
        "probe_logprob_gain_low",
    ),
}
"""Signals without which a stage is not reached."""

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
"""One array of shape (rows,) a signal, NaN where it was not measured."""


def columns(signals: Sequence[Signals]) -> dict[str, Array]:
    """Signals of many tasks side by side."""
    return {
        name: np.array([_number(getattr(s, name)) for s in signals], dtype=np.float64) for name in SCALARS
    }


def stage_of(signals: Signals) -> Stage:
    """The richest stage whose signals are all there."""
    return "probe" if all(getattr(signals, name) is not None for name in NEEDS["probe"]) else "cheap"


def reached(stage: Stage, of: Columns) -> NDArray[np.bool_]:
    """Rows in which everything that `stage` needs was measured, shape (rows,)."""
    there = np.ones(len(of["n_demonstrations"]), dtype=np.bool_)
    for name in NEEDS[stage]:
        there &= ~np.isnan(of[name])
    return there


def headroom(of: Columns, stage: Stage) -> Array:
    """1 − the held-out accuracy of the base model; 1 where none is known. Shape (rows,)."""
    if stage == "cheap":
        return np.ones(len(of["n_demonstrations"]))
    return 1.0 - np.fmax(0.0, of["probe_accuracy_before"])


def features(of: Columns, stage: Stage) -> tuple[tuple[str, ...], Array]:
    """Names of the features, and their values of shape (rows, features)."""
    found: dict[str, Array] = {
        "log_prompt_tokens": np.log1p(of["prompt_tokens"]),
        "log_answer_tokens": np.log1p(of["answer_tokens"]),
        "log_demonstrations": np.log1p(of["n_demonstrations"]),
        "label_set_size": of["label_set_size"],
        "log_train_steps": np.log1p(of["train_steps"]),
        "query_probability": np.exp(np.clip(of["query_logprob"], -20.0, 0.0)),
        "query_logprob": np.clip(of["query_logprob"], -5.0, 0.0),
        "query_margin": np.clip(of["query_margin"], 0.0, 10.0),
    }
    if stage == "probe":
        before = np.maximum(-of["probe_logprob_before"], 1e-6)
        removed = np.clip((of["probe_logprob_after"] - of["probe_logprob_before"]) / before, -1.0, 1.0)
        surely = np.clip(of["probe_logprob_gain_low"] / before, -1.0, 1.0)
        change = of["probe_accuracy_after"] - of["probe_accuracy_before"]
        room = headroom(of, stage)
        found |= {
            "headroom": room,
            "probe_removed": removed,
            "probe_removed_low": surely,
            "probe_accuracy_change": change,
            "headroom_removed": room * removed,
            "headroom_removed_much": room * np.maximum(removed - 0.3, 0.0),
        }
    return tuple(found), np.column_stack(list(found.values()))


def _number(value: float | None) -> float:
    return np.nan if value is None else value
