"""A policy as JSON: its parameters, what they were made for, and a hash over all of it.

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
from policies.estimator import arm_as_json, arm_from_json
from policies.files import parse, read_text
from policies.gain import GainModel
from policies.learned import Learned, Provenance
from policies.rule import Rule
from policies.types import SIGNALS_VERSION

RULE_FORMAT = "ttt-router-rule-1"
LEARNED_FORMAT = "ttt-router-learned-4"

Saved = Rule | Learned


def as_payload(policy: Saved) -> dict[str, Any]:
    """`policy` as a JSON object that `from_payload` reads back to an equal one."""
    if isinstance(policy, Rule):
        form, parameters = RULE_FORMAT, asdict(policy)
    else:
        form = LEARNED_FORMAT
        parameters = {
            "arms": {name: arm_as_json(model) for name, model in policy.arms.items()},
            "provenance": asdict(policy.provenance),
            "confidence": policy.confidence,
            "rule": asdict(policy.rule),
        }
    body = json.loads(
        json.dumps(
            {"format": form, "signals_version": SIGNALS_VERSION, "parameters": parameters}, allow_nan=False
        )
    )
    return {**body, "sha256": content_hash(body)}


def from_payload(data: Any) -> Saved:
    """The policy in a JSON object.

    Raises:
        PolicyError: not a policy, another version of the signals, a hash that does not match, unknown or
            missing parameters, or a parameter out of range.
    """
    if not isinstance(data, dict) or data.get("format") not in (RULE_FORMAT, LEARNED_FORMAT):
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise PolicyError(
            f"The policy's format is {found!r}, but only {RULE_FORMAT!r} and {LEARNED_FORMAT!r} can be "
            "read; fit it again."
        )
    _check_keys("policy", data, {"format", "signals_version", "parameters", "sha256"})
    if data["signals_version"] != SIGNALS_VERSION:
        raise PolicyError(
            f"The policy was made for version {data['signals_version']!r} of the signals, but this program "
            f"computes version {SIGNALS_VERSION}; fit it again."
        )
    stated = data["sha256"]
    if stated != _hash({key: value for key, value in data.items() if key != "sha256"}):
        raise PolicyError(
            f"The policy's content does not match its hash {stated!r}: it was changed; fit it again."
        )
    return _rule(data["parameters"]) if data["format"] == RULE_FORMAT else _learned(data["parameters"])


def to_json(policy: Saved) -> str:
    """`policy` as JSON text that `from_json` reads back to an equal one."""
    return json.dumps(as_payload(policy), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> Saved:
    """The policy in `text`.

    Raises:
        PolicyError: not JSON, or what `from_payload` refuses.
    """
    return from_payload(parse(text, "The policy", "only files written by this program can be read"))


def save(policy: Saved, path: Path) -> None:
    """Write `policy` to `path` atomically: a reader sees the old file or the new one.

    Raises:
        PolicyError: the file can't be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(to_json(policy))
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


def load(path: Path) -> Saved:
    """The policy in the file `path`.

    Raises:
        PolicyError: the file can't be read, or what `from_json` refuses.
    """
    text = read_text(path, f"The policy {path}", "give the path of a saved one")
    try:
        return from_json(text)
    except PolicyError as error:
        raise PolicyError(f"The policy {path} is refused: {error}") from error


def _rule(parameters: Any) -> Rule:
    _check_keys("policy's parameters", parameters, {f.name for f in fields(Rule)})
    _check_keys("policy's gain model", parameters["gain"], {f.name for f in fields(GainModel)})
    return Rule(GainModel(**parameters["gain"]), parameters["tolerated_losses"])


def _learned(parameters: Any) -> Learned:
    _check_keys("policy's parameters", parameters, {"arms", "provenance", "confidence", "rule"})
    if not isinstance(parameters["arms"], dict):
        raise PolicyError("The policy's arms must be a JSON object of gain models by arm; fit it again.")
    given = parameters["provenance"]
    _check_keys("policy's provenance", given, {f.name for f in fields(Provenance)})
    lists = ("families", "collections", "base_models")
    if any(not isinstance(given[k], list) or not all(isinstance(v, str) for v in given[k]) for k in lists):
        raise PolicyError(f"The policy's provenance must name its {', '.join(lists)} in lists; fit it again.")
    if not isinstance(given["base_model"], str | None):
        raise PolicyError("The policy's provenance must name its base_model, or none; fit it again.")
    return Learned(
        {name: arm_from_json(model) for name, model in parameters["arms"].items()},
        Provenance(**{**given, **{name: tuple(given[name]) for name in lists}}),
        parameters["confidence"],
        _rule(parameters["rule"]),
    )


def _hash(body: dict[str, Any]) -> str:
    try:
        return content_hash(body)
    except ValueError as error:  # NaN or infinity, which json.loads lets through
        raise PolicyError(f"The policy holds a value that is not finite ({error}); fit it again.") from error
    except RecursionError as error:
        raise PolicyError("The policy is nested too deeply; fit it again.") from error


def _check_keys(what: str, data: Any, expected: set[str]) -> None:
    if not isinstance(data, dict) or set(data) != expected:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise PolicyError(f"The {what} has {found}, but it must have the keys {sorted(expected)}.")
