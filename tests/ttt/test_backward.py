"""Several adapters in one pass get the gradients that each gets alone, whether their products run as one batch
or one by one.

Norm of the difference at most 1e-4 of the norm, float32: the same sums in another order.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import SMALL, load_tiny
from ttt.backward import _Pass, loss_and_gradients
from ttt.dataset import Sequence
from ttt.engine import Bench, Engine
from ttt.gradients import FusedAdapter, trainable


def batch(lengths: tuple[int, ...], seed: int) -> list[Sequence]:
    rng = random.Random(seed)
    return [
        Sequence(tuple(rng.randrange(3, 300) for _ in range(n)), tuple(rng.random() < 0.4 for _ in range(n)))
        for n in lengths
    ]


@pytest.mark.parametrize(
    ("lengths", "ranks", "as_one"),
    [
        (((40,), (40,), (40,)), (4, 4, 4), True),
        (((40,), (36,), (44,)), (4, 4, 4), True),
        (((40, 36), (38, 40), (44, 42)), (4, 4, 4), True),
        (((40,), (20, 17), (44,)), (4, 4, 4), False),
        (((40,), (9,), (150,)), (4, 4, 4), False),
        (((40,), (40,)), (4, 2), False),
    ],
)
def test_together_as_alone(
    tiny_model: Path, lengths: tuple[tuple[int, ...], ...], ranks: tuple[int, ...], as_one: bool
) -> None:
    engine = Engine(load_tiny(tiny_model))

    def compare(bench: Bench) -> None:
        assert bench.decoder is not None
        adapters, batches = [], [batch(own, i) for i, own in enumerate(lengths)]
        for i, rank in enumerate(ranks):
            bench.slots.create(f"a{i}", replace(SMALL, rank=rank, alpha=2 * rank), i)
            adapter = trainable(bench, f"a{i}")
            assert isinstance(adapter, FusedAdapter)
            generator = torch.Generator().manual_seed(i)
            adapter.flat += 0.1 * torch.randn(adapter.flat.shape, generator=generator)
            adapters.append(adapter)
        alone = [
            (adapter.loss(bench, own), adapter.grads.clone())
            for adapter, own in zip(adapters, batches, strict=True)
        ]
        tasks = [(adapter.weights, own) for adapter, own in zip(adapters, batches, strict=True)]
        assert _Pass(bench.decoder, tasks).uniform is as_one
        for adapter in adapters:
            adapter.grads.fill_(7.0)
        together = loss_and_gradients(bench.decoder, tasks)
        for adapter, ((loss, n), grads), (found, m) in zip(adapters, alone, together, strict=True):
            assert found == pytest.approx(loss, rel=1e-5) and m == n
            assert (adapter.grads - grads).norm() <= 1e-4 * grads.norm()

    try:
        engine.submit(compare).result()
    finally:
        engine.close()
