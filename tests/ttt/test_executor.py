"""A training in a process of its own: the same adapter, and a death that is only its own."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt import executor
from ttt.engine import Engine
from ttt.errors import Cancelled, NonFiniteLoss, TaskError, TrainingFailed
from ttt.executor import Limits, Worker, choose
from ttt.hardware import Hardware
from ttt.model import resolve
from ttt.task import Task
from ttt.train import Beginning, TrainReport, TrainRequest, TrainStep, train_adapter

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
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == sorted(
        p.name for p in (tmp_path / "here").iterdir()
    )
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


def test_it_serves_several_event_loops_one_training_at_a_time(worker: Worker, tmp_path: Path) -> None:
    """As a server's loop and the one of what trains behind, both at once and one after the other."""

    def run(name: str) -> TrainReport:
        return asyncio.run(worker.train(request(tmp_path / name)))

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(run, ["a", "b"]))
    pid = worker.pid
    assert both[0].losses == both[1].losses == run("c").losses
    assert worker.pid == pid and pid is not None


def test_who_waits_for_another_training_is_heard_and_can_leave(worker: Worker, tmp_path: Path) -> None:
    heard, left = [], threading.Event()

    async def run() -> None:
        first = asyncio.create_task(worker.train(request(tmp_path / "a", ENDLESS), should_stop=left.is_set))
        await asyncio.sleep(0.2)
        asked = time.monotonic()
        with pytest.raises(Cancelled, match="before it began"):
            await worker.train(
                request(tmp_path / "b"),
                should_stop=lambda: time.monotonic() - asked > 0.5,
                waits=lambda: heard.append(time.monotonic()),
            )
        assert time.monotonic() - asked < 2
        left.set()
        with pytest.raises(Cancelled):
            await first

    asyncio.run(run())
    assert len(heard) > 3


def test_a_stop_that_came_too_late_stops_nothing_else(worker: Worker, tmp_path: Path) -> None:
    async def run() -> TrainReport:
        await worker.train(request(tmp_path / "a"))
        worker._send({"stop": True})
        return await worker.train(request(tmp_path / "b"))

    assert len(asyncio.run(run()).losses) == SMALL.steps


def test_an_idle_process_fills_nothing(worker: Worker, tmp_path: Path) -> None:
    asyncio.run(worker.train(request(tmp_path / "a")))
    time.sleep(2.5)
    assert worker._heard.is_set() and worker._inbox.empty()


def test_a_disk_without_room_is_told_in_a_sentence(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(executor, "write_beginning", full)
    begin = Beginning(torch.zeros(1), {}, ())
    with pytest.raises(TrainingFailed, match="could not start.*No space left"):
        asyncio.run(worker.train(replace(request(tmp_path / "a"), begin=begin)))
