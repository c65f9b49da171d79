"""The fused model on CUDA does what it does on the CPU; skipped, visibly, where there is none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task
from ttt import icl
from ttt.engine import Engine
from ttt.model import load, resolve
from ttt.task import Query
from ttt.train import TrainReport, TrainRequest, train_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine"),
]
TASK = letters_task(6)


def run(folder: Path, device: str) -> tuple[TrainReport, icl.ICLResult]:
    engine = Engine(load(resolve(str(folder)), device, "float32"))
    try:

        async def both() -> tuple[TrainReport, icl.ICLResult]:
            report = await train_adapter(
                engine, TrainRequest(TASK, replace(SMALL, steps=4), 0, None, "a"), keep=True
            )
            return report, await icl.answer(engine, TASK, [Query("abcd"), Query("ba")], adapter="a")

        return asyncio.run(both())
    finally:
        engine.close()


def test_training_and_answers_are_those_of_the_cpu(tiny_model: Path) -> None:
    """Tolerance 1e-2 on losses: TensorFloat-32 products."""
    (there, said), (here, expected) = run(tiny_model, "cuda"), run(tiny_model, "cpu")
    assert there.losses == pytest.approx(here.losses, abs=1e-2)
    assert [a.logprob for a in said.answers] == pytest.approx([a.logprob for a in expected.answers], abs=0.1)
