"""Context tuning beside LoRA and in-context learning: accuracy, seconds, and what is kept on disk.

    python benchmarks/context_tuning.py FAMILY… --queries 64 --seeds 0 --out context.json [--rates 1e-3,3e-3,1e-2]

The recipe `context` trains the demonstrations' keys and values (arXiv 2507.04221), here at several rates and steps;
`standard` and `quick` train LoRA. All have the same demonstrations and queries. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from variants import Variant, begin, by_family, differences, markdown, open_engine, run

from ttt.recipes import find_recipes


def variants(rates: list[float], steps: list[int]) -> list[Variant]:
    """In context, LoRA, and context tuning at each rate and number of steps."""
    found = [Variant("icl", None), Variant("standard", find_recipes("standard"), beside="icl")]
    found.append(Variant("quick", find_recipes("quick"), beside="icl"))
    text, cells = find_recipes("context")
    for rate in rates:
        for n in steps:
            values: dict[str, Any] = {"learning_rate": rate, "steps": n}
            both = (replace(text, **values), replace(cells, **values))
            found.append(Variant(f"context {rate:g} × {n}", both, beside="standard"))
    return found


def kept(rows: list[dict[str, Any]]) -> str:
    """What each training takes and leaves, in Markdown."""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "folder_bytes" in row:
            by_variant[row["variant"]].append(row)
    made = ["| variant | training, s | steps | trained numbers | folder, MB | first → last loss |"]
    made.append("|---|---|---|---|---|---|")
    for name, own in by_variant.items():

        def mean(key: str, own: list[dict[str, Any]] = own) -> float:
            return sum(float(row[key]) for row in own) / len(own)

        made.append(
            f"| {name} | {mean('train_s'):.1f} | {mean('steps'):.0f} | {mean('trainable') / 1e6:.2f} M | "
            f"{mean('folder_bytes') / 1e6:.1f} | {mean('first_loss'):.2f} → {mean('last_loss'):.2f} |"
        )
    return "\n".join(made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="family files or folders")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--steps", default="40")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    wanted = variants([float(r) for r in given.rates.split(",")], [int(n) for n in given.steps.split(",")])
    ids = [r.id for name in ("standard", "quick", "context") for r in find_recipes(name)]
    asked = {
        "model": given.model,
        "demonstrations": given.demos,
        "queries": given.queries,
        "recipes": ids,
    }
    report = begin(given.out, asked)
    engine = open_engine(given.model, given.device, given.dtype)
    try:
        asyncio.run(
            run(
                engine,
                given.paths,
                wanted,
                demonstrations=given.demos,
                queries=given.queries,
                seeds=[int(s) for s in given.seeds.split(",")],
                report=report,
                out=given.out,
            )
        )
    finally:
        engine.close()
    print(f"\nModel: {given.model}. {given.demos} demonstrations, {given.queries} queries a task.\n")
    for made in (
        markdown(differences(report["rows"], wanted)),
        kept(report["rows"]),
        by_family(report["rows"], wanted),
    ):
        print(made + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
