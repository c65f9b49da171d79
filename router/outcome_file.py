"""A file of outcome rows that grows, and beside it what says how they were made.

Rows are only comparable where model, machine, tasks and training are the same. So `rows.command.json` beside
`rows.jsonl` keeps what was asked for, and a command that would make other rows is refused. Knows nothing of how a
row is measured.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.outcomes import TaskOutcome, as_json, read_rows, write_rows
from router.errors import RouterError

COMMAND_VERSION = 1


def rows_there(out: Path) -> list[TaskOutcome]:
    """Rows of an earlier run. The half of a last line, of a run that was killed, is cut off; a whole one gets its end. A
    file that no collection has made is left as it is.

    Raises:
        RouterError, PolicyError: the file can't be read, or is no file of rows.
    """
    if not out.exists():
        return []
    try:
        content = out.read_bytes()
        end = content.rfind(b"\n") + 1
        if content[end:] and command_file(out).exists():
            with out.open("r+b") as file:
                if _is_json(content[end:]):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                else:
                    file.truncate(end)
                    content = content[:end]
    except OSError as error:
        raise RouterError(f"{out} can't be read ({error.strerror}); name another file by --out.") from error
    return read_rows([out]) if content.strip() else []


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def check_tasks(there: Sequence[TaskOutcome], wanted: Iterable[tuple[str, int, str]], out: Path) -> None:
    """Make sure that the rows there are of the tasks to come.

    Args:
        wanted: family, seed and fingerprint of the tasks to come.

    Raises:
        RouterError: a family has other items now than when its row was made.
    """
    known = {(row.family, row.seed): row.task for row in there}
    for family, seed, task in wanted:
        if known.get((family, seed), task) != task:
            raise RouterError(
                f"The row of {family} (seed {seed}) in {out} is of another task: the family's items have changed "
                "since; name another file by --out, or delete the row."
            )


def append(out: Path, row: TaskOutcome) -> None:
    """Add a row, on disk before this returns.

    Raises:
        RouterError: it can't be written.
    """
    line = json.dumps(as_json(row), sort_keys=True, allow_nan=False, ensure_ascii=False)
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RouterError(
            f"A row can't be written to {out} ({error.strerror}); make room and go on."
        ) from error


def rewrite(out: Path, rows: Iterable[TaskOutcome]) -> None:
    """Put these rows in place of all that `out` has, at once: stopped at any time, it has the old or the new ones.

    Raises:
        PolicyError, RouterError: they can't be written.
    """
    temporary = _beside(out)
    try:
        write_rows(rows, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out.resolve())
    except OSError as error:
        raise RouterError(
            f"Rows can't be written to {out} ({error.strerror}); make room and go on."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    """What is written before it takes the file's place; of a link, beside what it leads to."""
    whole = file.resolve()
    return whole.with_name(f".{whole.name}.{os.getpid()}.tmp")


def command_file(out: Path) -> Path:
    """Where it is said how the rows of `out` were made."""
    return out.with_suffix(".command.json")


def check_command(out: Path, ours: Mapping[str, Any], rows: bool) -> None:
    """Write how the rows of `out` are made, or make sure that those there were made so. Further arms are taken up.

    Args:
        ours: plain values, by what they are called.
        rows: whether there are rows already.

    Raises:
        RouterError: made otherwise (it names what differs), not known how, or the file can't be read or written.
    """
    ours = {"version": COMMAND_VERSION, **ours}
    file = command_file(out)
    if rows and not file.exists():
        raise RouterError(
            f"{out} has rows, but {file.name} is not beside it to say how they were made; put it back, or "
            "name another file by --out."
        )
    if rows:
        try:
            theirs = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise RouterError(
                f"{file} can't be read; put it right, or name another file by --out."
            ) from error
        further = set(theirs.get("arms") or ()) < set(ours["arms"])
        for key in ours:
            if theirs.get(key) != ours[key] and not (key == "arms" and further):
                raise RouterError(
                    f"The rows in {out} were made with {key} {_short(theirs.get(key))}, now it is "
                    f"{_short(ours[key])}; run with the same, or name another file by --out."
                )
        if not further:
            return
    temporary = _beside(file)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(ours, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RouterError(
            f"{file} can't be written ({error.strerror}); name another file by --out."
        ) from error


def machine_name(device: str, dtype: str) -> str:
    """What seconds hang on, without naming whose machine it is: processor, cores, device and number type."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(named, processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, {device}, {dtype}"


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
