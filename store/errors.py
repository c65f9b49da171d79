"""What can go wrong in `store`, as one tree.

    StoreError                  also: the database refused a statement, or a file operation failed
    ├── DatabaseUnavailable     the database can't be opened or connected to
    │   └── ConnectionLost      its server went away, or is just starting
    ├── DatabaseLocked          another program held the database longer than the busy timeout
    ├── DatabaseCorrupt         the file is not a database, or is malformed
    ├── DatabaseTooNew          the schema was made by a later version of this program
    ├── ReadOnly                a folder or file can't be written
    ├── NoSpace                 the disk is full
    ├── AdapterDamaged          an adapter's files are missing or don't match their hash
    ├── LeaseLost               somebody else took the lease over, or it was released
    └── NotFound                no such episode, adapter or policy version

Every message is one sentence that gives the value and the remedy. `translated(where)` is the one
place where errors of SQLAlchemy, its drivers and the file system become these.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import exc


class StoreError(Exception):
    """Base of all errors that `store` raises on purpose."""


class DatabaseUnavailable(StoreError):
    """The database can't be opened or connected to."""


class ConnectionLost(DatabaseUnavailable):
    """The database's server went away, or is just starting."""


class DatabaseLocked(StoreError):
    """Another program held the database longer than the busy timeout."""


class DatabaseCorrupt(StoreError):
    """The file is not a database, or is malformed."""


class DatabaseTooNew(StoreError):
    """The schema was made by a later version of this program."""


class ReadOnly(StoreError):
    """A folder or file can't be written."""


class NoSpace(StoreError):
    """The disk is full."""


class AdapterDamaged(StoreError):
    """An adapter's files are missing or don't match their hash."""


class LeaseLost(StoreError):
    """Somebody else took the lease over, or it was released."""


class NotFound(StoreError):
    """No such episode, adapter or policy version."""


@contextmanager
def translated(where: str | Path) -> Iterator[None]:
    """Turn errors of SQLAlchemy, its drivers and the file system into `StoreError`s about `where`.

    Args:
        where: the path, or the URL without its password, that the message names.
    """
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _from_sqlalchemy(error, where) from error
    except OSError as error:
        raise _from_os(error, where) from error
    except json.JSONDecodeError as error:  # a column's, as it is read
        reason = f"a value is not JSON: {error}"
        raise DatabaseCorrupt(_SENTENCES[DatabaseCorrupt].format(where=where, reason=reason)) from error


def passes(error: exc.SQLAlchemyError, *, reached: bool) -> bool:
    """Whether waiting may help: somebody else holds the database, or its server is just starting, or is away
    although it was `reached` before."""
    kind = _kind(error)
    starting = getattr(getattr(error, "orig", None), "sqlstate", None) == STARTING
    return kind is DatabaseLocked or starting or (kind is ConnectionLost and reached)


_SQLITE_KINDS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: DatabaseLocked,
    sqlite3.SQLITE_LOCKED: DatabaseLocked,
    sqlite3.SQLITE_CORRUPT: DatabaseCorrupt,
    sqlite3.SQLITE_NOTADB: DatabaseCorrupt,
    sqlite3.SQLITE_READONLY: ReadOnly,
    sqlite3.SQLITE_PERM: ReadOnly,
    sqlite3.SQLITE_FULL: NoSpace,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnavailable,
    sqlite3.SQLITE_IOERR: DatabaseUnavailable,
}
"""By primary result code, https://www.sqlite.org/rescode.html."""

_SQLSTATE_KINDS: dict[str, type[StoreError]] = {
    "08": ConnectionLost,  # connection exception
    "28": DatabaseUnavailable,  # invalid authorization
    "3D": DatabaseUnavailable,  # no such database
    "57": ConnectionLost,  # operator intervention: shut down, starting up
    "53": DatabaseUnavailable,  # insufficient resources: too many connections
    "53100": NoSpace,  # disk full
    "55P03": DatabaseLocked,  # lock timeout
    "40": DatabaseLocked,  # deadlock, serialization failure
    "25006": ReadOnly,  # read-only transaction
    "42501": ReadOnly,  # insufficient privilege
    "XX001": DatabaseCorrupt,
    "XX002": DatabaseCorrupt,
}
"""By whole code or its class, https://www.postgresql.org/docs/current/errcodes-appendix.html."""


STARTING = "57P03"
"""The server takes no connections yet."""


def _kind(error: exc.SQLAlchemyError) -> type[StoreError]:
    if isinstance(error, exc.TimeoutError):  # all pooled connections are in use
        return DatabaseLocked
    if not isinstance(error, exc.DBAPIError):
        return StoreError
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE_KINDS.get(code & 0xFF, StoreError)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return _SQLSTATE_KINDS.get(state) or _SQLSTATE_KINDS.get(state[:2], StoreError)
    return ConnectionLost if isinstance(error, exc.OperationalError) else StoreError


def _from_sqlalchemy(error: exc.SQLAlchemyError, where: str | Path) -> StoreError:
    if isinstance(error, exc.StatementError) and isinstance(error.orig, StoreError):
        return error.orig
    kind = _kind(error)
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    cant_create = kind is DatabaseUnavailable and isinstance(where, Path) and where.parent.is_dir()
    if cant_create and not os.access(Path(where).parent, os.W_OK):
        return ReadOnly(
            f"Can't write to {Path(where).parent}; make the folder writable or choose another one."
        )
    if cant_create and shutil.disk_usage(Path(where).parent).free < LEAST_FREE:
        kind = NoSpace  # SQLite has no code of its own for a log or shared memory that could not grow
    return kind(_SENTENCES[kind].format(where=where, reason=reason))


LEAST_FREE = 2**16
"""Bytes; SQLite's shared memory alone takes half of it."""
_SENTENCES: dict[type[StoreError], str] = {
    DatabaseUnavailable: (
        "Can't open the database {where} ({reason}); check its path or URL and that it can be reached."
    ),
    ConnectionLost: (
        "The database {where} can't be reached ({reason}); check that its server runs, then try again."
    ),
    DatabaseLocked: (
        "The database {where} stayed locked by another program ({reason}); close that program or try again."
    ),
    DatabaseCorrupt: (
        "The database {where} is damaged ({reason}); restore a backup, or move the file away to start anew."
    ),
    ReadOnly: "Can't write to {where} ({reason}); make it writable or choose another place.",
    NoSpace: "No space left for {where} ({reason}); free some disk space and try again.",
    StoreError: (
        "The database {where} refused what it was asked ({reason}); check that this program made it."
    ),
}


def _from_os(error: OSError, where: str | Path) -> StoreError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(_SENTENCES[NoSpace].format(where=where, reason=reason))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return ReadOnly(_SENTENCES[ReadOnly].format(where=where, reason=reason))
    path = f" at {error.filename}" if error.filename else ""
    return StoreError(
        f"Can't use {where} ({reason}{path}); check that the path exists and can be read and written."
    )
