"""A user's own recipe in TOML.

    base = "standard"        # whose values hold where this file says nothing; `standard` if left out
    learning_rate = 5e-4
    augmentations = ["order", "symbols", "symmetry"]
    [cells]                  # further values for tasks made of cells alone; [text] for all others
    steps = 96

Keys are the fields of `Recipe`; the name is the file's unless it gives one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ttt.errors import TaskError
from ttt.recipes import RECIPES, Recipe

KEYS = tuple(f.name for f in fields(Recipe))
SECTIONS = ("text", "cells")


def read_recipes(path: str) -> tuple[Recipe, Recipe]:
    """The recipe for texts and the one for cells that a TOML file describes. `~` is the user's home.

    Raises:
        TaskError: the file can't be read, or has an unknown key or an impossible value.
    """
    file = Path(path).expanduser()
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(
            f"The recipe file {path} can't be read ({error.strerror}); correct the path."
        ) from error
    except ValueError as error:  # also of a number without end, or bytes that are no text
        raise TaskError(f"The recipe file {path} is not TOML: {error}; correct it.") from error
    except RecursionError as error:
        raise TaskError(
            f"The recipe file {path} is nested too deeply; a recipe has no lists in lists."
        ) from error
    base = data.pop("base", "standard")
    if not isinstance(base, str) or base not in RECIPES:
        raise TaskError(f"{path} sets base to {base!r}; it must be one of: {', '.join(RECIPES)}.")
    own = [data.pop(section, {}) for section in SECTIONS]
    for section, values in zip(SECTIONS, own, strict=True):
        if not isinstance(values, dict):
            raise TaskError(f"{path} sets {section} to {values!r}; it must be a table, [{section}].")
    shared = {"name": file.stem} | _values(data, path, (*KEYS, "base", *SECTIONS))
    text, cells = (shared | _values(v, f"{path}, [{s}]", KEYS) for s, v in zip(SECTIONS, own, strict=True))
    try:
        return replace(RECIPES[base][0], **text), replace(RECIPES[base][1], **cells)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error


def _values(data: Mapping[str, Any], where: str, known: tuple[str, ...]) -> dict[str, Any]:
    values = {key: _value(key, value, where, known) for key, value in data.items()}
    # A rate of one's own is for the model that is used, unless the file says which weights it is for.
    return {"weight_rms": 0.0} | values if "learning_rate" in values else values


def _value(key: str, value: Any, where: str, known: tuple[str, ...]) -> Any:
    if key not in known:
        raise TaskError(f"{where} has the unknown key {key!r}; known are: {', '.join(known)}.")
    default = asdict(RECIPES["standard"][0])[key]
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise TaskError(f"{where} sets {key} to {value!r}; it must be a list of names.")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise TaskError(f"{where} sets {key} to a number without bounds; write a smaller one.") from None
    if type(value) is not type(default):
        what = {int: "a whole number", float: "a number", str: "a text in quotes"}[type(default)]
        raise TaskError(f"{where} sets {key} to {value!r}; it must be {what}.")
    return value
