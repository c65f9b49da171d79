"""A real server on a free port, in this process, over an open router."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from router.agent import Router
from router.server.options import ServerOptions
from router.server.threaded import Serving, serving
from tests.router.conftest import TASK

Running = Serving
PAIRS = [(d.input, d.output) for d in TASK.demonstrations]


def conversation(pairs: list[tuple[str, str]] = PAIRS, system: str = TASK.instruction) -> list[Any]:
    """Instruction and demonstrations as messages."""
    messages: list[Any] = [{"role": "system", "content": system}]
    for user, assistant in pairs:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def running(router: Router, **options: Any) -> AbstractContextManager[Serving]:
    """Serve `router` as long as the block lasts; it trains nothing unless told."""
    given: dict[str, Any] = {"port": 0, "when": "never"} | options
    return serving(router, ServerOptions(**given))
