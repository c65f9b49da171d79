"""Options that several commands share, and how they become `Settings`.

Imports nothing heavy: every command's help goes through here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from router.settings import Settings, read_settings

Preference = Literal["fast", "balanced", "accurate"]

Model = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="Built-in name, local folder, .gguf file or hub id."),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="D", help="Folder of the database and the adapters.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="R", help="How to train: a name (docs/recipes.md), or a .toml file."),
]
Votes = Annotated[
    int | None,
    typer.Option("--votes", metavar="N", min=1, help="Views of the task that vote on each answer."),
]
Reuse = Annotated[
    Literal["off", "near"] | None,
    typer.Option("--reuse", help="Whether adapters of like tasks are tried first (docs/reuse.md)."),
]
Prompt = Annotated[
    Literal["plain", "chat"] | None,
    typer.Option("--prompt", help="Demonstrations as plain text, or as turns of the model's chat template."),
]
Prefer = Annotated[
    Preference | None,
    typer.Option("--prefer", help="How much compute one more correct answer is worth: 5, 30 or 300 s."),
]
Worth = Annotated[
    float | None,
    typer.Option("--worth", metavar="S", help="The same as a number of seconds, in place of --prefer."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]


def settings_of(**given: Any) -> Settings:
    """Settings with these options on top; an option that was not given is None.

    Raises:
        SettingsError: a value that can't be.
    """
    return read_settings(given)


def check_arm(name: str, option: str) -> str:
    """
    Raises:
        typer.BadParameter: there is no arm of this name.
    """
    from router.arms import FORMS, parse_arm
    from router.errors import RouterError

    try:
        parse_arm(name)
    except RouterError as error:
        raise typer.BadParameter(f"{name!r} is no arm; choose from {FORMS}.", param_hint=option) from error
    return name


def check_worth(prefer: str | None, worth_s: float | None) -> None:
    """
    Raises:
        typer.BadParameter: both were given, or a figure out of range.
    """
    from policies.errors import PolicyError
    from policies.utility import worth

    if prefer is not None and worth_s is not None:
        raise typer.BadParameter(
            f"both --prefer {prefer} and --worth {worth_s:g} were given; give one of them.",
            param_hint="--prefer / --worth",
        )
    try:
        worth(prefer, worth_s)
    except PolicyError as error:
        raise typer.BadParameter(str(error), param_hint="--worth") from error
