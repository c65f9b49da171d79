"""Outcome rows: what every arm did on one task, with the signals that were known before. JSON Lines.

One row is one task (a family and a seed) on one base model and machine; it holds no text of the task.

    {"family": str, "collection": str, "task": fingerprint, "seed": int, "model": str, "machine": str,
     "signals_version": int, "signals": {name: number or null},
     "arms": {arm: {"correct": mean over queries, "n_queries": int, "seconds": total of this path alone,
                    "seconds_parts": {step: s}}},
     "probe": {"steps": […], "heldout_logprob": […], "heldout_accuracy": […], "seconds": s} or null,
     "n_demonstrations": int, "prompt_tokens": int,
     "location": {"space": str, "point": […]} or null: where the task lies among others}

What can't be learned from is refused with one sentence that names the file and line: NaN, another version
of the signals, unknown names, or two rows that say different things of the same task. Knows nothing of how
rows were measured.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from policies.checks import check_finite, check_signal, content_hash
from policies.errors import PolicyError
from policies.files import parse, read_text
from policies.types import SCALARS, SIGNALS_VERSION, ArmName, Location, Signals

_REQUIRED_SIGNALS = frozenset(f.name for f in fields(Signals) if f.default is not None)
DIGITS = 5
"""Of a location's numbers."""
SAMPLE = "sample"
"""Among the seconds of icl, not in their sum: what it takes to ask the first few queries, where these can be enough to
decide on. The row's signals are then of those."""
BY_PROBE = "by_probe"
"""Among the seconds of an arm that trains: how many of them a probe spends for it, if one comes first."""


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """How one arm did on the queries of a task."""

    correct: float
    """Mean over the queries, 0 to 1."""
    n_queries: int
    """Judged; of all that were asked (the signal `n_queries`) it may be a few."""
    seconds: float
    """Everything that this path would have run alone, wall seconds on the row's machine."""
    seconds_parts: Mapping[str, float]
    """The same by step, seconds. Also what is not added: `sample`, `signals` and its parts, `by_probe`."""


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """A short training judged on held-out demonstrations, at several points. One entry per point."""

    steps: tuple[int, ...]
    """Training steps taken; the first is 0, the base model."""
    heldout_logprob: tuple[float, ...]
    """Log-probability per answer token, nats."""
    heldout_accuracy: tuple[float, ...]
    """0 to 1."""
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """One row."""

    family: str
    collection: str
    task: str
    """Fingerprint."""
    seed: int
    model: str
    machine: str
    signals_version: int
    signals: Mapping[str, float | None]
    arms: Mapping[ArmName, ArmOutcome]
    probe: ProbeOutcome | None
    n_demonstrations: int
    prompt_tokens: int
    location: Location | None = None

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What two rows must differ in: family, task, seed, model, machine."""
        return self.family, self.task, self.seed, self.model, self.machine

    @property
    def n_expected(self) -> float:
        """Queries that the arms' seconds serve: all that were asked, and those expected later."""
        signals = self.measured(probed=False)
        return signals.n_queries + signals.expected_repeats

    def measured(self, *, probed: bool) -> Signals:
        """The signals as a policy sees them: with or without those of the probe."""
        values: dict[str, Any] = dict(self.signals)
        if not probed:
            values |= {name: None for name in values if name.startswith("probe_")}
        return Signals(**values, location=self.location)


def parse_row(data: Any, where: str = "The row") -> TaskOutcome:
    """A row from its JSON object.

    Raises:
        PolicyError: anything missing, unknown, of the wrong type, not finite or out of range; it names
            `where`.
    """
    if isinstance(data, dict):
        data = {"location": None, **data}
    _keys(where, data, {f.name for f in fields(TaskOutcome)})
    for name in ("family", "collection", "task", "model", "machine"):
        if not isinstance(data[name], str) or not data[name]:
            raise PolicyError(f"{where}: {name} is {data[name]!r}, but it must be a name.")
    for name in ("seed", "signals_version", "n_demonstrations", "prompt_tokens"):
        _whole(f"{where}: {name}", data[name], 0)
    if data["signals_version"] != SIGNALS_VERSION:
        raise PolicyError(
            f"{where} has version {data['signals_version']} of the signals, but this program computes version "
            f"{SIGNALS_VERSION}: the two can't be mixed; collect the row anew."
        )
    if not isinstance(data["arms"], dict) or not data["arms"]:
        raise PolicyError(f"{where}: arms is {data['arms']!r}, but it must hold at least one arm's outcome.")
    arms = {name: _arm(f"{where}: arm {name}", value) for name, value in data["arms"].items()}
    return TaskOutcome(
        **{name: data[name] for name in ("family", "collection", "task", "seed", "model", "machine")},
        **{name: data[name] for name in ("signals_version", "n_demonstrations", "prompt_tokens")},
        signals=_signals(where, data["signals"]),
        arms=arms,
        probe=None if data["probe"] is None else _probe(f"{where}: probe", data["probe"]),
        location=_location(where, data["location"]),
    )


def as_json(row: TaskOutcome) -> dict[str, Any]:
    """The JSON object that `parse_row` reads back to an equal row; what was not measured is left out."""
    plain = asdict(row)
    plain["signals"] = {name: value for name, value in row.signals.items() if value is not None}
    if plain.pop("location") is not None:
        plain["location"] = location_as_json(row.location)
    if row.probe is not None:
        plain["probe"] = {name: list(v) if isinstance(v, tuple) else v for name, v in plain["probe"].items()}
    return plain


def read_rows(paths: Sequence[Path]) -> list[TaskOutcome]:
    """All rows of the files (and of the `*.jsonl` files of folders), each once.

    Raises:
        PolicyError: a file that can't be read, a row that `parse_row` refuses, rows that contradict one
            another, or no row at all.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    placed: list[tuple[str, TaskOutcome]] = []
    for file in files:
        text = read_text(file, str(file), "give a JSON Lines file of rows")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                placed.append((where, parse_row(parse(line, where, "correct or delete the line"), where)))
    if not placed:
        named = ", ".join(map(str, paths)) or "nothing"
        raise PolicyError(f"There are no rows in {named}; collect some with `ttt-router collect`.")
    return distinct(placed)


def distinct(placed: Iterable[tuple[str, TaskOutcome]]) -> list[TaskOutcome]:
    """Rows with where each stands, each once.

    Raises:
        PolicyError: two rows of the same task, seed, model and machine that say different things.
    """
    seen: dict[tuple[str, str, int, str, str], tuple[str, TaskOutcome]] = {}
    for where, row in placed:
        before = seen.setdefault(row.key, (where, row))
        if before[1] != row:
            raise PolicyError(
                f"{where} and {before[0]} say different things of the same task of {row.family} (seed {row.seed}): "
                "keep the one that is right."
            )
    return [row for _, row in seen.values()]


def write_rows(rows: Iterable[TaskOutcome], path: Path) -> None:
    """One JSON object a line, in the given order.

    Raises:
        PolicyError: the file can't be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(as_json(row), sort_keys=True, allow_nan=False) + "\n")
    except OSError as error:
        raise PolicyError(f"The rows can't be written to {path} ({error.strerror}).") from error


def hash_rows(rows: Iterable[TaskOutcome]) -> str:
    """SHA-256 over the rows, whatever their order."""
    return content_hash(sorted(content_hash(as_json(row)) for row in rows))


def location_as_json(location: Location | None) -> dict[str, Any] | None:
    """As plain values, rounded."""
    if location is None:
        return None
    return {"space": location.space, "point": [round(value, DIGITS) for value in location.point]}


def _location(where: str, data: Any) -> Location | None:
    if data is None:
        return None
    where = f"{where}: location"
    _keys(where, data, {f.name for f in fields(Location)})
    space, point = data["space"], data["point"]
    if not isinstance(space, str) or not space or not isinstance(point, list) or not point:
        raise PolicyError(f"{where} must hold the name of a space and a list of numbers.")
    values = (round(check_finite(f"{where}: a number", value, -1.0, 1.0), DIGITS) for value in point)
    numbers = array("f", values)  # as floats a hundred thousand rows of them would take 400 MB
    return Location(sys.intern(space), numbers)


def _signals(where: str, data: Any) -> dict[str, float | None]:
    if not isinstance(data, dict):
        raise PolicyError(f"{where}: signals is {type(data).__name__}, but it must be a JSON object.")
    unknown = sorted(set(data) - set(SCALARS))
    if unknown:
        raise PolicyError(f"{where} has the unknown signal {unknown[0]!r}; known are: {', '.join(SCALARS)}.")
    missing = sorted(name for name in _REQUIRED_SIGNALS if data.get(name) is None)
    if missing:
        raise PolicyError(f"{where} lacks the signal {missing[0]!r}, which is known of every task.")
    return {
        name: None if data.get(name) is None else check_signal(name, data[name], f"{where}: signal {name}")
        for name in SCALARS
    }


def _arm(where: str, data: Any) -> ArmOutcome:
    _keys(where, data, {f.name for f in fields(ArmOutcome)})
    if not isinstance(data["seconds_parts"], dict):
        raise PolicyError(f"{where}: seconds_parts must be a JSON object of seconds by step.")
    return ArmOutcome(
        check_finite(f"{where}: correct", data["correct"], 0.0, 1.0),
        _whole(f"{where}: n_queries", data["n_queries"], 1),
        check_finite(f"{where}: seconds", data["seconds"], 0.0),
        {k: check_finite(f"{where}: seconds of {k}", v, 0.0) for k, v in data["seconds_parts"].items()},
    )


def _probe(where: str, data: Any) -> ProbeOutcome:
    _keys(where, data, {f.name for f in fields(ProbeOutcome)})
    lists = {name: data[name] for name in ("steps", "heldout_logprob", "heldout_accuracy")}
    if any(not isinstance(v, list) or len(v) != len(data["steps"]) or not v for v in lists.values()):
        raise PolicyError(
            f"{where}: steps, heldout_logprob and heldout_accuracy must be lists of one length."
        )
    return ProbeOutcome(
        tuple(_whole(f"{where}: a step", v, 0) for v in data["steps"]),
        tuple(check_finite(f"{where}: heldout_logprob", v) for v in data["heldout_logprob"]),
        tuple(check_finite(f"{where}: heldout_accuracy", v, 0.0, 1.0) for v in data["heldout_accuracy"]),
        check_finite(f"{where}: seconds", data["seconds"], 0.0),
    )


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise PolicyError(f"{name} is {value!r}, but it must be a whole number of at least {low}.")
    return value


def _keys(where: str, data: Any, expected: set[str]) -> None:
    if not isinstance(data, dict):
        raise PolicyError(f"{where} is {type(data).__name__}, but it must be a JSON object.")
    if set(data) != expected:
        odd = sorted(set(data) ^ expected)[0]
        what = "lacks" if odd in expected else "has the unknown key"
        raise PolicyError(f"{where} {what} {odd!r}; its keys must be {', '.join(sorted(expected))}.")
