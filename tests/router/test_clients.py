"""Whole conversations by clients that people have: OpenAI's for Python and JavaScript, and LangChain's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from router.agent import Router
from tests.router.conftest import OpenRouter
from tests.router.server import Running, running

NODE = Path(__file__).resolve().parents[2] / "examples/node"
CORRECT = "no, it should be ok"


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


@pytest.fixture
def server(agent: Router) -> Iterator[Running]:
    with running(agent) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_corrects_answers_and_the_next_ones_have_the_demonstrations(
    server: Running, agent: Router, stream: bool
) -> None:
    ask = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).chat.completions
    talk: list[Any] = [{"role": "system", "content": "Say the word."}]

    def say(text: str) -> dict[str, Any]:
        talk.append({"role": "user", "content": text})
        asked: dict[str, Any] = {"model": "icl", "messages": talk, "max_tokens": 5}
        if stream:
            chunks = list(ask.create(**asked, stream=True))
            reply = "".join(c.choices[0].delta.content or "" for c in chunks)
            account = (chunks[-1].model_extra or {})["ttt_router"]
        else:
            whole = ask.create(**asked)
            reply, account = whole.choices[0].message.content or "", (whole.model_extra or {})["ttt_router"]
        talk.append({"role": "assistant", "content": reply})
        return dict(account)

    arms, episodes = [], []
    for query in ("ab", "cd", "ef"):
        account = say(query)
        arms.append(account["arm"])
        episodes.append(account["episode_id"])
        assert say(CORRECT)["episode_id"] == account["episode_id"]
    assert arms == ["zero-shot", "icl", "icl"] and len(set(episodes)) == 3
    assert say("gh")["n_demonstrations"] == 3
    for episode in episodes:
        (outcome,) = agent.parts.store.episodes.outcomes(episode)
        assert outcome.answer == "ok"


@pytest.mark.parametrize("stream", [False, True])
def test_langchains_client_corrects_answers_and_reads_arm_and_episode(
    server: Running, agent: Router, stream: bool
) -> None:
    """Its message class has no place for further fields of a body, so both are read from the response's headers,
    which come whole, and with a stream the episode."""
    model = ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model="icl",
        max_retries=0,
        max_completion_tokens=5,
        include_response_headers=True,
    )
    talk: list[BaseMessage] = [SystemMessage("Say the word.")]

    def say(text: str) -> dict[str, str]:
        talk.append(HumanMessage(text))
        if stream:
            first, *rest = model.stream(talk)
            reply = first
            for chunk in rest:
                joined = reply + chunk
                assert isinstance(joined, AIMessageChunk)
                reply = joined
            headers = reply.response_metadata["headers"]
            talk.append(AIMessage(reply.content))
        else:
            whole = model.invoke(talk)
            headers = whole.response_metadata["headers"]
            talk.append(whole)
        return dict(headers)

    first = say("ab")
    noted = say(CORRECT)
    second = say("cd")
    assert noted["x-ttt-router-episode"] == first["x-ttt-router-episode"]
    if not stream:
        assert (first["x-ttt-router-arm"], second["x-ttt-router-arm"]) == ("zero-shot", "icl")
    receipt = agent.explain(second["x-ttt-router-episode"])
    kept = agent.parts.store.episodes.task(receipt.fingerprint)
    assert receipt.arm == "icl" and kept.demonstrations == (("ab", "ok"),)


def test_openais_client_for_javascript_reads_answers_streams_arms_episodes_and_errors(
    server: Running, agent: Router
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules/openai").is_dir():
        pytest.skip("the npm package openai is not installed: make examples/node/node_modules")
    done = subprocess.run(
        [node, "few_shot.mjs", f"{server.url}/v1", "icl"],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, streamed, corrected, refused = map(json.loads, done.stdout.splitlines())
    assert whole["arm"] == streamed["arm"] == "icl" and whole["text"] == streamed["text"]
    assert whole["header"] == whole["episode"] != streamed["episode"]
    assert whole["usage"] == streamed["usage"] and whole["usage"]["completion_tokens"] > 0
    for told in (whole, streamed):
        receipt = agent.explain(told["episode"])
        assert receipt.texts[0].startswith(told["text"]) and receipt.arm == "icl"
    assert corrected["demonstrations"] == 3 and corrected["text"].startswith("Noted:")
    assert corrected["episode"] in (whole["episode"], streamed["episode"]), "both gave the same answer"
    (outcome,) = agent.parts.store.episodes.outcomes(corrected["episode"])
    assert outcome.answer == "2007-07-07"
    assert refused == {"refused": 400, "param": "n", "name": "BadRequestError"}
