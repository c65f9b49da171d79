"""Where a task lies: the same however it is written down, whatever adapter is attached, whichever way it is run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt.embedding import EMBEDDING, PASS_TOKENS, SIZE, depth, embed
from ttt.engine import Engine
from ttt.errors import ContextOverflow
from ttt.prompts import PromptFormat
from ttt.task import Demonstration, Task
from ttt.train import TrainRequest, train_adapter


def embedded(engine: Engine, task: Task) -> np.ndarray:
    return np.array(asyncio.run(embed(engine, task)))


def test_it_is_the_mean_over_answers_less_that_over_questions_two_thirds_up(engine: Engine) -> None:
    task = letters_task(6)
    fmt = PromptFormat(engine.loaded.tokenizer, task)
    head = fmt.head()
    asked, answered = [], []
    for segment in map(fmt.segment, task.demonstrations):
        ids = torch.tensor([[*head, *segment.ids]])
        with torch.inference_mode():
            states = engine.loaded.model(ids, output_hidden_states=True).hidden_states
        rows = states[depth(len(states) - 1)][0].float()
        first = len(head) + len(segment.question) - 1
        asked += list(rows[max(1, len(head)) : first])
        answered += list(rows[first : first + len(segment.answer)])
    wanted = (torch.stack(answered).mean(0) - torch.stack(asked).mean(0)).numpy()
    found = embedded(engine, task)
    assert found.shape == wanted.shape and np.linalg.norm(found) == pytest.approx(1)
    assert found @ wanted / np.linalg.norm(wanted) == pytest.approx(1, abs=1e-4)


def test_order_does_not_count_and_an_attached_adapter_changes_nothing(engine: Engine) -> None:
    task = letters_task(8)
    before = embedded(engine, task)
    turned = replace(task, demonstrations=task.demonstrations[::-1])
    asyncio.run(train_adapter(engine, TrainRequest(task, SMALL, 0, None, "a"), keep=True))
    assert embedded(engine, turned) == pytest.approx(before, abs=1e-4)


def test_the_fused_way_equals_that_through_transformers(tiny_model: Path) -> None:
    task = letters_task(7, seed=1)
    fused, plain = Engine(load_tiny(tiny_model)), Engine(load_tiny(tiny_model))
    try:
        plain._bench = replace(plain._bench, decoder=None)
        assert fused._bench.decoder is not None
        assert embedded(plain, task) == pytest.approx(embedded(fused, task), abs=1e-4)
    finally:
        fused.close()
        plain.close()


def test_more_than_a_pass_holds_and_more_than_is_read(llama_engine: Engine) -> None:
    many = letters_task(80)
    assert sum(len(d.input) for d in many.demonstrations) * 3 > PASS_TOKENS
    assert np.linalg.norm(embedded(llama_engine, many)) == pytest.approx(1)
    endless = letters_task(400)
    assert np.linalg.norm(embedded(llama_engine, endless)) == pytest.approx(1)


def test_wide_hidden_states_become_few_numbers_that_keep_their_angles() -> None:
    from ttt.embedding import _point

    torch.manual_seed(0)
    a, noise = torch.randn(576), torch.randn(576)
    near, far = (
        torch.tensor(_point(a)) @ torch.tensor(_point(a + 0.2 * noise)),
        torch.tensor(_point(a)) @ torch.tensor(_point(noise)),
    )
    assert len(_point(a)) == SIZE and near > 0.95 and abs(far) < 0.3
    assert _point(a) == _point(a) and EMBEDDING


def test_a_task_without_demonstrations_lies_nowhere(llama_engine: Engine) -> None:
    assert embedded(llama_engine, Task((), "Say it.")).size == 0


def test_a_demonstration_that_does_not_fit_is_told(llama_engine: Engine) -> None:
    with pytest.raises(ContextOverflow, match="No demonstration fits"):
        embedded(llama_engine, Task((Demonstration("ab " * 4000, "x"),)))
