"""One thread owns the model: answers before training, errors to their callers, nothing seen through another."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt import engine as engine_module
from ttt.decoder import Plain
from ttt.engine import Bench, Engine, Priority
from ttt.errors import AdapterError, ModelError
from ttt.icl import answer
from ttt.integrity import parameters_hash
from ttt.judging import leave_one_out
from ttt.task import Query
from ttt.train import TrainRequest, train_adapter

QUERIES = [Query(x) for x in ("abcd", "dcba", "aabb")]


def hold(engine: Engine) -> threading.Event:
    """Keep the owner thread busy until the event is set."""
    started, release = threading.Event(), threading.Event()

    def wait(bench: Bench) -> None:
        started.set()
        assert release.wait(10)

    engine.submit(wait)
    assert started.wait(10)
    return release


def test_answers_go_before_signals_and_signals_before_training(llama_engine: Engine) -> None:
    release = hold(llama_engine)
    order: list[tuple[Priority, int]] = []
    futures = [
        llama_engine.submit(lambda bench, mark=(p, i): order.append(mark), p)  # type: ignore[misc]
        for i in range(3)
        for p in (Priority.TRAINING, Priority.SIGNALS, Priority.ANSWER)
    ]
    release.set()
    for future in futures:
        future.result(10)
    assert order == [(p, i) for p in (Priority.ANSWER, Priority.SIGNALS, Priority.TRAINING) for i in range(3)]


def test_what_gives_way_waits_for_an_announced_answer_but_not_for_ever(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    started = threading.Event()

    def train(bench: Bench) -> None:
        started.set()
        bench.give_way(Priority.TRAINING)
        order.append("training")

    monkeypatch.setattr(engine_module, "EXPECTED_S", 60.0)
    llama_engine.expect_answer()
    training = llama_engine.submit(train, Priority.TRAINING)
    assert started.wait(10)
    llama_engine.submit(lambda bench: order.append("answer")).result(10)
    training.result(10)
    assert order == ["answer", "training"]
    monkeypatch.setattr(engine_module, "EXPECTED_S", 0.05)
    llama_engine.expect_answer()
    llama_engine.submit(train, Priority.TRAINING).result(10)


async def test_an_answer_runs_between_the_layers_of_what_only_measures(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = letters_task(6)
    idle, judged = await answer(llama_engine, task, QUERIES), await leave_one_out(llama_engine, task)
    monkeypatch.setattr(engine_module, "EXPECTED_S", 60.0)
    llama_engine.expect_answer()
    measuring = asyncio.create_task(leave_one_out(llama_engine, task))
    await asyncio.sleep(0.1)
    assert not measuring.done()
    assert await answer(llama_engine, task, QUERIES) == idle
    assert await measuring == judged


def test_all_work_is_done_on_one_thread_that_is_not_the_callers(llama_engine: Engine) -> None:
    found = {llama_engine.submit(lambda bench: threading.get_ident()).result(10) for _ in range(5)}
    assert len(found) == 1 and threading.get_ident() not in found


async def test_an_error_reaches_its_caller_and_the_engine_goes_on(llama_engine: Engine) -> None:
    def fail(bench: Bench) -> None:
        raise ZeroDivisionError("of this slice")

    with pytest.raises(ZeroDivisionError, match="of this slice"):
        await llama_engine.run(fail)
    assert await llama_engine.run(lambda bench: 7) == 7


async def test_a_slice_whose_caller_has_gone_is_not_run(llama_engine: Engine) -> None:
    release = hold(llama_engine)
    ran: list[int] = []
    waiting = asyncio.create_task(llama_engine.run(lambda bench: ran.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert await llama_engine.run(lambda bench: list(ran), Priority.TRAINING) == []


def test_closing_finishes_what_is_queued_and_refuses_more(tiny_llama: Path) -> None:
    engine = Engine(load_tiny(tiny_llama))
    futures = [engine.submit(lambda bench: time.sleep(0.01), Priority.TRAINING) for _ in range(5)]
    engine.close()
    assert all(future.done() for future in futures)
    with pytest.raises(ModelError, match="closed; open a new one"):
        engine.submit(lambda bench: None)


async def test_the_base_hash_sees_one_flipped_bit(llama_engine: Engine) -> None:
    def flip(bench: Bench) -> None:
        weight = next(bench.loaded.model.parameters()).detach()
        weight.view(torch.int32)[0, 0] ^= 1

    before = await llama_engine.base_hash()
    await llama_engine.run(flip)
    assert await llama_engine.base_hash() != before
    await llama_engine.run(flip)
    assert await llama_engine.base_hash() == before


async def test_the_base_hash_is_of_the_base_alone(engine: Engine, tiny_model: Path) -> None:
    before = await engine.base_hash()
    assert before == parameters_hash(load_tiny(tiny_model).model)
    await train_adapter(engine, TrainRequest(letters_task(3), SMALL, 0, None, "a"), keep=True)
    assert await engine.base_hash() == before


async def test_the_adapter_used_longest_ago_goes_first(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_ATTACHED", 2)
    await train_adapter(llama_engine, TrainRequest(letters_task(3), SMALL, 0, tmp_path / "a", "made"))
    for name in "bc":
        shutil.copytree(tmp_path / "a", tmp_path / name)
    names = {}
    for name in "abac":
        async with llama_engine.adapter(tmp_path / name) as names[name]:
            pass
    assert set(await llama_engine.run(lambda bench: bench.slots.names)) == {names["a"], names["c"]}


async def test_folders_of_one_name_are_two_adapters(llama_engine: Engine, tmp_path: Path) -> None:
    tasks = {"one": letters_task(3, seed=1), "other": letters_task(3, seed=2)}
    found = {}

    def weights(bench: Bench, name: str) -> dict[str, Plain] | None:
        return bench.slots.plain(name)

    for where, task in tasks.items():
        folder = tmp_path / where / "adapter"
        await train_adapter(llama_engine, TrainRequest(task, SMALL, 0, folder, "made"))
        async with llama_engine.adapter(folder) as name:
            found[where] = await llama_engine.run(partial(weights, name=name))
    assert found["one"] is not None and found["other"] is not None
    assert any(not torch.equal(found["one"][k].b, found["other"][k].b) for k in found["one"])


async def test_an_adapter_in_use_stays_however_many_others_come(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_ATTACHED", 1)
    await train_adapter(llama_engine, TrainRequest(letters_task(3), SMALL, 0, tmp_path / "a", "made"))
    for name in "bc":
        shutil.copytree(tmp_path / "a", tmp_path / name)
    async with llama_engine.adapter(tmp_path / "a") as used:
        for name in "bc":
            async with llama_engine.adapter(tmp_path / name):
                pass
        assert used in await llama_engine.run(lambda bench: bench.slots.names)


async def test_a_folder_that_is_no_adapter_is_refused(llama_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="adapter_config.json.*train it again"):
        async with llama_engine.adapter(tmp_path):
            pass
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()


async def test_trainings_and_answers_at_the_same_time_are_as_if_alone(engine: Engine, tmp_path: Path) -> None:
    """Bit-identical adapters; equal answers; leave-one-out equal to the last bit."""
    tasks = [letters_task(6, seed=1), letters_task(5, seed=2)]
    recipes = [SMALL.with_steps(3), SMALL.with_steps(4)]

    def request(i: int, folder: str) -> TrainRequest:
        return TrainRequest(tasks[i], recipes[i], i, tmp_path / folder / str(i), f"{folder}-{i}")

    digest = await engine.base_hash()
    idle = [await answer(engine, task, QUERIES) for task in tasks]
    judged = await leave_one_out(engine, tasks[0])
    for i in (0, 1):
        await train_adapter(engine, request(i, "alone"))

    trainings = [asyncio.create_task(train_adapter(engine, request(i, "together"))) for i in (0, 1)]
    during = 0
    while not all(t.done() for t in trainings):
        for task, expected in zip(tasks, idle, strict=True):
            assert await answer(engine, task, QUERIES) == expected
        assert await leave_one_out(engine, tasks[0]) == judged
        during += await engine.run(lambda bench: len(bench.slots.names) == 2)
    await asyncio.gather(*trainings)
    assert during, "answers ran while both adapters were attached"
    for i in (0, 1):
        alone, together = (
            (tmp_path / f / str(i) / "adapter_model.safetensors").read_bytes() for f in ("alone", "together")
        )
        assert alone == together
    assert await engine.run(lambda bench: bench.slots.names) == ()
    assert await engine.base_hash() == digest
    assert [await answer(engine, task, QUERIES) for task in tasks] == idle
