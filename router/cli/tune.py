"""`ttt-router tune`: choose how eager the policy is, from recorded tasks, with the picture of the choice."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.options import DataDir, Json, Prefer, Worth, check_worth, settings_of
from router.cli.policy import Rows, folds, rows_and_store
from router.cli.render import columns

if TYPE_CHECKING:
    from policies.tune import Aim, Tuned


def tune(
    rows: Rows = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option("--target-accuracy", metavar="A", help="The cheapest setting that reaches it, 0 to 1."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="S", help="The most accurate setting within S seconds per task."),
    ] = None,
    max_harm: Annotated[
        float | None,
        typer.Option(
            "--max-harm", metavar="P", help="Few trained families may lose more than P points (see --alpha)."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Share of the trained families that may be harmed.")
    ] = 0.1,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta", help="Ask for a guarantee that fails with at most this probability (harm: 0.1)."
        ),
    ] = None,
    prefer: Prefer = None,
    worth: Worth = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the picture: tune.png and tune.svg."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the chosen setting to the settings file.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> int:
    """Choose the policy's setting for an accuracy, a budget, or a bound on harm.

    Every setting is tried on the recorded tasks. Exit code 8 when what was asked for can't be met; the
    sentence says how many families would do, or would tell.

    \b
    Examples:
      ttt-router tune outcomes.jsonl --budget 30 --out tuned/
      ttt-router tune outcomes.jsonl --target-accuracy 0.4 --delta 0.1
      ttt-router tune --max-harm 2 --alpha 0.1 --write
    """
    check_worth(prefer, worth)
    aim = _aim(target_accuracy, budget, max_harm, alpha, delta)
    settings = settings_of(prefer=prefer, worth_s=worth, data_dir=data_dir)

    from policies.tune import tune as choose
    from router.versions import in_force

    with rows_and_store(rows, data_dir) as (found, opened, reporter):
        policy, notes = in_force(opened, settings)

        reporter.say("Trying every setting")
        tuned = choose(policy, found, aim, worth_s=settings.worth, progress=folds(reporter))
    for note in (*notes, *tuned.notes):
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(tuned), indent=2))
    else:
        print("\n".join(lines(tuned, aim)))
    if out is not None:
        from router.pareto import draw

        models = sorted({_short(row.model) for row in found})
        for path in draw(tuned, aim, out, model=", ".join(models)):
            print(f"The picture is in {path}.", file=sys.stderr)
    if tuned.chosen is None:
        return 8
    if write:
        from router.settings import write_setting

        key, value = knob(tuned, aim)
        print(f"Set {key} = {value:g} in {write_setting(key, value)}.", file=sys.stderr)
    return 0


def _aim(
    accuracy: float | None, budget: float | None, harm: float | None, alpha: float, delta: float | None
) -> Aim:
    from policies.errors import PolicyError
    from policies.tune import Aim

    given = {"accuracy": accuracy, "budget": budget, "harm": harm}
    named = [(goal, value) for goal, value in given.items() if value is not None]
    if len(named) != 1:
        raise typer.BadParameter(
            "give exactly one of them.", param_hint="--target-accuracy / --budget / --max-harm"
        )
    goal, value = named[0]
    try:
        return Aim(goal, value, alpha, delta)  # type: ignore[arg-type]
    except PolicyError as error:
        raise typer.BadParameter(str(error), param_hint="tune") from error


def knob(tuned: Tuned, aim: Aim) -> tuple[str, float]:
    """The setting that was chosen, and its value."""
    assert tuned.chosen is not None
    if aim.goal == "harm":
        return "confidence", tuned.chosen.confidence
    return "worth_s", tuned.chosen.worth_s


def lines(tuned: Tuned, aim: Aim) -> list[str]:
    """The settings that were tried, and the choice."""
    moved = "CONFIDENCE" if aim.goal == "harm" else "WORTH s"
    table = [("", moved, "ACCURACY %", "SECONDS PER TASK", "TRAINED", "HARMED", "P-VALUE")]
    for s in tuned.settings:
        value = s.confidence if aim.goal == "harm" else s.worth_s
        accuracy = f"{100 * s.accuracy[0]:.0f} ({100 * s.accuracy[1]:.0f} to {100 * s.accuracy[2]:.0f})"
        seconds = f"{s.seconds[0]:.3g} ({s.seconds[1]:.3g} to {s.seconds[2]:.3g})"
        mark = "→" if s == tuned.chosen else ""
        p = "" if s.p_value is None else f"{s.p_value:.3f}"
        table.append((mark, f"{value:g}", accuracy, seconds, str(s.n_trained), str(s.n_harmed), p))
    for name, figures in tuned.baselines.items():
        accuracy = f"{100 * figures['accuracy'][0]:.0f}"
        table.append(("", name, accuracy, f"{figures['seconds'][0]:.3g}", "", "", ""))
    found = [*columns(table), "", tuned.sentence]
    if tuned.chosen is not None:
        key, value = knob(tuned, aim)
        found.append(f"Setting: {key} = {value:g}")
    return found


def _short(revision: str) -> str:
    """A revision as a title bears it: twelve digits of its hash."""
    kind, colon, digits = revision.partition(":")
    return f"{kind}{colon}{digits[:12]}" if colon else revision[:40]
