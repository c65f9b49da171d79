"""Arms by name: what each means, what it shows, and that the receipt says what answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.baselines import AlwaysArm
from router.agent import Router
from router.arms import Way, parse_arm
from router.errors import RouterError, SettingsError
from tests.router.conftest import QUERIES, TASK, OpenRouter, base_hash, ok_task, step_names
from ttt.errors import TaskError
from ttt.recipes import RECIPES, Recipe
from ttt.task import Demonstration, Task

LABELS = Task(tuple(Demonstration(f"in {i}", "yes" if i % 2 else "no") for i in range(6)), "Yes or no?")


@pytest.mark.parametrize(
    "name,way",
    [
        ("auto", Way("auto")),
        ("icl:4", Way("icl", shots=4)),
        ("icl:calibrated", Way("icl", calibrated=True)),
        ("icl@5", Way("icl", votes=5)),
        ("icl:3@5", Way("icl", shots=3, votes=5)),
        ("ttt:quick", Way("ttt", recipe="quick")),
        ("ttt:my/own.toml@3", Way("ttt", recipe="my/own.toml", votes=3)),
        ("ttt:short", Way("ttt", short=True)),
        ("ttt:short@5", Way("ttt", short=True, votes=5)),
        ("zero-shot@2", Way("zero-shot", votes=2)),
    ],
)
def test_an_arms_name_says_how_to_answer(name: str, way: Way) -> None:
    assert parse_arm(name) == way


@pytest.mark.parametrize(
    "name",
    ["best", "", "icl:", "icl:0", "icl:-1", "icl:few", "auto:4", "zero-shot:2", "ttt:", "icl@0", "icl@x"],
)
def test_another_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RouterError, match=r"arm|views"):
        parse_arm(name)


def test_fewer_demonstrations_are_a_task_of_fewer(open_router: OpenRouter) -> None:
    agent = open_router()
    four, again = (agent.ask(TASK, QUERIES, arm="icl:4") for _ in range(2))
    assert four.arm == "icl:4" and four.texts == again.texts and step_names(four) == ["icl"]
    step = four.step("icl")
    assert step is not None and step.detail["demonstrations"] == 4 and not four.notes
    assert four.fingerprint == again.fingerprint != TASK.fingerprint
    shown = agent.parts.store.episodes.get(four.episode_id)
    assert shown.fingerprint == four.fingerprint
    all_of_them = agent.ask(TASK, QUERIES, arm="icl:40")
    step = all_of_them.step("icl")
    assert all_of_them.fingerprint == TASK.fingerprint and step is not None
    assert step.detail["demonstrations"] == 6


def test_other_seeds_show_other_demonstrations(open_router: OpenRouter) -> None:
    agent = open_router()
    seen = {agent.ask(TASK, QUERIES[:1], arm="icl:2", seed=seed).fingerprint for seed in range(6)}
    assert len(seen) > 1


def test_votes_in_an_arms_name_are_cast(open_router: OpenRouter) -> None:
    got = open_router().ask(TASK, QUERIES, arm="icl@3")
    step = got.step("vote")
    assert got.arm == "icl" and step is not None and len(step.detail["views"]) == 3


def test_a_recipe_in_an_arms_name_trains(open_router: OpenRouter) -> None:
    agent, other = open_router(), ok_task(5)
    trained = agent.ask(TASK, QUERIES, arm="ttt:other")
    assert trained.arm == "train:other"
    assert agent.ask(TASK, QUERIES, arm="ttt:other", when="background").arm == f"reuse:{trained.adapter[:12]}"
    assert agent.ask(other, QUERIES, arm="ttt:other", when="background").arm == "icl"
    assert agent.settle(120)
    assert [receipt.arm for receipt in agent.history()].count("train:other") == 2


def test_calibrated_labels_come_with_their_prior(open_router: OpenRouter) -> None:
    got = open_router().ask(LABELS, ["in 7", "in 8"], arm="icl:calibrated")
    step = got.step("icl")
    assert got.arm == "icl:calibrated" and set(got.texts) <= {"yes", "no"} and not got.fallback
    assert step is not None and sum(step.detail["prior"].values()) == pytest.approx(1.0)
    assert set(step.detail["prior"]) == {"yes", "no"}


def test_without_a_closed_set_of_labels_calibration_is_left_out_and_told(open_router: OpenRouter) -> None:
    agent = open_router()
    free = Task(tuple(Demonstration(f"in {i}", f"out {i}") for i in range(4)))
    got, plain = agent.ask(free, QUERIES, arm="icl:calibrated"), agent.ask(free, QUERIES, arm="icl")
    assert got.arm == "icl" and "closed set of labels" in got.fallback and got.texts == plain.texts


@pytest.mark.parametrize(
    "options,match",
    [
        ({"arm": "icl:calibrated@3"}, "not voted on"),
        ({"arm": "icl:calibrated", "votes": 3}, "not voted on"),
        ({"arm": "ttt:quick", "recipe": "other"}, "names a recipe"),
        ({"arm": "ttt:quick", "when": "never"}, "trains"),
    ],
)
def test_contradictions_are_refused(open_router: OpenRouter, options: dict[str, object], match: str) -> None:
    with pytest.raises(RouterError, match=match):
        open_router().ask(TASK, QUERIES, **options)


def test_an_answer_grows_in_the_background_with_the_recipe_of_the_arm(open_router: OpenRouter) -> None:
    agent: Router = open_router()
    agent.ask(TASK, QUERIES, arm="ttt:other", when="background")
    assert agent.settle(60)
    again = agent.ask(TASK, QUERIES, recipe="other", arm="ttt")
    assert again.arm.startswith("reuse:"), "what was trained behind is there"


def test_context_tuning_is_trained_kept_and_used_again(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Recipe("context", form="prefix", learning_rate=2e-2, steps=8, batch=3, stop_loss=0.0)
    monkeypatch.setitem(RECIPES, "context", (tuned, tuned))
    agent = open_router()
    before = base_hash(agent)
    first = agent.ask(TASK, QUERIES, arm="ttt:context")
    plain = agent.ask(TASK, QUERIES, arm="icl")
    again = agent.ask(TASK, QUERIES, arm="ttt:context")
    assert first.arm == "train:context" and again.arm.startswith("reuse:") and again.texts == first.texts
    assert [a.logprob for a in first.answers] != [a.logprob for a in plain.answers]
    assert step_names(again) == ["look-up", "answer"] and base_hash(agent) == before
    voted = agent.ask(TASK, QUERIES, arm="ttt:context@3")
    assert voted.texts == first.texts and any("views were asked for" in note for note in voted.notes)
    other = open_router()  # another engine over the same store
    assert other.ask(TASK, QUERIES, arm="ttt:context").texts == first.texts


def test_context_tuning_may_be_what_the_policy_trains(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Recipe("context", form="prefix", learning_rate=2e-2, steps=8, batch=3, stop_loss=0.0)
    monkeypatch.setitem(RECIPES, "context", (tuned, tuned))
    got = open_router(policy=AlwaysArm("train:context"), recipe="context").ask(TASK, QUERIES)
    assert got.step("train") is not None and got.step("guard") is not None
    assert got.arm == "train:context" or "vetoed" in got.fallback


def test_prompts_may_be_turns_of_the_models_chat(open_router: OpenRouter, tiny_chat: Path) -> None:
    plain, turns = (
        open_router(model=str(tiny_chat), prompt=p).ask(TASK, QUERIES, arm="icl") for p in ("plain", "chat")
    )
    assert plain.step("icl").detail != turns.step("icl").detail  # type: ignore[union-attr]
    with pytest.raises(TaskError, match="no chat template"):
        open_router(prompt="chat")
    with pytest.raises(SettingsError, match="must be plain or chat"):
        open_router(prompt="turns")
