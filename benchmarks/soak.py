"""Mixed traffic for a long time: does memory grow, is anything leaked, does the overhead stay as it was.

    python benchmarks/soak.py [--minutes 20] [--clients 4] [--model M] [--seed 0] [--out FILE]

One router on a fresh data folder, a quota of few adapters so that eviction runs all the time, and `--clients`
threads that ask at random: new tasks in context, new tasks trained, old tasks again, questions with an impossible
deadline, cancelled trainings, impossible questions, feedback. Each second: resident memory, open files, connections,
threads, child processes. The first quarter is warm-up. Files that the store's connection pool holds open are counted
apart: the pool opens a connection when more ask at once than ever before, and keeps it.

- Memory slope: least squares over the rest, MB an hour, with a 95 % interval from blocks of a minute.
- Overhead of an in-context answer: wall seconds less those of the engine's slices, of one question at a time between
  the traffic; p50 and p99 of the first and the last third.

Exits with 1 when memory's interval lies above 20 MB an hour, anything that is counted has grown, or a connection of
the pool is still taken when nobody asks any more.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

import psutil  # noqa: E402
from overhead import tiny_model  # noqa: E402

from policies.gain import GainModel  # noqa: E402
from policies.rule import Rule  # noqa: E402
from router.agent import Router  # noqa: E402
from store import bounds  # noqa: E402
from store.errors import StoreError  # noqa: E402
from ttt.errors import TTTError  # noqa: E402
from ttt.recipes import Recipe  # noqa: E402
from ttt.task import Demonstration, Task  # noqa: E402

RECIPE = Recipe("soak", rank=4, alpha=8, learning_rate=5e-2, steps=6, sequence_tokens=128)
LONG = Recipe("soak-long", rank=4, alpha=8, learning_rate=1e-3, steps=10_000, sequence_tokens=128)
TRUSTING = Rule(GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0))
QUOTA_BYTES = 2_000_000
MOST_MB_AN_HOUR = 20.0
MB = 2**20


def task_of(number: int) -> Task:
    rng = random.Random(number)
    inputs = ["".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 3)) for _ in range(5)]
    return Task(tuple(Demonstration(x, "ok") for x in inputs), f"Say the word, number {number}.")


class Traffic:
    """What the clients do, and how it went."""

    def __init__(self, agent: Router, seed: int) -> None:
        self.agent, self.seed = agent, seed
        self.counts: Counter[str] = Counter()
        self.unforeseen: list[str] = []
        self.stop = threading.Event()
        self._paused = False
        self._asking = 0
        self._changed = threading.Condition()
        self._number = 0
        self._lock = threading.Lock()

    def new(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nobody asks anything while the block lasts."""
        with self._changed:
            self._paused = True
            self._changed.wait_for(lambda: self._asking == 0, 60)
        try:
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    @contextmanager
    def _one(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._asking += 1
        try:
            yield
        finally:
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()

    def client(self, i: int) -> None:
        rng = random.Random(self.seed * 100 + i)
        ways = ["icl", "train", "auto", "again", "late", "cancelled", "impossible", "feedback"]
        while not self.stop.is_set():
            way = rng.choices(ways, [4, 2, 2, 4, 1, 1, 1, 2])[0]
            try:
                with self._one():
                    self._do(way, rng)
                self.counts[way] += 1
            except (TTTError, StoreError, ValueError) as error:
                self.counts[f"{way}: {type(error).__name__}"] += 1
            except Exception as error:
                self.unforeseen.append(f"{way}: {error!r}")

    def _do(self, way: str, rng: random.Random) -> None:
        old = task_of(rng.randint(1, max(1, self._number)))
        shared: dict[str, Any] = {"recipe": (RECIPE, RECIPE), "max_tokens": 3}
        if way == "icl":
            self.agent.ask(task_of(self.new()), ["xyz"], arm="icl", **shared)
        elif way in ("train", "auto"):
            self.agent.ask(task_of(self.new()), ["xyz"], arm="ttt" if way == "train" else "auto", **shared)
        elif way == "again":
            self.agent.ask(old, ["xyz"], arm="ttt", **shared)
        elif way == "late":
            self.agent.ask(task_of(self.new()), ["xyz"], deadline_s=1e-3, **shared)
        elif way == "cancelled":
            until = time.monotonic() + rng.uniform(0, 0.2)
            given = shared | {"recipe": (LONG, LONG)}
            self.agent.ask(
                task_of(self.new()), ["xyz"], should_stop=lambda: time.monotonic() > until, **given
            )
        elif way == "impossible":
            self.agent.ask(Task((Demonstration("a", ""),)), ["xyz"], **shared)
        else:
            recent = self.agent.parts.store.episodes.recent(20)
            if recent:
                self.agent.feedback(rng.choice(recent).episode_id, right=rng.random() < 0.5)


def overhead_s(traffic: Traffic) -> float:
    """Seconds of one in-context answer that are not the engine's, with nothing else going on."""
    agent = traffic.agent
    started, busy = time.perf_counter(), agent.parts.engine.busy_s
    agent.ask(task_of(traffic.new()), ["xyz"], arm="icl", max_tokens=3)
    return time.perf_counter() - started - (agent.parts.engine.busy_s - busy)


def database_files(process: psutil.Process, database: Path) -> int:
    """How many open files are the database's: itself, its log and its shared memory, for each pooled connection."""
    return sum(Path(f.path).name.startswith(database.name) for f in process.open_files())


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares, y a unit of x."""
    mean_x, mean_y = (statistics.fmean(p[i] for p in points) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def interval(points: list[tuple[float, float]], block_s: float, rng: random.Random) -> tuple[float, float]:
    """95 % of `slope` over resampled blocks."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at, y in points:
        blocks.setdefault(int(at // block_s), []).append((at, y))
    drawn = []
    for _ in range(1000):
        chosen = rng.choices(list(blocks.values()), k=len(blocks))
        drawn.append(slope([p for block in chosen for p in block]))
    drawn.sort()
    return drawn[25], drawn[-26]


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--model", help="default: a tiny random one, made here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bounds.IN_USE_S = 20.0  # so that eviction begins soon
    process = psutil.Process()
    samples: list[dict[str, float]] = []
    overheads: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(tiny_model(Path(folder) / "model"))
        settings: dict[str, Any] = {
            "model": model,
            "data_dir": str(Path(folder) / "data"),
            "device": "cpu",
            "dtype": "float32",
        }
        with Router.open(policy=TRUSTING, worth_s=1e5, quota_bytes=QUOTA_BYTES, **settings) as agent:
            traffic = Traffic(agent, options.seed)
            database = Path(agent.parts.store.db.where)
            clients = [threading.Thread(target=traffic.client, args=(i,)) for i in range(options.clients)]
            for client in clients:
                client.start()
            started = time.monotonic()
            while (at := time.monotonic() - started) < options.minutes * 60:
                time.sleep(1.0)
                with traffic.quiet():
                    overheads.append((at, overhead_s(traffic)))
                n_database = database_files(process, database)
                with process.oneshot():
                    samples.append(
                        {
                            "at_s": at,
                            "memory_mb": process.memory_info().rss / MB,
                            "files": process.num_fds() - n_database,
                            "database_files": n_database,
                            "connections": len(process.net_connections()),
                            "threads": process.num_threads(),
                            "children": len(process.children(recursive=True)),
                        }
                    )
                if len(samples) % 30 == 0:
                    print(
                        f"{at:.0f} s: {samples[-1]['memory_mb']:.0f} MB, {sum(traffic.counts.values())} asked",
                        file=sys.stderr,
                    )
            traffic.stop.set()
            for client in clients:
                client.join(120)
            n_taken = agent.parts.store.db.engine.pool.checkedout()  # type: ignore[attr-defined]
            report = agent.parts.store.verify()
            n_adapters = agent.parts.store.adapters.stats()
        left = {"threads_after_close": process.num_threads(), "files_after_close": process.num_fds()}
    steady = [s for s in samples if s["at_s"] > options.minutes * 15]
    points = [(s["at_s"] / 3600, s["memory_mb"]) for s in steady]
    low, high = interval(points, 1 / 60, random.Random(options.seed))
    third = options.minutes * 20
    first = [s for at, s in overheads if third * 0.5 < at < third * 1.25]
    last = [s for at, s in overheads if at > 2 * third]
    grown = {
        name: (
            min(s[name] for s in steady[: len(steady) // 4]),
            min(s[name] for s in steady[-len(steady) // 4 :]),
        )
        for name in ("files", "connections", "threads", "children")
    }
    found = {
        "minutes": options.minutes,
        "asked": dict(sorted(traffic.counts.items())),
        "unforeseen": traffic.unforeseen[:20],
        "memory_mb": {"first": steady[0]["memory_mb"], "last": steady[-1]["memory_mb"]},
        "memory_slope_mb_an_hour": {"estimate": slope(points), "low": low, "high": high},
        "least_of_first_and_last_quarter": grown,
        "database_files": {"first": steady[0]["database_files"], "last": steady[-1]["database_files"]},
        "connections_taken_at_rest": n_taken,
        **left,
        "overhead_ms": {
            name: {"p50": 1e3 * quantile(part, 0.5), "p99": 1e3 * quantile(part, 0.99), "n": len(part)}
            for name, part in (("first third", first), ("last third", last))
        },
        "adapters": {"n": n_adapters.n_adapters, "bytes": n_adapters.size_bytes, "quota_bytes": QUOTA_BYTES},
        "store_sound": report.sound,
    }
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found | {"samples": samples}, indent=1))
    leaked = n_taken > 0 or any(last > first for first, last in grown.values())
    return int(low > MOST_MB_AN_HOUR or leaked or bool(traffic.unforeseen) or not report.sound)


if __name__ == "__main__":
    sys.exit(main())
