"""Damage of each kind is found, mended as far as can be, and nothing sound is touched."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from store import AdapterKey, AdapterRow, EpisodeRow, Store, TaskRow
from store.errors import DatabaseCorrupt
from store.tables import adapter_demonstrations, adapters, policy_versions

KEY = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)


def publish(opened: Store, seed: int = 0, weights: bytes = b"weights") -> AdapterRow:
    with opened.adapters.stage() as staged:
        (staged / "adapter_model.safetensors").write_bytes(weights)
        return opened.adapters.publish(replace(KEY, seed=seed), staged, {"losses": [1.0]}, ("d1", "d2"), True)


def kinds(opened: Store) -> list[str]:
    return [finding.kind for finding in opened.verify().findings]


def test_an_empty_store_and_one_with_adapters_are_sound(opened: Store) -> None:
    assert opened.verify().sound
    publish(opened)
    publish(opened, 1, b"more")
    with opened.adapters.stage():
        report = opened.verify()
    assert report.sound and (report.n_adapters, report.n_bytes, report.n_staging) == (2, 11, 1)
    assert opened.repair() == []


def test_an_answer_of_which_nothing_was_measured_is_sound(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    opened.episodes.record(replace(episode, signals=None), task)
    assert opened.verify().sound


@pytest.mark.parametrize("how", ["bit flipped", "truncated", "file missing", "folder missing"])
def test_a_damaged_adapter_is_found_at_once_and_forgotten_by_repair(
    opened: Store, how: str, episode: EpisodeRow, task: TaskRow
) -> None:
    opened.episodes.record(episode, task)
    damaged, sound = publish(opened), publish(opened, 1, b"sound")
    folder = opened.adapters.path(damaged)
    weights = folder / "adapter_model.safetensors"
    if how == "bit flipped":
        data = bytearray(weights.read_bytes())
        data[3] ^= 1
        weights.write_bytes(data)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:3])
    elif how == "file missing":
        weights.unlink()
    else:
        weights.unlink()
        folder.rmdir()
    (finding,) = opened.verify().findings
    assert finding.kind == "adapter" and finding.name == damaged.key.hash and str(folder) in finding.sentence
    assert len(opened.repair()) == 1
    assert opened.verify().sound
    assert opened.adapters.list() == [sound] and not folder.exists()
    assert opened.episodes.recent(1) == [episode]
    again = publish(opened)
    assert opened.adapters.path(again) == folder


def test_all_keys_of_one_damaged_content_go_together(opened: Store) -> None:
    row = publish(opened)
    publish(opened, 1)
    (opened.adapters.path(row) / "more").touch()
    assert kinds(opened) == ["adapter", "adapter"]
    assert opened.repair() == [
        f"2 damaged adapter(s) {row.content_hash[:12]} forgotten; the task is trained again when asked."
    ]
    assert opened.adapters.list() == []


def test_an_adapter_mended_meanwhile_is_not_forgotten(opened: Store) -> None:
    from store.upkeep import _drop_damaged

    row = publish(opened)
    assert _drop_damaged(opened.adapters, opened.db, row.key.hash) is None
    assert opened.adapters.list() == [row]


def test_a_row_that_names_a_path_outside_is_forgotten_and_the_path_left_alone(
    opened: Store, tmp_path: Path
) -> None:
    publish(opened)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    with opened.db.write() as connection:
        connection.execute(sa.update(adapters).values(content_hash="../outside"))
    assert kinds(opened) == ["adapter"]
    opened.repair()
    assert opened.adapters.list() == [] and (outside / "file").exists()


def test_a_wrong_index_is_built_again(opened: Store) -> None:
    row = publish(opened)
    with opened.db.write() as connection:
        connection.execute(
            sa.delete(adapter_demonstrations).where(adapter_demonstrations.c.demonstration_hash == "d2")
        )
    assert kinds(opened) == ["index"]
    opened.repair()
    assert opened.verify().sound
    assert opened.adapters.find_subset(["d1", "d2", "d3"], "tiny@1", "plain-1") == [row]


def test_of_two_active_policies_the_newest_stays(opened: Store) -> None:
    for version in ("old", "new"):
        opened.policy_versions.save(version, {})
    with opened.db.write() as connection:
        connection.execute(sa.update(policy_versions).values(active=True))
    assert kinds(opened) == ["policy"]
    opened.repair()
    active = opened.policy_versions.active()
    assert opened.verify().sound and active is not None and active.version == "new"


def damaged_store(tmp_path: Path, episode: EpisodeRow, task: TaskRow, statement: str) -> Store:
    file = tmp_path / "store.db"
    opened = Store.open(f"sqlite:///{file}", tmp_path / "adapters")
    opened.episodes.record(episode, task)
    publish(opened)
    opened.close()
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    connection.close()
    return opened


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE episodes SET receipt = '{half'", "receipt that is not JSON"),
        ("UPDATE adapters SET report = 'x'", "report that is not JSON"),
        ("UPDATE adapters SET demonstration_hashes = '5'", "no list of demonstrations"),
        ("UPDATE adapters SET report = '[1]'", "has no report"),
        ("UPDATE episodes SET fingerprint = 'gone'", "names a row of tasks that is not there"),
    ],
)
def test_rows_that_a_program_of_others_has_spoilt_are_named(
    tmp_path: Path, episode: EpisodeRow, task: TaskRow, statement: str, words: str
) -> None:
    opened = damaged_store(tmp_path, episode, task, statement)
    found = opened.verify().findings
    assert found and {f.kind for f in found} == {"database"} and any(words in f.sentence for f in found)
    opened.repair()
    assert not opened.verify().sound, "what was said is gone: no repair may claim otherwise"
    opened.close()


def test_reading_a_spoilt_row_is_one_sentence(tmp_path: Path, episode: EpisodeRow, task: TaskRow) -> None:
    opened = damaged_store(tmp_path, episode, task, "UPDATE episodes SET receipt = '{half'")
    with pytest.raises(DatabaseCorrupt, match="not JSON.*restore a backup"):
        opened.episodes.recent(1)
    opened.close()


def test_a_broken_index_of_the_file_is_built_anew(tmp_path: Path, episode: EpisodeRow, task: TaskRow) -> None:
    """As after a bad sector: the index says other than the table."""
    opened = damaged_store(tmp_path, episode, task, "PRAGMA user_version = 1")
    hidden = "FROM sqlite_master WHERE name = 'ix_episodes_created_at'"
    steps = [
        [f"CREATE TABLE aside AS SELECT * {hidden}", f"DELETE {hidden}"],
        ["UPDATE episodes SET created_at = 77.0"],  # which the hidden index does not learn
        ["INSERT INTO sqlite_master SELECT * FROM aside", "DROP TABLE aside"],
    ]
    for statements in steps:
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                connection.execute(statement)
        connection.close()
    found = opened.verify().findings
    assert found and found[0].kind == "database"
    opened.repair()
    assert opened.verify().sound
    assert opened.episodes.recent(1) == [replace(episode, created_at=77.0)]
    opened.close()
