"""A router as a LangChain tool, as a chat model, and as a part of a LangGraph graph."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langgraph.graph import END, START, StateGraph

from router.agent import Router
from router.context import Context
from router.errors import ConversationError
from router.langchain import RouterChatModel
from router.receipt import Receipt
from router.state import State
from tests.router.conftest import QUERIES, TASK, OpenRouter
from ttt.errors import TaskError

CALL = {
    "examples": [{"input": d.input, "output": d.output} for d in TASK.demonstrations],
    "inputs": list(QUERIES),
    "instruction": TASK.instruction,
}


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


def talk(*texts: str) -> list[Any]:
    return [AIMessage(t) if i % 2 else HumanMessage(t) for i, t in enumerate(texts)]


def test_the_tool_answers_as_the_router_does_in_both_forms(agent: Router) -> None:
    tool = agent.as_tool(arm="icl")
    receipt = agent.ask(TASK, QUERIES, arm="icl")
    told = json.loads(tool.invoke(CALL))
    assert told["answers"] == list(receipt.texts) and told["arm"] == "icl" and told["reason"]
    assert agent.explain(told["episode_id"]).fingerprint == TASK.fingerprint
    call = {"name": tool.name, "args": CALL, "id": "1", "type": "tool_call"}
    message = asyncio.run(tool.ainvoke(call))
    assert isinstance(message, ToolMessage) and isinstance(message.artifact, Receipt)
    assert message.artifact.texts == receipt.texts
    with pytest.raises(TaskError, match="empty output"):
        tool.invoke(CALL | {"examples": [{"input": "a", "output": ""}]})


def test_the_chat_model_reads_pairs_as_demonstrations_and_says_how_it_answered(agent: Router) -> None:
    model = RouterChatModel(router=agent, arm="icl")
    pairs = [text for d in TASK.demonstrations for text in (d.input, d.output)]
    messages = [SystemMessage(TASK.instruction), *talk(*pairs, "uv")]
    answer = model.invoke(messages)
    assert answer.content == agent.ask(TASK, ["uv"], arm="icl").texts[0]
    account = answer.response_metadata["ttt_router"]
    assert account["arm"] == "icl" and account["cost_s"] > 0
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0
    assert asyncio.run(model.ainvoke(messages)).content == answer.content


def test_streams_of_the_chat_model_add_up_to_its_answer(agent: Router) -> None:
    model = RouterChatModel(router=agent, max_tokens=12)
    whole = model.invoke([HumanMessage("hello")])

    async def streamed() -> list[Any]:
        return [chunk async for chunk in model.astream([HumanMessage("hello")])]

    for chunks in (list(model.stream([HumanMessage("hello")])), asyncio.run(streamed())):
        total = chunks[0]
        for chunk in chunks[1:]:
            total = total + chunk
        assert isinstance(total, AIMessageChunk) and total.content == whole.content and len(chunks) > 2
        assert total.response_metadata["ttt_router"]["arm"] == "zero-shot"
        assert total.usage_metadata == whole.usage_metadata


def test_the_chat_model_hears_corrections_of_its_own_answers(agent: Router) -> None:
    model = RouterChatModel(router=agent, when="never", max_tokens=4)
    first = model.invoke([HumanMessage("ab")])
    said: list[Any] = [HumanMessage("ab"), first, HumanMessage("no, it should be ok")]
    noted = model.invoke(said)
    assert noted.content == "Noted: the task has 1 demonstration now."
    second = model.invoke([*said, noted, HumanMessage("cd")])
    assert second.response_metadata["ttt_router"]["arm"] == "icl"
    episode = first.response_metadata["ttt_router"]["episode_id"]
    assert [o.answer for o in agent.parts.store.episodes.outcomes(episode)] == ["ok"]
    assert "".join(str(c.content) for c in model.stream(said)) == noted.content


def test_what_the_chat_model_does_not_support_is_refused(agent: Router) -> None:
    model = RouterChatModel(router=agent)
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])
    for messages in ([ToolMessage("x", tool_call_id="1")], [image]):
        with pytest.raises(ConversationError, match="Message 1 is of type"):
            model.invoke(messages)
    with pytest.raises(ConversationError, match="Stop strings"):
        model.invoke([HumanMessage("a")], stop=["b"])


def test_the_graph_runs_as_a_part_of_another_graph(agent: Router) -> None:
    class Outer(TypedDict, total=False):
        request: Any
        arm: str
        answers: Any
        shouted: list[str]

    def shout(state: Outer) -> Outer:
        return {"shouted": [a.text.upper() for a in state["answers"].answers]}

    graph: Any = StateGraph(Outer, context_schema=Context)
    graph.add_node("router", agent.graph)
    graph.add_node("shout", shout)
    graph.add_edge(START, "router")
    graph.add_edge("router", "shout")
    graph.add_edge("shout", END)
    request, context = agent.question(TASK, QUERIES, arm="icl")
    compiled = graph.compile()
    state = agent.run(compiled.ainvoke({"request": request}, context=context))
    receipt = agent.explain(request.episode_id)
    assert state["shouted"] == [t.upper() for t in receipt.texts] and state["arm"] == "icl"
    assert set(Outer.__annotations__) - {"shouted"} <= set(State.__annotations__)
