"""Which adapters are of like tasks: nearest by cosine, over all of one space.

A space is a text that says what made the vectors and for whom they are of use (way of embedding, base model, prompt
template); vectors of different spaces are never compared. Each is read from SQL once: they stay in one matrix in
memory, and what others have added is fetched at every question. 100,000 vectors of 128 numbers take 51 MB, and a
question a few milliseconds. Knows nothing of what makes two tasks alike, nor whether an adapter is any good.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from store.adapters import AdapterKey
from store.database import Database, insert_or
from store.errors import NotFound, StoreError
from store.tables import adapter_embeddings, adapters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

OVERLAP = 64
"""Rows before the newest known one that are looked at again: transactions may end in another order than they began."""


@dataclass(frozen=True, slots=True)
class Near:
    """A neighbour."""

    key_hash: str
    """Of its `AdapterKey`."""
    cosine: float
    seen_inputs: frozenset[str]
    """Hashes of all inputs that the adapter has learned from."""


class Embeddings:
    """The embeddings in `db`, and a copy of their vectors in memory. Safe to use from several threads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._spaces: dict[str, _Space] = {}

    def put(self, key: AdapterKey, space: str, vector: Sequence[float], seen_inputs: Collection[str]) -> None:
        """Say where the task of a published adapter lies; what was said before is left as it is.

        Args:
            vector: any length but 0; its direction counts.
            seen_inputs: hashes of all inputs that the adapter has learned from.

        Raises:
            NotFound: no such adapter.
            StoreError: a vector without a direction.
        """
        length = math.hypot(*vector)
        if not 0 < length < math.inf:
            raise StoreError(f"An embedding of length {length} has no direction; leave it out.")
        values = {
            "key_hash": key.hash,
            "space": space,
            "vector": _to_bytes(v / length for v in vector),
            "seen_inputs": sorted(seen_inputs),
        }
        with self._db.write() as connection:
            there = select(adapters.c.key_hash).where(adapters.c.key_hash == key.hash)
            if connection.execute(there).first() is None:
                raise NotFound(f"No adapter with key {key.hash[:12]}…; train the task again.")
            # An adapter that was trained again under its key may have begun elsewhere, and learned from other inputs.
            connection.execute(
                insert_or(connection, adapter_embeddings)
                .values(values)
                .on_conflict_do_update(index_elements=[adapter_embeddings.c.key_hash], set_=values)
            )

    def nearest(self, space: str, vector: Sequence[float], n: int) -> list[Near]:
        """The `n` nearest adapters of the space, nearest first; those that are recorded no more are left out.

        Raises:
            StoreError: the space has vectors of another size.
        """
        wanted = n
        while True:
            with self._lock:
                best = self._space(space).best(vector, wanted)
            found = self._described(best)
            if len(found) >= n or len(best) < wanted:
                return found[:n]
            wanted *= 2  # some of these are gone

    def spread(self, space: str, vector: Sequence[float], n: int) -> list[Near]:
        """`n` adapters of the space, evenly from the first to the last that was added.

        Raises:
            StoreError: as `nearest`.
        """
        with self._lock:
            some = self._space(space).even(vector, n)
        return self._described(some)

    def _space(self, space: str) -> _Space:
        found = self._spaces.setdefault(space, _Space())
        self._read_new(space, found)
        return found

    def _described(self, best: list[tuple[str, float]]) -> list[Near]:
        table = adapter_embeddings.c
        query = select(table.key_hash, table.seen_inputs).where(table.key_hash.in_([key for key, _ in best]))
        with self._db.read() as connection:
            seen = {row.key_hash: frozenset(row.seen_inputs) for row in connection.execute(query)}
        return [Near(key, cosine, seen[key]) for key, cosine in best if key in seen]

    def _read_new(self, space: str, found: _Space) -> None:
        table = adapter_embeddings.c
        ids = select(table.id, table.key_hash).where(table.space == space, table.id > found.last - OVERLAP)
        with self._db.read() as connection:
            new = [
                row.id
                for row in connection.execute(ids.order_by(table.id))
                if row.key_hash not in found.known
            ]
            while new:
                part, new = new[:PAGE], new[PAGE:]
                query = select(table.id, table.key_hash, table.vector).where(
                    table.space == space, table.id >= part[0], table.id <= part[-1]
                )
                found.add(connection.execute(query.order_by(table.id)).all())


PAGE = 1000
"""Rows read at a time."""


class _Space:
    """The vectors of one space, one a row."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        """Of the matrix's rows."""
        self.known: set[str] = set()
        self.last = 0
        self._matrix: Matrix | None = None

    def add(self, rows: Iterable[Any]) -> None:
        import numpy as np

        for row in rows:
            self.last = max(self.last, row.id)
            if row.key_hash in self.known:
                continue
            vector = np.frombuffer(row.vector, dtype="<f4")
            n = len(self.keys)
            if self._matrix is None:
                self._matrix = np.zeros((256, len(vector)), np.float32)
            if vector.shape != self._matrix.shape[1:]:
                raise StoreError(_sizes(len(vector), self._matrix.shape[1]))
            if n == len(self._matrix):
                self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
            self._matrix[n] = vector
            self.keys.append(row.key_hash)
            self.known.add(row.key_hash)

    def best(self, vector: Sequence[float], n: int) -> list[tuple[str, float]]:
        import numpy as np

        cosines = self._cosines(vector)
        n = min(n, len(cosines))
        if n < 1:
            return []
        top = np.argpartition(-cosines, n - 1)[:n]
        return [(self.keys[i], float(cosines[i])) for i in top[np.argsort(-cosines[top], kind="stable")]]

    def even(self, vector: Sequence[float], n: int) -> list[tuple[str, float]]:
        import numpy as np

        cosines = self._cosines(vector)
        places = np.unique(np.linspace(0, len(cosines) - 1, n).round().astype(int)) if len(cosines) else ()
        return [(self.keys[i], float(cosines[i])) for i in places]

    def _cosines(self, vector: Sequence[float]) -> NDArray[np.float32]:
        import numpy as np

        if self._matrix is None:
            return np.zeros(0, np.float32)
        if len(vector) != self._matrix.shape[1]:
            raise StoreError(_sizes(len(vector), self._matrix.shape[1]))
        asked = np.asarray(vector, np.float32)
        asked /= max(float(np.linalg.norm(asked)), 1e-30)
        return self._matrix[: len(self.keys)] @ asked


def _to_bytes(values: Iterable[float]) -> bytes:
    import numpy as np

    return np.fromiter(values, "<f4").tobytes()


def _sizes(given: int, there: int) -> str:
    return (
        f"An embedding of {given} numbers can't be compared with those of {there} that the space holds; "
        "name another space."
    )
