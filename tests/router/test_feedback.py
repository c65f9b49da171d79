"""What is said of an answer is stored once, with its value; what makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pytest

from router.agent import Router
from router.errors import RouterError
from store import OutcomeRow
from store.errors import NotFound, StoreError
from tests.router.conftest import QUERIES, TASK, OpenRouter


@pytest.fixture
def agent(open_router: OpenRouter) -> Router:
    return open_router()


@pytest.fixture
def episode(agent: Router) -> str:
    return agent.ask(TASK, QUERIES, arm="icl").episode_id


def outcomes(agent: Router, episode: str) -> tuple[OutcomeRow, ...]:
    return agent.parts.store.episodes.outcomes(episode)


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_right_or_wrong_counts_for_every_query_unless_one_is_named(
    agent: Router, episode: str, right: bool, value: float
) -> None:
    assert agent.feedback(episode, right=right, query=2) == 1
    assert [(o.query_index, o.value, o.answer) for o in outcomes(agent, episode)] == [(2, value, None)]
    assert agent.feedback(episode, right=right) == 2, "of the third it was said before"
    assert sorted((o.query_index, o.value) for o in outcomes(agent, episode)) == [
        (0, value), (1, value), (2, value),
    ]  # fmt: skip
    assert {o.source for o in outcomes(agent, episode)} == {"user"}


def test_the_right_answer_is_compared_and_kept(agent: Router, episode: str) -> None:
    given = agent.explain(episode).texts
    assert agent.feedback(episode, answer=f"  {given[0].upper()}", query=0, source="gold") == 1
    assert agent.feedback(episode, answer="something else", query=1) == 1
    stored = [(o.query_index, o.value, o.source, o.answer) for o in outcomes(agent, episode)]
    assert stored == [(0, 1.0, "gold", f"  {given[0].upper()}"), (1, 0.0, "user", "something else")]


def test_an_answer_may_be_the_empty_one(agent: Router, episode: str) -> None:
    agent.feedback(episode, answer="", query=0)
    assert [(o.value, o.answer) for o in outcomes(agent, episode)] == [
        (float(agent.explain(episode).texts[0] == ""), "")
    ]


def test_with_one_query_an_answer_needs_no_number(agent: Router) -> None:
    single = agent.ask(TASK, QUERIES[:1], arm="icl").episode_id
    assert agent.feedback(single, answer="ok") == 1


@pytest.mark.parametrize("said", [{"right": True}, {"right": False, "query": 1}, {"answer": "a", "query": 0}])
def test_saying_the_same_twice_changes_nothing(agent: Router, episode: str, said: dict[str, Any]) -> None:
    assert agent.feedback(episode, **said) > 0
    before = outcomes(agent, episode)
    assert agent.feedback(episode, **said) == 0
    assert agent.feedback(episode[:10], **said) == 0, "the id's beginning names the same episode"
    assert outcomes(agent, episode) == before


def test_another_opinion_or_source_is_added_not_written_over(agent: Router, episode: str) -> None:
    for said in ({"right": True}, {"right": False}, {"right": True}, {"right": False, "source": "judge"}):
        assert agent.feedback(episode, query=0, **said) == 1
        assert agent.feedback(episode, query=0, **said) == 0
    assert [(o.value, o.source) for o in outcomes(agent, episode)] == [
        (1.0, "user"), (0.0, "user"), (1.0, "user"), (0.0, "judge"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ({}, RouterError, "one of the two"),
        ({"right": True, "answer": "a"}, RouterError, "one of the two"),
        ({"answer": "a"}, RouterError, "has 3 queries; say which one"),
        ({"right": True, "query": 3}, RouterError, "numbered 0 to 2; there is no 3"),
        ({"right": True, "query": -1}, RouterError, "there is no -1"),
        ({"right": True, "source": "rumour"}, StoreError, "'rumour'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_stores_nothing(
    agent: Router, episode: str, said: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        agent.feedback(episode, **said)
    assert outcomes(agent, episode) == ()


def test_an_unknown_episode_is_named(agent: Router) -> None:
    with pytest.raises(NotFound, match="'nothing here'"):
        agent.feedback("nothing here", right=True)


def test_feedback_reaches_an_episode_from_another_router(
    agent: Router, episode: str, open_router: OpenRouter
) -> None:
    assert open_router().feedback(episode, right=True, query=0) == 1
    assert agent.feedback(episode, right=True, query=0) == 0
