"""A base model that changed in memory is noticed, put right and spoken of; one that did not is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt.engine import Bench, Engine
from ttt.errors import ModelError
from ttt.icl import answer
from ttt.integrity import Watch, base_tensors, parameters_hash, restore
from ttt.task import Query
from ttt.train import TrainRequest, train_adapter

TASK = letters_task(4)


@pytest.fixture
def watched(tiny_model: Path) -> Iterator[Engine]:
    """An engine over each architecture that can load its model again."""
    engine = Engine(load_tiny(tiny_model), lambda: load_tiny(tiny_model))
    yield engine
    engine.close()


def train(engine: Engine) -> None:
    asyncio.run(train_adapter(engine, TrainRequest(TASK, SMALL, 0, None, "a")))


def said(engine: Engine) -> tuple[str, float]:
    """Text and log-probability of an answer in context."""
    (found,) = asyncio.run(answer(engine, TASK, [Query("abcd")], max_tokens=5)).answers
    return found.text, found.logprob


def spoil(engine: Engine, name: str, by: float = 0.5) -> None:
    """As a stray write would, which torch does not count."""

    def write(bench: Bench) -> None:
        dict(base_tensors(bench.loaded.model))[name].data.add_(by)

    asyncio.run(engine.run(write))


def test_training_and_answering_are_no_change(watched: Engine) -> None:
    before = asyncio.run(watched.base_hash())
    for _ in range(2):
        train(watched)
        said(watched)
    assert watched.take_notices() == []
    assert asyncio.run(watched.check_base()) and asyncio.run(watched.base_hash()) == before


@pytest.mark.parametrize("which", [0, 3, -1])
def test_a_changed_tensor_is_noticed_when_an_adapter_is_taken_off_and_put_right(
    watched: Engine, which: int
) -> None:
    before, answered = asyncio.run(watched.base_hash()), said(watched)
    name = [n for n, _ in base_tensors(watched.loaded.model)][which]
    spoil(watched, name)
    assert asyncio.run(watched.base_hash()) != before
    train(watched)
    (notice,) = watched.take_notices()
    assert name in notice and "loaded anew" in notice
    assert asyncio.run(watched.base_hash()) == before and said(watched) == answered
    train(watched)
    assert watched.take_notices() == []


def test_one_flipped_bit_is_found_by_the_full_check(watched: Engine) -> None:
    before = asyncio.run(watched.base_hash())

    def flip(bench: Bench) -> None:
        weight = next(t for n, t in base_tensors(bench.loaded.model) if "mlp" in n)
        weight.data.view(-1).view(torch.int32)[11] ^= 1

    asyncio.run(watched.run(flip))
    assert not asyncio.run(watched.check_base())
    assert len(watched.take_notices()) == 1 and asyncio.run(watched.base_hash()) == before
    assert asyncio.run(watched.check_base())


def test_an_engine_that_can_not_load_again_says_so(tiny_llama: Path) -> None:
    engine = Engine(load_tiny(tiny_llama))
    with pytest.raises(ModelError, match="open the router again"):
        asyncio.run(engine.check_base())
    spoil(engine, "model.norm.weight")
    with pytest.raises(ModelError, match="open the router again"):
        train(engine)
    engine.close()


def test_a_write_that_torch_counts_is_seen_wherever_it_was(tiny_llama: Path) -> None:
    model = load_tiny(tiny_llama).model
    watch = Watch(model)
    assert watch.changed() is None
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[31] += 1
    assert watch.changed() == "model.norm.weight"
    restore(model, load_tiny(tiny_llama).model)
    watch.remember()
    assert watch.changed() is None and parameters_hash(model) == parameters_hash(load_tiny(tiny_llama).model)
