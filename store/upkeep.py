"""Is all that was kept still sound, and if not, what can be put right: `verify` and `repair`.

Both may run while others work. `verify` only reads. `repair` looks at each thing again inside the write
transaction that mends it. What it can't mend is an adapter's content: that row goes, and the task is trained
again when it is next asked; the history stays. Knows nothing of what adapters, receipts and policies mean.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import JSON, Connection, Text, cast, delete, func, select, text, update

from store import blobs
from store.adapters import AdapterRow, Adapters, adapter_row, index_demonstrations, readable
from store.database import Database, hold_folders
from store.errors import AdapterDamaged, DatabaseCorrupt, translated
from store.tables import adapter_demonstrations, adapters, metadata, policy_versions

Kind = Literal["database", "adapter", "index", "policy"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written."""

    kind: Kind
    name: str
    """An adapter's key hash, or a table's or version's name."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` looked at and found."""

    findings: tuple[Finding, ...]
    n_adapters: int
    n_bytes: int
    """Read and hashed."""
    n_unreferenced: int
    """Whole folders that no row names (yet): no fault, `collect` takes them away."""
    n_staging: int
    """Folders that somebody is writing, or was when it was killed: no fault either."""
    seconds: float

    @property
    def sound(self) -> bool:
        return not self.findings


def verify(kept: Adapters, db: Database) -> Report:
    """Check the database's own structure, and each adapter's files against their hash.

    Raises:
        StoreError: what can't even be read.
    """
    started = time.perf_counter()
    findings = list(_database(db))
    rows: list[AdapterRow] = []
    try:
        with db.read() as connection:
            rows = [adapter_row(found) for found in connection.execute(select(adapters))]
            findings += _index(connection, rows)
            findings += _policies(connection)
    except DatabaseCorrupt as error:
        findings.append(Finding("database", "adapters", str(error)))
    sound: dict[str, int] = {}
    for row in rows:
        if row.content_hash in sound:
            continue
        problem = damage(kept, row)
        if problem is None:
            sound[row.content_hash] = row.size_bytes
        elif _is_recorded(db, row):  # not taken away or replaced since
            findings.append(Finding("adapter", row.key.hash, problem))
    named = {row.content_hash for row in rows}
    with translated(kept.folder):
        unnamed = [folder for folder in blobs.published(kept.folder) if folder.name not in named]
        n_staging = len(blobs.staging(kept.folder))
    seconds = time.perf_counter() - started
    return Report(tuple(findings), len(rows), sum(sound.values()), len(unnamed), n_staging, seconds)


def repair(kept: Adapters, db: Database) -> list[str]:
    """Mend what `verify` finds, as far as that can be; a sentence for each thing that was done."""
    return [told for finding in verify(kept, db).findings if (told := _mend(kept, db, finding))]


def damage(kept: Adapters, row: AdapterRow) -> str | None:
    """What is wrong with the adapter's files, all of them read anew; None when they are as published."""
    folder = kept.folder / row.content_hash
    try:
        kept.path(row, verify=False)
        with readable(folder):
            actual = blobs.content_hash(folder)
    except AdapterDamaged as error:
        return str(error)
    if actual == row.content_hash:
        return None
    return f"The files in {folder} are not those that were published (their hash is {actual[:12]}…)."


def sizes(db: Database) -> dict[str, int]:
    """Rows of each table, and under `bytes` what the database takes up on disk."""
    with db.read() as connection:
        found = {
            name: connection.scalar(select(func.count()).select_from(table)) or 0
            for name, table in metadata.tables.items()
        }
        if connection.dialect.name == "postgresql":
            found["bytes"] = connection.scalar(text("SELECT pg_database_size(current_database())")) or 0
    if isinstance(db.where, Path):
        beside = [db.where.with_name(db.where.name + end) for end in ("", "-wal", "-shm")]
        found["bytes"] = sum(path.stat().st_size for path in beside if path.exists())
    return found


def _database(db: Database) -> Iterator[Finding]:
    with db.read() as connection:
        if connection.dialect.name != "sqlite":
            return  # PostgreSQL enforces keys and checks JSON when it is written
        for (said,) in connection.execute(text("PRAGMA integrity_check(10)")):
            if said != "ok":
                yield Finding("database", "integrity", f"The database {db.where} is damaged: {said}.")
        for table, _, parent, _ in connection.execute(text("PRAGMA foreign_key_check")):
            yield Finding("database", table, f"A row of {table} names a row of {parent} that is not there.")
        for table_name, table in metadata.tables.items():
            for column in (c for c in table.columns if isinstance(c.type, JSON)):
                spoilt = cast(column, Text).is_not(None), func.json_valid(column) == 0
                query = select(func.count()).select_from(table).where(*spoilt)
                if n := connection.scalar(query):
                    yield Finding(
                        "database",
                        table_name,
                        f"{n} rows of {table_name} have a {column.name} that is not JSON.",
                    )


def _index(connection: Connection, rows: list[AdapterRow]) -> Iterator[Finding]:
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for key, demonstration, n in connection.execute(select(adapter_demonstrations)):
        found[key].add((demonstration, n))
    for row in rows:
        own = set(row.demonstration_hashes)
        if found[row.key.hash] != {(d, len(own)) for d in own or {""}}:
            yield Finding(
                "index",
                row.key.hash,
                f"The index of demonstrations is not that of adapter {row.key.hash[:12]}….",
            )


def _policies(connection: Connection) -> Iterator[Finding]:
    n = connection.scalar(select(func.count()).where(policy_versions.c.active)) or 0
    if n > 1:
        yield Finding("policy", "active", f"{n} policy versions are active, at most one can be.")


def _is_recorded(db: Database, row: AdapterRow) -> bool:
    with db.read() as connection:
        return bool(connection.scalar(_content(row.key.hash)) == row.content_hash)


def _content(key_hash: str) -> Any:
    return select(adapters.c.content_hash).where(adapters.c.key_hash == key_hash)


def _mend(kept: Adapters, db: Database, finding: Finding) -> str | None:
    if finding.kind == "adapter":
        return _drop_damaged(kept, db, finding.name)
    if finding.kind == "index":
        return _index_again(db, finding.name)
    if finding.kind == "policy":
        return _one_active(db)
    if finding.name == "integrity":
        try:
            with db.write() as connection:
                connection.execute(text("REINDEX"))
        except DatabaseCorrupt:
            return None  # `verify` tells again what is wrong, and nothing here could help
        return "All indexes of the database were built anew."
    return None


def _drop_damaged(kept: Adapters, db: Database, key_hash: str) -> str | None:
    """Forget an adapter whose files are still damaged, and take them away."""
    with translated(kept.folder), blobs.stage(kept.folder) as aside, db.write() as connection:
        hold_folders(connection, alone=True)
        found = connection.execute(select(adapters).where(adapters.c.key_hash == key_hash)).first()
        row = None if found is None else adapter_row(found)
        if row is None or damage(kept, row) is None:
            return None
        same = adapters.c.content_hash == row.content_hash  # another key of equal content has the same files
        n = connection.execute(delete(adapters).where(same)).rowcount
        folder = kept.folder / row.content_hash
        if blobs.NAME.fullmatch(row.content_hash) and folder.is_dir():
            folder.rename(aside / folder.name)
    return f"{n} damaged adapter(s) {row.content_hash[:12]} forgotten; the task is trained again when asked."


def _index_again(db: Database, key_hash: str) -> str | None:
    with db.write() as connection:
        found = connection.execute(
            select(adapters).where(adapters.c.key_hash == key_hash).with_for_update()
        ).first()
        if found is None:
            return None
        index_demonstrations(connection, key_hash, adapter_row(found).demonstration_hashes)
    return f"The demonstrations of adapter {key_hash[:12]}… were indexed again."


def _one_active(db: Database) -> str:
    newest = policy_versions.c.created_at.desc(), policy_versions.c.version
    with db.write() as connection:
        kept = connection.scalar(
            select(policy_versions.c.version).where(policy_versions.c.active).order_by(*newest)
        )
        connection.execute(update(policy_versions).values(active=policy_versions.c.version == kept))
    return f"Of the active policy versions only the newest, {kept}, is active now."
