"""`serve`: model, store and memory opened, uvicorn run, and an end that loses nothing.

At SIGTERM no new connection is taken; what was admitted is answered. Trainings have `drain_s` seconds, then
they end at their next step, release their lease, and the answers that waited for them are in-context
learning's. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from router.agent import Router
from router.memory import open_memory
from router.server.app import create_app
from router.server.options import ServerOptions
from router.settings import Settings

log = logging.getLogger("ttt_router.server")


class Server(uvicorn.Server):
    """Uvicorn that tells the service when it has to stop."""

    def __init__(self, app: FastAPI, options: ServerOptions) -> None:
        config = uvicorn.Config(
            app,
            options.host,
            options.port,
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            lifespan="on",
        )
        super().__init__(config)
        self.service, self._options = app.state.service, options

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.stop_at is None:
            self.service.stop_at = time.monotonic() + self._options.drain_s
        if (
            sig == signal.SIGTERM
        ):  # not told to uvicorn, which would raise it again before the router is closed
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)


def serve(
    settings: Settings,
    options: ServerOptions,
    *,
    progress: Callable[[str], None] | None = None,
    on_start: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until told to stop.

    Args:
        on_start: gets the address once questions are taken.

    Raises:
        SettingsError, StoreError, ModelError: what can't be opened.
    """
    _log_to_stderr()
    with Router.open(settings, progress=progress) as router:
        asyncio.run(_serve(router, options, on_start))


async def _serve(router: Router, options: ServerOptions, on_start: Callable[[str], None]) -> None:
    async with open_memory(router.settings.data_path) as memory:
        server = Server(create_app(router, memory, options), options)
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            left = router.outlive()
            if left:
                log.info("%d task(s) that a server before this one did not finish are worked on.", left)
            on_start(f"http://{options.host if ':' not in options.host else f'[{options.host}]'}:{port}")
        await serving


class JsonLines(logging.Formatter):
    """Each record as one line of JSON; the account of a request has fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        told |= getattr(record, "told", None) or {"message": record.getMessage()}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def _log_to_stderr() -> None:
    for name in ("ttt_router", "uvicorn"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonLines())
            logger.addHandler(handler)
    logging.getLogger("ttt_router").setLevel(logging.INFO)
