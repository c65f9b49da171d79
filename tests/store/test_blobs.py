"""A folder is named by what it holds, and is put in place whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from store import blobs


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_equal_content_has_equal_hash_wherever_it_lies(tmp_path: Path) -> None:
    a = fill(tmp_path / "a", {"x": b"1", "sub/y": b"2"})
    b = fill(tmp_path / "b", {"sub/y": b"2", "x": b"1"})
    assert blobs.content_hash(a) == blobs.content_hash(b)
    assert blobs.size_bytes(a) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"x": b"12", "y": b"3"},
        {"y": b"1", "x": b"23"},
        {"x": b"1"},
        {"x": b"1", "y": b"23", "z": b""},
        {"x": b"1", "sub/y": b"23"},
        {"x1": b"", "y": b"23"},
    ],
)
def test_any_change_of_names_or_contents_changes_the_hash(tmp_path: Path, other: dict[str, bytes]) -> None:
    base = fill(tmp_path / "a", {"x": b"1", "y": b"23"})
    assert blobs.content_hash(base) != blobs.content_hash(fill(tmp_path / "b", other))


def test_a_staging_folder_is_gone_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), blobs.stage(tmp_path / "all") as staged:
        fill(staged, {"x": b"half"})
        raise KeyError
    assert list((tmp_path / "all").iterdir()) == []


def test_installing_moves_the_folder_under_its_hash(tmp_path: Path) -> None:
    with blobs.stage(tmp_path) as staged:
        digest = blobs.content_hash(fill(staged, {"x": b"1", "sub/y": b"2"}))
        blobs.flush(staged)
        inode = staged.stat().st_ino
        target = blobs.install(staged, tmp_path, digest)
    assert target.stat().st_ino == inode  # renamed, not copied: half of it is never there
    assert target == tmp_path / digest and blobs.content_hash(target) == digest
    assert list(tmp_path.iterdir()) == [target]


def test_installing_the_same_content_again_keeps_the_first(tmp_path: Path) -> None:
    inodes = []
    for _ in range(2):
        with blobs.stage(tmp_path) as staged:
            digest = blobs.content_hash(fill(staged, {"x": b"1"}))
            inodes.append(blobs.install(staged, tmp_path, digest).stat().st_ino)
    assert inodes[0] == inodes[1]
    assert [path.name for path in tmp_path.iterdir()] == [digest]


def test_installing_over_a_damaged_folder_repairs_it(tmp_path: Path) -> None:
    for _ in range(2):
        with blobs.stage(tmp_path) as staged:
            digest = blobs.content_hash(fill(staged, {"x": b"1"}))
            target = blobs.install(staged, tmp_path, digest)
        assert blobs.content_hash(target) == digest
        (target / "x").write_bytes(b"?")
    assert [path.name for path in tmp_path.iterdir()] == [digest]


def test_old_leftovers_of_killed_programs_are_swept_and_young_ones_kept(tmp_path: Path) -> None:
    old = fill(tmp_path / ".staging-old", {"x": b"1"})
    young = fill(tmp_path / ".staging-young", {"x": b"1"})
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    with blobs.stage(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [young]
