"""The Python API: `Router`.

    with Router.open() as router:
        receipt = router.ask(task, ["3 1 2"])
        print(receipt.texts, receipt.arm, receipt.seconds)

One query's way: `ask` → `astream` → the graph (`graph.py`) → its nodes in order (`nodes.py`).
The synchronous methods run the asynchronous ones on a private event-loop thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from router.arms import parse_arm
from router.behind import Behind
from router.errors import RouterError
from router.events import Done, Event
from router.feedback import attach_outcomes
from router.receipt import READY, SHADOW, Receipt
from router.settings import Settings, changed, read_settings
from router.state import Request
from store.errors import translated
from ttt.recipes import find_recipes
from ttt.rounds import all_ended
from ttt.task import Query, Task

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool

    from policies.types import Policy
    from router.bootstrap import Parts
    from router.context import Context
    from router.conversation import Said
    from store import EpisodeRow

T = TypeVar("T")


class Router:
    """Answers few-shot tasks with one base model; decides when to train. Open with `Router.open`."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        from router.graph import build_graph

        self.settings = settings
        self.parts = parts
        self.recipes = find_recipes(settings.recipe)
        """Where a question does not say: for texts, and for tasks made of cells."""
        self.graph = build_graph()
        """The compiled state machine; see `question` for how to run it as a part of another graph."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ttt-router-loop", daemon=True)
        self._thread.start()
        self._behind = Behind(self.astream, self._loop)

    @classmethod
    def open(
        cls,
        settings: Settings | None = None,
        *,
        progress: Callable[[str], None] | None = None,
        policy: Policy | None = None,
        **overrides: Any,
    ) -> Router:
        """Load the model and open the store.

        Args:
            settings: all settings; read from environment and file when None.
            progress: gets a sentence at each slow step (fetching, converting a model).
            policy: decides instead of the one that the settings and the store name.
            overrides: single settings, e.g. `model="smollm2-135m"`, `data_dir=…`, `prefer="fast"`.

        Raises:
            SettingsError, StoreError, ModelError: see `router.errors`.
        """
        from router.bootstrap import open_parts

        chosen = (
            read_settings(overrides) if settings is None else changed(settings, overrides, "the arguments")
        )
        return cls(chosen, open_parts(chosen, progress, policy))

    def ask(self, task: Task, queries: Sequence[Query | str], **options: Any) -> Receipt:
        """Answer `queries`; options as in `router.question`. Ctrl-C during training falls back to ICL's answers
        (those that were not asked yet are asked then); once more, and there are none."""
        return _receipt(list(self.stream(task, queries, **options))[-1])

    def ask_many(
        self, asked: Sequence[tuple[Task, Sequence[Query | str]]], *, at_once: int = 8, **options: Any
    ) -> list[Receipt]:
        """`ask` for several tasks, `at_once` of them at the same time; receipts in the order asked.

        Tasks that train at the same time share their passes, which for short sequences costs less than one after
        the other. A receipt's seconds are then wall seconds beside the others. Ctrl-C as in `ask`, for all of them.

        Raises:
            RouterError: `at_once` below 1; else what `ask` raises, from the first task that failed, once all have
                ended.
        """
        self._check_open()
        stop = threading.Event()
        given = options.pop("should_stop", lambda: False)
        work = self.aask_many(asked, at_once=at_once, should_stop=lambda: stop.is_set() or given(), **options)
        asking = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return asking.result()
        except KeyboardInterrupt:
            stop.set()
            return asking.result()  # a second Ctrl-C is meant

    async def aask_many(
        self, asked: Sequence[tuple[Task, Sequence[Query | str]]], *, at_once: int = 8, **options: Any
    ) -> list[Receipt]:
        """`ask_many` for asynchronous callers."""
        if at_once < 1:
            raise RouterError(f"at_once is {at_once}; it must be at least 1.")
        free = asyncio.Semaphore(at_once)

        async def one(task: Task, queries: Sequence[Query | str]) -> Receipt:
            async with free:
                return await self.aask(task, queries, **options)

        return await all_ended(one(*pair) for pair in asked)

    async def aask(self, task: Task, queries: Sequence[Query | str], **options: Any) -> Receipt:
        """`ask` for asynchronous callers."""
        return _receipt([event async for event in self.astream(task, queries, **options)][-1])

    def stream(self, task: Task, queries: Sequence[Query | str], **options: Any) -> Generator[Event]:
        """Events as they happen, the last one `Done`; options as in `router.question`. Closed early, it ends what goes on."""
        self._check_open()
        stop, closed = threading.Event(), threading.Event()
        given = options.pop("should_stop", lambda: False)
        events: queue.Queue[Event | BaseException | None] = queue.Queue()

        async def pump() -> None:
            try:
                async for event in self.astream(
                    task,
                    queries,
                    should_stop=lambda: stop.is_set() or given(),
                    abandoned=closed.is_set,
                    **options,
                ):
                    events.put(event)
            except BaseException as error:  # handed to the caller below
                events.put(error)
            else:
                events.put(None)

        pumping = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while True:
                try:
                    item = events.get()
                except KeyboardInterrupt:
                    if stop.is_set():  # the second Ctrl-C is meant
                        raise
                    stop.set()
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            closed.set()
            wait([pumping])

    async def astream(
        self, task: Task, queries: Sequence[Query | str], **options: Any
    ) -> AsyncIterator[Event]:
        """Answer `queries`, yielding typed events (`router.events`), the last one `Done`; options as in `router.question`.

        Raises:
            TaskError, RouterError: as `question`.
            Cancelled: the deadline came before there was any answer.
            TrainingFailed: only with `arm="ttt"`; otherwise the receipt's `fallback` says so.
        """
        from router.memory import untraced

        if not options.get("patient"):
            self.parts.engine.expect_answer()
        request, context = self.question(task, queries, **options)
        arm = parse_arm(options.get("arm", "auto")).arm
        behind = request.when == "background" and arm in ("auto", "ttt") and bool(task.demonstrations)
        with untraced(self.settings.tracing):
            stream: Any = self.graph.astream({"request": request}, context=context, stream_mode="custom")
            async for event in stream:
                if behind and isinstance(event, Done) and _leaves_more(event.receipt):
                    again: dict[str, Any] = {
                        "arm": arm,
                        "worth_s": request.worth_s,
                        "recipe": request.recipes,
                    }
                    again |= {"seed": request.seed, "expected_repeats": request.expected_repeats}
                    again["reuse"] = "near" if request.reuse else "off"
                    self._behind.start(task, request.queries, {**again, "votes": 1})
                elif isinstance(event, Done) and event.receipt.shadow:
                    shadow = {"arm": "ttt", "recipe": request.recipes, "seed": request.seed, "votes": 1}
                    shadow |= {"reuse": "off"}
                    shadow |= {
                        "episode_id": f"{request.episode_id}{SHADOW}",
                        "max_tokens": request.max_tokens,
                    }
                    self._behind.start(task, request.queries, shadow)
                yield event

    def question(self, task: Task, queries: Sequence[Query | str], **options: Any) -> tuple[Request, Context]:
        """What `graph` needs to answer `queries`: the state's `request`, and the context. For `astream`, and for those
        who run the graph inside one of their own, where nothing trains in the background. Options and errors are those
        of `router.question.question`.
        """
        from router.question import question

        self._check_open()
        return question(self.settings, self.parts, self.recipes, task, queries, **options)

    def as_tool(self, **options: Any) -> StructuredTool:
        """This router as a LangChain tool that agents can call; see `router.langchain.as_tool`."""
        from router.langchain import as_tool

        return as_tool(self, **options)

    def outlive(self) -> int:
        """For programs that go on where the last one ended, such as a server: keep on disk what is to be trained behind
        answers, texts included, until it is done; and do what a process before this one has left. How much that is.

        Raises:
            StoreError: the data folder can't be read or written to.
        """
        from router.pending import Pending

        folder = self.settings.data_path / "behind"
        with translated(folder):
            return self._behind.keep(Pending(folder, self.parts.engine.loaded.revision))

    @property
    def done_behind(self) -> deque[Receipt]:
        """Receipts of what was done behind answers, the oldest first; take off what you have read."""
        return self._behind.done

    def check_base(self) -> bool:
        """Whether the base model's weights in memory are those of its files; takes about as long as loading it.

        Where they are not, they are loaded anew, and the next receipt says so. A cheaper look is taken by itself,
        each time that an adapter is taken off.
        """
        return self.run(self.parts.engine.check_base())

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing trains behind earlier answers; False when `timeout_s` passed before that."""
        return self._behind.wait(timeout_s)

    @property
    def n_behind(self) -> int:
        """Tasks that are worked on behind answers."""
        return self._behind.n_running

    def feedback(
        self,
        episode_id: str,
        *,
        right: bool | None = None,
        answer: str | None = None,
        query: int | None = None,
        source: str = "user",
    ) -> int:
        """Attach what is now known of an answer: `right`, or the right `answer` for query number `query`.

        Returns:
            How many outcomes are new; saying the same twice adds none.

        Raises:
            NotFound: no such episode.
            RouterError: neither or both of `right` and `answer`, or no such query.
        """
        episodes = self.parts.store.episodes
        _, new = attach_outcomes(episodes, episode_id, right=right, answer=answer, query=query, source=source)
        return new

    async def afeedback(self, episode_id: str, **options: Any) -> int:
        """`feedback` for asynchronous callers."""
        return await asyncio.to_thread(self.feedback, episode_id, **options)

    async def ahear(self, said: Said) -> int:
        """Attach what a conversation said of an earlier answer."""
        if said.answer is None:
            return await self.afeedback(said.episode_id, right=said.right)
        return await self.afeedback(said.episode_id, answer=said.answer)

    def explain(self, episode_id: str) -> Receipt:
        """The receipt of an earlier answer.

        Raises:
            NotFound: no such episode.
        """
        return Receipt.from_dict(self.parts.store.episodes.get(episode_id).receipt)

    def history(self, limit: int = 20) -> Sequence[EpisodeRow]:
        """The latest episodes, newest first."""
        return self.parts.store.episodes.recent(limit)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for asynchronous work of `ttt` (say, `router.run(router.parts.engine.base_hash())`)."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Finish what is queued, remember this machine's speeds, free the model; a second time does nothing."""
        from router.bootstrap import save_costs

        if self._loop.is_closed():
            return
        self._behind.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)
        self._loop.close()
        if self.parts.worker is not None:
            self.parts.worker.close()
        self.parts.engine.close()
        self.parts.store.close()
        save_costs(self.parts)

    def _check_open(self) -> None:
        if self._loop.is_closed():
            raise RouterError("This router is closed; open a new one with Router.open().")

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _leaves_more(receipt: Receipt) -> bool:
    """Whether a training behind the answer may be of use: there is no adapter yet, or a shorter training's."""
    looked = receipt.step("look-up")
    return not receipt.adapter or (looked is not None and READY in looked.detail)


def _receipt(last: Event) -> Receipt:
    if not isinstance(last, Done):
        raise RouterError(
            f"The answer ended with {type(last).__name__} instead of a receipt; please report this."
        )
    return last.receipt
