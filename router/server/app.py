"""The routes. What they need is made in the lifespan and kept on `app.state`."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from router.agent import Router
from router.events import AnswerGrew, Done, Started, TrainingStep
from router.memory import Memory
from router.server.document import EPISODE, answers, complete, errors
from router.server.errors import ApiError, api_error
from router.server.guard import ARRIVED, Guard
from router.server.options import ServerOptions
from router.server.schemas import PLAIN_MODELS, ChatRequest, CompletionRequest, FeedbackRequest
from router.server.service import Answering, Asked, Service, adapter_name, final_text, no_model, sure
from router.server.wire import Wire, account, comment, event, headers, noted, usage

DONE = "data: [DONE]\n\n"
COMMENT_S = 1.0
"""Least seconds between two comments about training steps."""


def create_app(router: Router, memory: Memory, options: ServerOptions) -> FastAPI:
    """The application over an open router; whoever made that closes it."""
    service = Service(router, memory, options)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.drain()

    app = FastAPI(
        title="ttt-router",
        summary="Few-shot tasks with in-context learning, and test-time training when it pays.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=errors(),
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    _handle_errors(app)

    @app.post("/v1/chat/completions", responses=answers(chat=True), response_model=None)
    async def chat_completions(request: ChatRequest, raw: Request) -> Response:
        """Answer a conversation: a few-shot task, or a plain question."""
        asked = await service.read_chat(request, raw.scope[ARRIVED])
        return await _respond(service, request, asked, Wire(asked, chat=True))

    @app.post("/v1/completions", responses=answers(chat=False), response_model=None)
    async def completions(request: CompletionRequest, raw: Request) -> Response:
        """Answer a prompt, with or without examples in it."""
        asked = service.read_completion(request, raw.scope[ARRIVED])
        return await _respond(service, request, asked, Wire(asked, chat=False))

    def listed() -> dict[str, dict[str, Any]]:
        names = [(name, started) for name in PLAIN_MODELS]
        names += [(adapter_name(row), int(row.created_at)) for row in service.adapters()]
        return {n: {"id": n, "object": "model", "created": at, "owned_by": "ttt-router"} for n, at in names}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The ways to answer, then the accepted adapters."""
        return {"object": "list", "data": list(listed().values())}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """One of them."""
        found = listed().get(model)
        if found is None:
            raise no_model(model)
        return found

    @app.post("/v1/feedback")
    async def feedback(request: FeedbackRequest) -> dict[str, Any]:
        """Say how an answer was."""
        _check_episode(request.episode_id)
        new = await router.afeedback(request.episode_id, right=request.right, answer=request.answer)
        return {"episode_id": request.episode_id, "new": new}

    @app.get("/v1/episodes/{episode_id}")
    async def episode(
        episode_id: Annotated[str, Path(json_schema_extra={"pattern": EPISODE})],
    ) -> JSONResponse:
        """All that is known of one answer."""
        _check_episode(episode_id)
        episodes = router.parts.store.episodes
        row = episodes.get(episode_id)
        found = {
            "receipt": row.receipt,
            "task": asdict(episodes.task(row.fingerprint)),
            "outcomes": [asdict(o) for o in episodes.outcomes(row.episode_id)],
        }
        return JSONResponse(found)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The process answers."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> str:
        """Questions are taken."""
        if service.stop_at is not None:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        return "ready\n"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text())

    described = app.openapi

    def openapi() -> dict[str, Any]:
        return complete(described(), [adapter_name(row) for row in service.adapters()])

    app.openapi = openapi  # type: ignore[method-assign]
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(Guard, options=options, metrics=service.metrics, paths=paths)
    return app


def _check_episode(episode_id: str) -> None:
    if not re.fullmatch(EPISODE, episode_id):
        shown = episode_id[:64]
        raise ApiError(
            404,
            f"No episode {shown!r}; ids are at least 6 hexadecimal digits, as answers give them.",
            param="episode_id",
            code="not_found",
        )


def _handle_errors(app: FastAPI) -> None:
    def respond(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        broken = first["type"] == "json_invalid"  # whose place is a position in the body, no parameter
        place = "" if broken else ".".join(str(p) for p in first["loc"] if p != "body")
        place = place[:200].encode("utf-8", "replace").decode()
        what = "The body is not JSON" if broken else f"{place or 'The body'} is wrong"
        return respond(ApiError(400, f"{what}: {first['msg']}.", param=place or None, code="invalid_value"))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        texts = {404: "There is nothing at this address.", 405: "This address does not have this method."}
        text = texts.get(error.status_code, "The body can't be read; send JSON in UTF-8.")
        given = dict(error.headers) if error.headers else None
        return respond(ApiError(error.status_code, text, headers=given))

    async def other(request: Request, error: Exception) -> JSONResponse:
        return respond(api_error(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in _our_errors():
        app.add_exception_handler(kind, other)
    app.add_exception_handler(Exception, other)


def _our_errors() -> tuple[type[Exception], ...]:
    from policies.errors import PolicyError
    from router.errors import RouterError
    from store.errors import StoreError
    from ttt.errors import TTTError

    return RouterError, TTTError, StoreError, PolicyError


async def _respond(
    service: Service, request: ChatRequest | CompletionRequest, asked: Asked, wire: Wire
) -> Response:
    counted = bool(request.stream_options and request.stream_options.include_usage)
    if asked.reading.query is None:
        reply, known = await service.note(asked), headers(noted(asked))
        if not request.stream:
            return JSONResponse(wire.note(reply), headers=known)
        return _streamed(iter([*wire.note_chunks(reply, counted), DONE]), known)
    answering = service.start(asked)
    if request.stream:
        await answering.begun()
        return _streamed(_stream(service, answering, wire, counted), headers(answering.known))
    receipt = await answering.receipt()
    return JSONResponse(wire.body(receipt), headers=headers(account(asked, receipt)))


def _streamed(pieces: Iterator[str] | AsyncIterator[str], known: dict[str, str]) -> StreamingResponse:
    unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(pieces, media_type="text/event-stream", headers=unbuffered | known)


async def _stream(service: Service, answering: Answering, wire: Wire, counted: bool) -> AsyncIterator[str]:
    """The answer as server-sent events; while nothing can be said yet, comments."""
    asked, said, commented = answering.asked, "", time.monotonic()
    opened = False
    async for happened in answering.follow(service.options.ping_s):
        match happened:
            case None:
                yield comment("waiting")
            case Started(episode_id=episode_id):
                wire.id = episode_id
                yield wire.chunk("", {"episode_id": episode_id}, first=True)
                opened = True
            case TrainingStep(phase, step, of, _):
                if time.monotonic() - commented > COMMENT_S:
                    commented = time.monotonic()
                    yield comment(f"{phase} step {step} of {of}")
            case AnswerGrew():
                text = sure(happened, asked.stops)
                if len(text) > len(said):
                    if not said:
                        service.metrics.first_s.observe(time.monotonic() - asked.since)
                    yield wire.chunk(text[len(said) :], {"episode_id": wire.id})
                    said = text
            case ApiError():
                yield event(happened.body)
            case Done(receipt):
                text, reason = final_text(asked, receipt)
                more = account(asked, receipt)
                if len(text) > len(said):
                    yield wire.chunk(text[len(said) :], {"episode_id": wire.id}, first=not opened)
                yield wire.chunk("", more, reason)
                if counted:
                    yield wire.usage_chunk(usage(receipt), more)
            case _:
                pass
    yield DONE
