"""Trainings at the same time share their passes and disturb neither each other nor answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt import gradients
from ttt.dataset import Sequence
from ttt.engine import Bench, Engine, Priority
from ttt.errors import Cancelled, NonFiniteLoss
from ttt.gradients import PeftAdapter, Trainable
from ttt.icl import ICLResult, answer
from ttt.task import Query
from ttt.train import TrainReport, TrainRequest, TrainStep, train_adapter

TASKS = [letters_task(5, seed) for seed in range(4)]
RECIPES = [replace(SMALL, steps=n) for n in (6, 2, 4, 6)]


def asked(i: int, folder: Path) -> TrainRequest:
    return TrainRequest(TASKS[i], RECIPES[i], i, folder / str(i), f"adapter-{i}")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trainings shared each pass."""
    seen: list[int] = []
    real = gradients.losses

    def count(
        bench: Bench, steps: Many[tuple[Trainable, Many[Sequence]]], between: Callable[[], None]
    ) -> list[tuple[float, int]]:
        seen.append(len(steps))
        return real(bench, steps, between)

    monkeypatch.setattr(gradients, "losses", count)
    return seen


async def test_trained_together_as_if_alone(engine: Engine, tmp_path: Path, passes: list[int]) -> None:
    """Tolerance 1e-4 on losses and weights, float32: the same sums in another order."""
    alone = [await train_adapter(engine, asked(i, tmp_path / "alone")) for i in range(4)]
    assert passes == [1] * 18
    passes.clear()
    digest = await engine.base_hash()
    together = await asyncio.gather(*(train_adapter(engine, asked(i, tmp_path / "both")) for i in range(4)))
    assert max(passes) == 4 and len(passes) < 18
    assert await engine.base_hash() == digest
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert other.losses == pytest.approx(one.losses, abs=1e-4)
        assert (other.tokens, other.labelled_tokens) == (one.tokens, one.labelled_tokens)
        file = "adapter_model.safetensors"
        found, wanted = (
            load_file(tmp_path / "both" / str(i) / file),
            load_file(tmp_path / "alone" / str(i) / file),
        )
        for key, weight in wanted.items():
            assert torch.allclose(found[key], weight, atol=1e-3), key


async def test_one_that_fails_or_is_cancelled_takes_none_along(llama_engine: Engine, tmp_path: Path) -> None:
    alone = await train_adapter(llama_engine, asked(0, tmp_path / "alone"))
    steps: list[TrainStep] = []
    wild = replace(asked(1, tmp_path), recipe=replace(SMALL, learning_rate=1e30))
    ended: Any = await asyncio.gather(
        train_adapter(llama_engine, asked(0, tmp_path)),
        train_adapter(llama_engine, wild),
        train_adapter(llama_engine, asked(3, tmp_path), steps.append, lambda: len(steps) >= 2),
        return_exceptions=True,
    )
    assert isinstance(ended[0], TrainReport)
    assert ended[0].losses == pytest.approx(alone.losses, abs=1e-4)
    assert isinstance(ended[1], NonFiniteLoss) and isinstance(ended[2], Cancelled)
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()


async def test_a_pass_that_does_not_fit_is_run_one_by_one(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gradients.losses

    def small(
        bench: Bench, steps: Many[tuple[Trainable, Many[Sequence]]], between: Callable[[], None]
    ) -> list[tuple[float, int]]:
        if len(steps) > 1:
            torch.empty(2**60, dtype=torch.uint8)  # more than any machine has
        return real(bench, steps, between)

    monkeypatch.setattr(gradients, "losses", small)
    reports = await asyncio.gather(*(train_adapter(llama_engine, asked(i, tmp_path)) for i in (0, 3)))
    assert [len(r.losses) for r in reports] == [6, 6]


async def test_answers_run_between_two_rounds(llama_engine: Engine, tmp_path: Path) -> None:
    order: list[str] = []
    long = replace(asked(0, tmp_path), recipe=replace(SMALL, steps=30))
    training = asyncio.create_task(train_adapter(llama_engine, long, lambda s: order.append("step")))
    while not order:
        await asyncio.sleep(0.001)
    await llama_engine.run(lambda bench: order.append("answer"), Priority.ANSWER)
    await training
    assert order.index("answer") < len(order) - 5


async def test_answers_run_between_the_layers_of_a_step_and_are_those_of_an_idle_engine(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with another adapter, too; the training ends with the weights that it would have had alone, and
    does not count the answer's seconds."""
    alone = await train_adapter(llama_engine, asked(0, tmp_path / "alone"))
    await train_adapter(llama_engine, asked(1, tmp_path / "other"))
    queries = [Query("abcd")]
    idle = await answer(llama_engine, TASKS[2], queries)

    async def adapted() -> ICLResult:
        async with llama_engine.adapter(tmp_path / "other" / "1") as name:
            return await answer(llama_engine, TASKS[1], queries, adapter=name)

    idle_adapted = await adapted()
    real, passes = gradients.losses, 0
    inside: list[int] = []
    passed: list[list[int]] = []
    begun, asked_for = threading.Event(), threading.Event()

    def slow(
        bench: Bench, steps: Many[tuple[Trainable, Many[Sequence]]], between: Callable[[], None]
    ) -> list[tuple[float, int]]:
        nonlocal passes
        passes += 1
        if passes == 1:
            begun.set()
            assert asked_for.wait(10)
        found = real(bench, steps, between)
        passed.append(list(inside))
        return found

    monkeypatch.setattr(gradients, "losses", slow)
    training = asyncio.create_task(train_adapter(llama_engine, asked(0, tmp_path / "busy")))
    await asyncio.to_thread(begun.wait, 10)
    first = llama_engine.submit(lambda bench: inside.append(passes) or time.sleep(1.5))  # type: ignore[func-returns-value]
    answering = asyncio.gather(answer(llama_engine, TASKS[2], queries), adapted())
    await asyncio.sleep(0.05)
    asked_for.set()
    assert list(await answering) == [idle, idle_adapted]
    report = await training
    assert first.done() and passed[0] == [1], "it ran within the first pass"
    assert report.losses == alone.losses and report.seconds < 1.5
    file = "adapter_model.safetensors"
    busy, still = (load_file(tmp_path / kind / "0" / file) for kind in ("busy", "alone"))
    assert all(torch.equal(busy[key], weight) for key, weight in still.items())


async def test_cancelling_ends_a_step_between_its_layers(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is cancelled in the middle of a shared pass takes none along."""
    real, asked_in_pass = gradients.losses, 0
    stop = threading.Event()

    def stop_inside(
        bench: Bench, steps: Many[tuple[Trainable, Many[Sequence]]], between: Callable[[], None]
    ) -> list[tuple[float, int]]:
        def watched() -> None:
            nonlocal asked_in_pass
            asked_in_pass += 1
            if asked_in_pass == 3:
                stop.set()
            between()

        return real(bench, steps, watched)

    monkeypatch.setattr(gradients, "losses", stop_inside)
    ended: Any = await asyncio.gather(
        train_adapter(llama_engine, asked(0, tmp_path)),
        train_adapter(llama_engine, asked(3, tmp_path), should_stop=stop.is_set),
        return_exceptions=True,
    )
    assert isinstance(ended[0], TrainReport) and len(ended[0].losses) == 6
    assert isinstance(ended[1], Cancelled) and "after 0 of 6" in str(ended[1])
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()


async def test_seconds_of_a_shared_pass_are_divided(tiny_llama: Path, tmp_path: Path) -> None:
    engine = Engine(load_tiny(tiny_llama))
    loop = asyncio.get_running_loop()
    started = loop.time()
    reports = await asyncio.gather(*(train_adapter(engine, asked(i, tmp_path)) for i in range(4)))
    assert 0 < sum(r.seconds for r in reports) <= loop.time() - started
    engine.close()


async def test_where_transformers_runs_the_model_each_takes_its_own_pass(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = Engine(load_tiny(tiny_llama))
    wanted = await train_adapter(fused, asked(0, tmp_path / "fused"))
    fused.close()
    monkeypatch.setattr("ttt.decoder.KNOWN", ())
    engine = Engine(load_tiny(tiny_llama))
    assert await engine.run(lambda bench: bench.decoder) is None
    kinds: set[type] = set()
    real = PeftAdapter.loss

    def note(self: PeftAdapter, bench: Bench, batch: Many[Sequence]) -> tuple[float, int]:
        kinds.add(type(self))
        return real(self, bench, batch)

    monkeypatch.setattr(PeftAdapter, "loss", note)
    found, _ = await asyncio.gather(*(train_adapter(engine, asked(i, tmp_path)) for i in (0, 1)))
    engine.close()
    assert kinds == {PeftAdapter}
    assert found.losses == pytest.approx(wanted.losses, abs=1e-3)
