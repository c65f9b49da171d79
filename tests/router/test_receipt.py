"""A receipt is the same after JSON, sums its steps, and refuses another version."""

from __future__ import annotations

import json
import time
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from router.receipt import Answered, Receipt, Step
from tests.router.conftest import POOR, QUERIES, RICH, TASK, TRUSTING, OpenRouter

RECEIPT = Receipt(
    episode_id="e",
    fingerprint="task1:00",
    task_name="naïve ☃",
    base_model="tiny",
    base_revision="r",
    arm="train:quick",
    answers=(Answered("a\nb", -0.25, True), Answered("", -3.0, False)),
    icl_answers=(),
    steps=(Step("look-up", 0.5, {"hit": False}), Step("train", 1.0), Step("train", 2.0, {"losses": [1.0]})),
    decisions=({"step": "answer", "expected_gain": None, "details": {"headroom": 1.0}},),
    signals={"n_queries": 2.0, "agreement": None},
    adapter="abc",
    fallback="",
    notes=("1 duplicate",),
    worth_s=30.0,
    n_queries=2,
    created_at=1.5,
)


def test_a_receipt_is_equal_after_json() -> None:
    assert Receipt.from_dict(json.loads(json.dumps(RECEIPT.as_dict()))) == RECEIPT


def test_real_receipts_are_equal_after_json_and_from_the_store(open_router: OpenRouter) -> None:
    agent = open_router(policy=TRUSTING)
    asked: list[dict[str, Any]] = [
        {},
        {},
        {"arm": "icl"},
        {"arm": "zero-shot"},
        {"arm": "ttt", "seed": 2, "recipe": "other"},
    ]
    receipts = [agent.ask(TASK, QUERIES, **options) for options in asked]
    receipts += [open_router().ask(TASK, QUERIES, worth_s=w, seed=3) for w in (POOR, RICH)]
    assert {r.arm.split(":")[0] for r in receipts} == {"train", "reuse", "icl", "zero-shot"}
    for receipt in receipts:
        text = json.dumps(receipt.as_dict(), allow_nan=False)
        assert Receipt.from_dict(json.loads(text)) == receipt == agent.explain(receipt.episode_id)


def test_seconds_are_the_sum_of_the_steps_and_step_gives_the_last_of_a_name() -> None:
    assert RECEIPT.seconds == RECEIPT.as_dict()["seconds"] == 3.5
    assert RECEIPT.step("train") == Step("train", 2.0, {"losses": [1.0]}) and RECEIPT.step("guard") is None
    assert RECEIPT.texts == ("a\nb", "")


def test_the_steps_of_an_answer_account_for_its_wall_time(open_router: OpenRouter) -> None:
    """Nothing that takes time is left out: at most the graph's own overhead, far below a training."""
    agent = open_router()
    started = time.perf_counter()
    receipt = agent.ask(TASK, QUERIES, arm="ttt")
    wall = time.perf_counter() - started
    assert receipt.seconds <= wall
    assert wall - receipt.seconds < max(0.3, 0.5 * wall)


def test_a_receipt_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 7, expected 1"):
        Receipt.from_dict(RECEIPT.as_dict() | {"version": 7})


def test_a_receipt_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RECEIPT.arm = "icl"  # type: ignore[misc]
