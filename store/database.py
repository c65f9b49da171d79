"""One database, opened safely: transactions, waiting for locks, schema upgrades.

Reads run in a plain transaction; writes take SQLite's write lock at once (`BEGIN IMMEDIATE`), so that
two writers wait for each other in place of failing half-way. No transaction may span model work:
take what you need, leave, then compute.

Waiting is bounded by the busy timeout: for a lock, and for a server that went away and may come back. What was
lost in the middle of a transaction is done again from its beginning (`retried`), which is right for statements that
do the same when they are done twice; a connection may be lost just after a commit. Knows nothing of what the tables
hold.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    make_url,
    text,
)

from store.errors import (
    ConnectionLost,
    DatabaseLocked,
    DatabaseTooNew,
    DatabaseUnavailable,
    StoreError,
    passes,
    translated,
)
from store.migrations import HEAD

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
    from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
    from sqlalchemy.engine.interfaces import DBAPIConnection

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_BUSY_TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5
UPGRADE_LOCK = 7_487_001
"""Key of the PostgreSQL advisory lock that lets one process upgrade at a time; any constant does."""

FOLDERS_LOCK = 7_487_002
"""Key of the one that keeps folders in place until their rows are there (`hold_folders`)."""


class Database:
    """A SQLite file (`sqlite:///path/to/file.db`) or a PostgreSQL database (`postgresql+psycopg://…`).

    Nothing is opened or created until the first use.

    Args:
        url: a SQLAlchemy URL.
        busy_timeout_s: how long to wait for another program's lock, seconds.

    Raises:
        DatabaseUnavailable: the URL is malformed, of another kind of database, or its driver is missing.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> None:
        try:
            parsed = make_url(url)
        except exc.ArgumentError as error:  # the text is not repeated: it may hold a password
            raise DatabaseUnavailable(
                "The database URL can't be read; write sqlite:///path/to/file.db."
            ) from error
        backend = parsed.get_backend_name()
        self.where: str | Path = parsed.difference_update_query(["password"]).render_as_string(
            hide_password=True
        )
        """The file's path, or the URL without its password: for messages."""
        if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
            self.where = Path(parsed.database).absolute()
        elif backend != "postgresql":
            raise DatabaseUnavailable(
                f"Can't use the database {self.where}; write sqlite:///path/to/file.db or "
                "postgresql+psycopg://user@host/name."
            )
        connect_args: dict[str, Any] = {"timeout": busy_timeout_s}
        if backend == "postgresql":
            options = f"{parsed.query.get('options', '')} -c lock_timeout={int(busy_timeout_s * 1000)}"
            connect_args = {
                "options": options.strip(),
                "connect_timeout": max(2, int(busy_timeout_s)),
                # A host that vanishes without a word is noticed by what it does not acknowledge.
                "tcp_user_timeout": int(busy_timeout_s * 1000),
                "keepalives_idle": max(1, int(busy_timeout_s)),
                "keepalives_interval": max(1, int(busy_timeout_s / 5)),
                "keepalives_count": 5,
            }
        try:
            self.engine: Engine = create_engine(
                parsed,
                connect_args=connect_args,
                pool_pre_ping=backend == "postgresql",
                json_serializer=_to_json,
            )
        except (ModuleNotFoundError, exc.SQLAlchemyError) as error:
            raise DatabaseUnavailable(
                f"No driver for the database {self.where} ({error}); install it with "
                "pip install 'psycopg[binary]' and write postgresql+psycopg://…"
            ) from error
        if backend == "sqlite":
            event.listen(self.engine, "connect", _on_sqlite_connect)
            event.listen(self.engine, "begin", _on_sqlite_begin)
        self._writer = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        self.busy_timeout_s = busy_timeout_s
        self.reached = False
        """Whether there was ever a connection: a server that never was there is not waited for."""

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database; rolls nothing forward."""
        with self._transaction(self.engine) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits at the end of the block and rolls back on any exception.

        Raises:
            DatabaseLocked: the lock could not be had within the busy timeout.
        """
        with self._transaction(self._writer) as connection:
            yield connection

    def upgrade(self) -> None:
        """Bring the schema to the newest revision, creating the database if there is none.

        Cheap when there is nothing to do. Two processes may call it at once: the second waits, then
        finds the work done.

        Raises:
            DatabaseTooNew: a later version of this program made the schema; nothing is changed.
        """
        if isinstance(self.where, Path):
            with translated(self.where.parent):
                self.where.parent.mkdir(parents=True, exist_ok=True)
        with self.read() as connection:
            if _revision(connection) == HEAD:
                return
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            _migrate(connection, self.where)

    def close(self) -> None:
        """Close all connections. The database can be used again; it reopens them."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        waiting = Waiting(self.busy_timeout_s)
        with translated(self.where), ExitStack() as stack:
            while True:
                try:
                    connection = stack.enter_context(engine.begin())
                    break
                except exc.OperationalError as error:
                    # SQLite waits by itself for most locks, but not when two connections switch a new
                    # file to WAL at once: then it fails immediately.
                    if not passes(error, reached=self.reached) or not waiting.pause():
                        raise
            self.reached = True
            yield connection


class Waiting:
    """Pauses that grow, with some chance in them so that two who collide don't again, until a time is over."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._pause_s = FIRST_PAUSE_S

    def pause(self) -> bool:
        """Sleep a little; False, without sleeping, when the time is over."""
        if time.monotonic() >= self._deadline:
            return False
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True


def retried(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A method of a repository (its database is `_db`) that does the same when it is done twice: done again, from its beginning, when the
    connection was lost in its middle or the database broke a deadlock; for at most the busy timeout."""

    @wraps(method)
    def again(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        waiting = Waiting(self._db.busy_timeout_s)
        while True:
            try:
                return method(self, *args, **kwargs)
            except (ConnectionLost, DatabaseLocked):
                if not self._db.reached or not waiting.pause():
                    raise

    return cast(Callable[Concatenate[Any, P], T], again)


def hold_folders(connection: Connection, *, alone: bool) -> None:
    """Until the commit of this write transaction: folders may be put in place or, `alone`, taken away.

    On SQLite the write transaction itself keeps all others out.
    """
    if connection.dialect.name == "postgresql":
        name = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        connection.execute(text(f"SELECT {name}(:key)"), {"key": FOLDERS_LOCK})


def insert_or(connection: Connection, table: Table) -> SqliteInsert | PostgresInsert:
    """An INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`, in the connection's dialect."""
    return _insert(connection.dialect.name, table)


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row; False, and nothing is changed, when one with the same key is there already."""
    # Not by `rowcount`, which says nothing of an INSERT on PostgreSQL.
    return connection.execute(_insert_new(connection.dialect.name, table), dict(values)).first() is not None


def columns_of(row: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass as values to insert; unlike `asdict`, without copying what is in them."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _insert(dialect: str, table: Table) -> SqliteInsert | PostgresInsert:
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


@cache
def _insert_new(dialect: str, table: Table) -> Executable:
    return _insert(dialect, table).on_conflict_do_nothing().returning(*table.primary_key)


def _revision(connection: Connection) -> str | None:
    """The schema revision that the database records; None when it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(connection: Connection, where: str | Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "store:migrations")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    recorded = _revision(connection)
    if recorded is not None and recorded not in known:
        raise DatabaseTooNew(
            f"The database {where} has schema revision {recorded}, this version knows only up to {HEAD}; "
            "install a newer version of this program or use another database."
        )
    command.upgrade(config, "head")


def _to_json(value: Any) -> str:
    """JSON that both databases accept: no NaN, no infinity."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"Can't store a value that is not plain JSON ({error}); leave it out.") from error


# SQLAlchemy's recipe for SQLite transactions, in its page on the SQLite dialect: Python's driver would
# begin transactions on its own terms, and never for DDL; so it is told not to, and we begin them.
def _on_sqlite_connect(connection: DBAPIConnection, record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")
