"""Training behind answers that were given already: the same question once more, which nobody waits for.

One task is asked behind once at a time, and not again until it has changed. A task that grew by
demonstrations replaces the smaller one that is still trained for. Few are trained at once, since each has an
optimiser in memory; the others wait their turn, and past a limit a task is left for its next query. With a
`Pending`, what was not done when a process ended is taken up by the next one, as far as there is room.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from router.events import Done, Event
from router.pending import Pending
from router.receipt import Receipt
from ttt.errors import Cancelled, TrainingFailed
from ttt.task import Query, Task, fingerprint

AT_ONCE = 4
"""Tasks that are worked on at the same time."""
WAITING = 256
"""Tasks that are worked on or wait for that."""
REMEMBERED = 1024
"""Tasks that were looked at and are not looked at again; also the receipts that are kept for who asks."""
STOP_S = 60.0
"""Seconds that a training is given to end at its next step."""

log = logging.getLogger("ttt_router.behind")


@dataclass(frozen=True, slots=True)
class _Work:
    task: Task
    stop: threading.Event
    future: Future[None]


class Behind:
    """What goes on behind the answers of one router, on its own event loop."""

    def __init__(self, ask: Callable[..., AsyncIterator[Event]], loop: asyncio.AbstractEventLoop) -> None:
        self._ask, self._loop = ask, loop
        self._lock = threading.Lock()
        self._free = asyncio.Semaphore(AT_ONCE)
        self._running: dict[str, _Work] = {}
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._pending: Pending | None = None
        self._closing = False
        self.done: deque[Receipt] = deque(maxlen=REMEMBERED)
        """Receipts of what was done, the oldest first; whoever reads one may take it off."""

    def keep(self, pending: Pending) -> int:
        """From now on keep on disk what is to be done, and do what others have left there, as far as there is
        room; how much that is.

        Raises:
            OSError: the folder can't be read.
        """
        self._pending = pending
        found = pending.take(WAITING - len(self._running))
        for left in found:
            self.start(left.task, left.queries, left.options, tries=left.tries)
        return len(found)

    def start(
        self, task: Task, queries: Sequence[Query], options: Mapping[str, Any], *, tries: int = 0
    ) -> None:
        """Decide about `task`, and train where that pays, unless that was done or is being done.

        Args:
            tries: processes that have begun it and died.
        """
        name, kind = fingerprint(task), f"{sorted(options.items(), key=lambda pair: pair[0])}"
        with self._lock:
            if name in self._running or (name, kind) in self._seen:
                return
            for work in self._running.values():
                if _grew(work.task, task):
                    work.stop.set()
            if len(self._running) >= WAITING:
                log.warning(
                    "%d tasks wait for training already; this one is left for its next query.", WAITING
                )
                return
            self._seen[name, kind] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            stop = threading.Event()
            future = asyncio.run_coroutine_threadsafe(
                self._work(name, kind, task, queries, options, stop, tries), self._loop
            )
            self._running[name] = _Work(task, stop, future)
            if self._pending is not None:
                self._pending.add(task, queries, options, tries)

    @property
    def n_running(self) -> int:
        return len(self._running)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all that was running ended within `timeout_s`."""
        with self._lock:
            futures = [work.future for work in self._running.values()]
        return not wait(futures, timeout_s).not_done

    def stop(self) -> None:
        """End all trainings at their next step, and wait for that; what is kept on disk stays there."""
        self._closing = True
        with self._lock:
            for work in self._running.values():
                work.stop.set()
        if not self.wait(STOP_S):
            log.warning("A training did not end within %g s; its lease ends by itself.", STOP_S)
        if self._pending is not None:
            self._pending.close()

    async def _work(
        self,
        name: str,
        kind: str,
        task: Task,
        queries: Sequence[Query],
        options: Mapping[str, Any],
        stop: threading.Event,
        tries: int,
    ) -> None:
        again = False
        try:
            async with self._free:
                if not stop.is_set():
                    with self._lock:
                        if self._pending is not None:
                            self._pending.add(task, queries, options, tries + 1)
                    async for event in self._ask(
                        task,
                        queries,
                        when="wait",
                        should_stop=stop.is_set,
                        abandoned=stop.is_set,
                        patient=True,
                        **options,
                    ):
                        if isinstance(event, Done):
                            self.done.append(event.receipt)
        except Cancelled as error:
            log.info("Training behind an answer ended early: %s", error)
        except Exception as error:  # nobody waits for it: told where the program tells such things
            again = not isinstance(error, TrainingFailed)  # which would fail again
            log.exception("Training behind an answer failed")
        finally:
            with self._lock:
                del self._running[name]
                if stop.is_set() or again:
                    self._seen.pop((name, kind), None)
                if self._pending is None:
                    pass
                elif stop.is_set() and self._closing:  # an end in good order is no sign that this task kills
                    self._pending.add(task, queries, options, tries=0)
                else:
                    self._pending.remove(task)


def _grew(old: Task, new: Task) -> bool:
    return old.instruction == new.instruction and set(old.demonstrations) < set(new.demonstrations)
