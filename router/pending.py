"""What trains behind answers, on disk, so that a process that was killed leaves it to the next one.

One file for each task, in a folder that belongs to one process as long as that lives (its lock is the operating
system's, and goes with the process, however it ends). The files hold the task and its queries, until the work is done.
Knows nothing of how it is done.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ttt.errors import TaskError
from ttt.recipes import Recipe
from ttt.task import Demonstration, Query, Task, fingerprint

MOST_TRIES = 3
"""Processes that may die over one task; the next one leaves it, since it may be what kills them."""
KEPT_S = 7 * 86400.0
"""Seconds after which what nobody took up is forgotten."""
NEW_S = 60.0
"""Seconds for which a folder without work is left alone: its process may not have locked it yet."""
LOCK = ".lock"
log = logging.getLogger("ttt_router.pending")


@dataclass(frozen=True, slots=True)
class Left:
    """Work that another process did not finish."""

    task: Task
    queries: tuple[Query, ...]
    options: Mapping[str, Any]
    tries: int
    """Processes that have begun it and died."""


class Pending:
    """The folder of one process. Work that can't be written or read is told in the log: answers matter more."""

    def __init__(self, folder: Path, revision: str) -> None:
        """
        Args:
            folder: of all processes.
            revision: of the base model; another one's work is left alone.

        Raises:
            OSError: the folder can't be made.
        """
        self._all, self._own, self._revision = folder, folder / uuid.uuid4().hex, revision
        self._own.mkdir(parents=True)
        self._lock = FileLock(self._own / LOCK, thread_local=False)
        self._lock.acquire()

    def add(self, task: Task, queries: Sequence[Query], options: Mapping[str, Any], tries: int = 0) -> bool:
        """Keep this work until `remove`; whether that could be done."""
        recipes = [asdict(recipe) for recipe in options["recipe"]]
        told = {
            "revision": self._revision,
            "task": asdict(task),
            "queries": [asdict(q) for q in queries],
            "options": {**options, "recipe": recipes},
            "tries": tries,
        }
        file = self._file(task)
        try:
            file.with_suffix(".tmp").write_text(json.dumps(told))
            file.with_suffix(".tmp").replace(file)
        except (OSError, TypeError, ValueError) as error:
            log.warning("A training behind an answer will not outlive this process: %s", error)
            return False
        return True

    def remove(self, task: Task) -> None:
        self._file(task).unlink(missing_ok=True)

    def take(self, most: int) -> list[Left]:
        """Work of this model's that processes that are gone have left, at most so much; it is this one's from now on.

        Raises:
            OSError: a folder can't be read.
        """
        found: list[Left] = []
        for folder in sorted(self._all.iterdir()):
            if folder == self._own or not folder.is_dir() or _is_new(folder):
                continue
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            try:
                for file in sorted(folder.glob("*.json")):
                    if len(found) < most and (left := self._taken(file)):
                        found.append(left)
                _remove_empty(folder)
            finally:
                lock.release()
        return found

    def close(self) -> None:
        """Leave what is left to another process."""
        _remove_empty(self._own)
        self._lock.release()

    def _file(self, task: Task) -> Path:
        return self._own / f"{fingerprint(task).replace(':', '-')}.json"

    def _taken(self, file: Path) -> Left | None:
        """The work in `file`, which is then this process's; None where it is not for us, or for nobody."""
        try:
            told, age_s = json.loads(file.read_text()), time.time() - file.stat().st_mtime
            if told["revision"] != self._revision and age_s < KEPT_S:
                return None
            left = _left(told)
        except (OSError, ValueError, KeyError, TypeError, TaskError) as error:
            log.warning("A training that another process left can't be read from %s: %s", file, error)
            file.unlink(missing_ok=True)
            return None
        if age_s > KEPT_S or left.tries >= MOST_TRIES:
            why = (
                f"{left.tries} processes ended in the middle of it"
                if left.tries >= MOST_TRIES
                else "it is old"
            )
            log.warning("A training that another process left is not taken up: %s.", why)
        else:
            if not self.add(left.task, left.queries, left.options, left.tries):
                return None
            file.unlink(missing_ok=True)
            return left
        file.unlink(missing_ok=True)
        return None


def _is_new(folder: Path) -> bool:
    try:
        return not list(folder.glob("*.json")) and time.time() - folder.stat().st_mtime < NEW_S
    except FileNotFoundError:  # its process, or another that takes up work, has just removed it
        return True


def _remove_empty(folder: Path) -> None:
    """Remove a folder without work; one that can't be removed is met again by the next process."""
    with suppress(OSError):
        if not list(folder.glob("*.json")):
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()


def _left(told: Mapping[str, Any]) -> Left:
    task, options = told["task"], dict(told["options"])
    shown = tuple(Demonstration(**d) for d in task["demonstrations"])
    queries = tuple(Query(q["input"], _turns(q["turns"])) for q in told["queries"])
    text, cells = map(_recipe, options["recipe"])
    whole = Task(shown, task["instruction"], task["name"])
    return Left(whole, queries, {**options, "recipe": (text, cells)}, int(told["tries"]))


def _recipe(told: Mapping[str, Any]) -> Recipe:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return Recipe(**values)


def _turns(turns: Sequence[Sequence[str]] | None) -> tuple[tuple[str, str], ...] | None:
    return None if turns is None else tuple((asked, said) for asked, said in turns)
