"""A rule as JSON: its parameters, what they were made for, and a hash over all of it.

Never a pickle: reading a file can't run code. The hash finds damage and edits by hand; it is no signature,
so it does not prove who wrote the file.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from policies.checks import content_hash
from policies.errors import PolicyError
from policies.gain import GainModel
from policies.rule import Rule
from policies.types import SIGNALS_VERSION

FORMAT = "ttt-router-rule-1"


def to_json(rule: Rule) -> str:
    """`rule` as JSON text that `from_json` reads back to an equal one."""
    body = {"format": FORMAT, "signals_version": SIGNALS_VERSION, "parameters": asdict(rule)}
    return (
        json.dumps({**body, "sha256": content_hash(body)}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    )


def from_json(text: str) -> Rule:
    """The rule in `text`.

    Raises:
        PolicyError: not JSON, not a rule's file, another version of the signals, a hash that does not
            match, unknown or missing parameters, or a parameter out of range.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise PolicyError(
            f"The policy is not JSON ({error}); only files written by this program can be read."
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise PolicyError(f"The policy's format is {found!r}, but only {FORMAT!r} can be read.")
    _check_keys("policy", data, {"format", "signals_version", "parameters", "sha256"})
    if data["signals_version"] != SIGNALS_VERSION:
        raise PolicyError(
            f"The policy was made for version {data['signals_version']!r} of the signals, but this program "
            f"computes version {SIGNALS_VERSION}; fit it again."
        )
    stated = data.pop("sha256")
    if stated != _hash(data):
        raise PolicyError(
            f"The policy's content does not match its hash {stated!r}: it was changed; fit it again."
        )
    parameters = data["parameters"]
    _check_keys("policy's parameters", parameters, {f.name for f in fields(Rule)})
    _check_keys("policy's gain model", parameters["gain"], {f.name for f in fields(GainModel)})
    return Rule(GainModel(**parameters["gain"]), parameters["tolerated_losses"])


def save(rule: Rule, path: Path) -> None:
    """Write `rule` to `path` atomically: a reader sees the old file or the new one.

    Raises:
        PolicyError: the file can't be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(to_json(rule))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PolicyError(
            f"The policy can't be written to {path} ({error.strerror}); choose another folder."
        ) from error


def load(path: Path) -> Rule:
    """The rule in the file `path`.

    Raises:
        PolicyError: the file can't be read, or what `from_json` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"The policy {path} can't be read ({error}); give the path of a saved one."
        ) from error
    return from_json(text)


def _hash(body: dict[str, Any]) -> str:
    try:
        return content_hash(body)
    except ValueError as error:  # NaN or infinity, which json.loads lets through
        raise PolicyError(f"The policy holds a value that is not finite ({error}); fit it again.") from error


def _check_keys(what: str, data: Any, expected: set[str]) -> None:
    if not isinstance(data, dict) or set(data) != expected:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise PolicyError(f"The {what} has {found}, but it must have the keys {sorted(expected)}.")
