"""Faults one by one: what a person sees, and what was kept.

    python benchmarks/faults.py [--faketime /path/to/libfaketime.so.1] [--out FILE]

Each runs the command line on a tiny random model in a process of its own, on data that holds some answers and a
trained adapter: the fault is made, a task is asked, the fault is ended, the task is asked again. Then every earlier
episode must be there and the store be sound. A small file system is mounted for a full disk and a read-only folder,
which needs root; libfaketime moves the clock (Debian's `libfaketime`). What the machine lacks is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ttt.process import prepare

prepare()

from overhead import tiny_model  # noqa: E402

from store import AdapterKey, Store  # noqa: E402

RECIPE = 'base = "quick"\nrank = 4\nalpha = 8\nsteps = 4\nlearning_rate = 5e-2\nsequence_tokens = 128\n'
COMMAND = "import sys; from router.cli.main import main; sys.exit(main(sys.argv[1:]))"
DAY_S = 24 * 3600.0


@dataclass
class Seen:
    """One fault and what came of it."""

    fault: str
    exit_code: int
    said: str
    """The last line on stderr, or a note of the receipt."""
    after: str
    """How the same question was answered when the fault was over."""
    kept: bool
    """Every earlier episode is there, and `store verify` finds all sound."""
    as_it_should: bool


class Left(Exception):
    """What this machine lacks for a fault."""


class Place:
    """A data folder with three answers and an adapter, and the command line on it."""

    def __init__(self, folder: Path, model: Path, data: Path | None = None, url: str = "") -> None:
        self.folder, self.model, self.data, self.url = folder, folder / "model", data or folder / "data", url
        folder.mkdir(parents=True)
        shutil.copytree(model, self.model)
        (folder / "recipe.toml").write_text(RECIPE)
        for number in range(4):
            pairs = [{"input": f"{letter}{number}", "output": "ok"} for letter in "abcd"]
            task = {"instruction": f"Say the word, {number}.", "demonstrations": pairs, "queries": ["z"]}
            (folder / f"task{number}.json").write_text(json.dumps(task))
        for number, arm in ((0, "ttt"), (1, "icl"), (2, "icl")):
            code, said, _ = self.solve(number, arm)
            assert code == 0, said
        self.before = set(self.episodes())

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        own = {
            "TTT_ROUTER_DATA_DIR": str(self.data),
            "TTT_ROUTER_MODEL": str(self.model),
            "TTT_ROUTER_CACHE": str(self.folder / "cache"),
            "TTT_ROUTER_CONFIG": "",
            "TTT_ROUTER_DTYPE": "float32",
            "HF_HUB_OFFLINE": "1",
        } | ({"TTT_ROUTER_DATABASE_URL": self.url} if self.url else {})
        command = [sys.executable, "-c", COMMAND, *arguments]
        done = subprocess.run(
            command,
            env=os.environ | own | (env or {}),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def solve(
        self, number: int = 0, arm: str = "ttt", env: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Exit code, what was said (an error, or the receipt's notes), and the arm."""
        task, recipe = self.folder / f"task{number}.json", self.folder / "recipe.toml"
        code, out, err = self.run(
            "solve", str(task), "--arm", arm, "--recipe", str(recipe), "--json", env=env
        )
        if code != 0:
            return code, err.strip().splitlines()[-1] if err.strip() else "", ""
        receipt = json.loads(out)
        return 0, "; ".join(receipt["notes"]), receipt["arm"]

    @contextmanager
    def store(self) -> Iterator[Store]:
        opened = Store.open(self.url or f"sqlite:///{self.data / 'router.db'}", self.data / "adapters")
        try:
            yield opened
        finally:
            opened.close()

    def episodes(self) -> list[str]:
        with self.store() as opened:
            return [row.episode_id for row in opened.episodes.recent(1000)]

    def kept(self) -> bool:
        with self.store() as opened:
            return self.before <= set(self.episodes()) and opened.verify().sound

    def weights(self) -> Path:
        """The adapter's file."""
        with self.store() as opened:
            return opened.adapters.path(opened.adapters.list()[0], verify=False) / "adapter_model.safetensors"

    def seen(
        self,
        fault: str,
        tried: tuple[int, str, str],
        code: int,
        words: str,
        arms: str | tuple[str, ...],
        number: int = 0,
    ) -> Seen:
        """Ask again now that the fault is over, and judge all of it."""
        _, said, arm = self.solve(number)
        right = (
            tried[0] == code and words in tried[1] and "Traceback" not in tried[1] and arm.startswith(arms)
        )
        return Seen(fault, tried[0], tried[1], arm or said, self.kept(), right)


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of so many bytes at `folder`."""
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], check=False
    )
    if made.returncode != 0:
        raise Left("a small file system can't be mounted here (root may)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(folder: Path, model: Path) -> list[Seen]:
    with small_disk(folder / "disk", 4_000_000) as disk:
        place, filler, found = Place(folder / "own", model, disk / "data"), disk / "filler", []
        for left, when in ((0, "no byte left"), (20_000, "20 kB left: too little for an adapter")):
            room = os.statvfs(disk)
            filler.write_bytes(b"x" * (room.f_bavail * room.f_frsize - left))
            tried = place.solve(3)
            filler.unlink()
            arms = ("train",) if left == 0 else ("train", "reuse")
            found.append(place.seen(f"disk full, {when}", tried, 5, "pace", arms, 3))
            (place.folder / "task3.json").write_text(
                (place.folder / "task3.json").read_text().replace("3.", "4.")
            )
        return found


def read_only(folder: Path, model: Path) -> list[Seen]:
    with small_disk(folder / "disk", 8_000_000) as disk:
        place = Place(folder / "own", model, disk / "data")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        tried = place.solve(3)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return [place.seen("data folder read-only", tried, 5, "", "train", 3)]


def server_away(folder: Path, model: Path) -> list[Seen]:
    from tests.postgres import Missing, Server

    try:
        server = Server()
    except Missing as error:
        raise Left(str(error)) from error
    try:
        server.start()
        place = Place(folder / "own", model, url=server.url)
        server.stop()
        tried = place.solve()
        server.start()
        return [place.seen("PostgreSQL stopped, then started", tried, 5, "can't be reached", "reuse")]
    finally:
        server.remove()


def clock_moved(folder: Path, model: Path, faketime: str | None) -> list[Seen]:
    found = []
    for shift in ("+1d", "-1d"):
        if faketime is None:
            raise Left("libfaketime is not here (--faketime)")
        place = Place(folder / f"own{shift}", model)
        env = {"LD_PRELOAD": faketime, "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        tried = place.solve(env=env)
        found.append(place.seen(f"clock moved by {shift}", tried, 0, "", "reuse"))
    return found


def lease_ahead(folder: Path, model: Path) -> list[Seen]:
    """As a trainer leaves it that was killed while the clock was a day ahead."""
    place = Place(folder / "own", model)
    with place.store() as opened:
        kept = opened.adapters.list()[0].key
    started = time.monotonic()
    tried = place.solve(3)  # publishes, so that its key is known
    with place.store() as opened:
        key = next(row.key for row in opened.adapters.list() if row.key != kept)
        _lease_a_day_ahead(opened, key)
    tried = place.solve(3)
    seen = place.seen("lease of a clock a day ahead", tried, 0, "", "reuse", 3)
    seen.as_it_should &= time.monotonic() - started < 300
    return [seen]


def _lease_a_day_ahead(opened: Store, key: AdapterKey) -> None:
    import sqlalchemy as sa

    from store.tables import adapters, leases

    name = f"train:{key.hash}"
    with opened.db.write() as connection:
        connection.execute(sa.delete(adapters).where(adapters.c.key_hash == key.hash))
        held = sa.update(leases).where(leases.c.name == name)
        connection.execute(held.values(owner="dead", expires_at=time.time() + DAY_S))


def adapter_damaged(folder: Path, model: Path) -> list[Seen]:
    found = []
    for how in ("truncated", "one bit flipped", "deleted"):
        place = Place(folder / how.replace(" ", "-"), model)
        weights = place.weights()
        data = bytearray(weights.read_bytes())
        if how == "deleted":
            shutil.rmtree(weights.parent)
        else:
            data[len(data) // 2] ^= 1
            weights.write_bytes(data if how == "one bit flipped" else data[: len(data) // 2])
        tried = place.solve()
        found.append(place.seen(f"adapter {how}", tried, 0, "is not used", "reuse"))
    return found


def model_damaged(folder: Path, model: Path) -> list[Seen]:
    found = []
    for how, code, words in (("truncated", 4, "bytes where its header says"), ("one bit flipped", 0, "")):
        place = Place(folder / how.replace(" ", "-"), model)
        file = place.model / "model.safetensors"
        whole = file.read_bytes()
        data = bytearray(whole)
        data[-5] ^= 1
        file.write_bytes(data if how == "one bit flipped" else whole[:-100])
        tried = place.solve()
        file.write_bytes(whole)
        seen = place.seen(f"model file {how}", tried, code, words, "reuse")
        if how == "one bit flipped":
            seen.said = f"answered by {tried[2]}: another revision, whose adapters are its own"
            seen.as_it_should &= tried[2].startswith("train")
        found.append(seen)
    return found


def database_damaged(folder: Path, model: Path) -> list[Seen]:
    place = Place(folder / "own", model)
    file = place.data / "router.db"
    whole = file.read_bytes()
    file.write_bytes(b"no database" * 1000)
    tried = place.solve()
    file.write_bytes(whole)
    return [
        place.seen("database file overwritten, then a backup put back", tried, 5, "restore a backup", "reuse")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faketime", help="path of libfaketime.so.1")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    faults: dict[str, Callable[[Path, Path], list[Seen]]] = {
        "full": disk_full,
        "read-only": read_only,
        "server": server_away,
        "clock": lambda folder, model: clock_moved(folder, model, options.faketime),
        "lease": lease_ahead,
        "adapter": adapter_damaged,
        "model": model_damaged,
        "database": database_damaged,
    }
    found: list[Seen] = []
    left: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "tiny")
        for name, make in faults.items():
            try:
                found += make(Path(folder) / name, model)
            except Left as error:
                left.append(f"{name}: {error}")
            print(f"{name} done", file=sys.stderr)
    for seen in found:
        right = "as it should" if seen.as_it_should and seen.kept else "NOT AS IT SHOULD"
        print(
            f"{seen.fault}: exit {seen.exit_code}, {right}\n    said:  {seen.said}\n    after: {seen.after}; kept: {seen.kept}"
        )
    for missing in left:
        print(f"left out: {missing}")
    if options.out is not None:
        options.out.write_text(
            json.dumps({"faults": [asdict(seen) for seen in found], "left_out": left}, indent=1)
        )
    return int(not all(seen.as_it_should and seen.kept for seen in found))


if __name__ == "__main__":
    sys.exit(main())
