"""The store: SQL tables, migrations and content-addressed adapter folders.

Knows nothing of tensors or decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from store.adapters import AdapterKey, AdapterRow, Adapters, AdapterStats
from store.bounds import IN_USE_S, Bounds, Collected, collect
from store.database import DEFAULT_BUSY_TIMEOUT_S, Database
from store.embeddings import Embeddings, Near
from store.episodes import EpisodeRow, Episodes, OutcomeRow, TaskRow
from store.errors import translated
from store.leases import Lease, Leases
from store.policy_versions import PolicyVersionRow, PolicyVersions
from store.upkeep import Report, repair, verify

__all__ = [
    "AdapterKey",
    "AdapterRow",
    "AdapterStats",
    "Bounds",
    "Collected",
    "Embeddings",
    "EpisodeRow",
    "Episodes",
    "Lease",
    "Near",
    "OutcomeRow",
    "PolicyVersionRow",
    "Report",
    "Store",
    "TaskRow",
]


@dataclass(frozen=True, slots=True)
class Store:
    """All that is kept between answers, as one repository for each kind of thing."""

    db: Database
    episodes: Episodes
    adapters: Adapters
    embeddings: Embeddings
    leases: Leases
    policy_versions: PolicyVersions

    @classmethod
    def open(
        cls, url: str, adapters_folder: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S
    ) -> Store:
        """Open database and adapters, making or upgrading what is needed.

        Raises:
            StoreError: one of its kinds says what is wrong and what helps.
        """
        db = Database(url, busy_timeout_s=busy_timeout_s)
        try:
            db.upgrade()
            with translated(adapters_folder):
                adapters_folder.mkdir(parents=True, exist_ok=True)
        except BaseException:
            db.close()
            raise
        return cls(
            db, Episodes(db), Adapters(db, adapters_folder), Embeddings(db), Leases(db), PolicyVersions(db)
        )

    def verify(self) -> Report:
        """Whether all that was kept is as it was written; see `store.upkeep`."""
        return verify(self.adapters, self.db)

    def repair(self) -> list[str]:
        """Mend what `verify` finds, as far as that can be; a sentence for each thing that was done."""
        return repair(self.adapters, self.db)

    def collect(self, bounds: Bounds, *, idle_s: float = IN_USE_S) -> Collected:
        """Evict adapters beyond the bounds and take away folders that no row names; see `store.bounds`."""
        return collect(self.adapters, self.db, bounds, idle_s=idle_s)

    def close(self) -> None:
        """Close the database's connections."""
        self.db.close()
