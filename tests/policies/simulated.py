"""Outcome rows with a known truth: families that training does nothing for, fixes or harms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policies.outcomes import ArmOutcome, ProbeOutcome, TaskOutcome, as_json, parse_row
from policies.types import LOCATION, SIGNALS_VERSION

TRAIN = "train:auto"
SIZE = 16
"""Numbers of a location."""


@dataclass(frozen=True)
class Simulated:
    rows: list[TaskOutcome]
    truth: list[dict[str, float]]
    """P(correct) of each arm, row by row."""


def simulate(
    n_families: int,
    seeds: int = 1,
    *,
    seed: int = 0,
    n_queries: int = 32,
    model: str = "simulated-1",
    probe_noise: float = 0.12,
    harm: float = 0.1,
    collections: int = 2,
) -> Simulated:
    """Rows whose gain is headroom × share; the probe shows the share with noise.

    Half of the families win nothing, `harm` of them lose, the others win 30 to 90 % of the headroom.
    """
    rng = np.random.default_rng(seed)
    rows, truth = [], []
    for f in range(n_families):
        base = float(rng.beta(0.8, 1.6))
        kind = rng.random()
        share = float(rng.normal(0.0, 0.03) if kind < 0.5 else rng.uniform(0.3, 0.9))
        harmed = kind > 1.0 - harm
        prompt = int(rng.integers(60, 900))
        for s in range(seeds):
            p = float(np.clip(base + rng.normal(0, 0.03), 0.0, 1.0))
            after = (
                p * float(rng.uniform(0.4, 0.8)) if harmed else float(np.clip(p + (1 - p) * share, 0.0, 1.0))
            )
            zero = float(np.clip(p * rng.uniform(0.3, 1.1), 0.0, 1.0))
            truth.append({"icl": p, TRAIN: after, "zero-shot": zero})
            seen = -0.15 if harmed else share * 0.8
            removed = float(np.clip(seen + rng.normal(0, probe_noise), -0.9, 0.95))
            before = -float(rng.uniform(0.4, 2.0)) * (1.1 - p)
            n = 10
            correct_before = rng.binomial(n, p) / n
            correct_after = rng.binomial(n, 0.6 * after + 0.4 * p) / n
            scale = prompt / 400
            signals: dict[str, float | None] = {
                "n_demonstrations": n,
                "n_queries": n_queries,
                "expected_repeats": 0,
                "prompt_tokens": prompt,
                "answer_tokens": float(rng.uniform(1, 20)),
                "label_set_size": float(rng.uniform(0.1, 1.0)),
                "train_steps": 16.0,
                "query_logprob": -float(rng.uniform(0.05, 1.0)) * (1.2 - p),
                "query_margin": float(rng.uniform(0.5, 4.0)),
                "answer_entropy": None,
                "agreement": None,
                "loo_accuracy": rng.binomial(n, p) / n,
                "loo_logprob": before * 0.9,
                "probe_accuracy_before": correct_before,
                "probe_accuracy_after": correct_after,
                "probe_logprob_before": before,
                "probe_logprob_after": before * (1 - removed),
                "probe_logprob_gain_low": -before * (removed - 0.2),
            }
            arms = {
                name: ArmOutcome(
                    rng.binomial(n_queries, chance) / n_queries,
                    n_queries,
                    seconds,
                    {"train": seconds - 6 * scale, "answer": 6 * scale} if name == TRAIN else {name: seconds},
                )
                for name, chance, seconds in (
                    ("icl", p, 6 * scale),
                    (TRAIN, after, 46 * scale),
                    ("zero-shot", zero, 4 * scale),
                )
            }
            row = TaskOutcome(
                f"family-{f}",
                f"collection-{f % collections}",
                f"task1:{seed}-{f}-{s}",
                s,
                model,
                "simulator",
                SIGNALS_VERSION,
                signals,
                arms,
                ProbeOutcome(
                    (0, 8), (before, before * (1 - removed)), (correct_before, correct_after), 12 * scale
                ),
                n,
                prompt,
            )
            rows.append(parse_row(as_json(row)))  # plain floats, as read from a file
    return Simulated(rows, truth)


def located(
    rows: list[TaskOutcome], seed: int = 0, space: str = "way-1 simulated-1 qa1", size: int = SIZE
) -> list[TaskOutcome]:
    """Tasks of a family lie close together (cosines around .98), families in random directions."""
    rng = np.random.default_rng(seed)
    homes: dict[str, NDArray[np.float64]] = {}
    found = []
    for row in rows:
        home = homes.setdefault(row.family, rng.normal(size=size))
        point = home / np.linalg.norm(home) + 0.2 / np.sqrt(size) * rng.normal(size=size)
        point /= np.linalg.norm(point)
        parts = {**row.arms["icl"].seconds_parts, LOCATION: 0.25}
        arms = {**row.arms, "icl": replace(row.arms["icl"], seconds_parts=parts)}
        plain = as_json(replace(row, arms=arms)) | {"location": {"space": space, "point": point.tolist()}}
        found.append(parse_row(plain))
    return found
