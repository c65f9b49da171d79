"""Other tasks' adapters: judged without a leak, merged as PEFT does it, and begun at exactly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task
from ttt.crossfit import CrossFitResult, folds, judge_folds
from ttt.engine import Bench, Engine
from ttt.errors import AdapterError
from ttt.judging import Judged
from ttt.recipes import Recipe
from ttt.task import Demonstration, Task
from ttt.train import TrainRequest, train_adapter
from ttt.warm import WARMUP, Check, attached, begin_at, check, judge_halves, shortened


def same(n: int, word: str = "ok", first: int = 0) -> Task:
    return Task(tuple(Demonstration(f"{chr(97 + i)}{i}", word) for i in range(first, first + n)), "Say it.")


STRONG = replace(SMALL, steps=12, stop_loss=0.0, sequence_tokens=256, shots=5)


def trained(engine: Engine, folder: Path, task: Task, recipe: Recipe = STRONG, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    asyncio.run(train_adapter(engine, TrainRequest(task, recipe, seed, folder, "t")))
    return folder


def checked(engine: Engine, folders: Sequence[Path], task: Task, seen: Sequence[int] = ()) -> Check | None:
    async def work() -> Check | None:
        parts = folds(task, 0)
        base = await judge_halves(engine, parts, None)
        async with attached(engine, folders) as name:
            return await check(engine, parts, base, name, seen)

    return asyncio.run(work())


def test_an_adapter_of_the_same_rule_solves_unseen_demonstrations(
    llama_engine: Engine, tmp_path: Path
) -> None:
    found = checked(llama_engine, [trained(llama_engine, tmp_path / "a", same(6))], same(6, first=10))
    assert found is not None and all(found.evidence.correct_after) and found.removed > 0.04
    assert len(found.evidence.correct_after) == 6 and found.evidence.tokens == 0
    assert not any(found.evidence.correct_before)


def test_both_halves_in_one_go_are_judged_as_one_by_one(engine: Engine, tmp_path: Path) -> None:
    folder, parts = trained(engine, tmp_path / "a", letters_task(7)), folds(letters_task(9, seed=1), 0)

    async def work() -> None:
        async with attached(engine, [folder]) as name:
            for adapter in (None, name):
                at_once = await judge_halves(engine, parts, adapter)
                apart = await judge_folds(engine, parts, (adapter, adapter))
                assert at_once.correct == apart.correct
                assert at_once.logprob == pytest.approx(apart.logprob, abs=1e-4)

    asyncio.run(work())


def test_demonstrations_that_it_has_learned_from_do_not_count(llama_engine: Engine, tmp_path: Path) -> None:
    folder = trained(llama_engine, tmp_path / "a", same(6))
    whole, part = checked(llama_engine, [folder], same(8)), checked(llama_engine, [folder], same(8), range(4))
    assert whole is not None and part is not None
    assert part.evidence.logprob_after == whole.evidence.logprob_after[4:]
    assert part.evidence.logprob_before == whole.evidence.logprob_before[4:]
    assert checked(llama_engine, [folder], same(8), range(5)) is None, "three are too few"


def evidence(before: float, after: float, right_before: int, right_after: int, n: int = 10) -> Check:
    correct = [tuple(i < right for i in range(n)) for right in (right_before, right_after)]
    return Check(CrossFitResult(correct[0], correct[1], (before,) * n, (after,) * n, 0, 0.0))


@pytest.mark.parametrize(
    "found,use",
    [
        (evidence(-1.0, -0.01, 2, 10), "answers"),
        (evidence(-1.0, -0.4, 2, 6), "answers"),
        (evidence(-1.0, -0.24, 2, 4), "answers"),
        (evidence(-1.0, -0.26, 2, 5), "start"),
        (evidence(-1.0, -0.01, 2, 3), "start"),
        (evidence(-1.0, -0.4, 2, 5), "start"),
        (evidence(-1.0, -0.6, 2, 9), "start"),
        (evidence(-1.0, -0.4, 3, 2), "none"),
        (evidence(-1.0, -0.95, 3, 3), "none"),
        (evidence(-1.0, -1.2, 3, 10), "none"),
        (evidence(-1.0, -math.inf, 3, 3), "none"),
    ],
)
def test_what_it_is_good_for_hangs_on_the_unseen_demonstrations(found: Check, use: str) -> None:
    assert found.use == use


def test_a_training_from_an_adapter_is_shorter_and_gentle_at_first() -> None:
    recipe = replace(SMALL, steps=15, probe_steps=10, search=2.0, warmup=0.1)
    rest = shortened(recipe)
    assert (rest.steps, rest.warmup, rest.search) == (8, WARMUP, 0.0)
    assert replace(rest, steps=15, search=2.0, warmup=0.1) == recipe
    assert shortened(replace(SMALL, steps=1)).steps == 1


def test_a_training_begins_exactly_where_the_adapter_is(engine: Engine, tmp_path: Path) -> None:
    folder, recipe = (
        trained(engine, tmp_path / "a", letters_task(6)),
        replace(SMALL, learning_rate=1e-12, steps=1),
    )

    async def work() -> tuple[Judged, Judged]:
        task = letters_task(6, seed=1)
        async with attached(engine, [folder]) as name:
            begun = await begin_at(engine, name, recipe)
            there = await judge_folds(engine, folds(task, 0), (name, name))
        request = TrainRequest(task, recipe, 5, None, "from-there", begun)
        report = await train_adapter(engine, request, keep=True)
        assert len(report.losses) == 1
        return there, await judge_folds(engine, folds(task, 0), ("from-there", "from-there"))

    there, here = asyncio.run(work())
    assert here.logprob == pytest.approx(there.logprob, abs=1e-4)


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_mean_of_equal_adapters_is_that_adapter(engine: Engine, tmp_path: Path, alpha: int) -> None:
    recipe = replace(SMALL, alpha=alpha)
    one = trained(engine, tmp_path / "a", letters_task(6), recipe)
    copies = [one, *(tmp_path / name for name in "bc")]
    for copy in copies[1:]:
        copy.symlink_to(one)

    async def work() -> tuple[torch.Tensor, torch.Tensor, Judged, Judged]:
        parts = folds(letters_task(6, seed=1), 0)
        async with attached(engine, [one]) as alone, attached(engine, copies) as merged:
            mean, own = await begin_at(engine, merged, recipe), await begin_at(engine, alone, recipe)
            judged = [await judge_folds(engine, parts, (name, name)) for name in (merged, alone)]
        return mean.weights, own.weights, judged[0], judged[1]

    mean, own, merged, alone = asyncio.run(work())
    torch.testing.assert_close(mean, own, atol=1e-6, rtol=1e-5)
    assert merged.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_the_mean_lies_between_and_leaves_nothing_behind(llama_engine: Engine, tmp_path: Path) -> None:
    folders = [trained(llama_engine, tmp_path / n, letters_task(6, seed=i)) for i, n in enumerate("ab")]
    digest = asyncio.run(llama_engine.base_hash())

    async def work() -> list[torch.Tensor]:
        found = []
        for chosen in (folders[:1], folders[1:], folders):
            async with attached(llama_engine, chosen) as name:
                found.append((await begin_at(llama_engine, name, STRONG)).weights)
        return found

    one, other, mean = asyncio.run(work())
    assert not torch.equal(one, other)
    torch.testing.assert_close(mean, (one + other) / 2, atol=1e-6, rtol=1e-4)

    def names(bench: Bench) -> tuple[str, ...]:
        return bench.slots.names

    left = sorted(asyncio.run(llama_engine.run(names)))
    assert [name.rsplit("-", 1)[0] for name in left] == ["saved-a", "saved-b"]
    assert asyncio.run(llama_engine.base_hash()) == digest


def test_another_rank_or_other_layers_are_no_beginning(llama_engine: Engine, tmp_path: Path) -> None:
    small = trained(llama_engine, tmp_path / "a", letters_task(6))
    wide = trained(llama_engine, tmp_path / "b", letters_task(6), replace(STRONG, rank=8))

    async def begin(folders: Sequence[Path], recipe: Recipe) -> None:
        async with attached(llama_engine, folders) as name:
            await begin_at(llama_engine, name, recipe)

    with pytest.raises(AdapterError, match="has rank 8 .* rank 4 .*; start from nothing"):
        asyncio.run(begin([wide], STRONG))
    with pytest.raises(AdapterError, match="down_proj, gate_proj.* on q_proj; start from nothing"):
        asyncio.run(begin([small], replace(STRONG, targets=("q_proj",))))
    with pytest.raises(AdapterError, match="are not of one shape, so they have no mean"):
        asyncio.run(begin([small, wide], STRONG))
