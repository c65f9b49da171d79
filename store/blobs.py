"""Folders named by the hash of what they hold: written aside, then put in place by one rename.

A folder under its final name is always whole: a program killed while writing leaves only a
`.staging-…` folder, which nobody reads and which is swept away a day later. Knows nothing of SQL or
of what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING_PREFIX = ".staging-"
NAME = re.compile("[0-9a-f]{64}")
"""Of a published folder, whole; nothing else is ever looked for, so that no name leads elsewhere."""
STAGING_MAX_AGE_S = 24 * 3600.0
SETTLED_AFTER_S = 3.0
"""More than the coarsest clock of a file system, 2 s."""


def files_of(folder: Path) -> list[Path]:
    """All files under `folder`, sorted by their path relative to it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def content_hash(folder: Path) -> str:
    """SHA-256 over the sorted relative names, sizes and contents of all files, 64 hex digits."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix().encode()
        digest.update(b"%d:%s%d:" % (len(name), name, path.stat().st_size))
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Name, size (bytes), times of the last change of content and of attributes (ns), and number of each file."""


def stamp(folder: Path) -> Stamp:
    """What any later change to the files of `folder` changes too, without reading them."""
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in files_of(folder))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in found)


def settled(stamp: Stamp) -> bool:
    """Whether the last change is so long ago that one from now on can't have the same time."""
    latest = max((max(mtime, ctime) for _, _, mtime, ctime, _ in stamp), default=0)
    return latest < time.time_ns() - SETTLED_AFTER_S * 1e9


def size_bytes(folder: Path) -> int:
    """Sum of the sizes of all files."""
    return sum(path.stat().st_size for path in files_of(folder))


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder` to write into; gone after the block unless it was installed."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def published(folder: Path) -> list[Path]:
    """The folders under their final names, sorted."""
    return sorted(path for path in folder.glob("*") if NAME.fullmatch(path.name) and path.is_dir())


def staging(folder: Path) -> list[Path]:
    """Folders that somebody is writing, or was writing when it was killed."""
    return list(folder.glob(f"{STAGING_PREFIX}*"))


def age_s(folder: Path) -> float:
    """Seconds since it was put in place or changed."""
    found = folder.stat()
    return time.time() - max(found.st_mtime, found.st_ctime)


def flush(folder: Path) -> None:
    """Have the disk hold all files of `folder` before it is installed."""
    for path in files_of(folder):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush_entries(path)


def install(staged: Path, folder: Path, digest: str) -> Path:
    """Rename the flushed `staged` to `folder/digest`, once: a whole folder that is there already is kept.

    A damaged folder of that name is replaced.
    """
    target = folder / digest
    with stage(folder) as aside:
        if target.exists():
            if _is_whole(target, digest):
                shutil.rmtree(staged, ignore_errors=True)
                return target
            os.rename(target, aside / "damaged")
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staged)  # somebody put the same content in place just now
    _flush_entries(folder)
    return target


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        return content_hash(folder) == digest
    except OSError:  # a file that can't be read is as good as damaged
        return False


def _flush_entries(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what programs that were killed while staging have left."""
    oldest = time.time() - STAGING_MAX_AGE_S
    for left in staging(folder):
        with suppress(FileNotFoundError):  # its owner was just done with it
            if left.stat().st_mtime < oldest:
                shutil.rmtree(left, ignore_errors=True)  # another program may sweep, too
