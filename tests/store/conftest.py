"""Both databases for the tests: a SQLite file each, and one PostgreSQL server for the session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store import EpisodeRow, Store, TaskRow
from store.database import Database
from tests.postgres import Missing, Server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for all tests of a session."""
    try:
        server = Server()
    except Missing as error:
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'data' / 'store.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    schema = f"test_{time.monotonic_ns()}"
    yield server.schema(schema)
    server.drop(schema)


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """An empty database at the newest schema."""
    database = Database(url, busy_timeout_s=5)
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(url, tmp_path / "adapters")
    yield opened
    opened.close()


@pytest.fixture
def task() -> TaskRow:
    return TaskRow("task1:aa", "Say it backwards.", (("ab", "ba"), ("naïve ☃", "☃ evïan")), "reverse", 1000.0)


@pytest.fixture
def episode() -> EpisodeRow:
    return EpisodeRow(
        episode_id="0123456789abcdef",
        fingerprint="task1:aa",
        base_model="tiny@1",
        arm="icl",
        seconds=1.5,
        decision={"step": "answer", "expected_gain": None},
        signals={"n_queries": 2.0, "agreement": None},
        signals_version=1,
        policy="rule@1",
        propensity=0.9,
        receipt={"answers": ["ba", "☃"], "steps": []},
        created_at=2000.0,
    )


@pytest.fixture
def episodes_of(episode: EpisodeRow) -> Any:
    """n episodes like `episode`, one second apart."""
    return lambda n: [replace(episode, episode_id=f"{i:04d}-episode", created_at=float(i)) for i in range(n)]
