"""How dear learning and deciding are: fit on many rows (seconds, peak memory), and one decision (milliseconds).

    python benchmarks/policy.py [--rows 100000] [--families 2000] [--out policy.json]

Rows are simulated. A fit has a minute and 1 GB, all rows in memory; a decision has 5 ms. Exit code 1 beyond.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from policies.learned import fit
from policies.replay import situation_of
from tests.policies.simulated import located, simulate

FIT_S, FIT_BYTES, DECISION_S = 60.0, 1e9, 5e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--families", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seeds = given.rows // given.families
    rows = simulate(given.families, seeds, seed=0).rows
    for start in range(0, len(rows), seeds):  # in place, family by family: the peak is that of the fit
        rows[start : start + seeds] = located(rows[start : start + seeds], start, size=128)
    before_s = time.perf_counter()
    policy, _ = fit(rows)
    fit_s = time.perf_counter() - before_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    decisions = []
    for row in rows[:1000]:
        here = situation_of(row, 30.0)
        before_s = time.perf_counter()
        policy.decide(here)
        decisions.append(time.perf_counter() - before_s)
    found: dict[str, Any] = {
        "rows": len(rows),
        "families": given.families,
        "fit_s": fit_s,
        "peak_bytes": peak,
        "decision_s_median": median(decisions),
        "decision_s_p99": quantiles(decisions, n=100)[-1],
    }
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(fit_s > FIT_S or peak > FIT_BYTES or found["decision_s_p99"] > DECISION_S)


if __name__ == "__main__":
    sys.exit(main())
