"""What every request meets before any route: the key, the limit on bodies, the log and the counts."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.server.errors import ApiError
from router.server.metrics import Metrics
from router.server.options import ServerOptions, is_loopback

OPEN = ("/healthz", "/readyz")
"""Answered without a key."""
ARRIVED = "ttt_router.arrived"
"""Key of the ASGI scope: `time.monotonic()` when the request came; deadlines count from there."""
log = logging.getLogger("ttt_router.access")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, options: ServerOptions, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._options, self._metrics, self._paths = app, options, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, sent = time.perf_counter(), 500, 0
        answer: dict[str, str] = {}
        body = bytearray()
        scope[ARRIVED] = time.monotonic()
        await asyncio.sleep(0)  # all that came in the same moment are marked before the first one is read

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                answer.update(
                    (k.decode(), v.decode("latin-1"))
                    for k, v in message["headers"]
                    if k.startswith(b"x-ttt-router-") and k != b"x-ttt-router-reason"
                )
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            self._check_key(scope)
            messages = await self._read(scope, receive, body)
            await self._app(scope, _replay(messages, receive), counted_send)
        except ApiError as error:
            await reply(counted_send, error)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            told: dict[str, Any] = {
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(time.perf_counter() - started, 4),
                "bytes_in": len(body),
                "bytes_out": sent,
                **{k.removeprefix("x-ttt-router-"): v for k, v in answer.items()},
            }
            if self._options.log_prompts:
                told["body"] = body.decode("utf-8", "replace")
            log.info("%s", json.dumps(told), extra={"told": told})

    def _check_key(self, scope: Scope) -> None:
        if scope["path"] in OPEN:
            return
        fields = dict(scope["headers"])
        if not self._options.api_key:
            # A page in a browser may have its own name resolve to this machine.
            if not is_loopback(_host(fields.get(b"host", b"localhost"))):
                raise ApiError(
                    400,
                    "Without an API key only names of this machine are answered; use 127.0.0.1.",
                    code="host",
                )
            return
        given = fields.get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._options.api_key.encode()):
            raise ApiError(
                401,
                "The API key is missing or wrong; send it as `Authorization: Bearer …`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> list[Message]:
        """The whole body, unless it is too large."""
        limit = self._options.body_limit
        too_large = ApiError(
            413, f"The body is above the limit of {limit} bytes; send less.", code="body_too_large"
        )
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise too_large
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            if messages[-1]["type"] == "http.disconnect":
                break
            body += messages[-1].get("body", b"")
            if len(body) > limit:
                raise too_large
        return messages


def _host(header: bytes) -> str:
    """The name without the port; empty where there is none."""
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _replay(messages: list[Message], receive: Receive) -> Receive:
    left = list(messages)

    async def again() -> Message:
        return left.pop(0) if left else await receive()

    return again


async def reply(send: Send, error: ApiError) -> None:
    """An error as a whole response."""
    data = json.dumps(error.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)), **(error.headers or {})}
    raw = [(k.lower().encode(), v.encode()) for k, v in fields.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": data})
