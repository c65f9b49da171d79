"""What each ingredient of test-time training is worth: each is turned off, or another turned on, in turn.

    python benchmarks/ablation.py FAMILY… --queries 64 --seeds 0,1 --out ablation.json [--only NAME,…] [--list]

All variants of a family and seed have the same demonstrations and queries, so differences are paired. The table
has each variant's accuracy, its difference in points with a 95 % interval over resampled families, and its seconds.
Stopped, the same command goes on where it was; the tables are printed at the end (`--tables` prints them now).
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from variants import Variant, begin, by_family, differences, markdown, open_engine, plain, run

from ttt.augment import AUGMENTATIONS
from ttt.recipes import Recipe, find_recipes

VOTES = 5


def variants(base: str = "standard") -> list[Variant]:
    """The recipe `base`, and everything that it is compared with."""
    text, cells = find_recipes(base)

    def changed(name: str, **values: Any) -> Variant:
        return Variant(name, (replace(text, **values), replace(cells, **values)))

    def scaled(name: str, key: str, factor: float) -> Variant:
        def one(recipe: Recipe) -> Recipe:
            value = getattr(recipe, key) * factor
            return replace(recipe, **{key: value if key == "learning_rate" else max(1, round(value))})

        return Variant(name, (one(text), one(cells)))

    def with_names(name: str, change: Any) -> Variant:
        one, two = (replace(r, augmentations=change(r.augmentations)) for r in (text, cells))
        return Variant(name, (one, two))

    found = [
        Variant("standard", (text, cells)),
        Variant("icl", None),
        Variant(f"icl, {VOTES} votes", None, VOTES, beside="icl"),
        Variant(f"icl, {VOTES} votes of orders alone", None, VOTES, ("order",), beside="icl"),
        Variant(f"standard, {VOTES} votes", (text, cells), VOTES),
    ]
    for name in AUGMENTATIONS:
        if name in text.augmentations or name in cells.augmentations:
            found.append(
                with_names(f"without {name}", lambda names, n=name: tuple(x for x in names if x != n))
            )
        if name not in text.augmentations or name not in cells.augmentations:
            found.append(with_names(f"with {name}", lambda names, n=name: tuple(dict.fromkeys((*names, n)))))
    found += [
        with_names("no augmentation", lambda names: ()),
        changed("direct, not in context", form="direct", batch=5),
        changed("loss on the last output", loss="last-output"),
        changed("loss on all tokens", loss="all-tokens"),
        changed("leave-one-out tasks", data="leave-one-out", copies=10),
        changed("leave-two-out tasks", data="leave-two-out", copies=10),
        scaled("half the shots", "shots", 0.5),
        scaled("twice the shots", "shots", 2),
        scaled("a quarter of the rank", "rank", 0.25),
        scaled("four times the rank", "rank", 4),
        scaled("half the rate", "learning_rate", 0.5),
        scaled("twice the rate", "learning_rate", 2),
        scaled("half the steps", "steps", 0.5),
        scaled("twice the steps", "steps", 2),
        changed("batch of two", batch=2),
        changed("no early end", stop_loss=0.0),
        changed("attention alone", targets=("q_proj", "v_proj", "o_proj")),
    ]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="family files or folders")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--recipe", default="standard", help="what is taken apart")
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", default="", help="variants besides `standard`, comma-separated")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="name the variants and end")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out and end")
    given = parser.parse_args(arguments)
    wanted = variants(given.recipe)
    names = [v.name for v in wanted]
    if given.list:
        print("\n".join(names))
        return 0
    chosen = [name.strip() for name in given.only.split(";" if ";" in given.only else ",") if name.strip()]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(
            f"there is no variant {unknown[0]!r}; --list names them (put ; between names with commas)."
        )
    if chosen:
        beside = {v.beside for v in wanted if v.name in chosen}
        wanted = [v for v in wanted if v.name in {"standard", *beside, *chosen}]
    asked = {
        "model": given.model,
        "demonstrations": given.demos,
        "queries": given.queries,
        "recipes": [r.id for r in find_recipes(given.recipe)],
    }
    report = begin(given.out, asked)
    if not given.tables:
        if not given.paths:
            parser.error("name families: files or folders.")
        engine = open_engine(given.model, given.device, given.dtype)
        report["variants"] = [plain(v) for v in wanted]
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
    print(markdown(differences(report["rows"], wanted)))
    print("\n" + by_family(report["rows"], wanted))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
