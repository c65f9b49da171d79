"""Prompts stay here: with LangSmith's variables set and a listener in place, nothing is sent.

So that the check can fail, the same program then sends through its own plain graph and, told so by our own
setting, through the router; both must be received.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import sys, time, urllib.request
from typing import TypedDict
from langchain_core.tracers.langchain import wait_for_all_tracers
from langgraph.graph import END, START, StateGraph
from router.agent import Router
from router.chat import Chat
from ttt.task import Demonstration, Task

model, data, listener = sys.argv[1:]
here = {"model": model, "data_dir": data, "device": "cpu", "dtype": "float32", "worth_s": 1000.0}
task = Task(tuple(Demonstration(f"demonstration {i}", "ok") for i in range(4)))


class S(TypedDict, total=False):
    text: str


def plain(state: S) -> S:
    return {"text": "plain-output"}


def compiled(node):
    graph = StateGraph(S)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


def phase_ends(name: str, patience_s: float = 0.3) -> None:
    wait_for_all_tracers()
    time.sleep(patience_s)
    urllib.request.urlopen(f"{listener}/end-of/{name}").read()


with Router.open(**here) as agent:
    for arm in ("auto", "icl", "ttt"):
        print(agent.ask(task, [f"secret-by-default-{arm}"], arm=arm).arm)
    chat = Chat(agent)
    chat.say("secret-said-in-a-chat")
    chat.close()
    phase_ends("default", 2.0)

    # Inside a traced program of the user's own, whose tracer LangGraph hands down to nested graphs.
    def asking(state: S) -> S:
        agent.ask(task, ["secret-nested"], arm="icl")
        return {"text": "nested-output"}

    async def asking_too(state: S) -> S:
        await agent.aask(task, ["secret-async"], arm="icl")
        return {"text": "async-output"}

    import asyncio

    compiled(asking).invoke({"text": "nested-input"})
    asyncio.run(compiled(asking_too).ainvoke({"text": "async-input"}))
    phase_ends("nested")
    compiled(plain).invoke({"text": "plain-input"})
    phase_ends("plain")

with Router.open(tracing=True, **here) as agent:
    agent.ask(task, ["secret-when-told-so"], arm="icl")
    phase_ends("told")
"""


class Listener(ThreadingHTTPServer):
    """Keeps what it is sent, by the phase in which it came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.phases: dict[str, list[str]] = {}
        self.now: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Listener

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.startswith("/end-of/"):
            self.server.phases[self.path.removeprefix("/end-of/")] = self.server.now
            self.server.now = []
        else:
            self.server.now.append(f"{self.command} {self.path}\n{body.decode(errors='replace')}")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PATCH = do_PUT = _take

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_is_sent_to_langsmith_unless_our_own_setting_says_so(
    listener: Listener, tiny_llama: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{listener.server_port}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LANGSMITH_", "LANGCHAIN_"))} | {
        "LANGSMITH_TRACING": "true",
        "LANGCHAIN_TRACING_V2": "true",
        "LANGSMITH_API_KEY": "x",
        "LANGSMITH_ENDPOINT": url,
        "LANGSMITH_DISABLE_RUN_COMPRESSION": "true",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", PROGRAM, str(tiny_llama), str(tmp_path / "data"), url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    auto, icl, ttt = done.stdout.split()
    assert icl == "icl" and ttt.startswith(("train:", "reuse:")), (auto, icl, ttt)
    got = {name: "\n".join(bodies) for name, bodies in listener.phases.items()}
    assert list(got) == ["default", "nested", "plain", "told"]
    assert listener.phases["default"] == [], "something was sent"
    assert "nested-input" in got["nested"] and "async-input" in got["nested"], (
        "the user's own graph is theirs"
    )
    assert "secret" not in got["nested"] and "demonstration 1" not in got["nested"]
    assert "plain-input" in got["plain"] and "plain-output" in got["plain"], (
        "the listener hears nothing at all"
    )
    assert "secret-when-told-so" in got["told"] and "demonstration 1" in got["told"]
