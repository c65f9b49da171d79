"""Trainings in progress on one engine, advanced together: one step of each a round.

A short step uses a processor badly. Steps of different adapters run as one pass of packed tokens, where
each token meets its own task's adapter, and each training keeps its own optimiser, rate and end. Whoever
trains alone has the round to himself. Between two rounds, between the layers of a fused one, and before each
batch is drawn and each optimiser steps, anybody's answers may run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ttt.errors import ModelError

if TYPE_CHECKING:
    from ttt.dataset import Sequence
    from ttt.engine import Bench, Engine
    from ttt.gradients import Trainable

T = TypeVar("T")

ROUND_TOKENS = 2048
"""Tokens of one pass at most, unless one step alone has more: past this, more rows make no product faster."""


class Member(Protocol):
    """One training. All but `send` is called on the owner thread."""

    weights: Trainable
    send: Callable[[Any], None]
    """Gets each result of `done`, then None; or the error that ended it."""

    def check(self) -> None:
        """Asked before each step and between its layers. What it raises ends this training."""
        ...

    def batch(self) -> list[Sequence]:
        """The next step's sequences. What it raises ends this training."""
        ...

    def done(self, loss: float, batch: list[Sequence], labelled: int, seconds: float) -> tuple[Any, bool]:
        """Update after the step; the result to send, and whether there is another step."""
        ...

    def failed(self, error: Exception, batch: list[Sequence]) -> Exception:
        """What to tell when a pass over this batch alone raised `error`."""
        ...


class Rounds:
    """The trainings of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._live: list[Member] = []
        self._queued = False

    async def run(self, member: Member) -> AsyncGenerator[Any]:
        """Results of all steps of `member`, as they come. Close the iterator to leave early."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        member.send = lambda item: _post(loop, inbox, item)
        with self._lock:
            self._live.append(member)
        self._queue_round()
        try:
            while (item := await inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._leave(member)

    def _queue_round(self) -> None:
        from ttt.engine import Priority

        with self._lock:
            if self._queued or not self._live:
                return
            self._queued = True
        try:
            self._engine.submit(self._round, Priority.TRAINING)
        except ModelError as error:
            with self._lock:
                self._queued, left = False, list(self._live)
            for member in left:
                member.send(error)

    def _leave(self, member: Member) -> None:
        with self._lock:
            if member in self._live:
                self._live.remove(member)

    def _round(self, bench: Bench) -> None:
        from ttt.engine import Priority

        with self._lock:
            self._queued = False
            waiting = list(self._live)
        group: list[tuple[Member, list[Sequence]]] = []
        tokens = 0
        for member in waiting:
            if group and tokens >= ROUND_TOKENS:
                break
            bench.give_way(Priority.TRAINING)
            try:
                member.check()
                batch = member.batch()
            except Exception as error:  # handed to whoever waits for this training
                self._end(member, error)
                continue
            group.append((member, batch))
            tokens += sum(len(s.ids) for s in batch)
        if group:
            self._step(bench, group)
        with self._lock:  # those who have waited longest come first in the next round
            ran = [m for m, _ in group]
            self._live.sort(key=lambda m: m in ran)
        self._queue_round()

    def _step(self, bench: Bench, group: list[tuple[Member, list[Sequence]]]) -> None:
        from ttt.engine import Priority
        from ttt.gradients import losses

        started, given_s = time.perf_counter(), 0.0

        def between() -> None:
            nonlocal given_s
            given_s += bench.give_way(Priority.TRAINING)
            for member, _ in group:
                member.check()

        try:
            found = losses(bench, [(member.weights, batch) for member, batch in group], between)
        except Exception as error:  # handed on, or tried again one by one
            if len(group) == 1:
                self._end(group[0][0], group[0][0].failed(error, group[0][1]))
            else:
                for pair in group:
                    self._step(bench, [pair])
            return
        seconds = time.perf_counter() - started - given_s
        share = [sum(len(s.ids) for s in batch) for _, batch in group]
        for (member, batch), (loss, labelled), own in zip(group, found, share, strict=True):
            bench.give_way(Priority.TRAINING)
            try:
                result, more = member.done(loss, batch, labelled, seconds * own / sum(share))
            except Exception as error:  # as above
                self._end(member, member.failed(error, batch))
                continue
            member.send(result)
            if not more:
                self._end(member, None)

    def _end(self, member: Member, error: Exception | None) -> None:
        self._leave(member)
        member.send(error)


async def all_ended(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results, or the first error once all have ended."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return [result for result in ended if not isinstance(result, BaseException)]


def _post(loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[Any], item: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, item)
