"""Which answers were our own: found again in any copy of a conversation, and forgotten past a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import memory
from router.conversation import Message
from router.memory import open_memory, open_saver, threads


def talk(number: int) -> list[Message]:
    return [Message("user", f"question {number}")]


def with_reply(number: int) -> list[Message]:
    return [*talk(number), Message("assistant", "answer"), Message("user", "more")]


async def test_an_answer_is_known_again_in_a_copy_and_after_a_restart_but_not_when_changed(
    tmp_path: Path,
) -> None:
    async with open_memory(tmp_path) as kept:
        await kept.remember(talk(1), {}, "answer", "e1")
    async with open_memory(tmp_path) as kept:
        assert await kept.recall(with_reply(1)) == {1: "e1"}
        changed = [*talk(1), Message("assistant", "another"), Message("user", "more")]
        assert await kept.recall(changed) == await kept.recall(with_reply(2)) == {}


@pytest.mark.parametrize("places", [(), (0,), (2,), (0, 3)])
async def test_an_answer_is_known_again_whatever_system_messages_say_and_wherever_they_stand(
    tmp_path: Path, places: tuple[int, ...]
) -> None:
    async with open_memory(tmp_path) as kept:
        await kept.remember([Message("system", "It is 9:00."), *talk(1)], {}, "answer", "e1")
        said = with_reply(1)
        first = [Message("system", "It is 9:01."), *said]
        assert await kept.recall(first) == {2: "e1"}
        await kept.remember(first, {2: "e1"}, "further", "e2")
        said += [Message("assistant", "further"), Message("user", "right")]
        for place in places:
            said.insert(place, Message("system", f"It is 9:0{place}."))
        own = await kept.recall(said)
        assert [(said[place].content, episode) for place, episode in own.items()] == [
            ("answer", "e1"),
            ("further", "e2"),
        ]


async def test_past_the_limit_the_oldest_answers_are_forgotten_and_chats_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FORGOTTEN", 4)
    async with open_memory(tmp_path, kept=6) as kept:
        for number in range(5):
            await kept.remember(talk(number), {}, "answer", f"e{number}")
        async with open_saver(tmp_path) as saver:
            assert len(await threads(saver)) == 5
    async with open_memory(tmp_path, kept=6) as kept:
        await kept._graph.ainvoke({"own": {}}, {"configurable": {"thread_id": "chat:mine"}})
        for number in range(5, 10):
            await kept.remember(talk(number), {}, "answer", f"e{number}")
        found = [await kept.recall(with_reply(number)) for number in range(10)]
        assert found == [{}] * 4 + [{1: f"e{number}"} for number in range(4, 10)]
        async with open_saver(tmp_path) as saver:
            names = await threads(saver)
            assert len(names) == 7 and "chat:mine" in names
