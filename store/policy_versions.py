"""Fitted policies, as data, and which of them is active. Knows nothing of what a payload means."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from store.database import Database, insert_new, retried
from store.errors import NotFound
from store.tables import policy_versions


@dataclass(frozen=True, slots=True)
class PolicyVersionRow:
    """A fitted policy, immutable but for being active or not."""

    version: str
    created_at: float
    """Unix time, s."""
    payload: Mapping[str, Any]
    active: bool


class PolicyVersions:
    """All fitted policies; at most one is active."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @retried
    def save(self, version: str, payload: Mapping[str, Any]) -> bool:
        """Keep a policy, not active yet.

        Returns:
            False when this version is there already; it is left as it is.
        """
        values = {"version": version, "payload": dict(payload), "created_at": time.time(), "active": False}
        with self._db.write() as connection:
            return insert_new(connection, policy_versions, values)

    @retried
    def active(self) -> PolicyVersionRow | None:
        """The active policy; None before the first `activate`."""
        with self._db.read() as connection:
            row = connection.execute(select(policy_versions).where(policy_versions.c.active)).first()
        return None if row is None else PolicyVersionRow(**row._mapping)

    @retried
    def activate(self, version: str) -> None:
        """Make this version the active one, by one statement.

        Raises:
            NotFound: there is no such version; the active one stays.
        """
        with self._db.write() as connection:
            known = connection.scalar(
                select(policy_versions.c.version).where(policy_versions.c.version == version)
            )
            if known is None:
                raise NotFound(f"No policy version {version!r}; save it first or choose one of those listed.")
            connection.execute(update(policy_versions).values(active=policy_versions.c.version == version))

    @retried
    def deactivate(self) -> None:
        """Leave no version active."""
        with self._db.write() as connection:
            connection.execute(update(policy_versions).values(active=False))

    @retried
    def note(self, version: str, key: str, value: Any) -> None:
        """Put `value` under `key` into a version's payload, beside what was saved.

        Raises:
            NotFound: there is no such version.
        """
        with self._db.write() as connection:
            query = select(policy_versions.c.payload).where(policy_versions.c.version == version)
            payload = connection.scalar(query)
            if payload is None:
                raise NotFound(f"No policy version {version!r}; save it first or choose one of those listed.")
            changed = {**payload, key: value}
            connection.execute(
                update(policy_versions).where(policy_versions.c.version == version).values(payload=changed)
            )

    @retried
    def list(self) -> Sequence[PolicyVersionRow]:
        """All versions, newest first."""
        query = select(policy_versions).order_by(
            policy_versions.c.created_at.desc(), policy_versions.c.version
        )
        with self._db.read() as connection:
            return [PolicyVersionRow(**row._mapping) for row in connection.execute(query)]
