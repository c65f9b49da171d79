"""A router whose trainings run in a process of their own: what a death costs, and what it does not."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from router.errors import SettingsError
from router.events import Done, Event, FellBack, TrainingStep
from router.receipt import Receipt
from router.settings import Settings, in_one_process, read_settings
from tests.router.conftest import QUERIES, QUICK, TASK, TRUSTING, OpenRouter, base_hash, ok_task
from ttt.errors import TrainingFailed


def receipt(events: list[Event]) -> Receipt:
    assert isinstance(events[-1], Done)
    return events[-1].receipt


def test_it_trains_answers_and_reuses_as_ever(open_router: OpenRouter) -> None:
    agent = open_router(executor="process")
    assert agent.parts.executor.endswith("as set") and agent.parts.worker is not None
    before = base_hash(agent)
    first = agent.ask(TASK, QUERIES, arm="ttt")
    assert first.arm == "train:quick" and agent.parts.worker.pid is not None
    assert agent.ask(TASK, QUERIES, arm="ttt").arm.startswith("reuse:")
    thread = open_router(executor="thread")
    assert thread.parts.worker is None
    assert thread.ask(TASK, QUERIES, arm="ttt").texts == first.texts, (
        "the other router's adapter, on this model"
    )
    assert base_hash(agent) == before
    pid = agent.parts.worker.pid
    agent.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_training_process_fails_that_request_alone(open_router: OpenRouter) -> None:
    agent = open_router(executor="process", policy=TRUSTING, worth_s=1e6)
    worker = agent.parts.worker
    assert worker is not None
    agent.ask(ok_task(5), QUERIES, arm="ttt")
    slow = replace(QUICK, name="slow", steps=3000, stop_loss=0.0)  # not done before it is killed

    def ask_and_kill(arm: str) -> list[Event]:
        events: list[Event] = []
        for event in agent.stream(TASK, QUERIES, arm=arm, recipe=(slow, slow)):
            events.append(event)
            if isinstance(event, TrainingStep) and event.phase == "train" and worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
        return events

    with pytest.raises(TrainingFailed, match="died by SIGKILL"):
        ask_and_kill("ttt")
    events = ask_and_kill("auto")
    told = receipt(events)
    assert told.arm == "icl" and "died by SIGKILL" in told.fallback and told.texts
    assert any(isinstance(e, FellBack) for e in events)
    assert agent.ask(TASK, QUERIES, arm="icl").texts == told.texts
    assert agent.ask(TASK, QUERIES, arm="ttt").arm == "train:quick"
    assert agent.parts.store.verify().sound


def test_it_goes_on_from_the_probe_that_decided(open_router: OpenRouter) -> None:
    agent = open_router(executor="process", policy=TRUSTING)
    told = agent.ask(TASK, QUERIES)
    (step,) = (s for s in told.steps if s.name == "train")
    assert told.arm == "train:quick" and step.detail["of_these_by_probe"] > 0
    assert agent.parts.worker is not None and agent.parts.worker.pid is not None


def test_by_default_it_is_chosen_by_the_machine_and_programs_of_many_tasks_stay_in_one_process() -> None:
    assert Settings().executor == "auto"
    assert in_one_process(Settings()).executor == "thread"
    assert in_one_process(Settings(executor="process")).executor == "process"


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(SettingsError, match="thread, process or auto"):
        read_settings({"executor": "cloud"}, {"TTT_ROUTER_CONFIG": ""})
