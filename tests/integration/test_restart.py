"""A server process that is killed, in the middle of a conversation and of a training: the next one goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.router.server import conversation

PROGRAM = """
import sys
from router import reuse, training
reuse.LEASE_S = training.LEASE_S = 2.0  # seconds until a dead owner is taken over
from router.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, but for that."""
RECIPE = """
base = "quick"
rank = 4
alpha = 8
steps = {steps}
stop_loss = 0.0
sequence_tokens = 256
"""


def recipe_of(folder: Path, steps: int) -> Path:
    """A recipe file of so many steps."""
    file = folder / "long.toml"
    file.write_text(RECIPE.format(steps=steps))
    return file


@contextmanager
def serve(model: Path, data: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address; killed at the end where that was not done before."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--when", "never", *options]
    environment = os.environ | {
        "TTT_ROUTER_MODEL": str(model),
        "TTT_ROUTER_DATA_DIR": str(data),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield (
            process,
            next(found[0] for line in process.stderr if (found := re.search(r"http://\S+(?=/v1)", line))),
        )
    finally:
        process.kill()
        process.wait(30)


def say(url: str, talk: list[dict[str, str]], text: str, **more: Any) -> dict[str, Any]:
    """The account of the reply to `text`, which `talk` then holds too."""
    talk.append({"role": "user", "content": text})
    body = {"model": "icl", "messages": talk, "max_tokens": 5, **more}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    talk.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
    return dict(told["ttt_router"])


def test_a_conversation_goes_on_with_a_server_that_was_killed_and_started_again(
    tiny_llama: Path, tmp_path: Path
) -> None:
    talk: list[dict[str, str]] = []
    with serve(tiny_llama, tmp_path) as (process, url):
        first = say(url, talk, "ab")
        until = time.monotonic() + 10  # a reply is remembered just after it is sent
        while say(url, talk[:2], "right")["episode_id"] != first["episode_id"]:
            assert time.monotonic() < until
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with serve(tiny_llama, tmp_path) as (_, url):
        noted = say(url, talk, "no, it should be ok")
        assert noted["arm"] is None and noted["episode_id"] == first["episode_id"]
        assert say(url, talk, "cd")["n_demonstrations"] == 1
        found = httpx.get(f"{url}/v1/episodes/{first['episode_id']}").json()
    assert "ok" in [outcome["answer"] for outcome in found["outcomes"]]


def test_a_training_that_was_killed_begins_again_with_the_next_query_and_ends(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """The dead process's lease ends by itself."""
    talk, recipe, data = conversation(), recipe_of(tmp_path, steps=400), tmp_path / "data"
    body = {
        "model": "ttt",
        "messages": [*talk, {"role": "user", "content": "uv"}],
        "stream": True,
        "ttt_router": {"when": "wait"},
    }
    with (
        serve(tiny_llama, data, "--recipe", str(recipe)) as (process, url),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream,
    ):
        assert next(line for line in stream.iter_lines() if line.startswith(": train step"))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert not list((data / "adapters").glob("*/adapter_config.json"))
    with serve(tiny_llama, data, "--recipe", str(recipe)) as (_, url):
        again = {"model": "ttt", "ttt_router": {"when": "wait"}}
        assert say(url, talk[:], "uv", **again)["arm"] == "train:long"
        assert say(url, talk[:], "wx", **again)["arm"].startswith("reuse:")
    assert len(list((data / "adapters").glob("*/adapter_config.json"))) == 1


def test_a_server_told_to_end_in_the_middle_of_a_training_behind_leaves_it_in_good_order(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """The router is closed: the lease is released, and the end counts for nothing against the task."""
    talk, recipe, data = conversation(), recipe_of(tmp_path, steps=100_000), tmp_path / "data"
    behind = {"model": "ttt", "ttt_router": {"when": "background"}}
    with serve(tiny_llama, data, "--recipe", str(recipe), "--drain", "0.2") as (process, url):
        assert say(url, talk[:], "uv", **behind)["arm"] == "icl"
        until = time.monotonic() + 60
        while held(data) != 1 or tries(data) != [1]:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert tries(data) == [0] and held(data) == 0


def held(data: Path) -> int:
    """Leases that somebody holds."""
    with closing(sqlite3.connect(data / "router.db")) as database:
        return int(database.execute("SELECT count(*) FROM leases WHERE owner <> ''").fetchone()[0])


def tries(data: Path) -> list[int]:
    """Of all work that is kept: processes that have begun it."""
    return [json.loads(file.read_text())["tries"] for file in (data / "behind").glob("*/*.json")]


def test_a_training_behind_an_answer_that_was_killed_is_taken_up_by_the_next_server_by_itself(
    tiny_llama: Path, tmp_path: Path
) -> None:
    talk, recipe, data = conversation(), recipe_of(tmp_path, steps=400), tmp_path / "data"
    behind = {"model": "ttt", "ttt_router": {"when": "background"}}
    with serve(tiny_llama, data, "--recipe", str(recipe)) as (process, url):
        assert say(url, talk[:], "uv", **behind)["arm"] == "icl"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert len(list((data / "behind").glob("*/*.json"))) == 1
    with serve(tiny_llama, data, "--recipe", str(recipe)) as (_, url):
        until = time.monotonic() + 120
        while list((data / "behind").glob("*/*.json")):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert len(list((data / "adapters").glob("*/adapter_config.json"))) == 1
        assert say(url, talk[:], "wx", **behind)["arm"].startswith("reuse:")
