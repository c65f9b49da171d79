"""What the server adds, and what a training behind it does to those who ask: seconds to the first content, and whole.

    python benchmarks/server_latency.py [--model M] [--asks 30] [--families PATH …] [--out FILE]

Each round asks one new query in the context of ten demonstrations, by turns: of the engine itself (`ttt.icl.answer`),
of `Router.ask`, and of the server, streamed and whole. First content = the first piece of the answer. Then the same
streamed request while a training runs behind, in all its steps. The goals: first content of the server at most
1.3 × the engine's; the server adds at most 10 ms to the median of `Router.ask`; while training, first content at most
2 × that of an idle server.

Without `--model` a tiny random one is made. Its layers are so quick that everything else weighs more than it ever
would beside a real one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

import httpx  # noqa: E402
from load import drawn, messages  # noqa: E402
from overhead import new_task, pool, tiny_model  # noqa: E402

from router.agent import Router  # noqa: E402
from router.server.options import ServerOptions  # noqa: E402
from router.server.threaded import Serving, serving  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.icl import answer  # noqa: E402
from ttt.pools import sample, split  # noqa: E402
from ttt.task import Query, Task  # noqa: E402

SHOWN = 10
LONG = 'base = "standard"\nsteps = 100000\nstop_loss = 0.0\n'
"""Trains as long as it is measured."""


def questions(paths: list[Path], n: int) -> tuple[Task, list[str]]:
    """A task and `n` queries."""
    if paths:
        drew = sample(split(read_families(paths[:1])[0]), SHOWN, n, 0)
        return drew.task, [q.input for q in drew.queries]
    rng = random.Random(0)
    return new_task(rng), [d.input for d in rng.sample(pool(10_000), n)]


async def of_engine(router: Router, task: Task, query: str) -> tuple[float, float]:
    """Seconds to the first content and to the end."""
    first: list[float] = []
    started = time.perf_counter()

    def note(_: int, text: str) -> None:
        first.append(time.perf_counter() - started)

    await answer(router.parts.engine, task, [Query(query)], emit=note)
    ended = time.perf_counter() - started
    return (first or [ended])[0], ended


def of_router(router: Router, task: Task, query: str) -> float:
    started = time.perf_counter()
    router.ask(task, [query], arm="icl")
    return time.perf_counter() - started


def of_server(client: httpx.Client, task: Task, query: str, *, stream: bool) -> tuple[float, float]:
    body = {"model": "icl", "messages": messages(task, query), "stream": stream}
    first = None
    started = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if first is None and line.startswith("data: {") and json.loads(line[6:])["choices"]:
                delta = json.loads(line[6:])["choices"][0].get("delta", {})
                first = time.perf_counter() - started if delta.get("content") else None
    ended = time.perf_counter() - started
    return (first if first is not None else ended), ended


def ms(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.9 * len(ordered)))]
    return {
        "median_ms": 1000 * statistics.median(ordered),
        "p90_ms": 1000 * high,
        "worst_ms": 1000 * ordered[-1],
    }


def measure(
    router: Router, server: Serving, task: Task, queries: list[str], trained: Task, recipe: str
) -> dict[str, Any]:
    seen: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        seen.setdefault(name, []).append(seconds)

    with httpx.Client(base_url=server.url, timeout=900) as client:
        for warm in queries[:2]:
            of_server(client, task, warm, stream=True)
        for query in queries[2:]:
            for name, seconds in zip(
                ("engine: first content", "engine: whole"),
                router.run(of_engine(router, task, query)),
                strict=True,
            ):
                note(name, seconds)
            note("Router.ask: whole", of_router(router, task, query))
            note("server: first content", of_server(client, task, query, stream=True)[0])
            note("server: whole", of_server(client, task, query, stream=False)[1])
        router.ask(trained, queries[:1], arm="ttt", when="background", recipe=recipe)
        until, busy_s = time.monotonic() + 600, router.parts.engine.busy_s
        while router.parts.engine.busy_s < busy_s + 2.0:  # what is kept busy by nobody else trains
            if not router.n_behind or time.monotonic() > until:
                raise RuntimeError("no training runs behind")
            time.sleep(0.1)
        for query in queries[2:]:
            time.sleep(0.1)  # let the training get on
            note("server, training behind: first content", of_server(client, task, query, stream=True)[0])
            if not router.n_behind:
                raise RuntimeError("the training ended before the measurement; give a longer recipe")
    found: dict[str, Any] = {name: ms(values) for name, values in seen.items()}
    median = {name: statistics.median(values) for name, values in seen.items()}
    found["first content, server ÷ engine"] = (
        median["server: first content"] / median["engine: first content"]
    )
    found["server adds, ms"] = 1000 * (median["server: whole"] - median["Router.ask: whole"])
    busy = median["server, training behind: first content"]
    found["first content, training ÷ idle"] = busy / median["server: first content"]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--asks", type=int, default=30)
    parser.add_argument("--families", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    task, queries = questions(options.families, options.asks + 2)
    trained = drawn(options.families, 2, 7)[1][0] if options.families else new_task(random.Random(1))
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "long.toml"
        recipe.write_text(LONG)
        given: dict[str, Any] = {"data_dir": f"{folder}/data"}
        if options.model:
            given |= {"model": options.model}
        else:
            given |= {"model": str(tiny_model(Path(folder) / "tiny")), "dtype": "float32", "device": "cpu"}
        with Router.open(**given) as router, serving(router, ServerOptions(port=0, drain_s=0)) as server:
            found = measure(router, server, task, queries, trained, str(recipe))
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name:42}" + "  ".join(f"{k.removesuffix('_ms')} {v:8.1f} ms" for k, v in value.items()))
        else:
            print(f"{name:42}{value:.2f}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
