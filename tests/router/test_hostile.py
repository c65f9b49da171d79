"""What comes in from outside and means harm: texts that blow up a parser, bodies that are bombs, floods of outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from policies.errors import PolicyError
from router import metrics
from router.agent import Router
from router.cli.main import MAX_MESSAGE, main
from router.conversation import Message, correction, is_approval, read_conversation
from router.examples import parse_examples
from router.settings import Settings
from router.versions import in_force, promote, save_fitted
from store import OutcomeRow
from tests.policies.simulated import simulate
from tests.router.conftest import QUERIES, TASK, OpenRouter
from tests.router.server import Running, running
from ttt.content import read_rows
from ttt.errors import TaskError
from ttt.task import MAX_CHARACTERS, Demonstration, Task

N = 100_000
LONG_TEXTS = [
    "a" * N,
    "\n" * N,
    " " * N + "x",
    "Input: x\n" * N,
    "Input: x" + "\ny" * N,
    "Input: x\nOutput: y\n" * N + "Output: z",
    "| a " * N,
    "| a | b |\n" * N,
    "| input | output |\n|---|---|\n" + "| \\| | b |\n" * N,
    "{" * N,
    '{"input": ' * N,
    '{"input": "a"}\n' * N,
    "a -> b\n" * N,
    "a ->" + " " * N + "b\n",
    "-> " * N,
    "input,output\n" + '"' * N,
    "input,output\n" + "a,b\n" * N,
    "no, " + " " * N,
    "no" + ",.:;" * N + "it",
    "it" + " " * N + "should",
    "it should be" + ":" * N,
    "right" + "!" * N + "?",
    "yes, " * N,
    "Options:\n(A) x\n" * N,
    "Options:\n" + "(A) x\n" * N + "y",
    "0 " * N + " ",
    "0 0\n" * N + "00",
    "1," * N + "5",
    "1,234" * N,
    "e̩̍" * N,
]


def parsers() -> dict[str, Callable[[str], object]]:
    judge = metrics.metric("numeric")
    return {
        "examples": parse_examples,
        "correction": correction,
        "approval": is_approval,
        "conversation": lambda text: read_conversation([Message("user", text)]),
        "cells": read_rows,
        "numbers": lambda text: judge(text, "5"),
    }


@pytest.mark.parametrize("name", parsers())
def test_no_text_takes_a_parser_long(name: str) -> None:
    parse = parsers()[name]
    for text in LONG_TEXTS:
        started = time.process_time()
        try:
            parse(text)
        except ValueError as error:
            assert str(error)
        assert time.process_time() - started < 5, f"{text[:40]!r}…"


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


@pytest.mark.parametrize(
    "task",
    [
        Task(tuple(Demonstration(f"input {i}", "ok") for i in range(3000)), "Say ok."),
        Task(tuple(Demonstration("a" * MAX_CHARACTERS, f"{i}") for i in range(2)), "Count."),
        Task(tuple(Demonstration(f"{i} " + "0 " * 50_000 + "1", "0 1") for i in range(3))),
        Task((Demonstration("☃" * MAX_CHARACTERS, "x"), Demonstration("y", "z")), "x" * MAX_CHARACTERS),
    ],
    ids=["many", "long", "wide", "an instruction longer than the context"],
)
def test_a_large_task_is_answered_or_refused_within_its_deadline(agent: Router, task: Task) -> None:
    started = time.perf_counter()
    try:
        receipt = agent.ask(task, ["input 5"], deadline_s=20, max_tokens=3)
        assert receipt.texts
    except TaskError as error:
        assert len(str(error)) < 500
    assert time.perf_counter() - started < 120
    assert agent.ask(TASK, QUERIES, arm="icl").texts, "the next question is answered as ever"


def test_a_task_above_the_bounds_is_refused_before_anything_is_done(agent: Router) -> None:
    task = Task((Demonstration("a" * (MAX_CHARACTERS + 1), "b"),))
    with pytest.raises(TaskError, match="shorten it"):
        agent.ask(task, ["x"])
    assert agent.parts.store.episodes.recent(5) == []


@pytest.fixture
def server(agent: Router) -> Iterator[Running]:
    with running(agent) as found:
        yield found


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"model": "icl", "messages": ' + b"[" * 10**5,
        b'{"model": "icl", "max_tokens": '
        + b"9" * 10**5
        + b', "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "icl", "ttt_router": {"worth_s": 1e999}, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "icl", "ttt_router": {"deadline_s": NaN}, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "reuse:../../etc/passwd", "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "icl", "ttt_router": {"recipe": "/etc/passwd"}, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "icl", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_body_that_is_a_bomb_is_an_answer_with_a_status_and_the_server_goes_on(
    server: Running, body: bytes
) -> None:
    started = time.perf_counter()
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text and answer.json()["error"]["message"]
    assert time.perf_counter() - started < 20
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_message_longer_than_a_context_is_refused_by_its_length(server: Running) -> None:
    body = {"model": "icl", "messages": [{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert 400 <= answer.status_code < 500 and "shorten it" in answer.text


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2F..%2Fetc", "a/../../b", "\x00", "x" * 5000])
def test_no_name_from_outside_leads_out_of_a_folder(server: Running, name: str) -> None:
    try:
        answer = httpx.get(f"{server.url}/v1/episodes/{name}")
    except httpx.InvalidURL:
        return
    assert answer.status_code in (400, 404, 414, 422) and "root:" not in answer.text


def test_a_flood_of_outcomes_moves_no_policy_past_the_gate(agent: Router) -> None:
    """Fitting is asked for, promoting needs evidence on families of its own; outcomes alone decide nothing."""
    opened = agent.parts.store
    before = in_force(opened, Settings())
    told = agent.ask(TASK, QUERIES, arm="icl")
    for i in range(2000):
        opened.episodes.add_outcome(OutcomeRow(told.episode_id, "user", float(i % 2), f"flood-{i}"))
    assert in_force(opened, Settings()) == before
    assert opened.policy_versions.active() is None and opened.policy_versions.list() == []
    policy, _ = save_fitted(opened, simulate(60, 2, seed=1).rows)
    assert opened.policy_versions.active() is None
    with suppress(PolicyError):  # or a verdict; in no case a promotion
        assert not promote(opened, policy.version, [], Settings(worth_s=5.0))[1].promote
    assert opened.policy_versions.active() is None and in_force(opened, Settings())[0] == before[0]


def test_an_error_that_quotes_a_huge_value_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTT_ROUTER_PREFER", "x" * 100_000)
    monkeypatch.setenv("TTT_ROUTER_DATA_DIR", str(tmp_path))
    assert main(["solve", "none.json"]) != 0
    assert len(capsys.readouterr().err) < MAX_MESSAGE + 100
