"""`ttt-router collect` and `ttt-router families`: outcomes for policies to learn from, and tasks to get them on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from router.cli.evaluate import Follower, names_of
from router.cli.options import DataDir, Device, Dtype, Model, RecipeOption, settings_of
from router.cli.progress import Reporter, ctrl_c
from router.errors import RouterError


def collect(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH...]", help="Family files, or folders of them.", show_default=False),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="F", help="JSON Lines file of rows; gone on with if it is there."),
    ],
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Tasks of each family.")] = 1,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Queries per task.")] = 128,
    demos: Annotated[int, typer.Option("--demos", min=1, help="Demonstrations per task.")] = 10,
    arms: Annotated[
        str,
        typer.Option("--arms", metavar="A,B", help="Of icl, ttt, ttt:short, zero-shot; icl is always run."),
    ] = "icl,ttt",
    metric: Annotated[
        str, typer.Option("--metric", help="exact, normalised, numeric or your own module:function.")
    ] = "exact",
    stored: Annotated[
        bool,
        typer.Option(
            "--stored", help="Also the tasks that were asked here: one half of each asks the other."
        ),
    ] = False,
    recipe: RecipeOption = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    data_dir: DataDir = None,
) -> None:
    """Run every arm on every task and write down what came of it.

    Each row has all signals, the probe, and each arm's accuracy and seconds: what policies are fitted and
    judged on. Rows hold no text of the tasks. Stopped, the same command goes on where it was;
    with further arms it adds these to the rows that are there.

    \b
    Examples:
      ttt-router families --out families
      ttt-router collect families --seeds 2 --out rows.jsonl
      ttt-router collect --stored --seeds 2 --out own.jsonl
    """
    chosen = names_of(arms, "--arms")
    if not paths and not stored:
        raise typer.BadParameter("name family files or folders, or give --stored.", param_hint="PATH")
    settings = settings_of(model=model, device=device, dtype=dtype, recipe=recipe, data_dir=data_dir)

    from router.collect import CollectOptions
    from router.collect import collect as run

    options = CollectOptions(out, demos, queries, seeds, chosen, metric, stored)
    kept = f"Ctrl-C: the rows that are done are in {out}; the same command goes on."
    with Reporter() as reporter, ctrl_c(kept):
        reporter.say(f"Loading {settings.model}")
        done = run(paths or [], options, settings, Follower(reporter))
    before = f", {done.there} were there" if done.there else ""
    before += f" and {done.completed} of them have further arms now" if done.completed else ""
    print(f"{done.rows} new rows in {out}{before}.", file=sys.stderr)
    if done.failed:
        told = "; ".join(done.failed)
        tasks = "1 task" if len(done.failed) == 1 else f"{len(done.failed)} tasks"
        raise RouterError(f"{tasks} could not be done; the same command tries again: {told}")


def families(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    items: Annotated[
        int, typer.Option("--items", min=1, help="Items of each family, or as many as there are.")
    ] = 400,
    seed: Annotated[int, typer.Option("--seed", help="Which items of the endless supply.")] = 0,
    only: Annotated[
        str, typer.Option("--only", metavar="A,B", help="Families or collections; all if left out.")
    ] = "",
) -> None:
    """Write the procedural families: a folder of files for each collection.

    From tasks that a small model answers in context to some that nobody could learn.

    \b
    Examples:
      ttt-router families --out families
      ttt-router families --out families --only cells,words-plural
    """
    from router.families import chosen
    from router.families.procedure import write

    written = write(chosen(names_of(only, "--only") if only else ()), out, items, seed)
    print(f"{len(written)} families in {out}.", file=sys.stderr)
