"""Many clients at once on one server: one training a task, deadlines, starvation, memory.

    python benchmarks/load.py [--model M] [--deadline S] [--families PATH …] [--out load.json]

1. 32 clients ask one task, which is trained behind the answers, and again once that is done.
2. Clients of 16 tasks ask four queries each, all at the same time, each with a deadline of `--deadline` seconds,
   while the tasks train behind the answers. A request is late by (its wall seconds ÷ its deadline − 1).

Without `--model` a tiny random one is made, with a recipe that moves it and a policy that believes in training,
since evidence on a random model would not. Tasks are made here, or drawn from `--families`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

import httpx  # noqa: E402
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


def ask(client: httpx.Client, task: Task, query: str, **knobs: Any) -> dict[str, Any]:
    """One request: status, wall seconds, arm."""
    started = time.perf_counter()
    body = {"model": "auto", "messages": messages(task, query), "ttt_router": {"when": "background"} | knobs}
    answer = client.post("/v1/chat/completions", json=body)
    seconds = time.perf_counter() - started
    told = answer.json()
    arm = told["ttt_router"]["arm"] if answer.status_code == 200 else ""
    return {"status": answer.status_code, "seconds": seconds, "arm": arm.partition(":")[0]}


def one_task(router: Router, client: httpx.Client, task: Task, queries: list[str]) -> dict[str, Any]:
    def all_at_once() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(CLIENTS) as clients:
            return list(clients.map(lambda i: ask(client, task, queries[i % QUERIES]), range(CLIENTS)))

    before = len(router.parts.store.adapters.list())
    first = all_at_once()
    router.settle()
    trained = len(router.parts.store.adapters.list()) - before
    again = all_at_once()
    return {
        "clients": CLIENTS,
        "adapters_trained": trained,
        "arms_first": Counter(a["arm"] for a in first),
        "arms_again": Counter(a["arm"] for a in again),
        "statuses": Counter(a["status"] for a in (*first, *again)),
    }


def many_tasks(
    router: Router, client: httpx.Client, tasks: list[tuple[Task, list[str]]], deadline_s: float
) -> dict[str, Any]:
    asked = [(i, q) for q in range(QUERIES) for i in range(len(tasks))]

    def one(pair: tuple[int, int]) -> dict[str, Any]:
        i, q = pair
        return {"task": i} | ask(client, tasks[i][0], tasks[i][1][q], deadline_s=deadline_s)

    with Memory() as memory, ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(one, asked))
        behind = router.n_behind
        router.settle()
    answered = Counter(a["task"] for a in answers if a["status"] == 200)
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
            httpx.Client(base_url=server.url, timeout=900) as client,
        ):
            ((task, queries),) = draw(1, 1)
            found = {"one task": one_task(router, client, task, queries)}
            print(json.dumps(found["one task"], indent=1), flush=True)
            found["many tasks"] = many_tasks(router, client, draw(TASKS, 2), options.deadline)
            print(json.dumps(found["many tasks"], indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
