"""Questions on their way through the server: admitted or refused, answered, remembered.

Each question is a task of its own that ends whether or not its client stays: a training that somebody asked
for is not lost with a connection. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from policies.types import Decision
from router.agent import Router
from router.conversation import EXPECTED_REPEATS, Message, Reading, note, read_conversation
from router.events import AnswerGrew, Decided, Done, Event, Started, TrainingStep
from router.memory import Memory
from router.receipt import Receipt
from router.server.errors import ApiError, api_error
from router.server.metrics import Metrics
from router.server.options import ServerOptions
from router.server.schemas import PLAIN_MODELS, ChatRequest, CompletionRequest
from store import AdapterRow
from ttt.errors import Cancelled
from ttt.recipes import RECIPES, Recipe
from ttt.task import Demonstration, Task

FIRST_EVENT_S = 2.0
"""Seconds that a stream's status waits for the first thing that happens, so that errors get their own."""
EARLY = 0.97
"""Seconds after which an answer is cut short where it stands ÷ its deadline: it has to be sent, too."""
log = logging.getLogger("ttt_router.server")


@dataclass(frozen=True)
class Asked:
    """One request, understood."""

    model: str
    reading: Reading
    messages: Sequence[Message]
    own: Mapping[int, str]
    options: Mapping[str, Any]
    stops: Sequence[str]
    ignored: Sequence[str]
    since: float
    """`time.monotonic()` when the request came."""


class Answering:
    """A question being answered; its events can be followed once."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.events: asyncio.Queue[Event | ApiError] = asyncio.Queue()
        self._early: list[Event | ApiError] = []

    async def begun(self) -> None:
        """Wait until something has happened.

        Raises:
            ApiError: that was an error.
        """
        until = time.monotonic() + FIRST_EVENT_S
        while not self._early or isinstance(self._early[-1], Started):
            try:
                event = await asyncio.wait_for(self.events.get(), until - time.monotonic())
            except TimeoutError:
                return
            if isinstance(event, ApiError):
                raise event
            self._early.append(event)

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the answer already, for headers that go before it."""
        found = [e for e in self._early if isinstance(e, Started)]
        return {"episode_id": found[0].episode_id} if found else {}

    async def follow(self, ping_s: float) -> AsyncIterator[Event | ApiError | None]:
        """All events, None whenever nothing has happened for `ping_s`; the last is `Done` or an error."""
        event: Event | ApiError | None = None
        while not isinstance(event, Done | ApiError):
            if self._early:
                event = self._early.pop(0)
            else:
                try:
                    event = await asyncio.wait_for(self.events.get(), ping_s)
                except TimeoutError:
                    event = None
            yield event

    async def receipt(self) -> Receipt:
        """
        Raises:
            ApiError: there is none.
        """
        while True:
            event = await self.events.get()
            if isinstance(event, ApiError):
                raise event
            if isinstance(event, Done):
                return event.receipt


class Service:
    """All questions of one server."""

    def __init__(self, router: Router, memory: Memory, options: ServerOptions) -> None:
        self.router, self.memory, self.options = router, memory, options
        self.in_flight = 0
        self.recipes: dict[str, tuple[Recipe, Recipe]] = {
            recipe.id: pair
            for whole in (*RECIPES.values(), router.recipes)
            for pair in (whole, _shorter(whole))
            for recipe in pair
        }
        """Those that adapters can be used of, by the id of either, or of its shorter training."""
        self.stop_at: float | None = None
        """`time.monotonic()` after which trainings end; set when the server is told to stop."""
        self.metrics = Metrics(lambda: self.in_flight, lambda: router.n_behind)
        self._slots = asyncio.Semaphore(options.at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent_s = 1.0

    # ------------------------------------------------------------------------------------------ requests

    async def read_chat(self, request: ChatRequest, since: float) -> Asked:
        """What a request asks that came at `since`.

        Raises:
            ApiError, ConversationError: what is wrong with the request.
        """
        messages, knobs = request.conversation(), request.knobs
        ignored = request.ignored()
        own = await self.memory.recall(messages)
        reading = read_conversation(messages, own, examples=knobs.examples, corrections=knobs.corrections)
        return self._asked(request, reading, messages, own, ignored, since)

    def read_completion(self, request: CompletionRequest, since: float) -> Asked:
        """As `read_chat`; the prompt is one message of the user's."""
        messages = [Message("user", request.text)]
        reading = read_conversation(messages, examples=request.knobs.examples, corrections=False)
        if reading.query is None:  # a prompt always asks: what looks like examples alone is a text
            reading = read_conversation(messages, examples=False, corrections=False)
        return self._asked(request, reading, messages, {}, request.ignored(), since)

    def _asked(
        self,
        request: ChatRequest | CompletionRequest,
        reading: Reading,
        messages: Sequence[Message],
        own: Mapping[int, str],
        ignored: Sequence[str],
        since: float,
    ) -> Asked:
        knobs, repeats = request.knobs, request.knobs.expected_repeats
        if knobs.recipe is not None and knobs.recipe not in RECIPES:
            raise ApiError(
                400,
                f"There is no recipe {knobs.recipe[:60]!r}; choose one of: {', '.join(RECIPES)}.",
                param="ttt_router.recipe",
            )
        if repeats is None and reading.ongoing:
            repeats = max(self.router.settings.expected_repeats, EXPECTED_REPEATS)
        options: dict[str, Any] = {
            "prefer": knobs.prefer,
            "worth_s": knobs.worth_s,
            "when": knobs.when or ("wait" if request.model == "ttt" else self.options.when),
            "deadline_s": knobs.deadline_s,
            "expected_repeats": repeats,
            "seed": knobs.seed,
            "recipe": knobs.recipe,
            "votes": knobs.votes,
            "max_tokens": request.limit,
        }
        if request.model in PLAIN_MODELS:
            options["arm"] = request.model
        else:
            reading, options = self._with_adapter(request.model, reading, options)
        return Asked(request.model, reading, messages, own, options, request.stops, ignored, since)

    def adapters(self) -> list[AdapterRow]:
        """Accepted adapters of this base model and of recipes that this server knows, the last used first."""
        revision = self.router.parts.engine.loaded.revision
        rows = self.router.parts.store.adapters.list()
        known = [row for row in rows if row.key.recipe in self.recipes]
        return [row for row in known if row.accepted and row.key.base_revision == revision]

    def _with_adapter(
        self, model: str, reading: Reading, options: Mapping[str, Any]
    ) -> tuple[Reading, dict[str, Any]]:
        """The question put to a named adapter: it brings its own task."""
        row = next((r for r in self.adapters() if model == adapter_name(r)), None)
        if row is None:
            raise no_model(model)
        if reading.task != Task():
            raise ApiError(
                400,
                f"The adapter {model} brings its own task; send the query alone, without instruction and examples.",
                param="messages",
                code="invalid_messages",
            )
        kept = self.router.parts.store.episodes.task(row.key.fingerprint)
        task = Task(tuple(Demonstration(*pair) for pair in kept.demonstrations), kept.instruction, kept.name)
        recipes = self.recipes[row.key.recipe]
        forced = {"arm": "auto", "when": "never", "seed": row.key.seed, "recipe": recipes}
        return Reading(task, reading.query, reading.latest, reading.understood), {**options, **forced}

    # ------------------------------------------------------------------------------------------- answers

    async def note(self, asked: Asked) -> str:
        """Take in what the last message taught, where it asks nothing; what to reply."""
        reading = asked.reading
        reply = note(reading.task)
        if reading.latest is not None:
            await self.router.ahear(reading.latest)
        await self.memory.remember(asked.messages, asked.own, reply, "")
        return reply

    def start(self, asked: Asked) -> Answering:
        """Admit a question.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server is stopping.
        """
        if self.stop_at is not None:
            raise ApiError(503, "The server is shutting down; ask another one.", code="shutting_down")
        if self.in_flight >= self.options.queue:
            self.metrics.refused.inc()
            wait_s = max(1, round(self._recent_s * self.in_flight / self.options.at_once))
            raise ApiError(
                429,
                f"{self.in_flight} questions are waiting or being answered, the most that are taken; try again in "
                f"{wait_s} s.",
                code="queue_full",
                headers={"Retry-After": str(wait_s)},
            )
        self.in_flight += 1
        answering = Answering(asked)
        task = asyncio.create_task(self._answer(answering))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answering

    async def drain(self) -> None:
        """Wait for all that was admitted, and for what trains behind, until `stop_at`; then end trainings."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        left_s = max(0.0, (self.stop_at or 0.0) - time.monotonic())
        await asyncio.to_thread(self.router.settle, left_s)

    async def _answer(self, answering: Answering) -> None:
        asked = answering.asked
        late = self._told_when_late(answering)
        try:
            async with AsyncExitStack() as slot:
                await slot.enter_async_context(self._slots)
                await self._ask(answering, slot)
        except Exception as error:  # told to the client; what was not foreseen, to the log
            told = self._told(error, asked)
            if told.status == 500:
                log.exception("A question failed")
            answering.events.put_nowait(told)
        finally:
            if late is not None:
                late.cancel()
            self.in_flight -= 1
            self._recent_s += 0.2 * (time.monotonic() - asked.since - self._recent_s)

    async def _ask(self, answering: Answering, slot: AsyncExitStack) -> None:
        """Answer, and give `slot` back once it trains, or waits for somebody who does."""
        asked, options = answering.asked, dict(answering.asked.options)
        if options["deadline_s"] is not None:
            options["deadline_s"] = options["deadline_s"] * EARLY - (time.monotonic() - asked.since)
            if options["deadline_s"] <= 0:
                raise too_late()
        assert asked.reading.query is not None
        events = self.router.astream(
            asked.reading.task, [asked.reading.query], should_hurry=self._stopping, **options
        )
        async for event in events:
            if isinstance(event, Decided) and _trains(event.decision):
                await slot.aclose()
            if isinstance(event, TrainingStep):
                self.metrics.steps.labels(event.phase).inc()
            answering.events.put_nowait(event)
            if isinstance(event, Done):
                await self._done(asked, event.receipt)

    async def _done(self, asked: Asked, receipt: Receipt) -> None:
        arm = receipt.arm.partition(":")[0]
        self.metrics.answers.labels(arm).inc()
        self.metrics.seconds.labels(arm).observe(time.monotonic() - asked.since)
        for kind, n in zip(("prompt", "completion"), receipt.tokens, strict=True):
            self.metrics.tokens.labels(kind).inc(n)
        text, _ = final_text(asked, receipt)
        await self.memory.remember(asked.messages, asked.own, text, receipt.episode_id)

    def _told_when_late(self, answering: Answering) -> asyncio.TimerHandle | None:
        """Tell the client at its deadline that it was missed, however long what it waits for still takes."""
        deadline_s = answering.asked.options["deadline_s"]
        if deadline_s is None:
            return None
        left_s = deadline_s - (time.monotonic() - answering.asked.since)
        return asyncio.get_running_loop().call_later(left_s, answering.events.put_nowait, too_late())

    def _told(self, error: Exception, asked: Asked) -> ApiError:
        """What to tell a client of `error`."""
        deadline_s = asked.options["deadline_s"]
        late = deadline_s is not None and time.monotonic() - asked.since > EARLY * deadline_s
        if isinstance(error, Cancelled) and self._stopping() and not late:
            return ApiError(503, str(error), code="shutting_down")
        return api_error(error)

    def _stopping(self) -> bool:
        return self.stop_at is not None and time.monotonic() > self.stop_at


def _trains(decision: Decision) -> bool:
    return decision.step == "probe" or (decision.arm or "").startswith("train:")


def too_late() -> ApiError:
    return ApiError(
        422, "The deadline came before there was an answer; give more time.", code="deadline_exceeded"
    )


def no_model(name: str) -> ApiError:
    return ApiError(
        404,
        f"There is no model {name[:60]!r}; GET /v1/models lists those that there are.",
        param="model",
        code="model_not_found",
    )


def adapter_name(row: AdapterRow) -> str:
    return f"reuse:{row.content_hash[:12]}"


def final_text(asked: Asked, receipt: Receipt) -> tuple[str, str]:
    """The answer up to the first of the caller's stop strings, and the finish reason."""
    answer = receipt.answers[0]
    text = cut(answer.text, asked.stops)
    stopped = answer.finished or text != answer.text
    return text, "stop" if stopped else "length"


def cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def sure(event: AnswerGrew, stops: Sequence[str]) -> str:
    """What of a growing answer no stop string can take back any more."""
    text = cut(event.text, stops)
    if text != event.text:
        return text
    held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(held, default=0)]


def _shorter(pair: tuple[Recipe, Recipe]) -> tuple[Recipe, Recipe]:
    """Their shorter trainings, as far as there are any."""
    text, cells = pair
    return text.shorter or text, cells.shorter or cells
