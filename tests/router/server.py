"""A real server on a free port, in this process, over an open router."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from router.agent import Router
from router.memory import open_memory
from router.server.app import create_app
from router.server.options import ServerOptions
from router.server.run import Server
from router.server.service import Service


@dataclass
class Running:
    url: str
    service: Service
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """As SIGTERM would."""
        self.server.handle_exit(15, None)
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def running(router: Router, **options: Any) -> Iterator[Running]:
    """Serve `router` as long as the block lasts."""
    given: dict[str, Any] = {"port": 0, "when": "never"} | options
    chosen = ServerOptions(**given)
    begun: list[Server] = []

    async def run() -> None:
        async with open_memory(router.settings.data_path) as memory:
            server = Server(create_app(router, memory, chosen), chosen)
            begun.append(server)
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not (begun and begun[0].started):
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    port = begun[0].servers[0].sockets[0].getsockname()[1]
    found = Running(f"http://127.0.0.1:{port}", begun[0]._service, begun[0], thread)
    try:
        yield found
    finally:
        if thread.is_alive():
            found.stop()
