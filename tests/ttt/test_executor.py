"""A training in a process of its own: the same adapter, and a death that is only its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt.engine import Engine
from ttt.errors import Cancelled, NonFiniteLoss, TaskError, TrainingFailed
from ttt.executor import Limits, Worker, choose
from ttt.hardware import Hardware
from ttt.model import resolve
from ttt.task import Task
from ttt.train import TrainReport, TrainRequest, TrainStep, train_adapter

TASK = letters_task(4)
ENDLESS = replace(SMALL, name="endless", steps=1_000_000)
GB = 2**30


@pytest.fixture
def worker(tiny_llama: Path) -> Iterator[Worker]:
    made = Worker(resolve(str(tiny_llama)), "cpu", "float32")
    yield made
    made.close()


def request(folder: Path, recipe: Any = SMALL, task: Task = TASK) -> TrainRequest:
    folder.mkdir(exist_ok=True)
    return TrainRequest(task, recipe, 0, folder, "a")


def test_it_trains_what_the_engine_trains(worker: Worker, tiny_llama: Path, tmp_path: Path) -> None:
    engine = Engine(load_tiny(tiny_llama))
    here = asyncio.run(train_adapter(engine, request(tmp_path / "here")))
    engine.close()
    steps: list[TrainStep] = []

    async def both() -> Any:
        first = await worker.train(request(tmp_path / "there"), steps.append)
        pid = worker.pid
        second = await worker.train(request(tmp_path / "again"))
        assert worker.pid == pid, "the process is kept for the next one"
        return first, second

    there, again = asyncio.run(both())
    assert there.losses == pytest.approx(here.losses, rel=1e-3) == again.losses
    assert [s.step for s in steps] == list(range(1, SMALL.steps + 1))
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == sorted(
        p.name for p in (tmp_path / "here").iterdir()
    )
    assert there.recipe == here.recipe and there.tokens == here.tokens


def test_it_goes_on_from_what_a_probe_has_trained(worker: Worker, tiny_llama: Path, tmp_path: Path) -> None:
    """Weights and the optimiser's moments arrive: the other half there is as the other half here, to rounding."""
    engine = Engine(load_tiny(tiny_llama))

    async def run() -> tuple[TrainReport, TrainReport, TrainReport]:
        asked = request(tmp_path / "here")
        half = await train_adapter(engine, replace(asked, folder=None, pause_at=3))
        on = replace(asked, begin=half.reached)
        here = await train_adapter(engine, on)
        return half, here, await worker.train(replace(on, folder=request(tmp_path / "there").folder))

    half, here, there = asyncio.run(run())
    engine.close()
    assert there.losses[:3] == half.losses and len(there.losses) == SMALL.steps
    assert there.losses == pytest.approx(here.losses, rel=1e-3) and there.tokens == here.tokens
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("here", "there"))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


def test_a_killed_process_fails_that_training_and_the_next_one_has_another(
    worker: Worker, tmp_path: Path
) -> None:
    def kill(step: TrainStep) -> None:
        if step.step == 3 and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)

    async def run() -> None:
        with pytest.raises(TrainingFailed, match="died by SIGKILL.*next training starts another"):
            await worker.train(request(tmp_path / "a", ENDLESS), kill)
        report = await worker.train(request(tmp_path / "b"))
        assert len(report.losses) == SMALL.steps

    asyncio.run(run())
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("hung", [False, True], ids=["between steps", "hung"])
def test_it_is_cancelled_within_two_seconds(worker: Worker, tmp_path: Path, hung: bool) -> None:
    stopped_at = 0.0
    stop = False

    def emit(step: TrainStep) -> None:
        nonlocal stop, stopped_at
        if step.step == 3:
            if hung and worker.pid is not None:
                os.kill(worker.pid, signal.SIGSTOP)
            stop, stopped_at = True, time.monotonic()

    with pytest.raises(Cancelled):
        asyncio.run(worker.train(request(tmp_path / "a", ENDLESS), emit, lambda: stop))
    assert time.monotonic() - stopped_at < 2.0 + 1.0
    assert (worker.pid is None) == hung


def test_its_errors_are_those_of_training_and_leave_the_process_well(worker: Worker, tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(NonFiniteLoss, match="lower the learning rate"):
            await worker.train(request(tmp_path / "a", replace(SMALL, learning_rate=1e30)))
        pid = worker.pid
        with pytest.raises(TaskError, match="at least one demonstration"):
            await worker.train(request(tmp_path / "b", task=Task()))
        assert worker.pid == pid is not None

    asyncio.run(run())


def test_it_may_take_so_much_time_and_memory(tiny_llama: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny_llama))
    slow = Worker(source, "cpu", "float32", limits=Limits(seconds=8.0))
    with pytest.raises(TrainingFailed, match="longer than 8 s, the limit"):
        asyncio.run(slow.train(request(tmp_path / "a", ENDLESS)))
    assert slow.pid is None
    tight = Worker(source, "cpu", "float32", limits=Limits(memory_bytes=50_000_000))
    with pytest.raises(Exception, match="memory|died|process"):
        asyncio.run(tight.train(request(tmp_path / "b")))
    tight.close()


def test_auto_takes_a_process_where_the_machine_holds_the_model_twice() -> None:
    def machine(**values: Any) -> Hardware:
        given: dict[str, Any] = {
            "device": "cpu",
            "dtype": "float32",
            "cores": 8,
            "memory_total_bytes": 32 * GB,
        }
        return Hardware(
            **(given | {"memory_free_bytes": 30 * GB, "gpu_name": None, "cpu_flags": ()} | values)
        )

    n = 135_000_000
    assert choose("auto", machine(), n)[0] == "process"
    for other in ({"cores": 2}, {"memory_free_bytes": 2 * GB}, {"device": "cuda"}):
        kind, why = choose("auto", machine(**other), n)
        assert kind == "thread" and why.startswith("trains in this process: ")
    assert choose("process", machine(cores=1), n)[0] == "process"
    assert choose("thread", machine(), n)[0] == "thread"
