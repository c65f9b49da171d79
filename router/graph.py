"""The state machine: nodes and edges, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router import asking, nodes, training
from router.context import Context
from router.state import State

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


def build_graph() -> CompiledStateGraph[State, Context, State, State]:
    """Compile the router's graph; run it with `context=Context(...)`."""
    from langgraph.graph import END, START, StateGraph

    graph: Any = StateGraph(State, context_schema=Context)
    graph.add_node("prepare", nodes.prepare)
    graph.add_node("look_up", nodes.look_up)
    graph.add_node("icl", asking.icl)
    graph.add_node("signals", nodes.signals)
    graph.add_node("neighbours", nodes.neighbours)
    graph.add_node("decide", nodes.decide)
    graph.add_node("probe", nodes.probe)
    graph.add_node("train", training.train)
    graph.add_node("guard", nodes.guard)
    graph.add_node("answer", nodes.answer)
    graph.add_node("record", nodes.record)

    graph.add_edge(START, "prepare")
    graph.add_edge("prepare", "look_up")
    graph.add_conditional_edges("look_up", nodes.after_look_up, ["answer", "icl", "neighbours", "decide"])
    graph.add_conditional_edges("icl", nodes.after_icl, ["signals", "decide"])
    graph.add_conditional_edges("signals", nodes.after_signals, ["neighbours", "decide"])
    graph.add_edge("neighbours", "decide")
    graph.add_conditional_edges("decide", nodes.after_decide, ["probe", "train", "answer"])
    graph.add_conditional_edges("probe", nodes.after_probe, ["decide", "answer"])
    graph.add_conditional_edges("train", nodes.after_train, ["guard", "answer"])
    graph.add_edge("guard", "answer")
    graph.add_edge("answer", "record")
    graph.add_edge("record", END)
    return graph.compile(name="ttt-router")  # type: ignore[no-any-return]
