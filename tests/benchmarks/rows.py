"""Rows of outcomes with a known truth, for programs that read them."""

from __future__ import annotations

import random

from policies.outcomes import ArmOutcome, ProbeOutcome, TaskOutcome
from policies.types import SIGNALS_VERSION

TRAIN = "train:auto"


def simulated_rows(
    n_families: int = 30, seeds: int = 2, *, pays_at: float = 0.5, n_queries: int = 100, seed: int = 0
) -> list[TaskOutcome]:
    """Families of which the share `pays_at` wins 40 points and the others nothing.

    The probe sees which, nearly; of the other signals `query_logprob` sees it a little, and the rest is noise.
    """
    rng = random.Random(seed)
    rows = []
    for f in range(n_families):
        pays = f % 10 < round(10 * pays_at)
        base = rng.uniform(0.1, 0.5)
        for s in range(seeds):
            icl = min(1.0, max(0.0, base + rng.gauss(0, 0.03)))
            gain = (0.4 if pays else 0.0) + rng.gauss(0, 0.03)
            trained = min(1.0, max(0.0, icl + gain))
            before = -rng.uniform(1.0, 2.0)
            after = before * ((0.5 if pays else 1.0) + rng.gauss(0, 0.05))
            accuracy = rng.randint(2, 6) / 10
            signals: dict[str, float | None] = {
                "n_demonstrations": 10.0,
                "n_queries": float(n_queries),
                "expected_repeats": 0.0,
                "prompt_tokens": float(rng.randint(100, 400)),
                "answer_tokens": rng.uniform(1, 12),
                "label_set_size": rng.random(),
                "query_logprob": -rng.uniform(0.2, 1.0) - (0.15 if pays else 0.0),
                "query_margin": rng.uniform(0.5, 3.0),
                "agreement": rng.random(),
                "answer_entropy": rng.random(),
                "loo_accuracy": rng.randint(0, 10) / 10,
                "loo_logprob": -rng.uniform(0.5, 2.0),
                "probe_accuracy_before": accuracy,
                "probe_accuracy_after": accuracy + (0.3 if pays else 0.0),
                "probe_logprob_before": before,
                "probe_logprob_after": after,
                "probe_logprob_gain_low": after - before - 0.1,
            }
            parts = {"icl": 5.0, "signals": 3.0, "leave-one-out": 1.0, "consistency": 2.0}
            rows.append(
                TaskOutcome(
                    f"family-{f}",
                    f"kind-{'ab'[f % 10 < 5]}{f % 3}",
                    f"task1:{seed}-{f}-{s}",
                    s,
                    "simulated",
                    "simulator",
                    SIGNALS_VERSION,
                    signals,
                    {
                        "icl": ArmOutcome(icl, n_queries, 5.0, parts),
                        TRAIN: ArmOutcome(trained, n_queries, 45.0, {"train": 40.0, "answer": 5.0}),
                    },
                    ProbeOutcome(
                        (0, 8), (before, after), (accuracy, accuracy + (0.3 if pays else 0.0)), 10.0
                    ),
                    10,
                    int(signals["prompt_tokens"] or 0),
                )
            )
    return rows
