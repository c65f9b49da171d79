"""A LangGraph agent that has a router as its tool: it corrects the router, and asks again.

    python examples/agent.py

The agent here is scripted, so that the example runs without another language model; a chat model that
calls tools takes the place of `plan`. Model and data folder are those of the settings.
"""

import json
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode

from router.agent import Router

EXAMPLES = [
    {"input": "3 March 2021", "output": "2021-03-03"},
    {"input": "12 May 1999", "output": "1999-05-12"},
]
CORRECTIONS = [{"input": "7 July 2007", "output": "2007-07-07"}]


class Work(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def plan(state: Work) -> Work:
    """Ask once; on the answer, add the correction and ask for more."""
    answers = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    if len(answers) == 2:
        return {"messages": [AIMessage("Done.")]}
    examples = EXAMPLES + CORRECTIONS * len(answers)
    inputs = ["19 December 2020"] if answers else ["7 July 2007"]
    call = {
        "name": "few_shot",
        "args": {"examples": examples, "inputs": inputs},
        "id": f"call-{len(answers)}",
    }
    return {"messages": [AIMessage("", tool_calls=[call])]}


with Router.open() as router:
    graph = StateGraph(Work)
    graph.add_node("plan", plan)
    graph.add_node("tools", ToolNode([router.as_tool(when="never")]))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda s: "tools" if s["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "plan")
    for message in graph.compile().invoke({"messages": []})["messages"]:
        if isinstance(message, ToolMessage):
            told = json.loads(message.content)
            print(f"{told['answers'][0]}  ({told['arm']}, episode {told['episode_id']})")
