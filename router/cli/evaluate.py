"""`ttt-router evaluate`: arms on families of labelled items, as a table with intervals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.options import (
    Device,
    Dtype,
    Model,
    Prefer,
    Prompt,
    RecipeOption,
    Reuse,
    Votes,
    Worth,
    check_arm,
    check_worth,
    settings_of,
)
from router.cli.progress import Reporter, ctrl_c
from router.cli.render import duration

if TYPE_CHECKING:
    from rich.table import Table

    from router.evaluate import Progress

NOT_ANSWERABLE = "†"
PIPE_WIDTH = 160
"""Columns of the table where stdout is no terminal."""


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Family files, or folders of them.", show_default=False),
    ],
    demos: Annotated[int, typer.Option("--demos", min=1, help="Demonstrations per task.")] = 10,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Queries per task.")] = 32,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1", help="One task per family and seed.")] = "0",
    arms: Annotated[
        str, typer.Option("--arms", metavar="A,B", help="Of icl, ttt, auto, zero-shot, and their variants.")
    ] = "icl,ttt,auto",
    metric: Annotated[
        str, typer.Option("--metric", help="exact, normalised, numeric or your own module:function.")
    ] = "exact",
    flip_labels: Annotated[
        float,
        typer.Option(
            "--flip-labels", metavar="SHARE", min=0, max=1, help="Mislabel this share of the demonstrations."
        ),
    ] = 0.0,
    prefer: Prefer = None,
    worth: Worth = None,
    recipe: RecipeOption = None,
    votes: Votes = None,
    reuse: Reuse = None,
    prompt: Prompt = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="F", help="JSON report, written as results come.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the report of --out.")] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="D", help="Data folder to use; a fresh one for each run if left out."
        ),
    ] = None,
) -> None:
    """Compare arms on labelled families.

    Each family is split once into demonstrations and queries that stay disjoint over all seeds. `ttt` is
    training without the guard, `auto` is the router as you get it; icl:4 shows four demonstrations, icl:calibrated
    corrects labels by their prior, ttt:NAME trains by that recipe, and @5 at an arm's end lets five views vote. An arm's seconds are those of the
    steps that it would have run alone; intervals are 95 %.

    \b
    Examples:
      ttt-router evaluate dyck_languages.json --queries 64 --seeds 0,1
      ttt-router evaluate families/ --arms icl,auto --out report.json
      ttt-router evaluate families/ --arms icl,auto --out report.json --resume
    """
    check_worth(prefer, worth)
    chosen = tuple(check_arm(name, "--arms") for name in names_of(arms, "--arms"))
    if resume and out is None:
        raise typer.BadParameter("name the report to go on with by --out.", param_hint="--resume")
    settings = settings_of(
        model=model,
        device=device,
        dtype=dtype,
        prefer=prefer,
        worth_s=worth,
        recipe=recipe,
        votes=votes,
        reuse=reuse,
        prompt=prompt,
    )

    from router.evaluate import EvaluateOptions
    from router.evaluate import evaluate as run

    options = EvaluateOptions(demos, queries, _seeds(seeds), chosen, metric, out, resume, store, flip_labels)
    kept = (
        f"what is done is in {out}; go on with --resume."
        if out
        else "nothing was kept; give --out next time."
    )
    with Reporter() as reporter, ctrl_c(f"Ctrl-C: {kept}"):
        reporter.say(f"Loading {settings.model}")
        report = run(paths, options, settings, Follower(reporter))
    show(report)
    if out is not None:
        print(f"The report is in {out}.", file=sys.stderr)


class Follower:
    """Shows the events of an evaluation; only its results stay on the screen."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def __call__(self, progress: Progress) -> None:
        seed = f" seed {progress.seed}"
        self._reporter.prefix(f"[{progress.number}/{progress.of}] {progress.family}{seed}: ")
        if progress.row is not None:
            cells = progress.row["arms"].items()
            self._reporter.keep(", ".join(f"{name} {_cell(name, cell)}" for name, cell in cells))
        elif progress.event is not None:
            self._reporter.step(progress.event)
        else:
            self._reporter.say("begins")


def show(report: Mapping[str, Any]) -> None:
    """The report's table and its pooled figures, on stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PIPE_WIDTH)
    console.print(table(report["families"], report["summary"]))
    for line in summary_lines(report):
        console.print(line)


def table(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Table:
    """Families × arms: accuracy with its 95 % interval, seconds, and the arm that the router took."""
    from rich import box
    from rich.table import Table

    names = list(rows[0]["arms"]) if rows else []
    made = Table(box=box.SIMPLE_HEAD, show_footer=bool(summary))
    made.add_column("family", footer="all")
    made.add_column("seed", justify="right")
    made.add_column("chance / majority", justify="right")
    for name in names:
        pooled = summary.get("arms", {}).get(name)
        made.add_column(name, footer=_cell(name, pooled) if pooled else "")
    for row in rows:
        mark = "" if row["answerable"] else f" {NOT_ANSWERABLE}"
        rates = f"{_share(row['chance'])} / {_share(row['majority'])}"
        cells = [_cell(name, row["arms"][name]) for name in names]
        made.add_row(row["family"] + mark, str(row["seed"]), rates, *cells)
    return made


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Pooled paired differences in points, and what the marks mean."""
    lines = []
    for name, d in report["summary"].get("differences", {}).items():
        mean, low, high = (f"{100 * d[key]:+.1f}" for key in ("mean", "low", "high"))
        lines.append(f"{name}: {mean} points (95 % interval {low} to {high})")
        if d["families_below"]:
            lines.append(f"  significantly below (Holm, 5 %): {', '.join(d['families_below'])}")
    auto = report["summary"].get("arms", {}).get("auto")
    if auto:
        lines.append(f"auto trained on {100 * auto['share_trained']:.0f} % of the tasks.")
    if any(not row["answerable"] for row in report["families"]):
        lines.append(f"{NOT_ANSWERABLE} not answerable when pooled: the rule differs from file to file.")
    return lines


def _cell(name: str, cell: Mapping[str, Any]) -> str:
    interval = f"{100 * cell['low']:.0f}–{100 * cell['high']:.0f}"
    taken = f" · {_arm(cell['arm'])}" if name == "auto" and "arm" in cell else ""
    return f"{100 * cell['accuracy']:.0f} % ({interval}) · {duration(cell['seconds'])}{taken}"


def _arm(arm: str) -> str:
    """Without a reused adapter's hash."""
    kind, _, which = arm.partition(":")
    return kind if kind == "reuse" or not which else arm


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def names_of(text: str, option: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise typer.BadParameter("it is empty; give at least one.", param_hint=option)
    return parts


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in names_of(text, "--seeds"))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers such as 0,1.", param_hint="--seeds"
        ) from None
