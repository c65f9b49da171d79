"""A chat that is corrected: what it learns, keeps, and goes on with after it was broken off."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from policies.errors import PolicyError
from router.agent import Router
from router.chat import Chat
from router.cli.main import main
from router.errors import RouterError
from router.events import AnswerGrew, TrainingStep
from router.memory import FILE
from store.errors import NotFound
from tests.router.conftest import TRUSTING, OpenRouter
from tests.router.test_cli import Run, run, tiny_settings
from ttt.errors import ContextOverflow, TaskError
from ttt.task import Demonstration

__all__ = ["run", "tiny_settings"]


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


@pytest.fixture
def chat(agent: Router) -> Iterator[Chat]:
    opened = Chat(agent)
    opened.change(when="never")
    yield opened
    opened.close()


def test_corrections_and_approvals_become_demonstrations_and_outcomes(chat: Chat, agent: Router) -> None:
    chat.say("ab")
    first = chat.receipt
    assert first is not None and first.arm == "zero-shot"
    assert chat.say("no, it should be ok") == "Noted: the task has 1 demonstration now."
    chat.say("cd")
    second = chat.receipt
    assert second is not None and second.arm == "icl"
    assert chat.say("right") == "Noted: the task has 2 demonstrations now."
    assert chat.task.demonstrations == (Demonstration("ab", "ok"), Demonstration("cd", second.texts[0]))
    outcomes = agent.parts.store.episodes.outcomes
    assert [(o.answer, o.source) for o in outcomes(first.episode_id)] == [("ok", "user")]
    assert [o.value for o in outcomes(second.episode_id)] == [1.0]


def test_a_long_conversation_is_kept_once_and_not_once_a_turn(chat: Chat, agent: Router) -> None:
    def checkpoints() -> list[tuple[str, int]]:
        with closing(sqlite3.connect(agent.settings.data_path / FILE)) as file:
            query = "SELECT thread_id, count(*) FROM checkpoints GROUP BY thread_id"
            return [(str(name), int(n)) for name, n in file.execute(query)]

    chat.demonstrate("ab", "ok")
    for _ in range(3):
        chat.say("cd")
        chat.say("right")
    assert checkpoints() == [("chat:last", 1)]
    again = Chat(agent)
    assert len(again.talk["messages"]) == 12 and again.talk == chat.talk
    again.close()


def test_what_was_said_is_there_after_a_restart_and_by_name(agent: Router) -> None:
    first = Chat(agent, "dates")
    first.demonstrate("3 March", "03-03")
    first.say("ab")
    first.save("kept")
    first.say("it should be ok")
    first.close()
    again = Chat(agent, "kept")
    assert len(again.task.demonstrations) == 2 and again.names()[0] == "kept"
    again.load("dates")
    assert len(again.task.demonstrations) == 1 and len(again.talk["messages"]) == 2
    with pytest.raises(RouterError, match="a conversation 'kept' already; choose another name, or /load it"):
        again.save("kept")
    again.save("dates")
    assert again.name == "dates"
    again.begin()
    assert again.task.demonstrations == ()
    with pytest.raises(NotFound, match="'none such'.*dates"):
        again.load("none such")
    again.close()


def test_a_chat_is_corrected_until_it_trains_and_then_uses_the_adapter(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    chat = Chat(agent)
    chat.change(when="never")
    for text in ("ab", "cd", "ef", "gh", "ij", "kl"):
        chat.say(text)
        chat.say("correction: ok")
    chat.change(when="wait")
    seen: list[Any] = []
    chat.say("mn", seen.append)
    assert any(isinstance(e, TrainingStep) for e in seen)
    assert chat.receipt is not None and chat.receipt.arm == "train:quick"
    chat.say("op")
    assert chat.receipt.arm.startswith("reuse:"), "an answer nobody approved does not change the task"
    chat.close()


def test_what_can_not_be_answered_is_as_if_it_had_not_been_said(chat: Chat) -> None:
    chat.demonstrate("a", "b")
    before = chat.talk
    with pytest.raises(ContextOverflow):
        chat.say("x" * 5000)
    assert chat.talk == before and not chat.unanswered
    assert chat.say("ab") == chat.talk["messages"][-1][1]


def test_impossible_options_and_demonstrations_change_nothing(chat: Chat) -> None:
    before = chat.talk
    changes: list[tuple[type[Exception], Callable[[], None]]] = [
        (PolicyError, lambda: chat.change(prefer="cheap")),
        (RouterError, lambda: chat.change(when="later")),
        (TaskError, lambda: chat.demonstrate("a", " ")),
        (RouterError, chat.wrong),
    ]
    for error, change in changes:
        with pytest.raises(error):
            change()
    assert chat.talk == before


def test_approvals_after_examples_that_ask_nothing_speak_of_no_answer(chat: Chat, agent: Router) -> None:
    examples = "a -> 1\nb -> 2"
    assert chat.say(examples) == "Noted: the task has 2 demonstrations now."
    assert not chat.has_answer and chat.say("right").startswith("Noted: the task has 2")
    chat.say("cd")
    assert chat.has_answer and chat.receipt is not None
    episode = chat.receipt.episode_id
    chat.say(examples)
    assert not chat.has_answer
    with pytest.raises(RouterError, match="no answer to speak of"):
        chat.wrong()
    chat.say("perfect")
    assert not agent.parts.store.episodes.outcomes(episode) and len(agent.history()) == 1


def test_a_reply_grows_where_nothing_can_replace_it(chat: Chat) -> None:
    grown: list[str] = []
    reply = chat.say("ab", lambda e: grown.append(e.text) if isinstance(e, AnswerGrew) else None)
    assert grown and all(reply.startswith(text) for text in grown)


BROKEN_OFF = """
import os, signal, sys
from router.agent import Router
from router.chat import Chat
from router.events import Started
with Router.open(model=sys.argv[1], data_dir=sys.argv[2], device="cpu", dtype="float32") as router:
    chat = Chat(router)
    chat.demonstrate("a", "b")
    chat.say("ab", lambda event: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture
def broken_off(tiny_llama: Path, tmp_path: Path) -> None:
    """A conversation `last` that was killed while "ab" was answered."""
    command = [sys.executable, "-c", BROKEN_OFF, str(tiny_llama), str(tmp_path / "data")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_a_chat_killed_in_the_middle_of_an_answer_goes_on_with_it(
    broken_off: None, open_router: OpenRouter
) -> None:
    chat = Chat(open_router())
    assert chat.unanswered == "ab"
    assert chat.go_on() == chat.talk["messages"][-1][1]
    assert not chat.unanswered and chat.receipt is not None and chat.receipt.arm == "icl"
    chat.close()


def test_a_chat_that_was_broken_off_goes_on_as_its_options_say_now_and_where_it_is_loaded(
    broken_off: None, open_router: OpenRouter
) -> None:
    agent = open_router()
    chat = Chat(agent)
    chat.change(when="never", prefer="fast")
    chat.save("kept")
    assert chat.unanswered == "ab"
    assert [m[1] for m in chat.talk["messages"]] == ["ab"] and chat.go_on()
    assert len(chat.talk["messages"]) == 2 and chat.talk["prefer"] == "fast"
    chat.load("last")
    assert chat.unanswered == "ab" and chat.go_on() and not chat.unanswered
    chat.close()


def test_the_terminal_chat_goes_on_with_what_was_broken_off_after_load(
    broken_off: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "/load last", "/history")
    ran = run("chat", "-c", "another")
    assert "Going on with" in ran.err and len(ran.out.splitlines()) == 1, ran.err
    assert "assistant" in ran.err


def test_the_terminal_chat_goes_on_also_where_an_option_was_changed(
    broken_off: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "/history")
    ran = run("chat", "--mode", "never", "--prefer", "fast")
    assert ran.code == 0 and "Going on with" in ran.err and "error" not in ran.err
    assert len(ran.out.splitlines()) == 1 and "assistant" in ran.err


# ------------------------------------------------------------------------------------------- on the terminal


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_terminal_chat_answers_on_stdout_and_obeys_commands(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(
        monkeypatch,
        "/right",
        "/demo ab => ok",
        "/demo cd",
        "Say:\\",
        "x -> 1\\",
        "y -> 2\\",
        "z ->",
        "/demos",
        "/why",
        "/cost",
        "/wrong",
        "/wrong 3",
        "/prefer fast",
        "/prefer cheap",
        "/mode never",
        "/save mine",
        "/history",
        "/load other",
        "/nonsense",
        "/help",
        "/new",
        "/quit",
        "not read any more",
    )
    ran = run("chat", "--mode", "never")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 1, "commands are told on stderr"
    for said in (
        "There is no answer to speak of; ask something first.",
        "Noted: the task has 1 demonstration now.",
        "Message 1: 2 example(s) written as x -> y, and the query 'z'.",
        '"/demo cd" is no command, or lacks something',
        '"ab" => "ok"',
        '"x" => "1"',
        "icl answered 1 query in",
        "1 answer in this session",
        'user       "Say:',
        "Noted as wrong.",
        "Noted: the task has 4 demonstrations now.",
        "Preference: fast.",
        "error: Unknown preference 'cheap'",
        "going on as 'mine'",
        "No conversation 'other'; there are: mine, last.",
        "/mode wait|background|never",
        "Forgotten.",
    ):
        assert said in ran.err, ran.err


def test_the_end_of_input_ends_the_chat_and_the_next_one_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "/demo ab -> ok", "cd")
    assert "'last', 0 messages" in run("chat", "--mode", "never").err
    typed(monkeypatch, "/demos")
    again = run("chat")
    assert "'last', 2 messages" in again.err and '"ab" => "ok"' in again.err
    assert main(["chat", "--mode", "later"]) == 2


def test_replies_go_to_stdout_at_once_also_where_stderr_is_a_terminal(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """A live line on the terminal takes over what others print, unless it is told not to."""
    import pty

    ours, theirs = pty.openpty()
    program = "import sys; from router.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "chat", "--mode", "never", "--model", str(tiny_llama)]
    told = os.environ | {"OMP_NUM_THREADS": "1", "TTT_ROUTER_DATA_DIR": str(tmp_path), "TERM": "xterm"}
    with subprocess.Popen(
        command, env=told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"/demo ab => ok\ncd\n/quit\n")
        process.stdin.close()
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal whose other side has left
            while piece := os.read(ours, 4096):
                shown += piece
        replied = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0
    assert len(replied.splitlines()) == 1 and replied.strip()
    assert "icl, " in shown.decode() and replied.strip() not in shown.decode()
