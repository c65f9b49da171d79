"""Episodes (logged decisions with their receipts) and outcomes (later evidence of how they went).

An episode is written once, an outcome is only ever added: writing the same again does nothing. Knows
nothing of what signals, decisions and receipts mean: they are JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import Row, exists, select, tuple_

from store.database import Database, columns_of, insert_new, retried
from store.errors import NotFound, StoreError
from store.tables import episodes, outcomes, tasks

Source = Literal["gold", "held-out", "user", "judge"]
MIN_PREFIX = 6
"""Characters of an episode id that `Episodes.get` asks for at least."""
PAGE = 200
"""Episodes that `Episodes.for_fit` reads at a time."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it was asked, kept so that it can be shown again."""

    fingerprint: str
    instruction: str
    demonstrations: tuple[tuple[str, str], ...]
    """(input, output) pairs."""
    name: str = ""
    created_at: float = field(default_factory=time.time)
    """Unix time, s."""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One answer: what was decided, why, at what cost."""

    episode_id: str
    fingerprint: str
    base_model: str
    arm: str
    seconds: float
    decision: Mapping[str, Any]
    signals: Mapping[str, Any] | None
    """None when nothing was measured: a verified hit."""
    signals_version: int
    policy: str
    propensity: float
    receipt: Mapping[str, Any]
    created_at: float = field(default_factory=time.time)
    """Unix time, s."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One piece of evidence about one query of an episode, or about all of them.

    Raises:
        StoreError: `value` is not from 0 to 1, or `source` is unknown.
    """

    episode_id: str
    source: Source
    value: float
    """1 is right, 0 is wrong."""
    idempotency_key: str
    """Two outcomes with the same key are the same one."""
    query_index: int | None = None
    answer: str | None = None
    """The right answer, where the source gave one."""
    created_at: float = field(default_factory=time.time)
    """Unix time, s."""

    def __post_init__(self) -> None:
        if math.isnan(self.value) or not 0 <= self.value <= 1:
            raise StoreError(
                f"An outcome's value can't be {self.value}; give one from 0 (wrong) to 1 (right)."
            )
        if self.source not in get_args(Source):
            raise StoreError(
                f"Unknown outcome source {self.source!r}; give one of {', '.join(get_args(Source))}."
            )


class Episodes:
    """The log of answers and of how they went."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @retried
    def record(self, row: EpisodeRow, task: TaskRow) -> bool:
        """Write the episode, and its task if new, in one transaction.

        Returns:
            False when an episode with this id is there already; it is left as it is.
        """
        task_values = columns_of(task) | {"n_demonstrations": len(task.demonstrations)}
        with self._db.write() as connection:
            insert_new(connection, tasks, task_values)
            return insert_new(connection, episodes, columns_of(row))

    @retried
    def get(self, episode_id: str) -> EpisodeRow:
        """The episode with this id, or the only one whose id begins so (at least 6 characters).

        Raises:
            NotFound: none or several, or too short.
        """
        query = select(episodes).where(episodes.c.episode_id == episode_id)
        starts = (
            select(episodes).where(episodes.c.episode_id.startswith(episode_id, autoescape=True)).limit(2)
        )
        with self._db.read() as connection:
            found = connection.execute(query).all()
            if not found and len(episode_id) >= MIN_PREFIX:
                if connection.dialect.name == "sqlite":  # for its LIKE alone it would read every episode
                    last = f"{episode_id}\U0010ffff"
                    starts = starts.where(episodes.c.episode_id.between(episode_id, last))
                found = connection.execute(starts).all()
        if len(found) > 1:
            raise NotFound(f"Several episodes begin with {episode_id!r}; give more characters of the id.")
        if not found:
            hint = "see the history for its id"
            if len(episode_id) < MIN_PREFIX:
                hint = f"give at least {MIN_PREFIX} characters of the id"
            raise NotFound(f"No episode {episode_id!r}; {hint}.")
        return _from_sql(found[0])

    @retried
    def task(self, fingerprint: str) -> TaskRow:
        """The task with this fingerprint.

        Raises:
            NotFound: no episode of it was recorded.
        """
        with self._db.read() as connection:
            row = connection.execute(select(tasks).where(tasks.c.fingerprint == fingerprint)).first()
        if row is None:
            raise NotFound(f"No task {fingerprint!r}; ask it once to have it recorded.")
        return _task_row(row)

    @retried
    def all_tasks(self) -> list[TaskRow]:
        """Every task that was asked, the first to be asked first."""
        with self._db.read() as connection:
            rows = connection.execute(select(tasks).order_by(tasks.c.created_at, tasks.c.fingerprint)).all()
        return [_task_row(row) for row in rows]

    @retried
    def recent(self, limit: int) -> list[EpisodeRow]:
        """The last episodes, newest first."""
        query = select(episodes).order_by(episodes.c.created_at.desc(), episodes.c.episode_id).limit(limit)
        with self._db.read() as connection:
            return [_from_sql(row) for row in connection.execute(query)]

    @retried
    def add_outcome(self, row: OutcomeRow) -> bool:
        """Add evidence.

        Returns:
            False when an outcome with this idempotency key is there already; it is left as it is.

        Raises:
            NotFound: there is no such episode.
        """
        with self._db.write() as connection:
            known = connection.scalar(select(exists().where(episodes.c.episode_id == row.episode_id)))
            if not known:
                raise NotFound(f"No episode {row.episode_id!r}; see the history for its id.")
            return insert_new(connection, outcomes, columns_of(row))

    @retried
    def outcomes(self, episode_id: str) -> tuple[OutcomeRow, ...]:
        """All evidence about the episode with this whole id, in the order in which it came."""
        with self._db.read() as connection:
            query = select(outcomes).where(outcomes.c.episode_id == episode_id).order_by(outcomes.c.id)
            return tuple(_outcome_from_sql(row) for row in connection.execute(query))

    def for_fit(self) -> Iterator[tuple[EpisodeRow, tuple[OutcomeRow, ...]]]:
        """Every episode that has outcomes, with them, oldest first.

        Read page by page, so that no transaction is open while the caller works.
        """
        last: EpisodeRow | None = None
        while True:
            page = self._judged_after(last)
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1][0]

    @retried
    def _judged_after(self, last: EpisodeRow | None) -> list[tuple[EpisodeRow, tuple[OutcomeRow, ...]]]:
        """The next page of episodes that have outcomes."""
        order = (episodes.c.created_at, episodes.c.episode_id)
        judged = exists().where(outcomes.c.episode_id == episodes.c.episode_id)
        query = select(episodes).where(judged).order_by(*order).limit(PAGE)
        if last is not None:
            query = query.where(tuple_(*order) > (last.created_at, last.episode_id))
        with self._db.read() as connection:
            page = [_from_sql(row) for row in connection.execute(query)]
            evidence = _outcomes_of(connection.execute(_outcomes_query(page)).all())
        return [(episode, tuple(evidence.get(episode.episode_id, ()))) for episode in page]


def _outcomes_query(page: Sequence[EpisodeRow]) -> Any:
    ids = [episode.episode_id for episode in page]
    return select(outcomes).where(outcomes.c.episode_id.in_(ids)).order_by(outcomes.c.id)


def _outcomes_of(rows: Sequence[Row[Any]]) -> dict[str, list[OutcomeRow]]:
    grouped: dict[str, list[OutcomeRow]] = {}
    for row in rows:
        grouped.setdefault(row.episode_id, []).append(_outcome_from_sql(row))
    return grouped


def _from_sql(row: Row[Any]) -> EpisodeRow:
    return EpisodeRow(**row._mapping)


def _outcome_from_sql(row: Row[Any]) -> OutcomeRow:
    return OutcomeRow(**{name: value for name, value in row._mapping.items() if name != "id"})


def _task_row(row: Row[Any]) -> TaskRow:
    pairs = tuple((given, output) for given, output in row.demonstrations)
    return TaskRow(row.fingerprint, row.instruction, pairs, row.name, row.created_at)
