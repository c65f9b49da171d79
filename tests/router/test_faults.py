"""What an answer makes of a store that fails or changes under it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from router import reuse, training
from router.events import Done, TrainingStep
from store.errors import ConnectionLost, LeaseLost, NotFound
from store.tables import leases
from tests.router.conftest import QUERIES, TASK, TRUSTING, OpenRouter, base_hash, step_names
from ttt.errors import TrainingFailed


def test_who_lost_its_lease_while_training_waits_for_the_heir_and_answers(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "LEASE_S", 1.5)
    monkeypatch.setattr(training, "LEASE_S", 1e6)  # it does not renew: as if it had slept
    agent = open_router()
    opened, heir = agent.parts.store, None
    for event in agent.stream(TASK, QUERIES, arm="ttt"):
        if isinstance(event, TrainingStep) and heir is None:
            with opened.db.write() as connection:
                (name,) = connection.scalars(sa.select(leases.c.name))
                connection.execute(sa.update(leases).values(expires_at=0.0))
            heir = opened.leases.acquire(name, "heir", 1.5)  # and dies at once
            assert heir is not None
        if isinstance(event, Done):
            receipt = event.receipt
    assert receipt.arm == "train:quick" and receipt.texts
    lost, trained = (step for step in receipt.steps if step.name == "train")
    assert "no longer held" in lost.detail["failed"] and "failed" not in trained.detail
    assert len(opened.adapters.list()) == 1 and opened.verify().sound


@pytest.mark.parametrize("arm", ["ttt", "auto"])
def test_who_is_overtaken_again_and_again_gives_up_in_a_sentence(open_router: OpenRouter, arm: str) -> None:
    agent = open_router(policy=TRUSTING)

    def overtaken(*_: Any, **__: Any) -> None:
        raise LeaseLost("no longer held")

    object.__setattr__(agent.parts.store.adapters, "publish", overtaken)
    if arm == "ttt":
        with pytest.raises(TrainingFailed, match="overtaken 3 times.*ask again"):
            agent.ask(TASK, QUERIES, arm=arm)
        return
    receipt = agent.ask(TASK, QUERIES, arm=arm)
    assert receipt.arm == "icl" and "no longer held" in receipt.fallback and receipt.texts
    assert sum(step.name == "train" for step in receipt.steps) == 3


def test_an_adapter_that_was_evicted_just_now_is_trained_again(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = open_router()
    first = agent.ask(TASK, QUERIES, arm="ttt")
    adapters = agent.parts.store.adapters

    def evicted(row: Any) -> None:
        monkeypatch.undo()
        with agent.parts.store.db.write() as connection:
            connection.execute(sa.text("DELETE FROM adapters"))
        raise NotFound("gone")

    monkeypatch.setattr(adapters, "touch", evicted)
    again = agent.ask(TASK, QUERIES, arm="ttt")
    assert again.arm == "train:quick" and again.texts == first.texts


def test_a_database_that_is_away_while_training_costs_no_training(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LEASE_S", 0.0)  # renew at each step
    agent = open_router()
    asked = 0

    def away(lease: Any) -> None:
        nonlocal asked
        asked += 1
        raise ConnectionLost("away")

    monkeypatch.setattr(agent.parts.store.leases, "renew", away)
    receipt = agent.ask(TASK, QUERIES, arm="ttt")
    assert asked > 3 and receipt.arm == "train:quick"
    assert len(agent.parts.store.adapters.list()) == 1


def test_a_base_that_changed_in_memory_is_put_right_and_the_next_receipt_says_so(
    open_router: OpenRouter,
) -> None:
    from ttt.integrity import base_tensors

    agent = open_router()
    before = base_hash(agent)
    assert agent.check_base()

    def spoil(bench: Any) -> None:
        dict(base_tensors(bench.loaded.model))["model.norm.weight"].data.mul_(2)

    agent.run(agent.parts.engine.run(spoil))
    agent.ask(TASK, QUERIES, arm="ttt")
    assert base_hash(agent) == before
    notes = agent.ask(TASK, QUERIES, arm="icl").notes
    assert any("had changed in memory and was loaded anew" in note for note in notes)
    assert not agent.ask(TASK, QUERIES, arm="icl").notes
    assert step_names(agent.ask(TASK, QUERIES, arm="icl"))


def test_an_adapter_that_vanishes_before_it_is_loaded_is_one_sentence(open_router: OpenRouter) -> None:
    from ttt.errors import AdapterError

    agent = open_router()
    agent.ask(TASK, QUERIES, arm="ttt")
    agent.close()
    other = open_router()
    store = other.parts.store
    real = store.adapters.touch

    def vanish(row: Any) -> None:
        real(row)
        for file in store.adapters.path(row).iterdir():
            file.unlink()

    object.__setattr__(store.adapters, "touch", vanish)
    with pytest.raises(AdapterError, match="train it again"):
        other.ask(TASK, QUERIES, arm="ttt")
    object.__setattr__(store.adapters, "touch", real)
    assert other.ask(TASK, QUERIES, arm="ttt").arm == "train:quick"
