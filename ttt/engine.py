"""The engine: one loaded model, owned by one thread, and the queue of work for it.

Adapter choice is a property of the whole model, so only the owner thread touches it. Callers hand over
*slices* (one decode batch, one training step), each of which chooses its adapter anew; between two
slices anybody else's may run, answers before training. A long slice that leaves the model's own adapters alone
lets answers run in its middle, too (`Bench.give_way`), and waits a moment for one that was announced
(`Engine.expect_answer`).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ttt.errors import ModelError

if TYPE_CHECKING:
    from ttt.decoder import Decoder, Plain
    from ttt.lora import AdapterSlots
    from ttt.model import LoadedModel
    from ttt.runner import Runner

T = TypeVar("T")
log = logging.getLogger("ttt_router.engine")

MAX_ATTACHED = 8
"""Saved adapters kept attached for reuse; the least recently used that nobody is using goes first."""
EXPECTED_S = 0.05
"""Seconds that other work waits for an answer that was announced: what comes before its first slice, and between
two of them, takes less unless the threads that prepare it have to share their processor with that work."""


class Priority(IntEnum):
    """Lower goes first; slices of one priority keep their order."""

    ANSWER = 0
    SIGNALS = 1
    TRAINING = 2


@dataclass(frozen=True)
class Bench:
    """What a slice may use, on the owner thread only."""

    loaded: LoadedModel
    slots: AdapterSlots
    decoder: Decoder | None
    """The model's weights fused for speed; None where transformers runs it."""
    decoding: Decoder | None
    """The same in the form that decodes faster: packed, or in another type."""
    give_way: Callable[[Priority], float] = lambda _: 0.0
    """Runs the slices that wait and go before this priority, now, and waits for one that is expected; how many
    seconds that took. Only in slices that do not run the model itself: those others choose adapters of their own."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds, without those given away."""

    def wearing(self, adapter: str | None) -> AbstractContextManager[object]:
        """What has to be around a pass of `runner(adapter)`: the model itself wears the adapter, where it runs."""
        if self.decoder is not None and (adapter is None or self.slots.prefix(adapter) is not None):
            return nullcontext()
        return self.slots.active(adapter)

    def fused_lora(self, adapter: str) -> dict[str, Plain] | None:
        """The adapter's weights where both it and the model can run fused, else None."""
        lora = self.slots.plain(adapter)
        return lora if lora and self.decoder is not None and self.decoder.covers(lora) else None

    def runner(self, adapter: str | None, priority: Priority = Priority.ANSWER) -> Runner:
        """A fresh cache for the model as it is, or with an adapter (merged into a copy where it can be); passes of a
        lower `priority` than answers give way between their layers, where those are fused."""
        from ttt.decoding import packed
        from ttt.runner import DecoderRunner, TransformersRunner

        def between() -> None:
            if priority > Priority.ANSWER:
                self.give_way(priority)

        prefix = None if adapter is None else self.slots.prefix(adapter)
        if prefix is not None and self.decoder is not None:
            return DecoderRunner(self.decoder, self.decoding, prefix.kv, between)
        if self.decoder is None:
            return TransformersRunner(self.loaded.model)
        if adapter is None:
            return DecoderRunner(self.decoder, self.decoding, between=between)
        lora = self.fused_lora(adapter)
        if lora is None:
            return TransformersRunner(self.loaded.model)
        merged = self.decoder.merged(lora)
        if self.decoding is None or self.decoding is self.decoder:
            return DecoderRunner(merged, between=between)
        if self.decoding.dtype != self.decoder.dtype:
            return DecoderRunner(merged, self.decoding.merged(lora), between=between)
        ready = partial(packed, head=self.decoding.packed_head)
        return DecoderRunner(merged, between=between, ready=ready)


class Engine:
    """Owner of one loaded model. Close it when done."""

    def __init__(self, loaded: LoadedModel, reload: Callable[[], LoadedModel] | None = None) -> None:
        """`reload` loads the same model once more, should its weights in memory ever be found changed."""
        from ttt.decoder import read
        from ttt.decoding import decoding_decoder
        from ttt.integrity import Watch
        from ttt.lora import AdapterSlots
        from ttt.model import default_cache_dir
        from ttt.rounds import Rounds

        self.loaded = loaded
        self._reload = reload
        self._notices: list[str] = []
        self.trainings = Rounds(self)
        decoder = read(loaded.model)
        remembered = default_cache_dir() / "decoding.json"
        decoding = None if decoder is None else decoding_decoder(decoder, remembered)
        self._bench = Bench(
            loaded, AdapterSlots(loaded.model), decoder, decoding, self._give_way, self._clock
        )
        self._watch = Watch(loaded.model)
        self._bench.slots.after_drop = self._look_at_base
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._attached: dict[str, None] = {}
        self._in_use: Counter[str] = Counter()
        self._uses = threading.Lock()
        self._closed = False
        self._given_s = self._expected = 0.0
        self.busy_s = 0.0
        """Seconds that the owner thread has spent in slices so far."""
        self._thread = threading.Thread(target=self._work, name="ttt-engine", daemon=True)
        self._thread.start()

    def submit(self, slice_: Callable[[Bench], T], priority: Priority = Priority.ANSWER) -> Future[T]:
        """Queue one slice of work for the owner thread.

        Raises:
            ModelError: the engine is closed.
        """
        if self._closed:
            raise ModelError("The engine of this model is closed; open a new one.")
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(slice_(self._bench))
            except BaseException as error:  # handed to the caller, who waits on the future
                future.set_exception(error)

        if priority == Priority.ANSWER:
            self._expected = 0.0
        self._queue.put((int(priority), next(self._count), run))
        return future

    def expect_answer(self) -> None:
        """Announce a slice of an answer: what else runs makes room for it at once, and not only when it comes."""
        self._expected = time.monotonic() + EXPECTED_S

    async def run(self, slice_: Callable[[Bench], T], priority: Priority = Priority.ANSWER) -> T:
        """Queue one slice and wait for its result."""
        return await asyncio.wrap_future(self.submit(slice_, priority))

    async def clean_up(self, slice_: Callable[[Bench], object]) -> None:
        """Run a slice that runs in any case, also where whoever waits for it is cancelled."""
        await asyncio.shield(asyncio.wrap_future(self.submit(slice_, Priority.ANSWER)))

    @asynccontextmanager
    async def adapter(self, folder: Path) -> AsyncIterator[str]:
        """Make a saved adapter usable, for as long as the block lasts, under the name that is yielded.

        It stays attached afterwards, for the next time, until others push it out.

        Raises:
            AdapterError: the folder is no adapter for this model.
        """
        where = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
        name = f"saved-{folder.name}-{where[:8]}"  # folders of one name lie in many places
        with self._uses:
            self._in_use[name] += 1
        try:
            await self.run(lambda bench: self._attach(bench, name, folder))
            yield name
        finally:
            with self._uses:
                self._in_use[name] -= 1
                if not self._in_use[name]:
                    del self._in_use[name]

    def _attach(self, bench: Bench, name: str, folder: Path) -> None:
        if name not in bench.slots.names:
            bench.slots.load(name, folder, bench.decoder)
        self._attached.pop(name, None)
        self._attached[name] = None
        with self._uses:  # whoever comes for one of these later attaches it again, behind this slice
            idle = [n for n in self._attached if n not in self._in_use]
        for old in idle[: max(0, len(self._attached) - MAX_ATTACHED)]:
            bench.slots.drop(old)
            del self._attached[old]

    async def base_hash(self) -> str:
        """SHA-256 over all base parameters and buffers, adapters left out."""
        from ttt.integrity import parameters_hash

        return await self.run(lambda bench: parameters_hash(bench.loaded.model))

    async def check_base(self) -> bool:
        """Whether all base weights are as in the model's files, which are loaded once more for that; where they are
        not, they are put right, and `take_notices` says so.

        Raises:
            ModelError: the engine was not told how to load the model, or its files are damaged.
        """
        return await self.run(self._check_all)

    def take_notices(self) -> list[str]:
        """What happened to the engine since the last time, for people."""
        notices, self._notices = self._notices, []
        return notices

    def _look_at_base(self) -> None:
        """After an adapter was taken off, on the owner thread."""
        name = self._watch.changed()
        if name is not None:
            self._put_right(f"The base model's {name} had changed in memory")

    def _check_all(self, bench: Bench) -> bool:
        from ttt.integrity import parameters_hash

        found = parameters_hash(bench.loaded.model)
        fresh = self._load_again()
        if found == parameters_hash(fresh.model):
            return True
        self._put_right("The base model's weights had changed in memory", fresh)
        return False

    def _load_again(self) -> LoadedModel:
        if self._reload is None:
            raise ModelError("The base model can't be loaded anew here; open the router again.")
        return self._reload()

    def _put_right(self, what: str, fresh: LoadedModel | None = None) -> None:
        from ttt.integrity import restore

        log.error("%s; it is loaded anew.", what)
        fresh = self._load_again() if fresh is None else fresh
        restore(self.loaded.model, fresh.model)
        self._watch.remember()
        self._notices.append(f"{what} and was loaded anew; answers since the last check may have been wrong.")

    def close(self) -> None:
        """Finish what is queued, then end the owner thread."""
        self._closed = True
        self._queue.put((int(max(Priority)) + 1, next(self._count), None))
        self._thread.join(timeout=60)

    def _give_way(self, priority: Priority) -> float:
        started = time.perf_counter()
        while True:
            wait_s = self._expected - time.monotonic()
            try:
                first = self._queue.get(wait_s > 0, max(wait_s, 0.0))
            except queue.Empty:
                break
            if first[0] >= priority or first[2] is None:
                self._queue.put(first)
                break
            first[2]()
        seconds = time.perf_counter() - started
        self._given_s += seconds
        return seconds

    def _clock(self) -> float:
        return time.perf_counter() - self._given_s

    def _work(self) -> None:
        while True:
            _, _, run = self._queue.get()
            if run is None:
                return
            started = time.perf_counter()
            run()
            self.busy_s += time.perf_counter() - started
