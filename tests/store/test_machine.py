"""A random run of everything a store can do, crashes among it, beside a plain model of what must be there.

`STEPS=10000 pytest tests/store/test_machine.py` is the long form.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from store import AdapterKey, AdapterRow, Bounds, EpisodeRow, Lease, OutcomeRow, Store, TaskRow, blobs
from store.errors import LeaseLost, NotFound
from store.tables import adapters, leases

STEPS = int(os.environ.get("STEPS", "400"))
A_RUN = 50
KEY = AdapterKey("task1:0", "tiny@1", "plain-1", "default", 0)
HOUR_S = 3600.0
seeds = st.integers(0, 5)
weights = st.binary(min_size=1, max_size=4)


class Machine(RuleBasedStateMachine):
    """Ask, train, evict, damage, repair, crash, migrate; the store must agree with the model after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.url = f"sqlite:///{self.folder / 'store.db'}"
        self.opened = Store.open(self.url, self.folder / "adapters")
        self.episodes: dict[str, tuple[str, set[str]]] = {}
        """Task and outcomes' keys by episode."""
        self.adapters: dict[int, tuple[bytes, bool]] = {}
        """Weights and whether they are old enough to be evicted, by seed."""
        self.damaged: set[bytes] = set()
        self.held: dict[int, Lease] = {}

    def teardown(self) -> None:
        self.opened.close()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        assert self.opened.verify().sound

    # ------------------------------------------------------------------------------------------- ask, judge

    @rule(n=st.integers(0, 30), task=st.integers(0, 4))
    def record(self, n: int, task: int) -> None:
        name, fingerprint = f"episode-{n:04d}", f"task1:{task}"
        new = name not in self.episodes
        row = EpisodeRow(name, fingerprint, "m", "icl", 0.1, {}, {}, 1, "rule", 1.0, {"n": n}, float(n))
        told = self.opened.episodes.record(row, TaskRow(fingerprint, "Do.", (("a", "b"),)))
        assert told == new
        if new:
            self.episodes[name] = (fingerprint, set())

    @rule(n=st.integers(0, 30), key=st.integers(0, 3))
    def judge(self, n: int, key: int) -> None:
        name = f"episode-{n:04d}"
        outcome = OutcomeRow(name, "user", 1.0, f"{name}-{key}")
        if name not in self.episodes:
            try:
                self.opened.episodes.add_outcome(outcome)
                raise AssertionError("an outcome of no episode was taken")
            except NotFound:
                return
        known = self.episodes[name][1]
        assert self.opened.episodes.add_outcome(outcome) == (outcome.idempotency_key not in known)
        known.add(outcome.idempotency_key)

    # ------------------------------------------------------------------------------------------- train

    def _publish(self, seed: int, data: bytes, lease: Lease | None = None) -> AdapterRow:
        with self.opened.adapters.stage() as staged:
            (staged / "adapter_model.safetensors").write_bytes(data)
            key = replace(KEY, seed=seed)
            return self.opened.adapters.publish(
                key, staged, {"seconds": 1.0}, ("d1", f"d{seed}"), True, lease
            )

    @rule(seed=seeds, data=weights)
    def train(self, seed: int, data: bytes) -> None:
        self._publish(seed, data)
        self.adapters[seed] = (data, False)
        self.damaged.discard(data)

    @rule(seed=seeds)
    def take_lease(self, seed: int) -> None:
        lease = self.opened.leases.acquire(f"train:{seed}", "me", HOUR_S)
        assert (lease is not None) == (seed not in self.held)
        if lease is not None:
            self.held[seed] = lease

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), payload=weights, lost=st.booleans())
    def publish_under_a_lease(self, data: st.DataObject, payload: bytes, lost: bool) -> None:
        seed = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held.pop(seed)
        if lost:  # it ended, and another took it over
            with self.opened.db.write() as connection:
                connection.execute(
                    sa.update(leases).where(leases.c.name == lease.name).values(expires_at=0.0)
                )
            heir = self.opened.leases.acquire(lease.name, "heir", HOUR_S)
            assert heir is not None and heir.token == lease.token + 1
            try:
                self._publish(seed, payload, lease)
                raise AssertionError("who lost the lease has published")
            except LeaseLost:
                self.opened.leases.release(heir)
            return
        self._publish(seed, payload, lease)
        self.opened.leases.release(lease)
        self.adapters[seed] = (payload, False)
        self.damaged.discard(payload)

    # ------------------------------------------------------------------------------------------- evict, mend

    @precondition(lambda self: bool(self.adapters))
    @rule(data=st.data())
    def grow_old(self, data: st.DataObject) -> None:
        seed = data.draw(st.sampled_from(sorted(self.adapters)))
        at = time.time() - HOUR_S
        own = adapters.c.key_hash == replace(KEY, seed=seed).hash
        with self.opened.db.write() as connection:
            connection.execute(sa.update(adapters).where(own).values(created_at=at, last_used_at=at))
        self.adapters[seed] = (self.adapters[seed][0], True)

    @rule(quota=st.integers(0, 12))
    def collect(self, quota: int) -> None:
        done = self.opened.collect(Bounds(quota_bytes=quota), idle_s=0)
        for row in done.evicted:
            _, old = self.adapters.pop(row.key.seed)
            assert old, "one in use was evicted"
        self.damaged &= {data for data, _ in self.adapters.values()}
        if quota and done.over_bytes:
            assert not any(old for _, old in self.adapters.values())

    @precondition(lambda self: bool(self.adapters))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        content = self.adapters[data.draw(st.sampled_from(sorted(self.adapters)))][0]
        for row in self.opened.adapters.list():
            if self.adapters[row.key.seed][0] == content:
                file = self.opened.adapters.folder / row.content_hash / "adapter_model.safetensors"
                file.write_bytes(b"not what was published")
        self.damaged.add(content)

    @rule()
    def repair(self) -> None:
        self.opened.repair()
        self.adapters = {s: (d, o) for s, (d, o) in self.adapters.items() if d not in self.damaged}
        self.damaged.clear()

    # ------------------------------------------------------------------------------------------- crash, migrate

    @rule(
        seed=seeds, data=weights, moment=st.sampled_from(["staged", "flushed", "installed", "before commit"])
    )
    def crash_while_publishing(self, seed: int, data: bytes, moment: str) -> None:
        """What a killed process leaves is left: staging folder, unnamed folder, open transaction."""
        folder = self.opened.adapters.folder
        staged = Path(tempfile.mkdtemp(prefix=blobs.STAGING_PREFIX, dir=folder))
        (staged / "adapter_model.safetensors").write_bytes(data)
        if moment in ("installed", "before commit"):
            digest = blobs.content_hash(staged)
            if moment == "before commit":
                connection = self.opened.db.engine.connect()
                connection.execute(sa.insert(leases).values(name="open", owner="o", token=1, expires_at=0.0))
            blobs.install(staged, folder, digest)
            self.damaged.discard(data)  # the same content, put right by it
            if moment == "before commit":
                connection.invalidate()
        self._reopen()

    @rule()
    def restart(self) -> None:
        self._reopen()

    @rule()
    def migrate_back_and_forth(self) -> None:
        with self.opened.db.write() as connection:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", "store:migrations")
            command.downgrade(config, "0001")
        self._reopen()

    def _reopen(self) -> None:
        self.opened.close()
        self.opened = Store.open(self.url, self.folder / "adapters")

    # ------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def nothing_is_lost(self) -> None:
        rows = {row.key.seed: row for row in self.opened.adapters.list()}
        assert set(rows) == set(self.adapters)
        for seed, row in rows.items():
            content = self.adapters[seed][0]
            file = self.opened.adapters.folder / row.content_hash / "adapter_model.safetensors"
            assert content in self.damaged or file.read_bytes() == content
        recorded = {row.episode_id: row.fingerprint for row in self.opened.episodes.recent(1000)}
        assert recorded == {name: task for name, (task, _) in self.episodes.items()}
        for name, (_, keys) in self.episodes.items():
            if keys:
                assert {o.idempotency_key for o in self.opened.episodes.outcomes(name)} == keys

    @invariant()
    def verify_says_what_is_so(self) -> None:
        findings = self.opened.verify().findings
        assert {f.kind for f in findings} <= {"adapter"}
        damaged = sum(data in self.damaged for data, _ in self.adapters.values())
        assert len(findings) == damaged


Machine.TestCase.settings = settings(
    max_examples=max(1, STEPS // A_RUN),
    stateful_step_count=A_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
