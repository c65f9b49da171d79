"""What passes by itself is waited for, with bounds: locks, broken deadlocks, connections and servers that went away.

Nothing is lost by it and nothing written twice.
"""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select

from store import AdapterKey, EpisodeRow, OutcomeRow, Store, TaskRow
from store.database import Database, retried
from store.errors import ConnectionLost, DatabaseLocked, StoreError
from store.tables import leases
from tests.postgres import Missing, Server

KEY = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)


def write_much(opened: Store, episode: EpisodeRow, task: TaskRow, writer: int, n: int) -> None:
    for i in range(n):
        name = f"{writer}-{i}-episode"
        opened.episodes.record(replace(episode, episode_id=name), task)
        opened.episodes.add_outcome(OutcomeRow(name, "user", 1.0, f"key-{name}"))
        with opened.adapters.stage() as staged:
            (staged / "adapter_model.safetensors").write_bytes(name.encode())
            opened.adapters.publish(replace(KEY, seed=writer * 1000 + i), staged, {}, ("d1",), True)


def in_threads(n: int, work: Any) -> list[BaseException]:
    failed: list[BaseException] = []

    def one(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return failed


def everything_is_there(opened: Store, writers: int, n: int) -> None:
    names = sorted(f"{writer}-{i}-episode" for writer in range(writers) for i in range(n))
    assert sorted(e.episode_id for e, outcomes in opened.episodes.for_fit() if len(outcomes) == 1) == names
    assert len(opened.adapters.list()) == writers * n
    assert opened.verify().sound


def test_connections_that_are_broken_off_again_and_again_lose_nothing(
    postgres: Server, tmp_path: Path, episode: EpisodeRow, task: TaskRow
) -> None:
    import psycopg

    schema = f"broken_{time.monotonic_ns()}"
    opened = Store.open(postgres.schema(schema), tmp_path / "adapters", busy_timeout_s=120)
    done = threading.Event()
    broken = 0

    def break_off() -> None:
        nonlocal broken
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
            while not done.wait(0.1):
                found = connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                ).fetchone()
                broken += found[0] if found else 0

    breaking = threading.Thread(target=break_off)
    breaking.start()
    failed = in_threads(3, lambda i: write_much(opened, episode, task, i, 15))
    done.set()
    breaking.join(20)
    assert failed == [] and broken > 5
    everything_is_there(opened, 3, 15)
    opened.close()
    postgres.drop(schema)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """One that may be stopped."""
    try:
        server = Server()
    except Missing as error:
        pytest.skip(str(error))
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_comes_back_in_time_is_waited_for(
    own_server: Server, tmp_path: Path, episode: EpisodeRow, task: TaskRow, how: signal.Signals
) -> None:
    opened = Store.open(own_server.url, tmp_path / "adapters", busy_timeout_s=30)
    failed: list[BaseException] = []
    writing = threading.Thread(
        target=lambda: failed.extend(in_threads(2, lambda i: write_much(opened, episode, task, i, 40)))
    )
    writing.start()
    for _ in range(2):
        time.sleep(0.3)
        own_server.stop(how)
        time.sleep(0.3)
        own_server.start()
    writing.join(200)
    assert failed == []
    everything_is_there(opened, 2, 40)
    opened.close()


def test_a_server_that_stays_away_is_one_sentence_within_the_bound(
    own_server: Server, tmp_path: Path, episode: EpisodeRow, task: TaskRow
) -> None:
    opened = Store.open(own_server.url, tmp_path / "adapters", busy_timeout_s=1)
    opened.episodes.record(episode, task)
    own_server.stop()
    started = time.monotonic()
    with pytest.raises(ConnectionLost, match="can't be reached.*server runs.*try again"):
        opened.episodes.get(episode.episode_id)
    assert 0.5 < time.monotonic() - started < 6
    own_server.start()
    assert opened.episodes.get(episode.episode_id) == episode
    opened.close()


def test_a_server_that_never_was_there_is_not_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL: pip install 'psycopg[binary]'")
    started = time.monotonic()
    with pytest.raises(ConnectionLost):
        Database(f"postgresql+psycopg://me@/name?host={tmp_path}", busy_timeout_s=30).upgrade()
    assert time.monotonic() - started < 10


def _write(url: str, folder: str, episode: EpisodeRow, task: TaskRow, writer: int) -> None:
    opened = Store.open(url, Path(folder), busy_timeout_s=60)
    write_much(opened, episode, task, writer, 10)
    opened.close()


def test_writers_of_many_processes_and_one_that_locks_it_all_lose_nothing(
    opened: Store, url: str, tmp_path: Path, episode: EpisodeRow, task: TaskRow
) -> None:
    done = threading.Event()

    def lock() -> None:
        while not done.wait(0.02):
            if url.startswith("sqlite"):
                file = sqlite3.connect(tmp_path / "data" / "store.db", timeout=30, isolation_level=None)
                file.execute("BEGIN IMMEDIATE")
                time.sleep(0.1)
                file.rollback()
                file.close()
            else:
                with opened.db.write() as connection:
                    connection.execute(sa.text("LOCK TABLE episodes, adapters IN ACCESS EXCLUSIVE MODE"))
                    time.sleep(0.1)

    locking = threading.Thread(target=lock)
    locking.start()
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_write, url, str(tmp_path / "adapters"), episode, task, i) for i in range(3)]
        for run in runs:
            run.result(timeout=200)
    done.set()
    locking.join(30)
    everything_is_there(opened, 3, 10)


class Pair:
    """Two rows, taken in an order that another thread takes the other way round."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.barrier = threading.Barrier(2)
        self.tries = 0

    @retried
    def move(self, order: tuple[str, str]) -> None:
        self.tries += 1
        with self._db.write() as connection:
            for name in order:
                row = leases.c.name == name
                connection.execute(leases.update().where(row).values(token=leases.c.token + 1))
                if not self.barrier.broken and connection.dialect.name == "postgresql":
                    with suppress(threading.BrokenBarrierError):
                        self.barrier.wait(5)


def test_a_deadlock_is_broken_and_both_get_through(db: Database) -> None:
    with db.write() as connection:
        for name in "ab":
            connection.execute(insert(leases).values(name=name, owner="o", token=0, expires_at=0.0))
    pair = Pair(db)
    orders = [("a", "b"), ("b", "a")]

    def move(i: int) -> None:
        pair.move(orders[i])
        pair.barrier.abort()

    assert in_threads(2, move) == []
    with db.read() as connection:
        assert list(connection.scalars(select(leases.c.token))) == [2, 2]
    if db.engine.dialect.name == "postgresql":
        assert pair.tries == 3


class Failing:
    def __init__(self, db: Database, error: StoreError) -> None:
        self._db, self.error, self.tries = db, error, 0

    @retried
    def work(self) -> None:
        self.tries += 1
        raise self.error


def test_retries_are_bounded_and_only_for_what_passes(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'store.db'}", busy_timeout_s=0.3)
    db.upgrade()
    for error, least in ((DatabaseLocked("held"), 4), (StoreError("no"), 1)):
        failing, started = Failing(db, error), time.monotonic()
        with pytest.raises(type(error)):
            failing.work()
        assert time.monotonic() - started < 2
        assert failing.tries >= least if least > 1 else failing.tries == 1
    db.close()
