"""Trained adapters: a row in SQL says what each is for, a folder named by its content hash holds it.

Identity: an `AdapterKey` says for which task, base model, prompt template, recipe and seed; another
of any of these is another key, never a silent reuse. To verify an adapter, `path` recomputes its
content hash. Knows nothing of tensors: files are bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Row,
    Select,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from store import blobs
from store.database import Database, hold_folders, insert_or, retried
from store.errors import AdapterDamaged, DatabaseCorrupt, NotFound, translated
from store.leases import Lease, check_lease
from store.tables import adapter_demonstrations, adapters

KEY_TAG = "adapter-key-1"
VERIFIED_MOST = 4096
"""Adapters whose files are remembered as read and right."""
"""Version of the canonical form of a key; another form is another tag."""


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """What an adapter was trained for."""

    fingerprint: str
    base_revision: str
    template: str
    recipe: str
    seed: int

    @property
    def hash(self) -> str:
        """SHA-256 of the key, 64 hex digits."""
        return hashlib.sha256(json.dumps([KEY_TAG, *astuple(self)]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One published adapter."""

    key: AdapterKey
    content_hash: str
    size_bytes: int
    created_at: float
    """Unix time, s."""
    last_used_at: float
    """Unix time, s."""
    accepted: bool
    """Whether the guard let it answer."""
    report: Mapping[str, Any]
    demonstration_hashes: tuple[str, ...]
    """One per demonstration that it has learned from, those of adapters that it started from included."""


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """What the adapters take up."""

    n_adapters: int
    n_accepted: int
    size_bytes: int
    """Adapters with equal content share a folder, counted once."""


class Adapters:
    """The adapters in `folder`, described in `db`."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self.folder = folder
        self._verified: OrderedDict[str, blobs.Stamp] = OrderedDict()
        """What the files of an adapter were like when their hash was right."""

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """A temporary folder to write an adapter into before `publish`; removed after the block."""
        with translated(self.folder), blobs.stage(self.folder) as staged:
            yield staged

    def publish(
        self,
        key: AdapterKey,
        staged_folder: Path,
        report: Mapping[str, Any],
        demonstration_hashes: Collection[str],
        accepted: bool,
        lease: Lease | None = None,
    ) -> AdapterRow:
        """Move the staged folder to its final name, then record it under `key`, replacing an earlier one.

        Args:
            staged_folder: on the same file system as the adapters; see `stage`. It is moved away.
            lease: the publisher's right to do so, checked in the transaction that records the row.

        Raises:
            LeaseLost: `lease` was taken over or released; nothing is published.
            AdapterDamaged: the staged folder holds no files.
        """
        with translated(staged_folder):
            size = blobs.size_bytes(staged_folder)
            if size == 0:
                raise AdapterDamaged(f"{staged_folder} holds no adapter files; save the adapter there first.")
            blobs.flush(staged_folder)
            digest = blobs.content_hash(staged_folder)
        now = time.time()
        row = AdapterRow(key, digest, size, now, now, accepted, dict(report), tuple(demonstration_hashes))
        self._put_in_place(row, staged_folder, lease)
        return row

    @retried
    def _put_in_place(self, row: AdapterRow, staged_folder: Path, lease: Lease | None) -> None:
        key = row.key
        values = asdict(row) | asdict(key) | {"key_hash": key.hash}
        del values["key"]
        with self._db.write() as connection:
            hold_folders(connection, alone=False)
            if lease is not None:
                check_lease(connection, lease)
            with translated(self.folder):
                blobs.install(staged_folder, self.folder, row.content_hash)
            connection.execute(
                insert_or(connection, adapters)
                .values(values)
                .on_conflict_do_update(index_elements=[adapters.c.key_hash], set_=values)
            )
            index_demonstrations(connection, key.hash, row.demonstration_hashes)

    @retried
    def find(self, key: AdapterKey) -> AdapterRow | None:
        """The adapter of exactly this key."""
        with self._db.read() as connection:
            found = connection.execute(select(adapters).where(adapters.c.key_hash == key.hash)).first()
        return None if found is None else adapter_row(found)

    def find_hashed(self, key_hashes: Collection[str]) -> dict[str, AdapterRow]:
        """Those adapters that are recorded, by the hash of their key."""
        query = select(adapters).where(adapters.c.key_hash.in_(key_hashes))
        with self._db.read() as connection:
            return {row.key_hash: adapter_row(row) for row in connection.execute(query)}

    def find_exact(
        self, fingerprint: str, base_revision: str, template: str, recipe: str, seed: int
    ) -> AdapterRow | None:
        """`find` by the key's parts."""
        return self.find(AdapterKey(fingerprint, base_revision, template, recipe, seed))

    @retried
    def find_subset(
        self, demonstration_hashes: Collection[str], base_revision: str, template: str
    ) -> Sequence[AdapterRow]:
        """Adapters, accepted or not, trained on some but not all of these demonstrations and on no others.

        Largest first, then newest first. Those that an adapter has not seen can judge it.
        """
        wanted = frozenset(demonstration_hashes)
        with self._db.read() as connection:
            query = select(adapters).where(
                adapters.c.key_hash.in_(_keys_of_subsets(connection, wanted)),
                adapters.c.base_revision == base_revision,
                adapters.c.template == template,
            )
            rows = [adapter_row(row) for row in connection.execute(query)]
        return sorted(rows, key=lambda row: (-len(set(row.demonstration_hashes)), -row.created_at))

    def path(self, row: AdapterRow, verify: bool = True) -> Path:
        """The adapter's folder, immutable.

        The files are read again only when their names, sizes, times or numbers are not those of the last
        time that their hash was right.

        Raises:
            AdapterDamaged: it is missing or, with `verify`, its content does not match its hash.
                Publishing the adapter again repairs it.
        """
        if not blobs.NAME.fullmatch(row.content_hash):
            raise AdapterDamaged(
                f"An adapter's row names {row.content_hash[:80]!r}, which is no content hash; "
                "train the task again to replace it."
            )
        folder = self.folder / row.content_hash
        if not folder.is_dir():
            raise AdapterDamaged(
                f"The adapter folder {folder} is missing; train the task again to replace it."
            )
        if verify:
            with readable(folder):
                stamp = blobs.stamp(folder)
                if self._verified.get(row.content_hash) == stamp:
                    return folder
                settled = blobs.settled(stamp)
                actual = blobs.content_hash(folder)
            if actual != row.content_hash:
                raise AdapterDamaged(
                    f"The adapter folder {folder} has changed (its content hash is now {actual[:12]}…); "
                    "train the task again to replace it."
                )
            if settled:
                self._verified[row.content_hash] = stamp
                if len(self._verified) > VERIFIED_MOST:
                    self._verified.popitem(last=False)
        return folder

    def touch(self, row: AdapterRow) -> None:
        """Note that the adapter is in use now.

        Raises:
            NotFound: it is no longer recorded.
        """
        self._update(row, {"last_used_at": time.time()})

    def set_accepted(self, row: AdapterRow, accepted: bool) -> AdapterRow:
        """Record the guard's verdict; the row with it.

        Raises:
            NotFound: it is no longer recorded.
        """
        self._update(row, {"accepted": accepted})
        return replace(row, accepted=accepted)

    def set_report(self, row: AdapterRow, report: Mapping[str, object]) -> None:
        """Record something more of the adapter: `report` takes the place of what there was.

        Raises:
            NotFound: it is no longer recorded.
        """
        self._update(row, {"report": dict(report)})

    @retried
    def list(self) -> Sequence[AdapterRow]:
        """All adapters, last used first."""
        query = select(adapters).order_by(adapters.c.last_used_at.desc(), adapters.c.key_hash)
        with self._db.read() as connection:
            return [adapter_row(row) for row in connection.execute(query)]

    @retried
    def stats(self) -> AdapterStats:
        """Counts and bytes of all adapters."""
        folders = select(adapters.c.content_hash, adapters.c.size_bytes).distinct().subquery()
        query = select(
            select(func.count()).select_from(adapters).scalar_subquery(),
            select(func.count()).where(adapters.c.accepted).scalar_subquery(),
            select(func.coalesce(func.sum(folders.c.size_bytes), 0)).scalar_subquery(),
        )
        with self._db.read() as connection:
            n_adapters, n_accepted, size = connection.execute(query).one()
        return AdapterStats(n_adapters, n_accepted, int(size))

    @retried
    def _update(self, row: AdapterRow, values: Mapping[str, object]) -> None:
        with self._db.write() as connection:
            result = connection.execute(
                update(adapters).where(adapters.c.key_hash == row.key.hash).values(values)
            )
        if result.rowcount == 0:
            raise NotFound(f"No adapter with key {row.key.hash[:12]}…; train the task again.")


def index_demonstrations(
    connection: Connection, key_hash: str, demonstration_hashes: Collection[str]
) -> None:
    """Say anew which demonstrations this adapter was trained on."""
    index, own = adapter_demonstrations, sorted(set(demonstration_hashes))
    connection.execute(delete(index).where(index.c.key_hash == key_hash))
    rows = [
        {"key_hash": key_hash, "demonstration_hash": demonstration, "n_demonstrations": len(own)}
        for demonstration in own or [""]
    ]
    connection.execute(insert(index), rows)


def _keys_of_subsets(connection: Connection, wanted: Collection[str]) -> Select[tuple[str]]:
    """Keys of the adapters that have fewer demonstrations than are wanted, all of them wanted."""
    given = json.dumps(sorted({*wanted, ""}))  # one parameter, however many they are
    if connection.dialect.name == "postgresql":
        each = func.json_array_elements_text(cast(literal(given, Text), JSON)).table_valued("value")
    else:
        each = func.json_each(given).table_valued("value")
    index = adapter_demonstrations.c
    return (
        select(index.key_hash)
        .where(index.demonstration_hash.in_(select(each.c.value)), index.n_demonstrations < len(wanted))
        .group_by(index.key_hash, index.n_demonstrations)
        .having(func.count() >= index.n_demonstrations)
    )


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Files that can't be read are damage of the one adapter, nothing worse: a bad sector, or a folder that was taken
    away just now.

    Raises:
        AdapterDamaged: one can't be read.
    """
    try:
        yield
    except OSError as error:
        raise AdapterDamaged(
            f"The adapter folder {folder} can't be read ({error.strerror}); train the task again to replace it."
        ) from error


def adapter_row(row: Row[Any]) -> AdapterRow:
    """A row of the table as the value that it means.

    Raises:
        DatabaseCorrupt: its JSON columns hold something else than what is written there.
    """
    report, hashes = row.report, row.demonstration_hashes
    if (
        not isinstance(report, dict)
        or not isinstance(hashes, list)
        or not all(isinstance(h, str) for h in hashes)
    ):
        raise DatabaseCorrupt(
            f"The row of adapter {row.key_hash[:12]}… has no report or no list of demonstrations; restore the "
            "database from a backup, or delete that row."
        )
    return AdapterRow(
        AdapterKey(row.fingerprint, row.base_revision, row.template, row.recipe, row.seed),
        row.content_hash,
        row.size_bytes,
        row.created_at,
        row.last_used_at,
        row.accepted,
        row.report,
        tuple(row.demonstration_hashes),
    )
