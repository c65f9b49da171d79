"""A real server on a free port, in this process, over an open router."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from router.agent import Router
from router.server.options import ServerOptions
from router.server.threaded import Serving, serving

Running = Serving


def running(router: Router, **options: Any) -> AbstractContextManager[Serving]:
    """Serve `router` as long as the block lasts; it trains nothing unless told."""
    given: dict[str, Any] = {"port": 0, "when": "never"} | options
    return serving(router, ServerOptions(**given))
