"""What is remembered of conversations between requests and over restarts: which answers were our own.

Clients send a whole conversation each time and know nothing of episodes. So each answer is remembered under a
hash of the messages that led to it and itself, as a LangGraph checkpoint in a file of its own: no text is kept,
branches of a conversation keep apart, and any copy of the conversation finds its episodes again. System messages do
not count, since clients write the time into them. The oldest answers are forgotten past a limit; a copy of such a
conversation is then one that somebody else wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from router.conversation import Message
from store.errors import StoreError, translated

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

FILE = "conversations.db"
KEPT = 100_000
"""Answers that are remembered."""
FORGOTTEN = 1000
"""At a time, past that."""
CHAT = "chat:"
"""Before the names of conversations that are kept whole (`router.chat`), which are never forgotten."""


class Turn(TypedDict):
    own: dict[str, str]
    """Place of each assistant message that was ours (as text: keys of JSON), and its episode or nothing. System
    messages are not counted."""


class Memory:
    """Open with `open_memory`."""

    def __init__(self, graph: Any, known: Iterable[str], kept: int = KEPT) -> None:
        """`known`: keys of what is kept already, the oldest first."""
        self._graph, self._known, self._kept = graph, dict.fromkeys(known), kept
        self._writing = asyncio.Lock()

    async def recall(self, messages: Sequence[Message]) -> dict[int, str]:
        """Places of those assistant messages that were answered here, each with its episode; empty for notes.

        Waits for what is being remembered: a reply may be sent before that.
        """
        async with self._writing:
            pass
        spoken = _spoken(messages)
        for last, key in reversed(_keys(messages)):
            if key in self._known:
                with untraced():
                    found = await self._graph.aget_state({"configurable": {"thread_id": key}})
                own = {int(at): episode for at, episode in found.values["own"].items()}
                return {spoken[at]: episode for at, episode in own.items() if at <= last}
        return {}

    async def remember(
        self, messages: Sequence[Message], own: Mapping[int, str], reply: str, episode_id: str
    ) -> None:
        """Keep that `reply` to `messages` was ours."""
        whole = [*messages, Message("assistant", reply)]
        key = _keys(whole)[-1][1]
        whole_own = {**own, len(messages): episode_id}
        values = {str(at): whole_own[p] for at, p in enumerate(_spoken(whole)) if p in whole_own}
        async with self._writing:
            with untraced():
                config = {"configurable": {"thread_id": key}}
                await self._graph.ainvoke({"own": values}, config, durability="exit")
            self._known.pop(key, None)
            self._known[key] = None
            if len(self._known) >= self._kept + FORGOTTEN:
                for old in list(self._known)[: len(self._known) - self._kept]:
                    await self._graph.checkpointer.adelete_thread(old)
                    del self._known[old]


@asynccontextmanager
async def open_memory(folder: Path, kept: int = KEPT) -> AsyncIterator[Memory]:
    """The memory in `folder`, made when there is none, of the last `kept` answers and up to `FORGOTTEN` more.

    Raises:
        StoreError: the file can't be used.
    """
    from langgraph.graph import END, START, StateGraph

    graph: Any = StateGraph(Turn)
    graph.add_node("keep", _keep)
    graph.add_edge(START, "keep")
    graph.add_edge("keep", END)
    async with open_saver(folder) as saver:
        answers = [name for name in reversed(await threads(saver)) if not name.startswith(CHAT)]
        yield Memory(graph.compile(checkpointer=saver), answers, kept)


@asynccontextmanager
async def open_saver(folder: Path) -> AsyncIterator[AsyncSqliteSaver]:
    """The checkpoints in `folder`, for as long as the block lasts, on the running event loop.

    Raises:
        StoreError: the file can't be used.
    """
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    file = folder / FILE
    with translated(file):
        folder.mkdir(parents=True, exist_ok=True)
    async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        try:
            await saver.setup()
        except sqlite3.Error as error:
            raise StoreError(
                f"The conversations in {file} can't be used ({error}); restore a backup or move the file away."
            ) from error
        yield saver


def untraced(tracing: bool = False) -> AbstractContextManager[None]:
    """Within the block LangGraph sends nothing to LangSmith, whatever the environment says, unless `tracing`."""
    from langsmith import tracing_context

    return tracing_context(enabled=None if tracing else False)


async def threads(saver: AsyncSqliteSaver) -> list[str]:
    """Names of all that is kept, the last changed first."""
    query = "SELECT thread_id FROM checkpoints GROUP BY thread_id ORDER BY max(checkpoint_id) DESC"
    return [str(row[0]) for row in await saver.conn.execute_fetchall(query)]


async def keep_latest(saver: AsyncSqliteSaver, thread: str) -> None:
    """Delete how a conversation got where it is: each of its checkpoints holds all that was said before."""
    older = (
        "thread_id = :t AND checkpoint_id < (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = :t)"
    )
    async with saver.lock:
        for table in ("writes", "checkpoints"):
            await saver.conn.execute(f"DELETE FROM {table} WHERE {older}", {"t": thread})  # noqa: S608 - ours, both
        await saver.conn.commit()


async def _keep(state: Turn) -> dict[str, Any]:
    return {}


def _spoken(messages: Sequence[Message]) -> list[int]:
    """Places of all messages but the system's."""
    return [place for place, message in enumerate(messages) if message.role != "system"]


def _keys(messages: Sequence[Message]) -> list[tuple[int, str]]:
    """For each assistant message, its place among those spoken and the hash of these up to it."""
    digest = hashlib.sha256(b"conversation1")
    keys = []
    for at, place in enumerate(_spoken(messages)):
        message = messages[place]
        digest.update(json.dumps([message.role, message.content.strip()]).encode())
        if message.role == "assistant":
            keys.append((at, digest.copy().hexdigest()))
    return keys
