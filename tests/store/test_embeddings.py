"""Nearest by cosine, in memory and up to date with what other processes have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from store import AdapterKey, Store
from store.embeddings import OVERLAP, PAGE
from store.errors import NotFound, StoreError
from store.tables import adapter_embeddings, adapters
from tests.store.test_adapters import KEY, publish

SPACE = "mean of base@1 for qa1"


def key(i: int) -> AdapterKey:
    return replace(KEY, fingerprint=f"task1:{i}")


def fill(opened: Store, vectors: Sequence[Sequence[float]], space: str = SPACE, first: int = 0) -> None:
    """Adapters without files, which nearest-neighbour search never looks at."""
    for i, vector in enumerate(vectors, start=first):
        with opened.db.write() as connection:
            connection.execute(adapters.insert().values(row(i)))
        opened.embeddings.put(key(i), space, vector, {f"input {i}"})


def row(i: int) -> dict[str, object]:
    own = key(i)
    return {
        "key_hash": own.hash,
        "fingerprint": own.fingerprint,
        "base_revision": own.base_revision,
        "template": own.template,
        "recipe": own.recipe,
        "seed": own.seed,
        "content_hash": "c",
        "size_bytes": 1,
        "created_at": 1.0,
        "last_used_at": 1.0,
        "accepted": True,
        "report": {},
        "demonstration_hashes": [],
    }


def test_the_nearest_come_first_with_their_cosine_and_what_they_have_seen(opened: Store) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)) * rng.uniform(0.1, 9, size=(40, 1))
    fill(opened, vectors.tolist())
    asked = rng.normal(size=8)
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked)
    order = np.argsort(-cosines)[:5]
    found = opened.embeddings.nearest(SPACE, asked.tolist(), 5)
    assert [n.key_hash for n in found] == [key(int(i)).hash for i in order]
    assert [n.cosine for n in found] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    assert found[0].seen_inputs == {f"input {order[0]}"}
    assert len(opened.embeddings.nearest(SPACE, asked.tolist(), 100)) == 40
    assert opened.embeddings.nearest(SPACE, asked.tolist(), 0) == []


def test_another_space_has_none_of_them(opened: Store) -> None:
    fill(opened, [[1.0, 0.0]])
    fill(opened, [[1.0, 0.0, 0.0]], "other", first=1)
    assert opened.embeddings.nearest("empty", [1.0], 3) == []
    assert [n.key_hash for n in opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)] == [key(0).hash]
    assert [n.key_hash for n in opened.embeddings.nearest("other", [1.0, 0.0, 0.0], 3)] == [key(1).hash]


def test_what_another_process_adds_is_found_at_the_next_question(
    opened: Store, url: str, tmp_path: Path
) -> None:
    fill(opened, [[1.0, 0.0]])
    assert len(opened.embeddings.nearest(SPACE, [1.0, 0.0], 9)) == 1
    other = Store.open(url, tmp_path / "other")
    fill(other, [[0.0, 1.0], [1.0, 1.0]], first=1)
    other.close()
    found = opened.embeddings.nearest(SPACE, [0.1, 1.0], 9)
    assert [n.key_hash for n in found] == [key(1).hash, key(2).hash, key(0).hash]


def test_a_row_that_was_committed_late_under_an_earlier_number_is_found(opened: Store) -> None:
    fill(opened, [[1.0, 0.0]] * 3)
    with opened.db.write() as connection:  # as if its transaction had not ended yet
        late = connection.execute(select(adapter_embeddings).order_by(adapter_embeddings.c.id)).all()[1]
        connection.execute(delete(adapter_embeddings).where(adapter_embeddings.c.id == late.id))
    assert len(opened.embeddings.nearest(SPACE, [1.0, 0.0], 9)) == 2
    with opened.db.write() as connection:
        connection.execute(adapter_embeddings.insert().values(**late._mapping))
    assert len(opened.embeddings.nearest(SPACE, [1.0, 0.0], 9)) == 3
    assert OVERLAP > 3


def test_an_adapter_that_is_gone_is_no_neighbour_any_more(opened: Store) -> None:
    fill(opened, [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert len(opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)) == 3
    with opened.db.write() as connection:
        connection.execute(delete(adapters).where(adapters.c.key_hash == key(2).hash))
    assert [n.key_hash for n in opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)] == [key(0).hash, key(1).hash]
    fill(opened, [[0.0, 1.0]], first=3)  # never under the number of the one that went
    assert opened.embeddings.nearest(SPACE, [0.0, 1.0], 1)[0].key_hash == key(3).hash


def test_more_than_a_page_is_read(opened: Store) -> None:
    n = PAGE + 7
    with opened.db.write() as connection:
        connection.execute(adapters.insert(), [row(i) for i in range(n)])
        connection.execute(
            adapter_embeddings.insert(),
            [
                {
                    "key_hash": key(i).hash,
                    "space": SPACE,
                    "vector": np.array([np.cos(6 * i / n), np.sin(6 * i / n)], "<f4").tobytes(),
                    "seen_inputs": [],
                }
                for i in range(n)
            ],
        )
    found = opened.embeddings.nearest(SPACE, [np.cos(6 * 1003 / n), np.sin(6 * 1003 / n)], n)
    assert len(found) == n and found[0].key_hash == key(1003).hash


def test_what_an_adapter_has_seen_is_what_its_last_training_saw(opened: Store) -> None:
    fill(opened, [[1.0, 0.0]])
    assert opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)[0].seen_inputs == {"input 0"}
    opened.embeddings.put(key(0), SPACE, [1.0, 0.0], {"another"})
    (found,) = opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)
    assert found.cosine == pytest.approx(1.0) and found.seen_inputs == {"another"}


def test_those_that_are_gone_hide_no_others(opened: Store) -> None:
    fill(opened, [[1.0, i / 100] for i in range(8)])
    assert len(opened.embeddings.nearest(SPACE, [1.0, 0.0], 8)) == 8
    with opened.db.write() as connection:
        gone = [key(i).hash for i in range(4)]
        connection.execute(delete(adapters).where(adapters.c.key_hash.in_(gone)))
    found = opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)
    assert [n.key_hash for n in found] == [key(i).hash for i in (4, 5, 6)]


def test_the_order_in_which_a_database_gives_rows_does_not_matter(opened: Store) -> None:
    """PostgreSQL moves a row that is written anew to another place."""
    fill(opened, [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    with opened.db.write() as connection:
        moved = update(adapter_embeddings).where(adapter_embeddings.c.key_hash == key(0).hash)
        connection.execute(moved.values(seen_inputs=["moved"]))
    found = opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)
    assert [n.key_hash for n in found] == [key(i).hash for i in range(3)]


def test_an_adapter_published_again_stays_a_neighbour(opened: Store) -> None:
    publish(opened)
    opened.embeddings.put(KEY, SPACE, [1.0, 0.0], ())
    publish(opened, weights=b"better")
    assert [n.key_hash for n in opened.embeddings.nearest(SPACE, [1.0, 0.0], 3)] == [KEY.hash]


def test_impossible_embeddings_are_refused_in_a_sentence(opened: Store) -> None:
    with pytest.raises(NotFound, match="No adapter with key"):
        opened.embeddings.put(KEY, SPACE, [1.0], ())
    publish(opened)
    for vector in ([0.0, 0.0], [float("nan"), 1.0], [float("inf")], []):
        with pytest.raises(StoreError, match="has no direction; leave it out"):
            opened.embeddings.put(KEY, SPACE, vector, ())
    opened.embeddings.put(KEY, SPACE, [1.0, 2.0], ())
    with pytest.raises(StoreError, match="of 3 numbers can't be compared with those of 2"):
        opened.embeddings.nearest(SPACE, [1.0, 2.0, 3.0], 1)
