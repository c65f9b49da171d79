"""What is asked: demonstrations, queries, tasks, and the fingerprint that identifies a task.

A fingerprint identifies *what is asked, not how it is written*: Unicode is normalised (NFC), line
endings and surrounding white space do not count, nor does the order of the demonstrations, nor the
task's name. Repeated identical demonstrations do count once. To verify one, recompute it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ttt.errors import TaskError

FINGERPRINT_TAG = "task1"
"""Version of the canonical form; another form is another tag, never a silent reuse."""

MAX_DEMONSTRATIONS = 10_000
MAX_QUERIES = 10_000
MAX_CHARACTERS = 200_000
"""Of one text; the longest contexts hold about so much."""
MAX_TASK_CHARACTERS = 5_000_000
"""Of all texts together."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One labelled example, input → output."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Query:
    """An input to answer."""

    input: str
    turns: tuple[tuple[str, str], ...] | None = None
    """For a plain question: the earlier (user, assistant) messages that it follows, so that it is written in the
    model's own chat template. None for an input of a task; without effect where there are demonstrations."""


@dataclass(frozen=True, slots=True)
class Task:
    """What an adapter can be trained for: an instruction and demonstrations, without the queries."""

    demonstrations: tuple[Demonstration, ...] = ()
    instruction: str = ""
    name: str = ""
    """For people only; not part of the task's identity."""
    indexed: bool = False
    """Whether long rows of cells are written with index hints (see `prompts`); not part of the identity either."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)


def canonical_text(text: str) -> str:
    """`text` in NFC with `\\n` line endings and without surrounding white space."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def fingerprint(task: Task) -> str:
    """Tagged SHA-256 of the canonical task, e.g. `task1:9f86d0…` (64 hex digits after the tag)."""
    pairs = sorted({(canonical_text(d.input), canonical_text(d.output)) for d in task.demonstrations})
    canonical = json.dumps(
        [canonical_text(task.instruction), pairs], ensure_ascii=False, separators=(",", ":")
    )
    return f"{FINGERPRINT_TAG}:{hashlib.sha256(canonical.encode()).hexdigest()}"


def check_size(task: Task, queries: Sequence[Query] = ()) -> None:
    """Refuse what would take memory or time without end before anything reads it.

    Raises:
        TaskError: too many demonstrations or queries, too long texts, or a NUL character.
    """
    for n, most, what in (
        (len(task.demonstrations), MAX_DEMONSTRATIONS, "demonstrations"),
        (len(queries), MAX_QUERIES, "queries"),
    ):
        if n > most:
            raise TaskError(f"There are {n} {what}, at most {most} are taken; leave some out.")
    texts = [("The instruction", task.instruction)]
    for i, d in enumerate(task.demonstrations, start=1):
        texts += [
            (f"The input of demonstration {i}", d.input),
            (f"The output of demonstration {i}", d.output),
        ]
    for i, query in enumerate(queries, start=1):
        texts += [
            (f"Query {i}", query.input),
            *((f"Query {i}", text) for turn in query.turns or () for text in turn),
        ]
    for what, text in (*texts, ("The name", task.name)):
        if "\0" in text:
            raise TaskError(f"{what} has a NUL character, which databases do not keep; remove it.")
    for what, text in texts:
        if len(text) > MAX_CHARACTERS:
            raise TaskError(
                f"{what} has {len(text)} characters, at most {MAX_CHARACTERS} are taken; shorten it."
            )
    total = sum(len(text) for _, text in texts)
    if total > MAX_TASK_CHARACTERS:
        raise TaskError(
            f"Task and queries have {total} characters, at most {MAX_TASK_CHARACTERS} are taken; leave some out."
        )


def clean_task(task: Task) -> tuple[Task, tuple[str, ...]]:
    """Drop exact duplicate demonstrations and check the rest.

    Returns:
        The task to work with, and a sentence for each thing that was changed or looks wrong
        (duplicates dropped; one input with two different outputs, of which both are kept).

    Raises:
        TaskError: a demonstration has an empty input or an empty output.
    """
    notes: list[str] = []
    seen: dict[tuple[str, str], None] = {}
    outputs: dict[str, set[str]] = {}
    kept: list[Demonstration] = []
    for number, d in enumerate(task.demonstrations, start=1):
        key = (canonical_text(d.input), canonical_text(d.output))
        if not key[0] or not key[1]:
            side = "input" if not key[0] else "output"
            raise TaskError(
                f"Demonstration {number} has an empty {side}; give it one or leave the demonstration out."
            )
        if key in seen:
            continue
        seen[key] = None
        outputs.setdefault(key[0], set()).add(key[1])
        kept.append(d)
    dropped = len(task.demonstrations) - len(kept)
    if dropped:
        notes.append(f"{dropped} duplicate demonstration(s) dropped, {len(kept)} left.")
    for text, answers in outputs.items():
        if len(answers) > 1:
            shown = text if len(text) <= 60 else text[:57] + "…"
            notes.append(
                f"Contradiction: the input {shown!r} has {len(answers)} different outputs; all are used."
            )
    return replace(task, demonstrations=tuple(kept)), tuple(notes)
