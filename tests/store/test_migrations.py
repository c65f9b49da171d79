"""From an earlier schema with rows in it to the newest one, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from store.adapters import AdapterKey, Adapters
from store.database import Database
from store.embeddings import Embeddings
from store.tables import adapter_demonstrations, adapters

N_ADAPTERS = 2100
"""More than the migration reads at a time."""


def migrate(db: Database, step: Callable[[Config, str], None], revision: str) -> None:
    with db.write() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "store:migrations")
        step(config, revision)


def demonstrations_of(i: int) -> list[str]:
    """None for some; the same one twice for others."""
    return [f"d{i % 7}", f"d{i % 5}", f"d{i}"][: i % 4]


def rows() -> Sequence[dict[str, Any]]:
    keys = [AdapterKey(f"task1:{i}", "tiny@1", "plain-1", "default", 0) for i in range(N_ADAPTERS)]
    return [
        {
            "key_hash": key.hash,
            "fingerprint": key.fingerprint,
            "base_revision": key.base_revision,
            "template": key.template,
            "recipe": key.recipe,
            "seed": key.seed,
            "content_hash": "c",
            "size_bytes": 1,
            "created_at": float(i),
            "last_used_at": float(i),
            "accepted": True,
            "report": {"losses": [1.0]},
            "demonstration_hashes": demonstrations_of(i),
        }
        for i, key in enumerate(keys)
    ]


@pytest.fixture
def first(url: str) -> Iterator[Database]:
    """A database at the first schema, with adapters."""
    db = Database(url)
    if isinstance(db.where, Path):
        db.where.parent.mkdir()
    migrate(db, command.upgrade, "0001")
    with db.write() as connection:
        connection.execute(sa.insert(adapters), rows())
    yield db
    db.close()


def indexed(db: Database) -> dict[str, set[tuple[str, int]]]:
    with db.read() as connection:
        found: dict[str, set[tuple[str, int]]] = {}
        for row in connection.execute(sa.select(adapter_demonstrations)):
            found.setdefault(row.key_hash, set()).add((row.demonstration_hash, row.n_demonstrations))
        return found


def test_the_second_revision_keeps_the_adapters_and_fills_the_index_of_their_demonstrations(
    first: Database,
) -> None:
    first.upgrade()
    with first.read() as connection:
        kept = connection.execute(sa.select(adapters).order_by(adapters.c.created_at)).mappings().all()
    assert [dict(row) for row in kept] == rows()
    own = {row["key_hash"]: set(row["demonstration_hashes"]) for row in rows()}
    assert indexed(first) == {key: {(d, len(ds)) for d in ds or {""}} for key, ds in own.items()}
    found = Adapters(first, Path("unused")).find_subset(["d0", "d1", "d1001", "x"], "tiny@1", "plain-1")
    wanted = {"d0", "d1", "d1001", "x"}
    brute = [row for row in rows() if set(row["demonstration_hashes"]) < wanted]
    assert {row.key.fingerprint for row in found} == {row["fingerprint"] for row in brute}
    assert len(found) > N_ADAPTERS // 4  # those of none are subsets of any


def test_going_back_to_the_first_revision_and_forth_again_loses_nothing(first: Database) -> None:
    first.upgrade()
    before = indexed(first)
    migrate(first, command.downgrade, "0001")
    names = sa.inspect(first.engine)
    assert not names.has_table("adapter_demonstrations")
    assert [index["name"] for index in names.get_indexes("adapters")] == ["ix_adapters_base"]
    with first.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(adapters)) == N_ADAPTERS
    first.upgrade()
    assert indexed(first) == before


def test_the_second_revision_of_a_database_without_adapters_makes_an_empty_index(url: str) -> None:
    db = Database(url)
    if isinstance(db.where, Path):
        db.where.parent.mkdir()
    migrate(db, command.upgrade, "0001")
    db.upgrade()
    assert indexed(db) == {}
    db.close()


def test_the_third_revision_keeps_the_adapters_and_goes_back_and_forth(first: Database) -> None:
    migrate(first, command.upgrade, "0002")
    first.upgrade()
    key = AdapterKey("task1:5", "tiny@1", "plain-1", "default", 0)
    Embeddings(first).put(key, "space", [3.0, 4.0], {"input"})
    (found,) = Embeddings(first).nearest("space", [3.0, 4.0], 5)
    assert found.key_hash == key.hash and found.seen_inputs == {"input"}
    migrate(first, command.downgrade, "0002")
    assert not sa.inspect(first.engine).has_table("adapter_embeddings")
    first.upgrade()
    assert Embeddings(first).nearest("space", [3.0, 4.0], 5) == []
    with first.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(adapters)) == N_ADAPTERS
