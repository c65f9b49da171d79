"""Routers over a tiny random model, with policies that really take one branch or another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.gain import GainModel
from policies.rule import Rule
from router.agent import Router
from router.events import AnswerGrew, Decided, Event, TrainingStep
from router.receipt import Receipt
from ttt.recipes import RECIPES, Recipe
from ttt.task import Demonstration, Task

QUICK = Recipe("quick", rank=4, alpha=8, learning_rate=5e-2, steps=12, sequence_tokens=256)
"""Moves a tiny model so far that it answers otherwise."""
OTHER = Recipe("other", rank=4, alpha=8, learning_rate=5e-2, steps=4, sequence_tokens=256)
WILD = Recipe("wild", rank=4, alpha=8, learning_rate=1e30, steps=6, sequence_tokens=256)
"""Its loss is not a number after a few steps."""
LONG = Recipe("long", rank=4, alpha=8, learning_rate=1e-3, steps=100_000, sequence_tokens=256)
"""Only ever ends by being cancelled."""

TRUSTING = Rule(GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0))
"""Probes, then trains: it believes in training, as a tiny model's evidence alone would not let it."""
RICH = 1e5
"""Worth, s: every cost is small beside it."""
POOR = 1e-3

OpenRouter = Callable[..., Router]


def ok_task(n: int, output: str = "ok") -> Task:
    """`n` demonstrations that all have the same output, the first ones of a fixed list."""
    inputs = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st")[:n]
    assert len(inputs) == n
    return Task(tuple(Demonstration(x, output) for x in inputs), "Say the word.", "words")


TASK = ok_task(6)
QUERIES = ("uv", "wx", "yz")


def kinds(events: Iterable[Event]) -> list[str]:
    """Names of events in order; `Probe` and `Train` stand for all steps of one training, decisions have
    their step or arm, and pieces of growing answers are left out."""
    names: list[str] = []
    for event in events:
        if isinstance(event, AnswerGrew):
            continue
        name = type(event).__name__
        if isinstance(event, TrainingStep):
            name = event.phase.capitalize()
            if names and names[-1] == name:
                continue
        if isinstance(event, Decided):
            name = f"Decided {event.decision.arm or event.decision.step}"
        names.append(name)
    return names


def step_names(receipt: Receipt) -> list[str]:
    return [step.name for step in receipt.steps]


def base_hash(agent: Router) -> str:
    """Of all base parameters as they are now."""
    return agent.run(agent.parts.engine.base_hash())


@pytest.fixture
def open_router(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenRouter]:
    """Opens routers over the tiny Llama, all on one data folder unless told otherwise; closed at the end. The built-in
    rule decides where no policy is given: what is shipped was learned on another model."""
    monkeypatch.setenv("TTT_ROUTER_POLICY", "rule")
    for recipe in (QUICK, OTHER, WILD, LONG):
        monkeypatch.setitem(RECIPES, recipe.name, (recipe, recipe))
    opened: list[Router] = []

    def open_one(**options: Any) -> Router:
        given: dict[str, Any] = {
            "model": str(tiny_llama),
            "data_dir": tmp_path / "data",
            "device": "cpu",
            "dtype": "float32",
            "recipe": "quick",
            "worth_s": RICH,
        }
        opened.append(Router.open(**(given | options)))
        return opened[-1]

    yield open_one
    for agent in opened:
        agent.close()
