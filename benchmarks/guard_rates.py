"""How often the guard is wrong, from reports of `ttt-router evaluate`.

For each family and seed that was probed, the guard's verdict on the cross-fitted evidence is held against
the gain that the unguarded adapter really had on the queries. Run with:

    python benchmarks/guard_rates.py report.json [report.json ...]

A false accept is an adapter that lost more than 2 points and was let through; a false reject one that won
more than 2 points and was vetoed. Prints a table and both rates with 95 % Wilson intervals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from policies.guard import CrossFit, TrainingSummary, guard
from router.statistics import wilson_interval

MARGIN = 0.02


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    harmful: list[bool] = []
    useful: list[bool] = []
    print(f"{'family':44} seed  icl    ttt    gain   verdict")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for path in paths:  # arms of one family and seed may come from several reports
        for row in json.loads(Path(path).read_text())["families"]:
            merged = rows.setdefault((row["family"], row["seed"]), {"arms": {}})
            merged |= row | {"arms": merged["arms"] | row["arms"]}
    for row in rows.values():
        auto = row["arms"].get("auto", {})
        if str(auto.get("arm")).startswith("train:"):  # accepted: its answers are those of training
            row["arms"].setdefault("ttt", auto)
        steps = {s["name"]: s["detail"] for s in row.get("auto", {}).get("steps", [])}
        probe = steps.get("probe")
        if probe is not None and "failed" not in probe and {"icl", "ttt"} <= set(row["arms"]):
            keys = ("correct_before", "correct_after", "logprob_before", "logprob_after")
            evidence = CrossFit(*(tuple(probe[k]) for k in keys))
            verdict = guard(
                evidence, TrainingSummary(1, 1.0, 0.0)
            )  # the training's own loss is not in question
            icl, ttt = row["arms"]["icl"]["accuracy"], row["arms"]["ttt"]["accuracy"]
            gain = ttt - icl
            if gain < -MARGIN:
                harmful.append(verdict.accept)
            elif gain > MARGIN:
                useful.append(not verdict.accept)
            word = "accept" if verdict.accept else "veto"
            print(f"{row['family']:44} {row['seed']:4}  {icl:.3f}  {ttt:.3f}  {gain:+.3f}  {word}")
    for name, wrong in (("false accepts among harmful", harmful), ("false rejects among useful", useful)):
        if wrong:
            low, high = wilson_interval(sum(wrong), len(wrong))
            print(
                f"{name}: {sum(wrong)} of {len(wrong)} = {sum(wrong) / len(wrong):.2f} [{low:.2f}, {high:.2f}]"
            )
        else:
            print(f"{name}: no such family")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
