"""Published whole or not at all, verified, fenced, found again by key and by subset."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select

from store import AdapterKey, AdapterRow, EpisodeRow, Lease, Store, TaskRow, blobs
from store.errors import AdapterDamaged, LeaseLost, NotFound
from store.tables import adapter_demonstrations, adapters

KEY = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)


def publish(
    opened: Store,
    key: AdapterKey = KEY,
    weights: bytes = b"weights",
    demonstrations: tuple[str, ...] = ("d1", "d2"),
    accepted: bool = True,
    lease: Lease | None = None,
) -> AdapterRow:
    with opened.adapters.stage() as staged:
        (staged / "adapter_config.json").write_text("{}")
        (staged / "adapter_model.safetensors").write_bytes(weights)
        return opened.adapters.publish(key, staged, {"steps": 3}, demonstrations, accepted, lease)


def folders(opened: Store) -> set[str]:
    return {path.name for path in opened.adapters.folder.iterdir()}


def test_a_published_adapter_is_found_and_verified(opened: Store) -> None:
    row = publish(opened)
    assert opened.adapters.find(KEY) == row
    assert opened.adapters.find_exact("task1:aa", "tiny@1", "plain-1", "default", 0) == row
    folder = opened.adapters.path(row)
    assert folder.name == row.content_hash and folder.parent == opened.adapters.folder
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"
    assert row.size_bytes == len(b"weights") + len("{}")
    assert folders(opened) == {row.content_hash}


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, fingerprint="task1:bb"),
        replace(KEY, base_revision="tiny@2"),
        replace(KEY, template="plain-2"),
        replace(KEY, recipe="long"),
        replace(KEY, seed=1),
    ],
)
def test_no_part_of_the_key_may_differ(opened: Store, other: AdapterKey) -> None:
    publish(opened)
    assert other.hash != KEY.hash
    assert opened.adapters.find(other) is None


def test_publishing_the_same_again_is_one_row_and_one_folder(opened: Store) -> None:
    first, second = publish(opened), publish(opened)
    assert first.content_hash == second.content_hash
    assert opened.adapters.list() == [second]
    assert folders(opened) == {first.content_hash}


def test_other_content_under_the_same_key_replaces_the_row(opened: Store) -> None:
    publish(opened)
    second = publish(opened, weights=b"better", accepted=False)
    assert opened.adapters.find(KEY) == second


@pytest.mark.parametrize("how", ["changed", "file missing", "file added", "folder missing"])
def test_a_damaged_adapter_is_detected_and_repaired_by_publishing_again(opened: Store, how: str) -> None:
    row = publish(opened)
    folder = opened.adapters.path(row)
    weights = folder / "adapter_model.safetensors"
    if how == "changed":
        weights.write_bytes(b"weighty")
    elif how == "file missing":
        weights.unlink()
    elif how == "file added":
        (folder / "more").touch()
    else:
        folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(AdapterDamaged, match=f"{folder}.*train the task again"):
        opened.adapters.path(row)
    assert opened.adapters.path(publish(opened)) == folder


def test_a_file_that_can_not_be_read_is_damage_of_that_adapter_alone(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bad sector: every reading of the one file fails."""
    row, other = publish(opened), publish(opened, replace(KEY, seed=1), b"sound")
    folder, real = opened.adapters.path(row, verify=False), blobs.content_hash

    def read(asked: Path) -> str:
        if asked == folder:
            raise OSError(errno.EIO, "Input/output error")
        return real(asked)

    monkeypatch.setattr(blobs, "content_hash", read)
    with pytest.raises(
        AdapterDamaged, match=f"{folder}.*can't be read.*Input/output error.*train the task again"
    ):
        opened.adapters.path(row)
    (finding,) = opened.verify().findings
    assert finding.name == row.key.hash and "can't be read" in finding.sentence
    assert opened.adapters.path(other).is_dir()
    again = publish(opened)
    monkeypatch.undo()
    assert opened.adapters.path(again) == folder and opened.verify().sound


def test_a_file_is_read_again_only_after_a_change(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = blobs.content_hash

    def noted(folder: Path) -> str:
        read.append(folder)
        return whole(folder)

    monkeypatch.setattr(blobs, "content_hash", noted)
    row = publish(opened)
    read.clear()
    opened.adapters.path(row)
    folder = opened.adapters.path(row)
    assert read == [folder, folder]  # changed a moment ago: another change might have the same time
    monkeypatch.setattr(blobs, "SETTLED_AFTER_S", 0.05)
    time.sleep(0.1)
    opened.adapters.path(row)
    opened.adapters.path(row)
    assert read == [folder] * 3
    weights = folder / "adapter_model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"weighty")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as large and as old as it was
    with pytest.raises(AdapterDamaged):
        opened.adapters.path(row)
    assert len(read) == 4


def test_verification_can_be_left_out(opened: Store) -> None:
    row = publish(opened)
    (opened.adapters.path(row) / "more").touch()
    assert opened.adapters.path(row, verify=False).is_dir()


def test_an_empty_folder_is_not_published(opened: Store) -> None:
    with opened.adapters.stage() as staged, pytest.raises(AdapterDamaged, match="holds no adapter files"):
        opened.adapters.publish(KEY, staged, {}, (), True)
    assert opened.adapters.list() == []


def test_the_holder_of_the_lease_publishes(opened: Store) -> None:
    lease = opened.leases.acquire("train", "a", ttl_s=60)
    assert lease is not None
    assert opened.adapters.find(KEY) is None
    row = publish(opened, lease=lease)
    assert opened.adapters.find(KEY) == row


def test_an_owner_that_slept_too_long_can_not_publish_over_its_successor(opened: Store) -> None:
    slow = opened.leases.acquire("train", "slow", ttl_s=0.02)
    time.sleep(0.06)
    quick = opened.leases.acquire("train", "quick", ttl_s=60)
    row = publish(opened, weights=b"quick", lease=quick)
    with pytest.raises(LeaseLost, match="'slow'"):
        publish(opened, weights=b"slow", lease=slow)
    assert opened.adapters.find(KEY) == row
    assert folders(opened) == {row.content_hash}


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from store import Store
opened = Store.open(sys.argv[1], Path(sys.argv[2]))
with opened.adapters.stage() as staged:
    (staged / "adapter_model.safetensors").write_bytes(b"wei")
    print("staged", flush=True)
    time.sleep(60)
"""


def test_an_adapter_half_written_by_a_killed_program_is_never_visible(opened: Store, url: str) -> None:
    command = [sys.executable, "-c", HALF_WRITTEN, url, str(opened.adapters.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "staged\n"
        child.send_signal(signal.SIGKILL)
    assert all(name.startswith(".staging-") for name in folders(opened)) and folders(opened)
    assert opened.adapters.list() == []
    row = publish(opened)
    assert opened.adapters.path(row).is_dir()


KILLED_BEFORE_COMMIT = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from store import AdapterKey, Store
opened = Store.open(sys.argv[1], Path(sys.argv[2]))
event.listen(opened.db.engine, "commit", lambda connection: os._exit(9))
with opened.adapters.stage() as staged:
    (staged / "adapter_config.json").write_text("{}")
    (staged / "adapter_model.safetensors").write_bytes(b"weights")
    opened.adapters.publish(AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0), staged, {}, (), True)
"""


def test_an_adapter_of_a_program_killed_before_the_commit_is_not_recorded(opened: Store, url: str) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_COMMIT, url, str(opened.adapters.folder)]
    assert subprocess.run(command).returncode == 9
    assert opened.adapters.list() == []
    row = publish(opened)
    assert opened.adapters.path(row).is_dir() and row.content_hash in folders(opened)


def test_adapters_of_fewer_demonstrations_are_found_largest_first(opened: Store) -> None:
    one = publish(opened, replace(KEY, fingerprint="task1:1"), demonstrations=("d1",))
    two = publish(opened, replace(KEY, fingerprint="task1:2"), demonstrations=("d3", "d1"))
    publish(opened, replace(KEY, fingerprint="task1:same"), demonstrations=("d1", "d2", "d3"))
    publish(opened, replace(KEY, fingerprint="task1:strange"), demonstrations=("d1", "x"))
    publish(opened, replace(KEY, base_revision="tiny@2"), demonstrations=("d1",))
    publish(opened, replace(KEY, template="plain-2"), demonstrations=("d1",))
    assert opened.adapters.find_subset(["d1", "d2", "d3"], "tiny@1", "plain-1") == [two, one]


def by_brute_force(rows: Sequence[AdapterRow], wanted: Collection[str]) -> list[AdapterRow]:
    found = [row for row in rows if set(row.demonstration_hashes) < set(wanted)]
    return sorted(found, key=lambda row: (-len(set(row.demonstration_hashes)), -row.created_at))


def test_subsets_are_those_that_a_search_of_all_adapters_finds(opened: Store) -> None:
    rng = random.Random(0)
    pool = [f"d{i}" for i in range(6)]
    for i in range(60):  # with repeats, without any demonstration, and each third published twice
        key = replace(KEY, fingerprint=f"task1:{i - i % 3 % 2}")
        publish(opened, key, demonstrations=tuple(rng.choices(pool, k=rng.randrange(5))))
    rows = opened.adapters.list()
    assert len(rows) == 40
    for _ in range(200):
        wanted = rng.choices(pool, k=rng.randrange(7))
        assert opened.adapters.find_subset(wanted, "tiny@1", "plain-1") == by_brute_force(rows, wanted)


def test_a_subset_of_very_many_demonstrations_is_found(opened: Store) -> None:
    """More than a statement may have parameters."""
    many = [f"d{i}" for i in range(70_000)]
    row = publish(opened, demonstrations=tuple(many[:-1]))
    assert opened.adapters.find_subset(many, "tiny@1", "plain-1") == [row]
    assert opened.adapters.find_subset(many[1:], "tiny@1", "plain-1") == []


def test_publishing_again_under_a_key_replaces_its_demonstrations(opened: Store) -> None:
    publish(opened, demonstrations=("d1", "d2"))
    row = publish(opened, demonstrations=("d3",))
    assert opened.adapters.find_subset(["d1", "d2", "x"], "tiny@1", "plain-1") == []
    assert opened.adapters.find_subset(["d3", "x"], "tiny@1", "plain-1") == [row]


def test_the_demonstrations_of_a_deleted_adapter_go_with_it(opened: Store) -> None:
    publish(opened)
    with opened.db.write() as connection:
        connection.execute(adapters.delete())
        assert connection.scalar(select(func.count()).select_from(adapter_demonstrations)) == 0


def test_nothing_that_one_answer_asks_the_database_reads_a_whole_table(
    tmp_path: Path, task: TaskRow, episode: EpisodeRow
) -> None:
    """SQLite's own plans, for a database without statistics."""
    opened = Store.open(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "adapters")
    asked: list[tuple[str, Any]] = []

    @event.listens_for(opened.db.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        asked.append((statement, parameters))

    lease = opened.leases.acquire("train", "a", ttl_s=60)
    assert lease is not None
    row = publish(opened, lease=lease)
    opened.leases.renew(lease)
    opened.leases.release(lease)
    opened.adapters.find(KEY)
    opened.adapters.find_subset(["d1", "d2", "d3"], "tiny@1", "plain-1")
    opened.adapters.touch(row)
    opened.adapters.set_accepted(row, True)
    opened.episodes.record(episode, task)
    opened.episodes.get(episode.episode_id)
    opened.episodes.get(episode.episode_id[:8])
    opened.episodes.recent(20)
    opened.episodes.outcomes(episode.episode_id)
    opened.close()
    plans: list[str] = []
    with sqlite3.connect(tmp_path / "store.db") as connection:
        for statement, parameters in asked:
            if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                first = parameters[0] if isinstance(parameters, list) else parameters
                plans += [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}", first)]
    assert any("ix_adapter_demonstrations_demonstration_hash" in plan for plan in plans)
    scans = [plan for plan in plans if plan.startswith("SCAN") and "VIRTUAL TABLE" not in plan]
    # `recent` walks an index and stops at its limit.
    assert scans == ["SCAN episodes USING INDEX ix_episodes_created_at"]


def test_use_and_verdict_are_recorded(opened: Store) -> None:
    a = publish(opened)
    b = publish(opened, replace(KEY, seed=1))
    opened.adapters.touch(a)
    assert [row.key for row in opened.adapters.list()] == [a.key, b.key]
    assert opened.adapters.set_accepted(b, False) == opened.adapters.find(b.key)
    stats = opened.adapters.stats()
    assert (stats.n_adapters, stats.n_accepted, stats.size_bytes) == (2, 1, a.size_bytes)  # one shared folder
    with pytest.raises(NotFound):
        opened.adapters.touch(replace(a, key=replace(KEY, seed=9)))
