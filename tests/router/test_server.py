"""The server from outside: OpenAI's own client, LangChain's, and requests that no client would send."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from router.agent import Router
from router.errors import SettingsError
from router.server.options import ServerOptions
from router.server.run import JsonLines
from tests.router.conftest import LONG, QUERIES, TASK, TRUSTING, OpenRouter, base_hash
from tests.router.server import PAIRS, Running, conversation, running


def few_shot(query: str, pairs: list[tuple[str, str]] = PAIRS, system: str = TASK.instruction) -> list[Any]:
    """A task as messages."""
    return [*conversation(pairs, system), {"role": "user", "content": query}]


def client(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


@pytest.fixture
def server(agent: Router) -> Iterator[Running]:
    with running(agent) as found:
        yield found


def post(server: Running, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60, **options)


# ------------------------------------------------------------------------------------------------- clients


def test_openais_client_gets_what_the_router_answers_with_arm_and_episode(
    server: Running, agent: Router
) -> None:
    raw = client(server).chat.completions.with_raw_response.create(model="icl", messages=few_shot("uv"))
    answer = raw.parse()
    receipt = agent.ask(TASK, ["uv"], arm="icl")
    assert answer.choices[0].message.content == receipt.texts[0]
    account = answer.model_extra["ttt_router"] if answer.model_extra else {}
    assert account["arm"] == raw.headers["x-ttt-router-arm"] == "icl"
    assert account["episode_id"] == raw.headers["x-ttt-router-episode"]
    assert account["cost_s"] > 0 and float(raw.headers["x-ttt-router-cost-s"]) >= 0
    assert account["reason"] and raw.headers["x-ttt-router-reason"]
    assert agent.explain(account["episode_id"]).texts == receipt.texts
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens == receipt.prompt_tokens
    assert usage.completion_tokens == receipt.answers[0].n_tokens


@pytest.mark.parametrize("model", ["auto", "icl", "zero-shot", "ttt"])
def test_a_stream_says_the_same_as_the_whole_answer(server: Running, model: str) -> None:
    ask = client(server)
    knobs = {"ttt_router": {"when": "wait"}} if model == "ttt" else {}
    asked: dict[str, Any] = {
        "model": model,
        "messages": few_shot("uv"),
        "extra_body": knobs,
        "max_tokens": 20,
    }
    whole = ask.chat.completions.create(**asked)
    chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert model != "zero-shot" or len(chunks) > 5, "it comes token by token"
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    accounts = [c.model_extra["ttt_router"] for c in chunks if c.model_extra]
    assert len(accounts) == len(chunks) and len({a["episode_id"] for a in accounts}) == 1
    assert whole.model_extra and accounts[-1]["arm"].partition(":")[0] in (
        "icl",
        "zero-shot",
        "train",
        "reuse",
    )


def test_langchains_chat_model_talks_to_it(server: Running) -> None:
    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="icl", max_retries=0)  # type: ignore[arg-type]
    messages = [(m["role"], m["content"]) for m in few_shot("uv")]
    whole = model.invoke(messages)
    assert "".join(str(c.content) for c in model.stream(messages)) == whole.content
    assert whole.usage_metadata is not None and whole.usage_metadata["input_tokens"] > 0


def test_completions_read_examples_in_the_prompt(server: Running, agent: Router) -> None:
    prompt = "".join(f"Q: {x}\nA: {y}\n\n" for x, y in PAIRS) + "Q: uv\nA:"
    ask = client(server).completions
    answer = ask.create(model="icl", prompt=f"{TASK.instruction}\n\n{prompt}")
    assert answer.choices[0].text == agent.ask(TASK, ["uv"], arm="icl").texts[0]
    assert answer.model_extra and answer.model_extra["ttt_router"]["n_demonstrations"] == len(PAIRS)
    streamed = "".join(
        c.choices[0].text
        for c in ask.create(model="icl", prompt=f"{TASK.instruction}\n\n{prompt}", stream=True)
    )
    assert streamed == answer.choices[0].text


@pytest.mark.parametrize(
    "prompt", ["Q: What is 12*12?\nA: Let's think step by step.", "Q: a\nA: b\nQ: c\nA: d e"]
)
def test_a_prompt_that_ends_in_the_middle_of_an_answer_is_a_plain_prompt(
    server: Running, prompt: str
) -> None:
    answer = client(server).completions.create(model="auto", prompt=prompt, max_tokens=3)
    account = (answer.model_extra or {})["ttt_router"]
    assert account["arm"] == "zero-shot" and account["n_demonstrations"] == 0 and not account["understood"]


def test_stop_strings_end_the_answer_in_both_forms(server: Running) -> None:
    ask = client(server).chat.completions
    asked: dict[str, Any] = {"model": "zero-shot", "messages": few_shot("uv", []), "max_tokens": 30}
    text = ask.create(**asked).choices[0].message.content or ""
    assert len(text) > 4
    stop = text[3:5]
    cut = ask.create(**asked, stop=[stop])
    assert cut.choices[0].message.content == text.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    chunks = ask.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text.partition(stop)[0]


# -------------------------------------------------------------------------------- learning from corrections


def test_a_correction_is_an_outcome_and_a_demonstration_also_after_a_restart(open_router: OpenRouter) -> None:
    agent = open_router()
    talk: list[Any] = [{"role": "user", "content": "ab"}]

    def say(server: Running) -> Any:
        answer = client(server).chat.completions.create(model="icl", messages=talk, max_tokens=5)
        talk.append({"role": "assistant", "content": answer.choices[0].message.content})
        return answer.model_extra["ttt_router"] if answer.model_extra else {}

    with running(agent) as server:
        first = say(server)
        assert first["n_demonstrations"] == 0
    with running(agent) as server:
        talk.append({"role": "user", "content": "no, it should be ok"})
        noted = say(server)
        assert noted["episode_id"] == first["episode_id"] and noted["arm"] is None
        assert talk[-1]["content"] == "Noted: the task has 1 demonstration now."
        talk.append({"role": "user", "content": "cd"})
        second = say(server)
    assert second["n_demonstrations"] == 1 and second["arm"] == "icl"
    (outcome,) = agent.parts.store.episodes.outcomes(first["episode_id"])
    assert outcome.answer == "ok" and outcome.source == "user"
    kept = agent.parts.store.episodes.task(agent.explain(second["episode_id"]).fingerprint)
    assert kept.demonstrations == (("ab", "ok"),)


def test_a_streamed_note_is_a_stream_like_any_other(server: Running) -> None:
    body: dict[str, Any] = GOOD | {
        "messages": [{"role": "user", "content": "a -> 1\nb -> 2"}],
        "stream": True,
    }
    told = post(server, body | {"stream_options": {"include_usage": True}})
    assert told.headers["cache-control"] == "no-cache" and told.headers["x-accel-buffering"] == "no"
    *_, last, done = [line[6:] for line in told.text.splitlines() if line]
    assert done == "[DONE]" and json.loads(last)["choices"] == []
    assert json.loads(last)["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert "usage" not in post(server, body).text


def test_a_model_is_told_alone_as_in_the_list(server: Running) -> None:
    ask = client(server).models
    assert [ask.retrieve(m.id) for m in ask.list()] == list(ask.list())
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
        ask.retrieve("gpt-4o")


def test_answers_in_the_background_train_once_for_many_clients_and_the_adapter_answers_later(
    open_router: OpenRouter,
) -> None:
    agent = open_router(policy=TRUSTING)
    before = base_hash(agent)
    with running(agent, when="background") as server:
        ask = client(server).chat.completions

        def one(n: int) -> str:
            answer = ask.create(model="auto", messages=few_shot(QUERIES[n % 3]))
            return str((answer.model_extra or {})["ttt_router"]["arm"])

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            arms = list(pool.map(one, range(32)))
        assert all(arm == "icl" or arm.startswith("reuse:") for arm in arms)
        assert agent.settle(120)
        assert one(0).startswith("reuse:")
        names = [m.id for m in client(server).models.list()]
        adapter = next(n for n in names if n.startswith("reuse:"))
        named = ask.create(model=adapter, messages=[{"role": "user", "content": "uv"}])
        same = ask.create(model="auto", messages=few_shot("uv"))
        assert named.choices[0].message.content == same.choices[0].message.content
    assert [r.arm for r in agent.history(100)].count("train:quick") == 1
    assert base_hash(agent) == before


def test_a_request_may_name_a_recipe_and_want_votes(open_router: OpenRouter) -> None:
    agent = open_router()
    with running(agent) as server:
        knobs = {"recipe": "other", "votes": 3}
        told = post(server, {"model": "ttt", "messages": few_shot("uv"), "ttt_router": knobs})
    receipt = agent.explain(told.json()["ttt_router"]["episode_id"])
    vote = receipt.step("vote")
    assert receipt.arm == "train:other" and vote is not None and len(vote.detail["views"]) == 3


def test_the_file_of_a_recipe_is_for_who_starts_the_server_not_for_its_clients(
    open_router: OpenRouter, tmp_path: Path
) -> None:
    """Adapters of its recipe are there by name, for as long as the server knows it."""
    file = tmp_path / "mine.toml"
    file.write_text('base = "quick"\nsteps = 3\n')
    agent = open_router(recipe=str(file))
    trained = agent.ask(TASK, ["uv"], arm="ttt")
    (row,) = agent.parts.store.adapters.list()
    agent.parts.store.adapters.set_accepted(row, True)
    name = f"reuse:{trained.adapter[:12]}"
    body = {"model": name, "messages": [{"role": "user", "content": "uv"}]}
    with running(agent) as server:
        told = post(server, body).json()
        assert told["ttt_router"]["arm"] == name
        assert told["choices"][0]["message"]["content"] == trained.texts[0]
        for path in (str(file), "mine.toml", "mine"):
            refused = post(server, GOOD | {"ttt_router": {"recipe": path}})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "ttt_router.recipe"
    with running(open_router()) as server:
        assert name not in [m.id for m in client(server).models.list()]
        assert post(server, body).status_code == 404


def test_feedback_is_taken_once_and_the_episode_tells_it(server: Running) -> None:
    made = post(server, {"model": "icl", "messages": few_shot("uv")}).json()["ttt_router"]["episode_id"]
    for new in (1, 0):
        said = post(server, {"episode_id": made, "answer": "ok"}, "/v1/feedback")
        assert said.json() == {"episode_id": made, "new": new}
    found = httpx.get(f"{server.url}/v1/episodes/{made}").json()
    assert found["receipt"]["episode_id"] == made and found["outcomes"][0]["answer"] == "ok"
    assert len(found["task"]["demonstrations"]) == len(PAIRS)


# ----------------------------------------------------------------------------------------------- bad input

GOOD = {"model": "icl", "messages": [{"role": "user", "content": "hello"}]}
USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "gpt-4o"}, 404, "no model 'gpt-4o'"),
        ({"model": "reuse:0123456789ab"}, 404, "GET /v1/models"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [USER, USER]}, 400, "Message 2 of 2"),
        (
            {"messages": [USER, {"role": "assistant", "content": "b"}]},
            400,
            "last message is from the assistant",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role 'tool'"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}, USER]},
            400,
            "Message 2 has role 'assistant' or calls tools",
        ),
        ({"messages": [{"role": "system", "content": "s"}]}, 400, "no user message"),
        ({"messages": [{"role": "assistant", "content": "b"}, USER]}, 400, "Message 1 of 2"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "is empty"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "only text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "image_url content",
        ),
        ({"messages": [USER] * 5000}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "shorten the query"),
        ({"n": 2}, 400, "n is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "ten"}, 400, "max_tokens"),
        ({"stream": "yes"}, 400, "stream"),
        ({"ttt_router": {"prefer": "cheap"}}, 400, "prefer"),
        ({"ttt_router": {"prefer": "fast", "worth_s": 3}}, 400, "give one of them"),
        ({"ttt_router": {"tempo": 1}}, 400, "tempo"),
        ({"ttt_router": {"votes": 0}}, 400, "votes"),
        ({"ttt_router": {"votes": 17}}, 400, "votes"),
        ({"model": "ttt"}, 400, "needs demonstrations"),
        ({"ttt_router": {"deadline_s": 1e-9}}, 422, "give more time"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_get_openais_errors_with_the_right_status(
    server: Running, change: dict[str, Any], status: int, says: str, stream: bool
) -> None:
    response = post(server, {"stream": stream} | GOOD | change)
    error = response.json()["error"]
    assert response.status_code == status, error
    assert says in error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"not json", {"content-type": "application/json"}),
        (b'{"model": "\xff"}', {"content-type": "application/json"}),
        (b"[" * 100_000, {"content-type": "application/json"}),
        (b'{"model": "\\ud800", "messages": []}', {"content-type": "application/json"}),
        (
            b'{"model": "icl", "messages": [{"role": "user", "content": "\\ud800"}]}',
            {"content-type": "application/json"},
        ),
        (b"", {}),
    ],
)
def test_bodies_that_are_no_json_are_refused(
    server: Running, content: bytes, headers: dict[str, str]
) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_broken_json_is_no_fault_of_a_parameter(server: Running) -> None:
    response = httpx.post(
        f"{server.url}/v1/chat/completions", content=b"{bad", headers={"content-type": "application/json"}
    )
    error = response.json()["error"]
    assert error["param"] is None and error["message"].startswith("The body is not JSON")


def test_unknown_addresses_methods_and_episodes_are_named(server: Running) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    for unknown in ("abcdef123456", "x", "%00%00"):
        assert httpx.get(f"{server.url}/v1/episodes/{unknown}").status_code == 404
    assert post(server, {"episode_id": "abcdef123456", "right": True}, "/v1/feedback").status_code == 404
    made = post(server, GOOD).json()["ttt_router"]["episode_id"]
    assert post(server, {"episode_id": made}, "/v1/feedback").status_code == 400


def test_a_body_above_the_limit_is_refused_whether_or_not_it_says_its_length(agent: Router) -> None:
    with running(agent, body_limit=1000) as server:
        assert post(server, GOOD | {"user": "x" * 2000}).status_code == 413
        chunked = httpx.post(f"{server.url}/v1/chat/completions", content=(b"x" * 100 for _ in range(30)))
        assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "body_too_large"
        assert post(server, GOOD).status_code == 200


def test_a_missed_deadline_is_told_in_time_and_openais_client_does_not_try_again(
    server: Running, agent: Router
) -> None:
    """Also while another question keeps the engine."""
    ask = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3)
    release = threading.Event()
    agent.parts.engine.submit(lambda bench: release.wait(30))
    started = time.monotonic()
    with pytest.raises(openai.UnprocessableEntityError, match="give more time") as caught:
        ask.chat.completions.create(
            model="icl", messages=few_shot("uv"), extra_body={"ttt_router": {"deadline_s": 1.0}}
        )
    seconds = time.monotonic() - started
    release.set()
    assert 1.0 <= seconds < 1.5 and caught.value.code == "deadline_exceeded"
    assert 'status="422"} 1.0' in httpx.get(f"{server.url}/metrics").text, "asked once"
    assert post(server, GOOD).status_code == 200


def test_a_question_that_waits_for_its_turn_is_told_its_deadline_in_time(agent: Router) -> None:
    release = threading.Event()
    with running(agent, at_once=1) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        agent.parts.engine.submit(lambda bench: release.wait(30))
        first = pool.submit(post, server, GOOD)
        while server.service.in_flight == 0:
            time.sleep(0.01)
        started = time.monotonic()
        second = post(server, GOOD | {"ttt_router": {"deadline_s": 0.5}})
        assert second.status_code == 422 and time.monotonic() - started < 1.0
        release.set()
        assert first.result().status_code == 200


def test_thousands_of_messages_are_answered_within_seconds(server: Running) -> None:
    pairs = [(f"word {i}", "ok") for i in range(2000)]
    started = time.monotonic()
    answer = post(server, {"model": "icl", "messages": few_shot("uv", pairs), "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json()["ttt_router"]["n_demonstrations"] == 2000
    assert any("of 2000 demonstrations" in n for n in answer.json()["ttt_router"]["notes"])
    assert time.monotonic() - started < 30


def test_usage_counts_the_views_that_voted(server: Running, agent: Router) -> None:
    plain, voted = (
        post(server, {"model": "icl", "messages": few_shot("uv"), "ttt_router": {"votes": votes}}).json()
        for votes in (1, 3)
    )
    step = agent.explain(voted["ttt_router"]["episode_id"]).step("vote")
    assert step is not None and len(step.detail["views"]) == 3
    assert voted["usage"]["prompt_tokens"] > 2 * plain["usage"]["prompt_tokens"]
    assert voted["usage"]["completion_tokens"] > plain["usage"]["completion_tokens"]


def test_parameters_without_effect_are_named(server: Running) -> None:
    body = GOOD | {"temperature": 0.7, "seed": 1, "n": 1, "tools": [], "widow": 2, "logprobs": False}
    answer = post(server, body).json()
    assert answer["ttt_router"]["ignored"] == ["seed", "temperature", "widow"]


def test_beyond_this_machine_only_with_a_key_and_then_every_client_needs_it(agent: Router) -> None:
    with pytest.raises(SettingsError, match="0.0.0.0 can be reached.*--api-key"):
        ServerOptions(host="0.0.0.0")
    assert ServerOptions(host="::1").host == "::1"
    with running(agent, api_key="secret") as server:
        for key in ("", "wrong", "Bearer"):
            with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
                client(server, key or "x").models.list()
        assert client(server, "secret").models.list().data
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/healthz").text == "ok\n"


def test_without_a_key_only_names_of_this_machine_are_answered(server: Running) -> None:
    models = f"{server.url}/v1/models"
    for host, status in (
        ("evil.example", 400),
        ("evil.example:80", 400),
        ("[", 400),
        ("localhost:1", 200),
        ("[::1]:1", 200),
    ):
        assert httpx.get(models, headers={"host": host}).status_code == status


# ------------------------------------------------------------------------------------- many, gone, stopped


def test_past_the_queue_there_is_429_with_the_seconds_to_wait(open_router: OpenRouter) -> None:
    agent = open_router(recipe=LONG.name)
    with running(agent, queue=1, drain_s=0.1) as server:
        slow = GOOD | {"model": "ttt", "messages": few_shot("uv"), "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=slow, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            full = post(server, GOOD)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["type"] == "rate_limit_error"
            comments = (line for line in lines if line.startswith(": train step"))
            assert next(comments)
            threading.Thread(target=server.stop).start()
            rest = [json.loads(x[6:]) for x in lines if x.startswith("data: {")]
        told = rest[-1]["error"]
        assert "cancelled" in told["message"] and told["code"] == "shutting_down"


def test_trainings_that_are_waited_for_hold_up_nobodys_answer(open_router: OpenRouter) -> None:
    """Neither the one that trains, nor the one that waits for that."""
    agent = open_router(recipe=LONG.name)
    slow = GOOD | {"model": "ttt", "messages": few_shot("uv"), "stream": True}
    with running(agent, at_once=1, drain_s=0.1) as server, httpx.Client(timeout=60) as asker:
        url = f"{server.url}/v1/chat/completions"
        with asker.stream("POST", url, json=slow) as one, asker.stream("POST", url, json=slow) as other:
            assert next(line for line in one.iter_lines() if line.startswith(": train step"))
            assert other.status_code == 200
            told = post(server, GOOD | {"max_tokens": 3})
            assert told.status_code == 200 and server.service.in_flight >= 2, "both still wait"
            threading.Thread(target=server.stop).start()
            assert any("[DONE]" in line for line in other.iter_lines())


def test_a_client_that_leaves_loses_nothing(open_router: OpenRouter) -> None:
    agent = open_router()
    with running(agent) as server:
        body = GOOD | {"model": "ttt", "messages": few_shot("uv")}
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.Client(timeout=httpx.Timeout(5, read=0.05)) as impatient,
        ):
            impatient.post(f"{server.url}/v1/chat/completions", json=body)
        until = time.monotonic() + 60
        while server.service.in_flight and time.monotonic() < until:
            time.sleep(0.05)
        assert [r.arm for r in agent.history()] == ["train:quick"]


def test_a_client_that_leaves_a_stream_in_the_middle_of_training_loses_nothing(
    open_router: OpenRouter,
) -> None:
    agent = open_router(recipe=LONG.name)
    with running(agent, drain_s=0.1) as server:
        body = GOOD | {"model": "ttt", "messages": few_shot("uv"), "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as stream:
            assert next(line for line in stream.iter_lines() if line.startswith(": train step"))
            episode = stream.headers["x-ttt-router-episode"]
        time.sleep(0.3)
        assert server.service.in_flight == 1, "it trains on"
        assert post(server, GOOD).status_code == 200
    assert agent.parts.store.leases.acquire("anything", "me", 1) is not None
    assert all(r.episode_id != episode for r in agent.history()), "it was stopped before it was done"


def test_when_told_to_stop_it_answers_what_was_admitted_and_takes_no_more(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING, recipe=LONG.name)
    with running(agent, drain_s=0.5) as server:
        body = GOOD | {"model": "auto", "messages": few_shot("uv"), "ttt_router": {"when": "wait"}}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, server, body)
            until = time.monotonic() + 60
            while (
                "train" not in httpx.get(f"{server.url}/metrics").text.partition("training_steps_total{")[2]
            ):
                assert time.monotonic() < until
                time.sleep(0.05)
            server.stop()
            told = answer.result()
        assert told.status_code == 200 and told.json()["ttt_router"]["arm"] == "icl"
        assert "cancelled" in told.json()["ttt_router"]["fallback"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


@pytest.mark.parametrize("votes", [1, 3])
def test_plain_answers_that_were_admitted_are_given_also_past_the_time_for_draining(
    agent: Router, votes: int
) -> None:
    release = threading.Event()
    body = GOOD | {"messages": few_shot("uv"), "max_tokens": 5, "ttt_router": {"votes": votes}}
    with concurrent.futures.ThreadPoolExecutor(3) as pool, running(agent, drain_s=0.0) as server:
        agent.parts.engine.submit(lambda bench: release.wait(60))
        told = [pool.submit(post, server, body) for _ in range(2)]
        until = time.monotonic() + 30
        while server.service.in_flight < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        stopped = pool.submit(server.stop)
        while not server.service._stopping():
            time.sleep(0.01)
        release.set()
        answers = [answer.result() for answer in told]
        stopped.result()
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert {answer.json()["ttt_router"]["arm"] for answer in answers} == {"icl"}


def test_metrics_count_and_logs_tell_no_prompt_unless_asked(
    agent: Router, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the secret words"
    body = GOOD | {"messages": [{"role": "user", "content": secret}]}
    for log_prompts in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "ttt_router"), running(agent, log_prompts=log_prompts) as server:
            assert post(server, body).status_code == 200
            text = httpx.get(f"{server.url}/metrics").text
        lines = [r.getMessage() for r in caplog.records if r.name == "ttt_router.access"]
        assert json.loads(lines[0])["arm"] == "zero-shot" and json.loads(lines[0])["status"] == 200
        assert (secret in caplog.text) is log_prompts
        assert 'ttt_router_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
        assert 'ttt_router_answers_total{arm="zero-shot"} 1.0' in text and secret not in text


def test_log_lines_are_json_with_the_traceback_of_what_failed() -> None:
    record = logging.LogRecord("ttt_router.behind", logging.ERROR, "", 0, "Lost %d\nthings", (2,), None)
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = JsonLines().format(record)
    told = json.loads(line)
    assert "\n" not in line and told["message"] == "Lost 2\nthings" and "ValueError: why" in told["traceback"]
    assert (told["level"], told["logger"]) == ("ERROR", "ttt_router.behind")


def test_ready_until_it_is_told_to_stop(server: Running) -> None:
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    server.service.stop_at = time.monotonic()
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert post(server, GOOD).status_code == 503
    server.service.stop_at = None


def test_the_conversations_file_holds_no_text(server: Running, agent: Router) -> None:
    assert post(server, GOOD | {"messages": few_shot("a very private query")}).status_code == 200
    files = list(Path(agent.settings.data_path).glob("conversations.db*"))
    assert files and not any(b"private" in f.read_bytes() for f in files)
