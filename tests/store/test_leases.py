"""One holder at a time, takeover after expiry, fencing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from store import Lease, Store
from store.database import Database
from store.errors import LeaseLost
from store.leases import Leases
from store.tables import leases as table


def test_a_held_lease_is_not_given_again_even_to_its_owner(opened: Store) -> None:
    lease = opened.leases.acquire("train", "a", ttl_s=60)
    assert lease == Lease("train", "a", 1, 60)
    assert opened.leases.acquire("train", "b", ttl_s=60) is None
    assert opened.leases.acquire("train", "a", ttl_s=60) is None
    assert opened.leases.acquire("other", "b", ttl_s=60) is not None


def test_an_expired_lease_is_taken_over_with_a_higher_token(opened: Store) -> None:
    first = opened.leases.acquire("train", "a", ttl_s=0.05)
    assert first is not None
    time.sleep(0.1)
    second = opened.leases.acquire("train", "b", ttl_s=60)
    assert second is not None and second.token == first.token + 1
    with pytest.raises(LeaseLost, match="'train'.*'a'.*drop this work"):
        opened.leases.renew(first)
    opened.leases.release(first)  # must not release the successor's
    assert opened.leases.acquire("train", "c", ttl_s=60) is None
    opened.leases.renew(second)


def test_a_released_lease_is_free_and_can_not_be_renewed(opened: Store) -> None:
    first = opened.leases.acquire("train", "a", ttl_s=60)
    assert first is not None
    opened.leases.release(first)
    with pytest.raises(LeaseLost):
        opened.leases.renew(first)
    second = opened.leases.acquire("train", "a", ttl_s=60)
    assert second is not None and second.token == 2


def test_renewing_puts_the_expiry_off(opened: Store) -> None:
    lease = opened.leases.acquire("train", "a", ttl_s=0.4)
    assert lease is not None
    for _ in range(4):
        time.sleep(0.15)
        opened.leases.renew(lease)
    assert opened.leases.acquire("train", "b", ttl_s=60) is None


@pytest.mark.parametrize("expired", [False, True], ids=["new", "expired"])
def test_of_many_threads_one_wins(opened: Store, expired: bool) -> None:
    if expired:
        opened.leases.acquire("train", "before", ttl_s=-1)
    barrier = threading.Barrier(8)
    won: list[Lease | None] = []

    def acquire(owner: str) -> None:
        barrier.wait()
        won.append(opened.leases.acquire("train", owner, ttl_s=60))

    threads = [threading.Thread(target=acquire, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert [lease.token for lease in won if lease is not None] == [2 if expired else 1]


def _acquire_twenty(url: str, folder: str, owner: str) -> list[bool]:
    Path(folder, f"ready-{owner}").touch()
    while len(list(Path(folder).glob("ready-*"))) < 2:
        time.sleep(0.001)
    leases = Leases(Database(url))
    return [leases.acquire(f"train-{n}", owner, ttl_s=60) is not None for n in range(20)]


def test_of_two_processes_exactly_one_wins_each_lease(db: Database, url: str, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_acquire_twenty, url, str(tmp_path), owner) for owner in "ab"]
        a, b = (run.result(timeout=60) for run in runs)
    assert all(x != y for x, y in zip(a, b, strict=True))


def test_a_lease_of_a_clock_that_was_set_back_since_holds_nobody_up(opened: Store) -> None:
    ahead = opened.leases.acquire("train", "a", ttl_s=60)
    assert ahead is not None
    with opened.db.write() as connection:
        connection.execute(sa.update(table).values(expires_at=table.c.expires_at + 24 * 3600))
    heir = opened.leases.acquire("train", "b", ttl_s=60)
    assert heir is not None and heir.token == ahead.token + 1
    with pytest.raises(LeaseLost):
        opened.leases.renew(ahead)
    assert opened.leases.acquire("train", "c", ttl_s=60) is None
