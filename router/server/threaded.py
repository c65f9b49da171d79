"""A server on a thread of this process, over a router that is open already: for tests, benchmarks and notebooks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from router.agent import Router
from router.errors import RouterError
from router.memory import open_memory
from router.server.app import create_app
from router.server.options import ServerOptions
from router.server.run import Server
from router.server.service import Service

START_S = 30.0


@dataclass(frozen=True)
class Serving:
    """A server that takes questions."""

    url: str
    service: Service
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """As SIGTERM would; returns once all that was admitted is answered."""
        self.server.handle_exit(15, None)
        self.thread.join()


@contextmanager
def serving(router: Router, options: ServerOptions) -> Iterator[Serving]:
    """Serve `router` as long as the block lasts.

    Raises:
        RouterError: the server did not start, say because its port is taken.
    """
    begun: list[Server] = []

    async def run() -> None:
        async with open_memory(router.settings.data_path) as memory:
            server = Server(create_app(router, memory, options), options)
            begun.append(server)
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="ttt-router-server", daemon=True)
    thread.start()
    until = time.monotonic() + START_S
    while not (begun and begun[0].started):
        if not thread.is_alive() or time.monotonic() > until:
            raise RouterError(f"The server did not start on port {options.port}; is it taken?")
        time.sleep(0.01)
    port = begun[0].servers[0].sockets[0].getsockname()[1]
    found = Serving(f"http://127.0.0.1:{port}", begun[0].service, begun[0], thread)
    try:
        yield found
    finally:
        if thread.is_alive():
            found.stop()
