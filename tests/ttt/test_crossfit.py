"""Cross-fitted evidence: each demonstration once, by an adapter and a context that have not seen it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from statistics import mean

import pytest

from tests.ttt.conftest import SMALL, letters_task
from ttt.crossfit import MIN_DEMONSTRATIONS, cross_fit, folds, shape
from ttt.engine import Engine
from ttt.errors import Cancelled, NonFiniteLoss, TaskError
from ttt.judging import judge
from ttt.task import Demonstration, Task
from ttt.train import Beginning, TrainRequest, TrainStep, train_adapter

SHORT = replace(SMALL, steps=4, probe_steps=3)


def halves(task: Task, seed: int) -> tuple[set[int], set[int]]:
    order = list(range(len(task.demonstrations)))
    random.Random(seed).shuffle(order)
    return set(order[: len(order) // 2]), set(order[len(order) // 2 :])


@pytest.mark.parametrize("n", [MIN_DEMONSTRATIONS, 4, 7])
async def test_each_demonstration_is_judged_once_before_and_after(llama_engine: Engine, n: int) -> None:
    steps: list[TrainStep] = []
    digest = await llama_engine.base_hash()
    found = await cross_fit(llama_engine, letters_task(n), SHORT, 0, steps.append)
    columns = (found.correct_before, found.correct_after, found.logprob_before, found.logprob_after)
    assert [len(column) for column in columns] == [n] * 4
    assert sum(found.logprob_after) > sum(found.logprob_before)
    n_steps = 3 * len(folds(letters_task(n), 0))
    assert [(s.step, s.of) for s in steps] == [(i, n_steps) for i in range(1, n_steps + 1)]
    assert found.tokens > 0 and found.train_s > 0
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()
    assert await llama_engine.base_hash() == digest


async def test_the_base_is_judged_from_the_other_half(engine: Engine) -> None:
    task = letters_task(5)
    found = await cross_fit(engine, task, SHORT, 3)
    for own, other in (halves(task, 3), halves(task, 3)[::-1]):
        context = replace(task, demonstrations=tuple(task.demonstrations[i] for i in sorted(other)))
        held_out = [task.demonstrations[i] for i in sorted(own)]
        expected = await judge(engine, context, held_out, adapter=None)
        assert expected.logprob == tuple(found.logprob_before[i] for i in sorted(own))


async def test_no_demonstration_is_judged_by_what_has_seen_its_label(engine: Engine) -> None:
    """With one label changed, all others of its half are judged alike before and after: they saw only the other."""
    task = letters_task(6, seed=5)
    before = await cross_fit(engine, task, SHORT, 1)
    for changed in (0, 3):
        shown = list(task.demonstrations)
        shown[changed] = Demonstration(shown[changed].input, "the one")
        after = await cross_fit(engine, replace(task, demonstrations=tuple(shown)), SHORT, 1)
        own = next(half for half in halves(task, 1) if changed in half)
        for i in range(6):
            same = after.logprob_after[i] == pytest.approx(before.logprob_after[i], abs=1e-4)
            assert same == (i in own - {changed})


async def test_the_same_seed_gives_the_same_evidence(llama_engine: Engine) -> None:
    one, again = [await cross_fit(llama_engine, letters_task(5), SHORT, 2) for _ in range(2)]
    assert replace(one, train_s=0.0) == replace(again, train_s=0.0)


async def test_one_task_can_be_probed_by_two_callers_at_once(llama_engine: Engine) -> None:
    alone = await cross_fit(llama_engine, letters_task(4), SHORT, 0)
    both = await asyncio.gather(*(cross_fit(llama_engine, letters_task(4), SHORT, 0) for _ in range(2)))
    for found in both:  # in passes shared by four trainings sums have another order
        assert (found.correct_after, found.tokens) == (alone.correct_after, alone.tokens)
        assert found.logprob_after == pytest.approx(alone.logprob_after, abs=1e-4)
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()


async def test_the_training_goes_on_from_the_mean_of_both_halves(llama_engine: Engine) -> None:
    """The steps of the probe count, and what it has learned is there."""
    task, recipe = letters_task(6), replace(SMALL, steps=12, probe_steps=8, stop_loss=0.0)
    found: list[Beginning] = []
    await cross_fit(llama_engine, task, recipe, 0, begun=found.append)
    (begin,) = found
    assert len(begin.losses) == recipe.probed == 8
    rest = await train_adapter(llama_engine, TrainRequest(task, recipe, 0, None, "a", begin))
    alone = await train_adapter(llama_engine, TrainRequest(task, recipe, 0, None, "a"))
    assert rest.losses[:8] == begin.losses and len(rest.losses) == len(alone.losses) == 12
    assert rest.tokens * 2 < alone.tokens, "only its own steps are counted"
    assert mean(rest.losses[8:]) < mean(alone.losses[:4])
    assert mean(rest.losses[8:]) == pytest.approx(mean(alone.losses[8:]), rel=0.1)


async def test_a_probe_leaves_a_step_to_the_training(llama_engine: Engine) -> None:
    task, recipe = letters_task(4), replace(SMALL, steps=2, probe_steps=8)
    found: list[Beginning] = []
    await cross_fit(llama_engine, task, recipe, 0, begun=found.append)
    assert recipe.probed == 1
    report = await train_adapter(llama_engine, TrainRequest(task, recipe, 0, None, "a", found[0]))
    assert len(report.losses) == 2


async def test_too_few_demonstrations_are_told_with_their_number(llama_engine: Engine) -> None:
    with pytest.raises(TaskError, match="at least 3 demonstrations, the task has 2; add some"):
        await cross_fit(llama_engine, letters_task(2), SHORT, 0)


async def test_of_three_demonstrations_each_is_judged_by_a_training_on_the_other_two(engine: Engine) -> None:
    task = letters_task(3)
    parts = folds(task, 3)
    assert sorted(part.positions for part in parts) == [(0,), (1,), (2,)]
    for part in parts:
        (i,) = part.positions
        assert part.held_out == (task.demonstrations[i],)
        assert part.task.demonstrations == tuple(d for d in task.demonstrations if d not in part.held_out)
    found = await cross_fit(engine, task, SHORT, 3)
    for part in parts:
        expected = await judge(engine, part.task, part.held_out, adapter=None)
        assert expected.logprob == (found.logprob_before[part.positions[0]],)


@pytest.mark.parametrize("n", range(3, 12))
def test_what_is_expected_of_folds_is_what_they_are(n: int) -> None:
    parts, (k, least) = folds(letters_task(n), n), shape(n)
    assert len(parts) == k and min(len(part.task.demonstrations) for part in parts) == least
    assert sorted(i for part in parts for i in part.positions) == list(range(n))


async def test_a_training_that_fails_or_is_cancelled_leaves_nothing(llama_engine: Engine) -> None:
    digest = await llama_engine.base_hash()
    with pytest.raises(NonFiniteLoss):
        await cross_fit(llama_engine, letters_task(4), replace(SHORT, learning_rate=1e30), 0)
    steps: list[TrainStep] = []
    endless = replace(SHORT, steps=100_000, probe_steps=100_000, stop_loss=0.0)
    with pytest.raises(Cancelled):
        await cross_fit(llama_engine, letters_task(4), endless, 0, steps.append, lambda: len(steps) >= 3)
    steps.clear()
    whole = replace(SHORT, stop_loss=0.0)
    with pytest.raises(Cancelled, match="before it was judged"):
        await cross_fit(
            llama_engine, letters_task(4), whole, 0, steps.append, lambda: len(steps) >= 2 * SHORT.probed
        )
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()
    assert await llama_engine.base_hash() == digest
