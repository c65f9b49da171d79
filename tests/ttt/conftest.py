"""Engines over tiny models, and tasks small enough for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttt.engine import Engine
from ttt.model import LoadedModel, load, resolve
from ttt.recipes import Recipe
from ttt.task import Demonstration, Task

SMALL = Recipe("small", rank=4, alpha=8, learning_rate=1e-2, steps=6, batch=2, sequence_tokens=160)
"""A recipe that is quick on a tiny model and moves it visibly."""


def letters_task(n: int, seed: int = 0) -> Task:
    """Four letters → the first two with a space between."""
    rng = random.Random(seed)
    inputs = ["".join(rng.choices("abcd", k=4)) for _ in range(n)]
    return Task(tuple(Demonstration(x, f"{x[0]} {x[1]}") for x in inputs), "Give two letters.")


def load_tiny(folder: Path) -> LoadedModel:
    return load(resolve(str(folder)), "cpu", "float32")


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


@pytest.fixture(scope="session")
def babbler(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2 with large random weights that only ever says `a`, `b`, line feed or `:`.

    What it says depends on the whole context, and runs into a stop string before long.
    """
    import torch

    loaded = load_tiny(tiny_qwen2)
    spoken = [loaded.tokenizer(c, add_special_tokens=False).input_ids[0] for c in "ab\n:"]
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
        head = loaded.model.get_output_embeddings().weight
        first, second = head[spoken[0]].clone(), head[spoken[2]].clone()
        head.zero_()
        for token, direction in zip(spoken, (first, -first, second, -second), strict=True):
            head[token] = direction  # of each pair one logit is positive, so no other token is ever the best
    folder = tmp_path_factory.mktemp("models") / "babbler"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def babbling_engine(babbler: Path) -> Iterator[Engine]:
    engine = Engine(load_tiny(babbler))
    yield engine
    engine.close()
