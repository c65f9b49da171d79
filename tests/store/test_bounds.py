"""What is over the bounds goes by worth a byte, nothing in use goes, and the history stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store import AdapterKey, AdapterRow, Bounds, EpisodeRow, Store, TaskRow, blobs
from store.adapters import Adapters
from store.bounds import HALF_LIFE_S, IN_USE_S, excess, seconds_saved
from store.database import Database, hold_folders
from store.tables import adapters

KEY = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)
NOW = 1e9
HOUR = 3600.0


def row(seed: int, **values: Any) -> AdapterRow:
    given: dict[str, Any] = {
        "key": replace(KEY, seed=seed),
        "content_hash": f"{seed:x}".ljust(64, "0"),
        "size_bytes": 100,
        "created_at": NOW - 10 * HOUR,
        "last_used_at": NOW - 10 * HOUR,
        "accepted": True,
        "report": {"seconds": 10.0},
        "demonstration_hashes": (),
    }
    return AdapterRow(**(given | values))


def seeds(rows: Sequence[AdapterRow]) -> list[int]:
    return [r.key.seed for r in rows]


def test_a_use_a_week_ago_saves_half_of_one_now() -> None:
    fresh = row(0, created_at=NOW)
    assert seconds_saved(fresh, [], NOW) == 10
    assert seconds_saved(fresh, [NOW, NOW - HALF_LIFE_S], NOW) == 25
    assert seconds_saved(replace(fresh, accepted=False), [], NOW) == 0, "vetoed"
    assert seconds_saved(replace(fresh, accepted=False), [NOW], NOW) == 20, "trained outright, and it answers"


def test_those_that_save_least_a_byte_go_first_until_the_rest_fits() -> None:
    large = row(1, size_bytes=400)
    dear = row(2, report={"seconds": 1000.0})
    reused, vetoed, plain = row(3), row(4, accepted=False, report={"seconds": 1e6}), row(5)
    used = {reused.content_hash[:12]: [NOW - HOUR] * 5}
    rows = [large, dear, reused, vetoed, plain]
    assert seeds(excess(rows, used, Bounds(), NOW)) == []
    assert seeds(excess(rows, used, Bounds(quota_bytes=800), NOW)) == []
    assert seeds(excess(rows, used, Bounds(quota_bytes=799), NOW)) == [4]
    assert seeds(excess(rows, used, Bounds(quota_bytes=300), NOW)) == [4, 1]
    assert seeds(excess(rows, used, Bounds(quota_bytes=1), NOW)) == [4, 1, 5, 3, 2]


def test_adapters_that_share_a_folder_count_once_and_free_nothing_alone() -> None:
    first, second = row(1), row(2, content_hash="1".ljust(64, "0"), report={"seconds": 20.0})
    assert excess([first, second], {}, Bounds(quota_bytes=100), NOW) == []
    assert seeds(excess([first, second], {}, Bounds(quota_bytes=99), NOW)) == [1, 2]


def test_age_counts_from_the_last_use_and_what_is_in_use_stays() -> None:
    old, used = row(1, created_at=NOW - 100 * HOUR), row(2, created_at=NOW - 100 * HOUR)
    old = replace(old, last_used_at=NOW - 100 * HOUR)
    now_in_use = replace(row(3), last_used_at=NOW - IN_USE_S / 2)
    assert seeds(excess([old, used, now_in_use], {}, Bounds(max_age_s=50 * HOUR), NOW)) == [1]
    assert seeds(excess([old, used, now_in_use], {}, Bounds(max_age_s=1.0), NOW)) == [1, 2]
    assert seeds(excess([old, used, now_in_use], {}, Bounds(quota_bytes=1), NOW)) == [1, 2]


def test_a_use_in_the_future_of_a_clock_that_was_set_back_is_none() -> None:
    ahead = row(1, last_used_at=NOW + 1000 * HOUR)
    assert seeds(excess([ahead], {}, Bounds(quota_bytes=1), NOW)) == [1]


def publish(opened: Store, seed: int = 0, weights: bytes = b"weights", *, idle: bool = True) -> AdapterRow:
    """`idle`: as if that had been an hour ago."""
    with opened.adapters.stage() as staged:
        (staged / "adapter_model.safetensors").write_bytes(weights)
        made = opened.adapters.publish(replace(KEY, seed=seed), staged, {"seconds": 1.0 + seed}, ("d",), True)
    if idle:
        hour_ago = made.created_at - HOUR
        with opened.db.write() as connection:
            own = adapters.c.key_hash == made.key.hash
            connection.execute(
                sa.update(adapters).where(own).values(last_used_at=hour_ago, created_at=hour_ago)
            )
        made = replace(made, last_used_at=hour_ago, created_at=hour_ago)
    return made


def folders(opened: Store) -> set[str]:
    return {path.name for path in opened.adapters.folder.iterdir()}


def test_an_evicted_adapter_is_gone_and_the_history_is_not(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    cheap, dear = publish(opened, 0, b"cheap"), publish(opened, 9, b"dearer")
    opened.episodes.record(replace(episode, arm=f"reuse:{cheap.content_hash[:12]}"), task)
    done = opened.collect(Bounds(quota_bytes=6), idle_s=0)
    assert done.evicted == (cheap,) and done.evicted_bytes == 5 and done.unreferenced == 1
    assert done.kept_bytes == 6 and done.over_bytes == 0
    assert opened.adapters.list() == [dear] and folders(opened) == {dear.content_hash}
    assert opened.episodes.recent(9)[0].arm.startswith("reuse:")
    assert opened.verify().sound


def test_uses_are_counted_from_the_episodes(opened: Store, episode: EpisodeRow, task: TaskRow) -> None:
    reused, never = publish(opened, 0, b"often"), publish(opened, 1, b"never")
    for i in range(3):
        arm = f"reuse:{reused.content_hash[:12]}"
        opened.episodes.record(replace(episode, episode_id=f"e{i}", arm=arm, created_at=time.time()), task)
    assert opened.collect(Bounds(quota_bytes=5)).evicted == (never,)


def test_what_was_used_meanwhile_or_is_being_trained_stays(opened: Store) -> None:
    used, trained, idle = publish(opened, 0, b"a"), publish(opened, 1, b"b"), publish(opened, 2, b"c")
    opened.adapters.touch(used)
    assert opened.leases.acquire(f"train:{trained.key.hash}", "me", ttl_s=60) is not None
    done = opened.collect(Bounds(quota_bytes=1), idle_s=0)
    assert done.evicted == (idle,) and done.over_bytes == 1
    assert folders(opened) == {used.content_hash, trained.content_hash}


def test_one_touched_between_the_look_and_the_eviction_stays(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(opened)
    from store import bounds

    def touch_first(*given: Any) -> list[AdapterRow]:
        opened.adapters.touch(made)
        return [made]

    monkeypatch.setattr(bounds, "excess", touch_first)
    assert opened.collect(Bounds(quota_bytes=1)).evicted == ()
    assert opened.adapters.find(made.key) is not None


def test_young_folders_without_a_row_and_strange_ones_stay(opened: Store) -> None:
    publish(opened, 0, b"old")
    publish(opened, 0, b"new")
    (opened.adapters.folder / "mine").mkdir()
    assert opened.collect(Bounds()).unreferenced == 0
    assert len(folders(opened)) == 3
    assert opened.collect(Bounds(), idle_s=0).unreferenced == 1
    assert len(folders(opened)) == 2 and "mine" in folders(opened)


def test_a_folder_that_is_being_published_is_not_taken_away(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed, its row not committed yet: the collector must wait for that."""
    installed, go_on = threading.Event(), threading.Event()
    install = blobs.install

    def slow(*given: Any) -> Path:
        target = install(*given)
        installed.set()
        assert go_on.wait(20)
        return target

    monkeypatch.setattr(blobs, "install", slow)
    publishing = threading.Thread(target=publish, args=(opened,), kwargs={"idle": False})
    publishing.start()
    assert installed.wait(20)
    done: list[int] = []
    collecting = threading.Thread(target=lambda: done.append(opened.collect(Bounds(), idle_s=0).unreferenced))
    collecting.start()
    time.sleep(0.3)
    assert not done, "it took away, or passed over, a folder whose row was to come"
    go_on.set()
    publishing.join(20)
    collecting.join(20)
    assert done == [0]
    assert opened.verify().sound and len(opened.adapters.list()) == 1


def _publish_many(url: str, folder: str, process: int) -> int:
    opened = Store.open(url, Path(folder), busy_timeout_s=120)
    for i in range(25):
        made = publish(opened, process * 100 + i % 5, os.urandom(8))
        opened.adapters.find(made.key)
    opened.close()
    return 25


def _collect_many(url: str, folder: str, process: int) -> int:
    opened = Store.open(url, Path(folder), busy_timeout_s=120)
    n = 0
    for _ in range(25):
        done = opened.collect(Bounds(quota_bytes=40), idle_s=0)
        n += len(done.evicted) + done.unreferenced
        opened.repair()
    opened.close()
    return n


def test_publishing_collecting_and_repairing_at_once_leaves_all_sound(
    opened: Store, url: str, tmp_path: Path
) -> None:
    folder = str(tmp_path / "adapters")
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        work = [_publish_many, _publish_many, _collect_many, _collect_many]
        runs = [pool.submit(job, url, folder, i) for i, job in enumerate(work)]
        n = [run.result(timeout=200) for run in runs]
    assert n[2] + n[3] > 0
    report = opened.verify()
    assert report.sound, report.findings
    opened.collect(Bounds(quota_bytes=40), idle_s=0)
    assert folders(opened) == {r.content_hash for r in opened.adapters.list()}


def test_holding_folders_alone_waits_for_those_who_put_in_place(url: str, tmp_path: Path) -> None:
    first, second = Database(url, busy_timeout_s=0.3), Database(url, busy_timeout_s=0.3)
    first.upgrade()
    from store.errors import DatabaseLocked

    with first.write() as putting:
        hold_folders(putting, alone=False)
        with pytest.raises(DatabaseLocked), second.write() as taking:
            hold_folders(taking, alone=True)
    with second.write() as taking:
        hold_folders(taking, alone=True)
    for db in (first, second):
        db.close()


def test_a_row_that_names_a_path_is_refused(opened: Store, tmp_path: Path) -> None:
    from store.errors import AdapterDamaged

    made = replace(publish(opened), content_hash="../outside")
    (tmp_path / "outside").mkdir()
    with pytest.raises(AdapterDamaged, match="no content hash"):
        Adapters(opened.db, opened.adapters.folder).path(made)
