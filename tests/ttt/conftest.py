"""Engines over tiny models, and tasks small enough for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ttt.engine import Engine
from ttt.model import LoadedModel, load, resolve
from ttt.recipes import Recipe
from ttt.task import Demonstration, Task

if TYPE_CHECKING:
    from ttt.tree import TokenTree

SMALL = Recipe("small", rank=4, alpha=8, learning_rate=1e-2, steps=6, batch=2, sequence_tokens=160)
"""A recipe that is quick on a tiny model and moves it visibly."""


def letters_task(n: int, seed: int = 0) -> Task:
    """Four letters → the first two with a space between."""
    rng = random.Random(seed)
    inputs = ["".join(rng.choices("abcd", k=4)) for _ in range(n)]
    return Task(tuple(Demonstration(x, f"{x[0]} {x[1]}") for x in inputs), "Give two letters.")


def load_tiny(folder: Path) -> LoadedModel:
    return load(resolve(str(folder)), "cpu", "float32")


def tree_of(loaded: LoadedModel) -> TokenTree:
    """An empty tree on the fused model."""
    from ttt.decoder import read
    from ttt.runner import DecoderRunner
    from ttt.tree import TokenTree

    decoder = read(loaded.model)
    assert decoder is not None
    return TokenTree(DecoderRunner(decoder))


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    """An engine over each tiny architecture in turn."""
    engine = Engine(load_tiny(tiny_model))
    yield engine
    engine.close()


@pytest.fixture
def llama_engine(tiny_llama: Path) -> Iterator[Engine]:
    engine = Engine(load_tiny(tiny_llama))
    yield engine
    engine.close()


@pytest.fixture
def loud_engine(tiny_model: Path) -> Iterator[Engine]:
    """Each architecture with weights so large that what it says hangs on the prompt."""
    import torch

    loaded = load_tiny(tiny_model)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    engine = Engine(loaded)
    yield engine
    engine.close()


def babble(loaded: LoadedModel, spoken: tuple[str, str, str, str]) -> LoadedModel:
    """Make a model with an output head of its own say these four tokens only, in answer to the whole context."""
    import torch

    ids = [loaded.tokenizer(piece, add_special_tokens=False).input_ids for piece in spoken]
    assert all(len(i) == 1 for i in ids)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
        head = loaded.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        first, second = head[ids[0][0]].clone(), head[ids[2][0]].clone()
        head.zero_()
        for (token,), direction in zip(ids, (first, -first, second, -second), strict=True):
            head[token] = direction  # of each pair one logit is positive, so no other token is ever the best
    return loaded


@pytest.fixture
def babbler(tiny_qwen2: Path) -> LoadedModel:
    """A model that only ever says `a`, `b`, line feed or `:`, and so runs into a stop string before long."""
    return babble(load_tiny(tiny_qwen2), ("a", "b", "\n", ":"))


@pytest.fixture
def babbling_engine(babbler: LoadedModel) -> Iterator[Engine]:
    engine = Engine(babbler)
    yield engine
    engine.close()
