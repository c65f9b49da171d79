"""Bounds on what adapters take up: which go first, and how a folder is taken away while others work.

An adapter's worth is what it is expected to save: the seconds that its training took, for each time that
it was used, where a use counts half after a week. Those of least worth a byte go first, vetoed ones before
all others. Only the adapter goes: episodes, outcomes and receipts stay, and the task can be trained again.

Nothing in use goes: neither what was trained or used within the last quarter of an hour, nor what somebody
holds the lease to train. A row is deleted and committed first, its folder is taken away in a later transaction
that publishing keeps out of (`hold_folders`), so a folder without a row is the worst that a crash leaves.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from store import blobs
from store.adapters import AdapterRow, Adapters, adapter_row
from store.database import Database, hold_folders
from store.errors import translated
from store.leases import database_now
from store.tables import adapters, episodes, leases

HALF_LIFE_S = 7 * 24 * 3600.0
IN_USE_S = 900.0
"""Longer than any way from finding an adapter to having it in memory."""
REUSED = "reuse:"
"""With the first 12 digits of the content hash, the arm of an answer by a kept adapter."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may stay; 0 is no bound."""

    quota_bytes: int = 0
    """All adapters together; those with equal content count once."""
    max_age_s: float = 0.0
    """Since the last use."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was taken away."""

    evicted: tuple[AdapterRow, ...]
    evicted_bytes: int
    unreferenced: int
    """Folders that no row names, left by a crash or a replaced adapter."""
    unreferenced_bytes: int
    kept_bytes: int
    """Of all adapters that stay."""
    over_bytes: int
    """Above the quota still, since all that is left is in use."""


def seconds_saved(row: AdapterRow, uses_at: Sequence[float], now: float) -> float:
    """Expected seconds of training that the adapter saves, relative to the others: see the module."""
    if not row.accepted and not uses_at:  # vetoed; one that was trained outright is no candidate, but answers
        return 0.0
    times: float = sum(0.5 ** (max(0.0, now - at) / HALF_LIFE_S) for at in (row.created_at, *uses_at))
    return float(row.report.get("seconds", 0.0)) * times


def uses(connection: Connection) -> Mapping[str, list[float]]:
    """Unix times (s) at which adapters answered, by the first 12 digits of their content hash."""
    found: dict[str, list[float]] = defaultdict(list)
    query = select(episodes.c.arm, episodes.c.created_at).where(episodes.c.arm.startswith(REUSED))
    for arm, at in connection.execute(query):
        found[arm.removeprefix(REUSED)].append(at)
    return found


def excess(
    rows: Sequence[AdapterRow], used: Mapping[str, list[float]], bounds: Bounds, now: float
) -> list[AdapterRow]:
    """Adapters that must go, least worth a byte first, to be within `bounds`; `rows` are all there are."""
    going = [
        r for r in rows if bounds.max_age_s and r.last_used_at < now - bounds.max_age_s and _idle(r, now)
    ]
    sharing: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sharing[row.content_hash].add(row.key.hash)
    size = {row.content_hash: row.size_bytes for row in rows}
    for row in going:
        sharing[row.content_hash].discard(row.key.hash)
    total = sum(size[content] for content, keys in sharing.items() if keys)

    def worth(row: AdapterRow) -> tuple[float, float]:
        saved = seconds_saved(row, used.get(row.content_hash[:12], ()), now)
        return saved / max(1, row.size_bytes), row.last_used_at

    gone = {row.key.hash for row in going}
    for row in sorted((r for r in rows if r.key.hash not in gone and _idle(r, now)), key=worth):
        if not bounds.quota_bytes or total <= bounds.quota_bytes:
            break
        going.append(row)
        sharing[row.content_hash].discard(row.key.hash)
        if not sharing[row.content_hash]:
            total -= row.size_bytes
    return going


def collect(kept: Adapters, db: Database, bounds: Bounds, *, idle_s: float = IN_USE_S) -> Collected:
    """Evict what is beyond `bounds`, then take away the folders that no row names. Safe while others work.

    Args:
        idle_s: unnamed folders that were touched within the last so many seconds stay.
    """
    evicted = _evict(db, bounds)
    n, freed = _take_away(kept, db, idle_s)
    size = kept.stats().size_bytes
    over = max(0, size - bounds.quota_bytes) if bounds.quota_bytes else 0
    return Collected(tuple(evicted), sum(r.size_bytes for r in evicted), n, freed, size, over)


def _idle(row: AdapterRow, now: float) -> bool:
    """Also where the clock was set back since: a use far in the future is none."""
    return abs(now - max(row.created_at, row.last_used_at)) > IN_USE_S


def _evict(db: Database, bounds: Bounds) -> list[AdapterRow]:
    now = time.time()
    with db.read() as connection:
        rows = [adapter_row(found) for found in connection.execute(select(adapters))]
        used = uses(connection)
        held = _held(connection)
    going = [r for r in excess(rows, used, bounds, now) if f"train:{r.key.hash}" not in held]
    evicted = []
    for row in going:
        with db.write() as connection:  # one by one, so that nobody waits long
            unchanged = delete(adapters).where(
                adapters.c.key_hash == row.key.hash,
                adapters.c.content_hash == row.content_hash,
                adapters.c.last_used_at == row.last_used_at,
            )
            if connection.execute(unchanged).rowcount == 1:
                evicted.append(row)
    return evicted


def _held(connection: Connection) -> Collection[str]:
    return set(connection.scalars(select(leases.c.name).where(leases.c.expires_at > database_now())))


def _take_away(kept: Adapters, db: Database, idle_s: float) -> tuple[int, int]:
    """How many folders without a row were taken away, and their bytes."""
    n = freed = 0
    with translated(kept.folder), blobs.stage(kept.folder) as aside, db.write() as connection:
        hold_folders(connection, alone=True)
        known = set(connection.scalars(select(adapters.c.content_hash)))
        for folder in blobs.published(kept.folder):
            if folder.name not in known and blobs.age_s(folder) >= idle_s:
                n, freed = n + 1, freed + blobs.size_bytes(folder)
                os.rename(folder, aside / folder.name)
    return n, freed
