"""Leases: who may do a piece of work, such as training for one task, while others wait.

A lease ends by itself when its owner dies: after `ttl_s` somebody else may take it over. Expiry is
judged by the database's clock alone, and each takeover raises the fencing token, so an owner that
slept too long can't publish over its successor (see `Adapters.publish`). Knows nothing of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Double, or_, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from store.database import Database, insert_or, retried
from store.errors import LeaseLost
from store.tables import leases


class database_now(FunctionElement[float]):
    """The database's own clock, Unix time in seconds."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _postgres_now(element: database_now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@dataclass(frozen=True, slots=True)
class Lease:
    """A right held by `owner` until it is released or, unrenewed for `ttl_s`, taken over."""

    name: str
    owner: str
    token: int
    """Fencing token: 1 at first, one more at each later acquisition."""
    ttl_s: float


class Leases:
    """Acquire, renew and release leases, each by one conditional statement."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @retried
    def acquire(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        """The lease, or None while anybody (the same owner included) holds it unexpired.

        All who ask for one name give the same `ttl_s`: a lease that ends later than twice that from now is of a clock
        that was set back since, and is taken over as well.

        Where the connection was lost just after the lease was had, nobody knows of it, and it ends by itself.
        """
        expires_at = database_now() + ttl_s
        with self._db.write() as connection:
            statement = (
                insert_or(connection, leases)
                .values(name=name, owner=owner, token=1, expires_at=expires_at)
                .on_conflict_do_update(
                    index_elements=[leases.c.name],
                    set_={"owner": owner, "token": leases.c.token + 1, "expires_at": expires_at},
                    where=or_(
                        leases.c.expires_at <= database_now(),
                        leases.c.expires_at > database_now() + 2 * max(ttl_s, 0.0),
                    ),
                )
                .returning(leases.c.token)
            )
            token = connection.execute(statement).scalar()
        return None if token is None else Lease(name, owner, token, ttl_s)

    def renew(self, lease: Lease) -> None:
        """Hold the lease for `ttl_s` from now.

        Raises:
            LeaseLost: somebody else took it over, or it was released. (Late but not yet taken over is
                not lost.)
        """
        if not self._set_expiry(lease, lease.ttl_s):
            raise LeaseLost(_lost_message(lease))

    def release(self, lease: Lease) -> None:
        """Give the lease back; one that was taken over stays with its new owner."""
        self._set_expiry(lease, None)

    @retried
    def _set_expiry(self, lease: Lease, ttl_s: float | None) -> bool:
        values = (
            {"expires_at": database_now() + ttl_s} if ttl_s is not None else {"expires_at": 0.0, "owner": ""}
        )
        with self._db.write() as connection:
            result = connection.execute(update(leases).where(*_held_by(lease)).values(values))
        return result.rowcount == 1


def check_lease(connection: Connection, lease: Lease) -> None:
    """Inside the caller's write transaction: the lease is still ours, and stays so until the commit.

    Raises:
        LeaseLost: somebody else took it over, or it was released.
    """
    held = connection.execute(select(leases.c.token).where(*_held_by(lease)).with_for_update()).first()
    if held is None:
        raise LeaseLost(_lost_message(lease))


def _lost_message(lease: Lease) -> str:
    return (
        f"The lease {lease.name!r} (token {lease.token}) is no longer held by {lease.owner!r}; "
        "drop this work and look for the result of whoever took it over."
    )


def _held_by(lease: Lease) -> tuple[Any, ...]:
    return leases.c.name == lease.name, leases.c.owner == lease.owner, leases.c.token == lease.token
