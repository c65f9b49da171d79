"""What one answer costs beside the model: the graph, tokenising, SQL, files, threads.

    python benchmarks/overhead.py [--model M] [--asks 200] [--episodes 1000000] [--adapters 100000] [--out FILE]

Overhead of one answer = wall seconds of `Router.ask` minus the seconds that the engine's thread spent in slices
of work meanwhile. Each case is a task of ten demonstrations with one query:

- `icl`: a new task, `arm="icl"`;
- `auto`: a new task, left to a policy that stays with ICL and needs no signals for that;
- `auto, all signals`: the same, but everything is measured first;
- `near`: a new task, for which adapters of like tasks are looked up (`reuse="near"`; none is near enough to be tried);
- `hit`: a task whose adapter was accepted before; four of them in turn.

Each is measured on an empty database and on one filled with episodes and adapters (SQLite, rows as real ones are,
for tasks that share their demonstrations with the new ones). New tasks and the filling's tasks draw their
demonstrations from the same pools, so that looking for adapters of a subset has something to look through.

Then seconds of `ttt-router --help`, and whether `import router` imports torch. `--profile` prints where the event
loop's thread spends its time.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import math
import os
import platform
import pstats
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.process import prepare

prepare()

from policies.baselines import AlwaysArm  # noqa: E402
from router.agent import Router  # noqa: E402
from router.reuse import demonstration_hashes  # noqa: E402
from router.settings import Settings  # noqa: E402
from store import AdapterKey  # noqa: E402
from ttt.embedding import EMBEDDING, embed  # noqa: E402
from ttt.measure import task_size  # noqa: E402
from ttt.recipes import recipe  # noqa: E402
from ttt.task import Demonstration, Query, Task, fingerprint  # noqa: E402

if TYPE_CHECKING:
    from sqlalchemy import Connection

FAMILIES, POOL, SHOWN = 500, 200, 10
"""Families of tasks, demonstrations that one draws from, and demonstrations of a task."""
POOR_S = 1e-6
"""Seconds that a correct answer is worth here: never worth training."""
HITS = 4
BATCH = 5000
GOAL_MEDIAN_MS, GOAL_P99_MS, GOAL_HELP_S = 15.0, 40.0, 1.0
CASES = ("icl", "auto", "auto, all signals", "near", "hit")


def tiny_model(folder: Path) -> Path:
    """A random two-layer Llama with a byte-level tokenizer of 300 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["input: the quick brown fox output: 0 1 2 3\n"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **special)  # type: ignore[no-untyped-call]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    return folder


def pool(family: int) -> list[Demonstration]:
    """The family's demonstrations: rows of cells, and the same rows moved on by one."""
    rng = random.Random(family)
    rows = [[str(rng.randrange(10)) for _ in range(12)] for _ in range(POOL)]
    return [Demonstration(" ".join(row), " ".join(row[-1:] + row[:-1])) for row in rows]


def new_task(rng: random.Random) -> Task:
    family = rng.randrange(FAMILIES)
    return Task(tuple(rng.sample(pool(family), SHOWN)), instruction(family), f"family-{family}")


def instruction(family: int) -> str:
    return f"Move every cell by one, as in family {family}."


def query(rng: random.Random) -> list[Query]:
    return [Query(" ".join(str(rng.randrange(10)) for _ in range(12)))]


def fill(router: Router, n_episodes: int, n_adapters: int) -> None:
    """Rows like those that the router has written, many times over with other ids, times and tasks."""
    from sqlalchemy import column, insert, table, text

    rng = random.Random(1)
    demonstrations = [pool(family) for family in range(FAMILIES)]
    hashes = [demonstration_hashes(Task(tuple(p), instruction(f))) for f, p in enumerate(demonstrations)]
    n_tasks = max(n_adapters, n_episodes // 5, 1)
    drawn = [rng.sample(range(POOL), SHOWN - (i % 10 == 0)) for i in range(n_tasks)]
    names = [f"task1:{hashlib.sha256(b'%d' % i).hexdigest()}" for i in range(n_tasks)]
    now = time.time()

    def tasks() -> Iterator[dict[str, Any]]:
        for i, name in enumerate(names):
            family = i % FAMILIES
            shown = [(d.input, d.output) for d in (demonstrations[family][j] for j in drawn[i])]
            yield {
                "fingerprint": name,
                "name": f"family-{family}",
                "instruction": instruction(family),
                "demonstrations": json.dumps(shown),
                "n_demonstrations": len(shown),
                "created_at": now - n_tasks + i,
            }

    def episodes() -> Iterator[dict[str, Any]]:
        with router.parts.store.db.read() as connection:
            known = connection.exec_driver_sql("SELECT * FROM episodes").mappings().all()
        for i in range(n_episodes):  # in the order of the ids, which is the quickest to write
            like, name, episode_id = known[i % len(known)], names[rng.randrange(n_tasks)], f"{i << 100:032x}"
            receipt = str(like["receipt"]).replace(like["fingerprint"], name)
            yield dict(like) | {
                "episode_id": episode_id,
                "fingerprint": name,
                "created_at": now - rng.random() * 1e7,
                "receipt": receipt.replace(like["episode_id"], episode_id),
            }

    def keys() -> Iterator[tuple[int, AdapterKey]]:
        revision = router.parts.engine.loaded.revision
        task = new_task(rng)
        template = task_size(router.parts.engine, task, query(rng)).template
        made_with = recipe("standard", task).id
        for i in range(n_adapters):
            yield i, AdapterKey(names[i], revision, template, made_with, 0)

    def adapters() -> Iterator[dict[str, Any]]:
        made_with = asdict(recipe("standard", new_task(rng)))
        losses = [rng.random() for _ in range(64)]
        report = json.dumps({"recipe": made_with, "losses": losses, "seconds": 31.5, "tokens": 41_000})
        for i, key in keys():
            yield {
                "key_hash": key.hash,
                "fingerprint": key.fingerprint,
                "base_revision": key.base_revision,
                "template": key.template,
                "recipe": key.recipe,
                "seed": key.seed,
                "content_hash": names[i].removeprefix("task1:"),
                "size_bytes": 3_800_000,
                "created_at": now - n_adapters + i,
                "last_used_at": now - n_adapters + i,
                "accepted": i % 3 > 0,
                "report": report,
                "demonstration_hashes": json.dumps([hashes[i % FAMILIES][j] for j in drawn[i]]),
            }

    def index() -> Iterator[dict[str, Any]]:
        for i, key in keys():
            for j in drawn[i]:
                yield {
                    "key_hash": key.hash,
                    "demonstration_hash": hashes[i % FAMILIES][j],
                    "n_demonstrations": len(drawn[i]),
                }

    def embeddings() -> Iterator[dict[str, Any]]:
        size = len(router.run(embed(router.parts.engine, new_task(rng))))
        for _, key in keys():
            vector = [rng.gauss(0.0, 1.0) for _ in range(size)]
            length = math.hypot(*vector)
            yield {
                "key_hash": key.hash,
                "space": f"{EMBEDDING} {key.base_revision} {key.template}",
                "vector": struct.pack(f"<{size}f", *(v / length for v in vector)),
                "seen_inputs": json.dumps([key.hash[i : i + 32] for i in range(SHOWN)]),
            }

    def write(connection: Connection, name: str, rows: Iterator[dict[str, Any]]) -> None:
        while batch := list(islice(rows, BATCH)):
            into = table(name, *map(column, batch[0]))  # without types: JSON is written as it is
            connection.execute(insert(into), batch)

    with router.parts.store.db.engine.connect() as connection:
        connection.execute(
            text("PRAGMA cache_size = -400000")
        )  # KiB; this connection's, which is dropped below
        connection.commit()
        for name, rows in (
            ("tasks", tasks()),
            ("episodes", episodes()),
            ("adapters", adapters()),
            ("adapter_demonstrations", index()),
            ("adapter_embeddings", embeddings()),
        ):
            with connection.begin():
                write(connection, name, rows)
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    router.parts.store.db.close()


class Cases:
    """The questions of each case; those for hits are trained for and accepted beforehand."""

    def __init__(self, router: Router, seed: int) -> None:
        self.router, self.rng = router, random.Random(seed)
        self.measuring = replace(router.parts, policy=AlwaysArm("icl"))
        self.deciding = router.parts
        self.known = [new_task(self.rng) for _ in range(HITS)]
        adapters = router.parts.store.adapters
        for task in self.known:
            router.ask(task, query(self.rng), arm="ttt")
            size = task_size(router.parts.engine, task, query(self.rng))
            revision, made_with = router.parts.engine.loaded.revision, recipe("standard", task).id
            row = adapters.find(AdapterKey(fingerprint(task), revision, size.template, made_with, 0))
            assert row is not None
            adapters.set_accepted(row, True)
        time.sleep(4)  # only then are the files old enough for their hash to be remembered

    def ask(self, case: str, number: int) -> float:
        """Seconds beside the model."""
        router, engine = self.router, self.router.parts.engine
        task = self.known[number % HITS] if case == "hit" else new_task(self.rng)
        router.parts = self.measuring if case in ("auto, all signals", "near") else self.deciding
        asked, options = query(self.rng), {"arm": "icl" if case == "icl" else "auto"}
        options["reuse"] = "near" if case == "near" else "off"
        busy, started = engine.busy_s, time.perf_counter()
        receipt = router.ask(task, asked, **options)
        seconds = time.perf_counter() - started - (engine.busy_s - busy)
        expected = "reuse:" if case == "hit" else "icl"
        if not receipt.arm.startswith(expected):
            raise SystemExit(
                f"{case}: expected an answer by {expected}, got {receipt.arm}: {receipt.decisions}"
            )
        return seconds


def measure(cases: Cases, asks: int, warm_up: int = 5) -> dict[str, dict[str, float]]:
    """Milliseconds by case; the cases take turns, so that a slow minute of the machine meets them all."""
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(-warm_up, asks):
        for case in CASES:
            taken = cases.ask(case, number)
            if number >= 0:
                seconds[case].append(taken * 1e3)
    return {
        case: {
            "median_ms": statistics.median(values),
            "p99_ms": sorted(values)[max(0, -(-99 * len(values) // 100) - 1)],
            "max_ms": max(values),
            "n": len(values),
        }
        for case, values in seconds.items()
    }


def profiled(router: Router, cases: Cases, case: str, asks: int) -> str:
    """Where the event loop's thread spends its time."""
    profile = cProfile.Profile()

    async def switch(on: bool) -> None:
        (profile.enable if on else profile.disable)()

    router.run(switch(True))
    for number in range(asks):
        cases.ask(case, number)
    router.run(switch(False))
    with tempfile.TemporaryFile("w+") as out:
        stats = pstats.Stats(profile, stream=out)
        stats.sort_stats("cumulative").print_stats(60)
        stats.sort_stats("tottime").print_stats(25)
        out.seek(0)
        return out.read()


def help_seconds() -> float:
    """Seconds of `ttt-router --help` in a process of its own, median of 5."""
    program = Path(sys.executable).with_name("ttt-router")
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def imports_torch() -> bool:
    program = "import sys, router; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return run.stdout.strip() == "True"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="default: a tiny random one, made here")
    parser.add_argument("--asks", type=int, default=200, help="of each case on each database")
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--profile", choices=CASES, help="also profile this case, on the filled database")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(arguments)

    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = options.model or str(tiny_model(folder / "model"))
        settings = Settings(
            model=model, data_dir=str(folder / "data"), worth_s=POOR_S, signals="all", recipe="standard"
        )
        with Router.open(settings) as router:
            cases = Cases(router, seed=2)
            sizes["empty"] = {"episodes": 0, "adapters": 0, "cases": measure(cases, options.asks)}
            started = time.perf_counter()
            fill(router, options.episodes, options.adapters)
            file = folder / "data" / "router.db"
            print(
                f"Filled in {time.perf_counter() - started:.0f} s: {options.episodes:,} episodes, "
                f"{options.adapters:,} adapters, {file.stat().st_size / 1e9:.2f} GB."
            )
            sizes["filled"] = {
                "episodes": options.episodes,
                "adapters": options.adapters,
                "bytes": file.stat().st_size,
                "cases": measure(cases, options.asks),
            }
            profile = profiled(router, cases, options.profile, options.asks) if options.profile else ""
    figures = {
        "sizes": sizes,
        "help_s": help_seconds(),
        "import_router_imports_torch": imports_torch(),
        "model": options.model or "tiny random Llama",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "goals": {"median_ms": GOAL_MEDIAN_MS, "p99_ms": GOAL_P99_MS, "help_s": GOAL_HELP_S},
    }
    print(f"{'beside the model':20} {'database':8} {'median ms':>10} {'p99 ms':>8} {'max ms':>8}")
    for size, measured in sizes.items():
        for case, row in measured["cases"].items():
            over = row["median_ms"] > GOAL_MEDIAN_MS or row["p99_ms"] > GOAL_P99_MS
            line = f"{case:20} {size:8} {row['median_ms']:10.1f} {row['p99_ms']:8.1f} {row['max_ms']:8.1f}"
            print(f"{line}{'  over the goal' if over else ''}")
    print(f"ttt-router --help: {figures['help_s']:.2f} s (median of 5)")
    print(f"import router imports torch: {'yes' if figures['import_router_imports_torch'] else 'no'}")
    if profile:
        print(profile)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
