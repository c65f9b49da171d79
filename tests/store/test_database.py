"""Opening, upgrading, locking, and what is said when the database can't be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, func, insert, select

from store import Store
from store.adapters import Adapters
from store.database import Database
from store.errors import (
    DatabaseCorrupt,
    DatabaseLocked,
    DatabaseTooNew,
    DatabaseUnavailable,
    NoSpace,
    ReadOnly,
    StoreError,
    translated,
)
from store.migrations import HEAD
from store.tables import leases, metadata, outcomes


def test_the_migrated_schema_equals_the_tables(db: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrated_sqlite_schema_equals_the_tables_to_the_letter(tmp_path: Path) -> None:
    """Beyond Alembic's comparison: constraints, their names and the indexes."""

    def schema(db: Database) -> dict[str, list[str]]:
        with db.read() as connection:
            rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            # The order of a table's constraints does not count: compare its lines, sorted.
            return {
                row.name: sorted(line.strip().rstrip(",") for line in row.sql.splitlines())
                for row in rows
                if row.name != "alembic_version"
            }

    migrated, created = (Database(f"sqlite:///{tmp_path / name}.db") for name in "ab")
    migrated.upgrade()
    with created.write() as connection:
        metadata.create_all(connection)
    assert schema(migrated) == schema(created)


def test_the_named_head_is_the_newest_revision() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_upgrading_again_changes_nothing(db: Database) -> None:
    with db.write() as connection:
        connection.execute(insert(leases).values(name="n", owner="o", token=1, expires_at=0.0))
    db.upgrade()
    with db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(leases)) == 1


def _upgrade_when_all_are_ready(url: str, folder: str, number: int) -> str:
    import alembic.command  # noqa: F401 – now, so that the upgrades themselves meet

    db = Database(url, busy_timeout_s=20)
    Path(folder, f"ready-{number}").touch()
    while len(list(Path(folder).glob("ready-*"))) < 2:
        pass
    db.upgrade()
    with db.read() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def test_two_processes_that_upgrade_at_once_both_succeed(url: str, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_upgrade_when_all_are_ready, url, str(tmp_path), n) for n in range(2)]
        assert [run.result(timeout=60) for run in runs] == [HEAD, HEAD]


def test_a_failed_upgrade_leaves_the_database_as_it_was(url: str) -> None:
    db = Database(url)
    if isinstance(db.where, Path):
        db.where.parent.mkdir()
    with db.write() as connection:  # another program's table stands where the upgrade's last one should go
        connection.execute(sa.text("CREATE TABLE policy_versions (mine INTEGER)"))
        connection.execute(sa.text("INSERT INTO policy_versions VALUES (1)"))
    before = sa.inspect(db.engine).get_table_names()
    with pytest.raises(StoreError, match="policy_versions"):
        db.upgrade()
    assert sa.inspect(db.engine).get_table_names() == before == ["policy_versions"]
    db.close()


def test_a_schema_of_a_later_version_is_refused_and_kept(db: Database) -> None:
    with db.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match="9999.*newer version"):
        db.upgrade()
    with db.read() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"


def test_a_write_is_rolled_back_when_its_block_fails(db: Database) -> None:
    with pytest.raises(KeyError), db.write() as connection:
        connection.execute(insert(leases).values(name="n", owner="o", token=1, expires_at=0.0))
        raise KeyError
    with db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(leases)) == 0


def test_foreign_keys_are_enforced(db: Database) -> None:
    row = {"episode_id": "none", "source": "user", "value": 1.0, "created_at": 0.0, "idempotency_key": "k"}
    with pytest.raises(StoreError, match="(?i)foreign key"), db.write() as connection:
        connection.execute(insert(outcomes).values(row))


def test_values_that_are_not_json_are_refused(opened: Store) -> None:
    with pytest.raises(StoreError, match="JSON"):
        opened.policy_versions.save("1", {"threshold": float("nan")})


def test_writers_in_many_threads_wait_for_each_other(db: Database) -> None:
    with db.write() as connection:
        connection.execute(insert(leases).values(name="n", owner="o", token=0, expires_at=0.0))

    def add() -> None:
        for _ in range(10):
            with db.write() as connection:
                # A read and a write that depends on it: lost updates would show.
                locked = select(leases.c.token).with_for_update()
                token = connection.execute(locked).scalar_one()
                connection.execute(leases.update().values(token=token + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as connection:
        assert connection.scalar(select(leases.c.token)) == 40


def test_a_locked_database_is_reported_within_the_timeout_and_works_afterwards(url: str) -> None:
    holder, waiter = Database(url), Database(url, busy_timeout_s=0.3)
    holder.upgrade()
    row = insert(leases).values(name="n", owner="o", token=1, expires_at=0.0)
    with holder.write() as held:
        held.execute(row)
        started = time.monotonic()
        with (
            pytest.raises(DatabaseLocked, match="close that program or try again"),
            waiter.write() as connection,
        ):
            connection.execute(row)
        assert 0.25 <= time.monotonic() - started < 2
        assert waiter.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with waiter.write() as connection:
        assert connection.execute(leases.update().values(owner="waiter")).rowcount == 1
    holder.close()
    waiter.close()


def test_a_database_locked_while_it_is_opened_is_reported_within_the_timeout(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with pytest.raises(DatabaseLocked, match="store.db stayed locked"):
        Database(f"sqlite:///{tmp_path / 'store.db'}", busy_timeout_s=0.3).upgrade()
    assert time.monotonic() - started < 2
    holder.close()


def test_a_lock_that_ends_in_time_is_waited_for_while_a_file_is_first_opened(tmp_path: Path) -> None:
    """Here SQLite itself does not wait: switching to WAL against a writer fails at once."""
    holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, holder.close)
    release.start()
    Database(f"sqlite:///{tmp_path / 'store.db'}", busy_timeout_s=10).upgrade()
    release.join()


def test_readers_and_a_writer_do_not_wait_for_each_other(url: str) -> None:
    db = Database(url, busy_timeout_s=0.3)
    db.upgrade()
    count = select(func.count()).select_from(leases)
    with db.read() as reading:
        assert reading.scalar(count) == 0
        with db.write() as writing:
            writing.execute(insert(leases).values(name="n", owner="o", token=1, expires_at=0.0))
            assert reading.scalar(count) == 0
    with db.read() as reading:
        assert reading.scalar(count) == 1
    db.close()


def test_a_file_that_is_no_database_is_corrupt_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    file.write_bytes(b"not a database, but long enough to be looked at\n" * 200)
    before = file.read_bytes()
    with pytest.raises(DatabaseCorrupt, match="store.db is damaged.*backup"):
        Database(f"sqlite:///{file}").upgrade()
    assert file.read_bytes() == before


def test_a_database_overwritten_in_the_middle_is_corrupt(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    db = Database(f"sqlite:///{file}")
    db.upgrade()
    db.close()
    data = bytearray(file.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    file.write_bytes(data)
    with pytest.raises(DatabaseCorrupt, match="damaged"):
        db.upgrade()


def test_a_folder_in_the_place_of_the_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"Can't open the database {tmp_path}"):
        Database(f"sqlite:///{tmp_path}").upgrade()


def test_a_path_under_a_file_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReadOnly, match="file/data.*choose another place"):
        Database(f"sqlite:///{tmp_path / 'file' / 'data' / 'store.db'}").upgrade()
    with pytest.raises(ReadOnly, match="file/adapters.*choose another place"):
        Store.open(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "file" / "adapters")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere, so as root be somebody else for the block."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Unlike `tmp_path`, in a place where any user may look."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_folder_that_can_not_be_written_is_named(open_to_all: Path) -> None:
    open_to_all.chmod(0o555)
    with ordinary_user(), pytest.raises(ReadOnly, match=f"Can't write to {open_to_all}.*choose another"):
        Database(f"sqlite:///{open_to_all / 'store.db'}").upgrade()
    with ordinary_user(), pytest.raises(ReadOnly, match=f"Can't write to {open_to_all}/adapters"):
        Adapters(Database("sqlite:///unused.db"), open_to_all / "adapters").stage().__enter__()


def test_a_database_file_that_can_not_be_written_is_named(open_to_all: Path) -> None:
    db = Database(f"sqlite:///{open_to_all / 'store.db'}")
    db.upgrade()
    db.close()
    (open_to_all / "store.db").chmod(0o444)
    with ordinary_user():
        with (
            pytest.raises(ReadOnly, match=r"Can't write to .*store\.db.*make it writable"),
            db.write() as connection,
        ):
            connection.execute(insert(leases).values(name="n", owner="o", token=1, expires_at=0.0))
        db.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("store.db", "can't be read"),
        ("sqlite://", "sqlite:///path"),
        ("mysql://me:secret@host/name", r"mysql://me:\*\*\*@host/name"),
    ],
)
def test_other_urls_are_refused_without_their_password(url: str, message: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=message) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL: pip install 'psycopg[binary]'")
    url = f"postgresql+psycopg://me:secret@/name?host={tmp_path}&password=secret"
    with pytest.raises(DatabaseUnavailable, match="postgresql.*can't be reached") as caught:
        Database(url).upgrade()
    assert "secret" not in str(caught.value)


def test_importing_and_opening_at_head_need_no_heavy_module(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    Store.open(url, tmp_path / "adapters").close()
    program = (
        "import sys, time; from pathlib import Path; from store import Store; started = time.perf_counter(); "
        f"Store.open({url!r}, Path({str(tmp_path / 'adapters')!r})).close(); "
        "seconds = time.perf_counter() - started; "
        "print(seconds, [m for m in ('torch', 'transformers', 'alembic', 'psycopg') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, modules = run.stdout.split(maxsplit=1)
    assert modules.strip() == "[]"
    assert float(seconds) < 0.5  # about 0.02 on a quiet machine


@pytest.mark.parametrize(
    ("free", "kind", "words"),
    [(0, NoSpace, "free some disk space"), (10**9, DatabaseUnavailable, "check its path")],
)
def test_a_log_that_could_not_grow_is_a_full_disk_only_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[StoreError], words: str
) -> None:
    """SQLite says "disk I/O error" of either."""
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorcode = sqlite3.SQLITE_IOERR
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(StoreError, match=words) as caught, translated(tmp_path / "router.db"):
        raise exc.OperationalError("PRAGMA", {}, failed)
    assert type(caught.value) is kind
