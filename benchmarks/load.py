"""Many clients at once on one server: one training a task, deadlines, starvation, memory.

    python benchmarks/load.py [--model M] [--deadline S] [--families PATH …] [--out load.json]

1. 32 clients ask one task, which is trained behind the answers, and again once that is done.
2. Clients of 16 tasks ask four queries each, all at the same time, each with a deadline of `--deadline` seconds,
   while the tasks train behind the answers. A request is late by (its wall seconds ÷ its deadline − 1).

The clients are a process of their own, whose connections stand and whose requests are written before the clock runs, so
that only the server is measured.

Without `--model` a tiny random one is made, with a recipe that moves it and a policy that believes in training,
since evidence on a random model would not. Tasks are made here, or drawn from `--families`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ttt.process import prepare

prepare()

import psutil  # noqa: E402
from overhead import tiny_model  # noqa: E402

from policies.gain import GainModel  # noqa: E402
from policies.rule import Rule  # noqa: E402
from router.agent import Router  # noqa: E402
from router.server.options import ServerOptions  # noqa: E402
from router.server.threaded import serving  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.pools import sample, split  # noqa: E402
from ttt.task import Demonstration, Task  # noqa: E402

CLIENTS, TASKS, QUERIES, SHOWN = 32, 16, 4, 10
TRUSTING = Rule(GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0))
RECIPE = """\
base = "quick"
rank = 4
alpha = 8
learning_rate = 5e-2
steps = 12
sequence_tokens = 512
"""
MB = 2**20


def made(n: int, seed: int) -> list[tuple[Task, list[str]]]:
    """Tasks that a tiny random model can learn: whatever the input, one word."""
    found = []
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        inputs = ["".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 3)) for _ in range(SHOWN + QUERIES)]
        shown = tuple(Demonstration(x, "ok") for x in inputs[:SHOWN])
        found.append((Task(shown, f"Say the word, number {seed}.{number}."), inputs[SHOWN:]))
    return found


def drawn(paths: list[Path], n: int, seed: int) -> list[tuple[Task, list[str]]]:
    """Tasks of families in turn."""
    pools = [split(family) for family in read_families(paths)]
    found = [sample(pools[i % len(pools)], SHOWN, QUERIES, seed + i) for i in range(n)]
    return [(s.task, [q.input for q in s.queries]) for s in found]


def messages(task: Task, query: str) -> list[dict[str, str]]:
    """The task as a conversation."""
    said = [{"role": "system", "content": task.instruction}] if task.instruction else []
    for d in task.demonstrations:
        said += [{"role": "user", "content": d.input}, {"role": "assistant", "content": d.output}]
    return [*said, {"role": "user", "content": query}]


class Memory:
    """This process's resident memory while the block lasts, bytes."""

    def __enter__(self) -> Memory:
        self._process = psutil.Process()
        self.start = self.peak = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, self._process.memory_info().rss)


Asked = tuple[Task, str, dict[str, Any]]
"""Task, query and knobs of one request."""


def ask_all(address: str, asked: list[Asked]) -> list[dict[str, Any]]:
    """All requests at once, from another process: status, wall seconds and arm of each."""
    bodies = []
    for task, query, knobs in asked:
        body = {
            "model": "auto",
            "messages": messages(task, query),
            "ttt_router": {"when": "background"} | knobs,
        }
        bodies.append(json.dumps(body).encode())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients:
        return clients.submit(clients_of, address, bodies).result()


def clients_of(address: str, bodies: list[bytes]) -> list[dict[str, Any]]:
    return asyncio.run(_clients(urlsplit(address), bodies))


async def _clients(address: SplitResult, bodies: list[bytes]) -> list[dict[str, Any]]:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    whole = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    opened = [await asyncio.open_connection(address.hostname, address.port) for _ in whole]
    started = time.perf_counter()
    for (_, writer), data in zip(opened, whole, strict=True):
        writer.write(data)

    async def read(reader: asyncio.StreamReader) -> tuple[float, bytes]:
        data = await reader.read()
        return time.perf_counter() - started, data

    found = []
    for seconds, data in await asyncio.gather(*(read(reader) for reader, _ in opened)):
        top, _, body = data.partition(b"\r\n\r\n")
        status = int(top.split()[1])
        arm = json.loads(body)["ttt_router"]["arm"] if status == 200 else ""
        found.append({"status": status, "seconds": seconds, "arm": arm.partition(":")[0]})
    for _, writer in opened:
        writer.close()
    return found


def one_task(router: Router, address: str, task: Task, queries: list[str]) -> dict[str, Any]:
    asked: list[Asked] = [(task, queries[i % QUERIES], {}) for i in range(CLIENTS)]
    before = len(router.parts.store.adapters.list())
    first = ask_all(address, asked)
    router.settle()
    trained = len(router.parts.store.adapters.list()) - before
    again = ask_all(address, asked)
    return {
        "clients": CLIENTS,
        "adapters_trained": trained,
        "arms_first": Counter(a["arm"] for a in first),
        "arms_again": Counter(a["arm"] for a in again),
        "statuses": Counter(a["status"] for a in (*first, *again)),
    }


def many_tasks(
    router: Router, address: str, tasks: list[tuple[Task, list[str]]], deadline_s: float
) -> dict[str, Any]:
    knobs = {"deadline_s": deadline_s}
    asked: list[Asked] = [(task, queries[q], knobs) for q in range(QUERIES) for task, queries in tasks]
    with Memory() as memory:
        answers = ask_all(address, asked)
        behind = router.n_behind
        router.settle()
    answered = Counter(n % len(tasks) for n, a in enumerate(answers) if a["status"] == 200)
    return {
        "tasks": len(tasks),
        "requests": len(asked),
        "deadline_s": deadline_s,
        "worst_lateness": max(a["seconds"] for a in answers) / deadline_s - 1,
        "median_s": sorted(a["seconds"] for a in answers)[len(answers) // 2],
        "statuses": Counter(a["status"] for a in answers),
        "arms": Counter(a["arm"] for a in answers),
        "fewest_answers_of_a_task": min(answered[i] for i in range(len(tasks))),
        "trained_behind_at_the_end": behind,
        "memory_start_mb": memory.start // MB,
        "memory_peak_mb": memory.peak // MB,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--deadline", type=float, default=20.0)
    parser.add_argument("--families", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"data_dir": f"{folder}/data", "prefer": "accurate"}
        if options.model:
            given |= {"model": options.model}
        else:
            recipe = Path(folder) / "moves.toml"
            recipe.write_text(RECIPE)
            given |= {"model": str(tiny_model(Path(folder) / "tiny")), "dtype": "float32"}
            given |= {"recipe": str(recipe), "policy": TRUSTING, "device": "cpu"}
        draw = (lambda n, seed: drawn(options.families, n, seed)) if options.families else made
        limits = ServerOptions(port=0, queue=2 * TASKS * QUERIES)
        with (
            Router.open(**given) as router,
            serving(router, limits) as server,
        ):
            ((task, queries),) = draw(1, 1)
            found = {"one task": one_task(router, server.url, task, queries)}
            print(json.dumps(found["one task"], indent=1), flush=True)
            found["many tasks"] = many_tasks(router, server.url, draw(TASKS, 2), options.deadline)
            print(json.dumps(found["many tasks"], indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
