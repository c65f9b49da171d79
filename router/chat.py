"""A chat that learns from being corrected: one conversation with a router, kept over restarts.

The conversation is the state of a small LangGraph graph of one node, `reply`, whose checkpoints lie in a file
of their own. What the user says is kept before it is answered: a chat that ended in the middle of an answer,
or of a training, goes on with it. Knows nothing of terminals (`router.cli.chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from policies.utility import worth
from router.agent import Router
from router.conversation import EXPECTED_REPEATS, Message, Reading, note, read_conversation
from router.errors import RouterError
from router.events import Done, Event
from router.memory import CHAT, keep_latest, open_saver, threads, untraced
from router.receipt import Receipt
from router.state import WHENS, When
from store.errors import NotFound
from ttt.errors import TaskError
from ttt.task import Demonstration, Task

if TYPE_CHECKING:
    from langgraph.runtime import Runtime


NO_ANSWER = "There is no answer to speak of; ask something first."


class Talk(TypedDict, total=False):
    """One conversation, as plain values."""

    messages: list[list[str]]
    """Role and text of each."""
    own: dict[str, str]
    """Place of each answer that was ours, and its episode; empty for one that only took note."""
    demonstrations: list[list[str]]
    """Those given with `/demo`."""
    prefer: str | None
    when: When


@dataclass(frozen=True)
class Listener:
    """Who follows one reply."""

    router: Router
    on_event: Callable[[Event], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    on_reading: Callable[[Reading], None] = lambda _: None
    """Gets how the conversation was understood, before it is answered."""


@dataclass
class Costs:
    """Seconds of this session's answers."""

    by_step: dict[str, float] = field(default_factory=dict)
    answers: int = 0

    def add(self, receipt: Receipt) -> None:
        self.answers += 1
        for step in receipt.steps:
            self.by_step[step.name] = self.by_step.get(step.name, 0.0) + step.seconds

    def add_behind(self, receipt: Receipt) -> None:
        """What nobody waited for."""
        self.by_step["behind"] = self.by_step.get("behind", 0.0) + receipt.seconds


class Chat:
    """One conversation at a time; `close` it before its router."""

    def __init__(self, router: Router, name: str = "last") -> None:
        """Open the conversation called `name`, or begin it."""
        self.router, self.name = router, name
        self.costs = Costs()
        self.receipt: Receipt | None = None
        self.understood: tuple[str, ...] = ()
        """What was recognised in the messages so far, a sentence each."""
        self._open = AsyncExitStack()
        self._saver = router.run(self._open.enter_async_context(open_saver(router.settings.data_path)))
        self._graph: Any = _graph().compile(checkpointer=self._saver)
        self.talk = self._kept(name) or _new()

    # ---------------------------------------------------------------------------------------------- talking

    @property
    def unanswered(self) -> str:
        """What the user said last, where the answer never came; empty otherwise."""
        messages = self.talk["messages"]
        return messages[-1][1] if messages and messages[-1][0] == "user" else ""

    def say(
        self,
        text: str,
        on_event: Callable[[Event], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """The reply to `text`.

        Raises:
            ConversationError, TTTError: it can't be answered; it is as if it had not been said.
        """
        before = self.talk
        changed = {**before, "messages": [*before["messages"], ["user", text]]}
        return self._run(changed, before, on_event, should_stop)

    def go_on(
        self,
        on_event: Callable[[Event], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """The reply to what is unanswered."""
        before = {**self.talk, "messages": self.talk["messages"][:-1]}
        return self._run(self.talk, before, on_event, should_stop)

    @property
    def task(self) -> Task:
        """What was taught so far."""
        messages, own = _plain(self.talk)
        asked = messages if self.unanswered else [*messages, Message("user", "?")]
        return _task(self.talk, read_conversation(asked, own))

    # --------------------------------------------------------------------------------------------- teaching

    @property
    def has_answer(self) -> bool:
        """Whether there is an answer that the user's next message could approve or correct."""
        messages, own = _plain(self.talk)
        approved = [*messages, Message("user", "right")]
        return not self.unanswered and read_conversation(approved, own).latest is not None

    def demonstrate(self, given: str, output: str) -> None:
        """Add a demonstration.

        Raises:
            TaskError: one side is empty.
        """
        if not given.strip() or not output.strip():
            raise TaskError("A demonstration needs an input and an output: /demo INPUT => OUTPUT.")
        self.change(demonstrations=[*self.talk["demonstrations"], [given.strip(), output.strip()]])

    def wrong(self) -> None:
        """The last answer was wrong; the right one is not known.

        Raises:
            RouterError: there is no answer to speak of.
        """
        episodes = [e for e in self.talk["own"].values() if e]
        if not self.has_answer:
            raise RouterError(NO_ANSWER)
        self.router.feedback(episodes[-1], right=False)

    def change(self, **values: Any) -> None:
        """Set options or demonstrations of this conversation.

        Raises:
            PolicyError, RouterError: an unknown preference or time to train.
        """
        if values.get("prefer") is not None:
            worth(values["prefer"])
        if values.get("when", "wait") not in WHENS:
            raise RouterError(f"Unknown mode {values['when']!r}; choose one of: {', '.join(WHENS)}.")
        self._keep({**self.talk, **values})

    # ---------------------------------------------------------------------------------------------- keeping

    def names(self) -> list[str]:
        """Conversations that are kept, the last changed first."""
        found = self.router.run(threads(self._saver))
        return [name.removeprefix(CHAT) for name in found if name.startswith(CHAT)]

    def save(self, name: str) -> None:
        """Go on under another name; what was said so far stays under the old one too.

        Raises:
            RouterError: another conversation has this name.
        """
        if name != self.name and self._kept(name) is not None:
            raise RouterError(f"There is a conversation {name!r} already; choose another name, or /load it.")
        self.name = name
        self._keep(self.talk)

    def load(self, name: str) -> None:
        """Go on with another conversation.

        Raises:
            NotFound: there is none of this name.
        """
        found = self._kept(name)
        if found is None:
            raise NotFound(f"No conversation {name!r}; there are: {', '.join(self.names()) or 'none'}.")
        self.name, self.talk, self.receipt, self.understood = name, found, None, ()

    def begin(self) -> None:
        """Forget what was said and taught, under this name; preference and mode stay."""
        self._keep({**_new(), "prefer": self.talk["prefer"], "when": self.talk["when"]})
        self.receipt, self.understood = None, ()

    def close(self) -> None:
        self.router.run(self._open.aclose())

    # ------------------------------------------------------------------------------------------------------

    def _run(
        self,
        talk: Mapping[str, Any],
        before: Mapping[str, Any],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> str:
        def follow(event: Event) -> None:
            if isinstance(event, Done):
                self.receipt = event.receipt
                self.costs.add(event.receipt)
            on_event(event)

        def read(reading: Reading) -> None:
            self.understood = reading.understood

        listener = Listener(self.router, follow, should_stop, read)
        try:
            state = self._do(
                "ainvoke", dict(talk), self._config(self.name), context=listener, durability="sync"
            )
        except Exception:
            self._keep(before)
            raise
        self.talk = state
        self._forget_the_way()
        return str(self.talk["messages"][-1][1])

    def _kept(self, name: str) -> Talk | None:
        found = self._do("aget_state", self._config(name))
        return found.values or None

    def _keep(self, talk: Mapping[str, Any]) -> None:
        self._do("aupdate_state", self._config(self.name), dict(talk), as_node="reply")
        self.talk = Talk(**talk)  # type: ignore[typeddict-item]
        self._forget_the_way()

    def _forget_the_way(self) -> None:
        self.router.run(keep_latest(self._saver, f"{CHAT}{self.name}"))

    def _do(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Run a method of the graph on the router's loop."""

        async def work() -> Any:
            with untraced(self.router.settings.tracing):
                return await getattr(self._graph, method)(*arguments, **options)

        return self.router.run(work())

    @staticmethod
    def _config(name: str) -> Any:
        return {"configurable": {"thread_id": f"{CHAT}{name}"}}


def _graph() -> Any:
    from langgraph.graph import END, START, StateGraph

    graph: Any = StateGraph(Talk, context_schema=Listener)
    graph.add_node("reply", _reply)
    graph.add_edge(START, "reply")
    graph.add_edge("reply", END)
    return graph


async def _reply(state: Talk, runtime: Runtime[Listener]) -> dict[str, Any]:
    """Answer the last message, or take in what it teaches."""
    listener = runtime.context
    messages, own = _plain(state)
    reading = read_conversation(messages, own)
    listener.on_reading(reading)
    task = _task(state, reading)
    if reading.query is None:
        if reading.latest is not None:
            await listener.router.ahear(reading.latest)
        return _said(state, note(task), "")
    answered: Receipt | None = None
    async for event in listener.router.astream(
        task,
        [reading.query],
        prefer=state["prefer"],
        when=state["when"],
        expected_repeats=max(listener.router.settings.expected_repeats, EXPECTED_REPEATS),
        should_stop=listener.should_stop,
    ):
        listener.on_event(event)
        answered = getattr(event, "receipt", None)
    assert answered is not None  # the last event is always Done
    return _said(state, answered.texts[0], answered.episode_id)


def _said(state: Talk, text: str, episode_id: str) -> dict[str, Any]:
    place = len(state["messages"])
    return {
        "messages": [*state["messages"], ["assistant", text]],
        "own": {**state["own"], str(place): episode_id},
    }


def _new() -> Talk:
    return Talk(messages=[], own={}, demonstrations=[], prefer=None, when="wait")


def _plain(talk: Talk) -> tuple[list[Message], dict[int, str]]:
    messages = [Message("user" if role == "user" else "assistant", text) for role, text in talk["messages"]]
    return messages, {int(place): episode for place, episode in talk["own"].items()}


def _task(talk: Talk, reading: Reading) -> Task:
    told = tuple(Demonstration(*pair) for pair in talk["demonstrations"])
    return Task((*told, *reading.task.demonstrations), reading.task.instruction)
