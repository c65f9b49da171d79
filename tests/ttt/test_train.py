"""Training moves the adapter alone: the right gradients, the same result for the same seed, a base that stays."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ttt.conftest import SMALL, letters_task, load_tiny
from ttt import gradients
from ttt import train as train_module
from ttt.dataset import Sequence, sequences
from ttt.engine import Bench, Engine
from ttt.errors import AdapterError, Cancelled, NonFiniteLoss, OutOfMemory, TaskError
from ttt.gradients import FusedAdapter, PeftAdapter, batch_loss, trainable
from ttt.prompts import PromptFormat
from ttt.recipes import RECIPES, Recipe, recipe
from ttt.task import Demonstration, Task
from ttt.train import Training, TrainReport, TrainRequest, TrainStep, average, rate_factor, train_adapter

TASK = letters_task(6)
IDS = torch.arange(3, 43)[None]  # (1, 40)


async def logits(engine: Engine, adapter: str | None = None) -> torch.Tensor:
    def run(bench: Bench) -> torch.Tensor:
        with bench.slots.active(adapter) as model, torch.inference_mode():
            found: torch.Tensor = model(input_ids=IDS).logits
            return found

    return await engine.run(run)


async def is_plain(engine: Engine) -> bool:
    return await engine.run(
        lambda bench: (
            bench.slots.names == ()
            and not any("lora" in n for n, _ in bench.loaded.model.named_modules())
            and all(p.grad is None and not p.requires_grad for p in bench.loaded.model.parameters())
        )
    )


def request(folder: Path | None, seed: int = 0, name: str = "a", **changes: object) -> TrainRequest:
    return TrainRequest(TASK, replace(SMALL, **changes), seed, folder, name)  # type: ignore[arg-type]


def test_the_loss_and_its_gradients_are_those_of_full_logits_row_by_row(tiny_model: Path) -> None:
    """Tolerance 1e-5 of the largest gradient, float32: kept logits and padding change the order of sums only."""
    loaded = load_tiny(tiny_model)
    model = loaded.model.requires_grad_(True)
    fmt = PromptFormat(loaded.tokenizer, TASK)
    wide = list(islice(sequences(TASK, fmt, replace(SMALL, sequence_tokens=110), 0), 2))
    short = list(islice(sequences(TASK, fmt, replace(SMALL, sequence_tokens=60), 0), 1))
    batch = [*wide, *short, Sequence((5, 6, 7), (True, False, True))]
    assert len({len(s.ids) for s in batch}) > 2
    loss, n = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    total, count = torch.zeros(()), 0
    for s in batch:
        rows = torch.log_softmax(model(input_ids=torch.tensor([s.ids])).logits[0].float(), dim=-1)
        for i in range(1, len(s.ids)):
            if s.labels[i]:
                total, count = total - rows[i - 1, s.ids[i]], count + 1
    (total / count).backward()  # type: ignore[no-untyped-call]
    assert n == count == sum(sum(s.labels[1:]) for s in batch)
    assert loss.item() == pytest.approx(total.item() / count, rel=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name


ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("targets", [SMALL.targets, ALL, ("k_proj", "up_proj")])
@pytest.mark.parametrize("lengths", [(150,), (25, 1, 17, 200)])
def test_fused_gradients_are_those_of_peft(
    engine: Engine, targets: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    """Norm of the difference at most 1e-4 of the norm, weight by weight, float32. The Gemma 3 model's window
    is 16 tokens and a block of attention 128: both are crossed."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    batch = [
        Sequence(tuple(rng.randrange(3, 300) for _ in range(n)), tuple(rng.random() < 0.4 for _ in range(n)))
        for n in lengths
    ]

    def compare(bench: Bench) -> None:
        bench.slots.create("a", replace(SMALL, targets=targets), 0)
        with torch.no_grad():
            for weight in bench.slots.parameters("a"):
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
        peft = PeftAdapter(bench, "a")
        loss, n = peft.loss(bench, batch)
        sizes = [p.numel() for p in peft.parameters]
        expected = dict(zip(map(id, peft.parameters), torch.split(peft.grads, sizes), strict=True))
        fused = trainable(bench, "a")
        assert isinstance(fused, FusedAdapter)
        again, m = fused.loss(bench, batch)
        assert again == pytest.approx(loss, rel=1e-5) and m == n
        for path, views in fused.weights.views.items():
            layer: Any = bench.loaded.model.get_submodule(path)
            for weight, view in zip((layer.lora_A["a"].weight, layer.lora_B["a"].weight), views, strict=True):
                found = fused.grads[view.storage_offset() :][: view.numel()]
                wanted = expected.pop(id(weight))
                assert (found - wanted).norm() <= 1e-4 * wanted.norm()
        assert not expected

    engine.submit(compare).result()


async def test_the_loss_goes_down_and_only_the_adapter_has_moved(engine: Engine, tmp_path: Path) -> None:
    base, digest = await logits(engine), await engine.base_hash()
    steps: list[TrainStep] = []
    report = await train_adapter(engine, request(tmp_path / "adapter", steps=12), steps.append)
    assert [s.step for s in steps] == list(range(1, 13)) and {s.of for s in steps} == {12}
    assert tuple(s.loss for s in steps) == report.losses
    assert max(report.losses[-3:]) < min(report.losses[:2]) - 0.1
    assert report.recipe == replace(SMALL, steps=12).id
    assert report.labelled_tokens < report.tokens <= 12 * SMALL.batch * SMALL.sequence_tokens
    assert report.trainable_parameters > 0 and report.seconds > 0
    assert await is_plain(engine)
    assert await engine.base_hash() == digest
    assert torch.equal(await logits(engine), base)


async def test_the_saved_adapter_is_a_plain_peft_one(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """Tolerance 1e-5 on float32 logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = await logits(engine)
    await train_adapter(engine, request(tmp_path / "adapter"), keep=True)
    kept = await logits(engine, "a")
    async with engine.adapter(tmp_path / "adapter") as name:
        attached = await logits(engine, name)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.inference_mode():
        found = peft(input_ids=IDS).logits
    assert torch.equal(kept, attached)
    assert (found - kept).abs().max() < 1e-5
    assert (kept - base).abs().max() > 1e-2
    assert torch.equal(await logits(engine), base)


async def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    engine: Engine, tmp_path: Path
) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        await train_adapter(engine, request(tmp_path / name, seed, name, steps=3))
    files = ("adapter_config.json", "adapter_model.safetensors")
    one, again, other = ([(tmp_path / n / f).read_bytes() for f in files] for n in ("one", "again", "other"))
    assert one == again
    assert one[1] != other[1]


async def test_what_else_is_attached_does_not_change_a_training(llama_engine: Engine, tmp_path: Path) -> None:
    await train_adapter(llama_engine, request(tmp_path / "alone", steps=3))
    await train_adapter(llama_engine, request(None, 9, "beside", steps=2), keep=True)
    await train_adapter(llama_engine, request(tmp_path / "later", steps=3))
    files = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("alone", "later")]
    assert files[0] == files[1]


async def fails(engine: Engine, folder: Path, error: type[Exception], match: str, **how: object) -> None:
    """Run a training that fails; check that nothing of it is left."""
    base, digest = await logits(engine), await engine.base_hash()
    emit, stop = how.pop("emit", lambda _: None), how.pop("should_stop", lambda: False)
    with pytest.raises(error, match=match):
        await train_adapter(engine, request(folder, **how), emit, stop)  # type: ignore[arg-type]
    assert await is_plain(engine)
    assert await engine.base_hash() == digest
    assert torch.equal(await logits(engine), base)
    assert not folder.exists() or not list(folder.iterdir())


async def test_an_absurd_rate_ends_in_a_non_finite_loss_and_leaves_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    match = r"the loss was nan at step [23] of 6; lower the learning rate \(now 1e\+30\)"
    await fails(engine, tmp_path / "adapter", NonFiniteLoss, match, learning_rate=1e30)


async def test_a_last_step_that_breaks_the_weights_is_not_saved(llama_engine: Engine, tmp_path: Path) -> None:
    match = r"the last step .* infinite; lower the learning rate"
    await fails(llama_engine, tmp_path / "adapter", NonFiniteLoss, match, learning_rate=1e39, steps=1)


async def test_an_exploding_loss_is_told_with_its_value(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    real = gradients.losses

    def explode(*asked: Any) -> list[tuple[float, int]]:
        ((loss, n),) = real(*asked)
        losses.append(loss * 2.0 ** len(losses))
        return [(losses[-1], n)]

    monkeypatch.setattr(gradients, "losses", explode)
    match = r"the loss was \d\d\.\d at step 3 of 6; lower the learning rate \(now 0.01\)"
    await fails(llama_engine, tmp_path / "adapter", NonFiniteLoss, match)
    assert losses[1] < max(train_module.EXPLODED, 3 * losses[0]) < losses[2]


@pytest.mark.parametrize("steps", [0, 2])
async def test_a_cancelled_training_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    passes = 0
    real = gradients.losses

    def count(*asked: Any) -> list[tuple[float, int]]:
        nonlocal passes
        found = real(*asked)
        passes += 1
        return found

    monkeypatch.setattr(gradients, "losses", count)
    match = f"cancelled after {steps} of 6 steps"
    await fails(engine, tmp_path / "adapter", Cancelled, match, should_stop=lambda: passes >= steps)


async def test_an_error_in_the_listener_ends_the_training_and_leaves_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    def emit(step: TrainStep) -> None:
        if step.step == 2:
            raise ZeroDivisionError("the listener's own")

    await fails(engine, tmp_path / "adapter", ZeroDivisionError, "the listener's own", emit=emit)


async def test_running_out_of_memory_names_the_size_and_leaves_nothing(
    llama_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = gradients.losses

    def allocate(*asked: Any) -> list[tuple[float, int]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            torch.empty(2**60, dtype=torch.uint8)  # more than any machine has
        return real(*asked)

    monkeypatch.setattr(gradients, "losses", allocate)
    await fails(
        llama_engine, tmp_path / "adapter", OutOfMemory, r"out of memory at 2 × \d+ tokens; use a recipe"
    )


async def test_a_training_whose_task_is_cancelled_leaves_nothing(
    llama_engine: Engine, tmp_path: Path
) -> None:
    base, digest = await logits(llama_engine), await llama_engine.base_hash()
    first = asyncio.Event()
    training = asyncio.create_task(
        train_adapter(llama_engine, request(tmp_path / "adapter", steps=500), lambda _: first.set())
    )
    await first.wait()
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert await is_plain(llama_engine)
    assert await llama_engine.base_hash() == digest
    assert torch.equal(await logits(llama_engine), base)
    assert not (tmp_path / "adapter").exists()


async def test_a_name_in_use_is_refused_and_its_adapter_stays(llama_engine: Engine) -> None:
    await train_adapter(llama_engine, request(None, steps=2), keep=True)
    before = await logits(llama_engine, "a")
    with pytest.raises(AdapterError, match="'a' is attached already"):
        await train_adapter(llama_engine, request(None, 5, steps=2))
    assert torch.equal(await logits(llama_engine, "a"), before)


async def test_a_task_without_demonstrations_is_refused(llama_engine: Engine) -> None:
    with pytest.raises(TaskError, match="at least one demonstration"):
        await train_adapter(llama_engine, TrainRequest(Task(), SMALL, 0, None, "a"))
    assert await is_plain(llama_engine)


async def test_one_demonstration_can_be_trained_on(llama_engine: Engine) -> None:
    task = letters_task(1)
    report: TrainReport = await train_adapter(llama_engine, TrainRequest(task, SMALL, 0, None, "a"))
    assert report.losses[-1] < report.losses[0]


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine_to_a_tenth() -> None:
    long = replace(SMALL, steps=100, warmup=0.1)
    factors = [rate_factor(step, long) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == factors[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[10 + 45] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert 0.1 < factors[-1] < 0.11
    assert rate_factor(0, replace(SMALL, steps=1)) == 1.0


async def test_the_rate_goes_with_the_size_of_the_models_weights(llama_engine: Engine) -> None:
    """The same recipe moves B's weights in its first step by the rate: proportional, or as it is."""

    async def moved(weight_rms: float) -> float:
        recipe = replace(SMALL, learning_rate=1e-2, weight_rms=weight_rms, steps=1)
        await train_adapter(llama_engine, TrainRequest(letters_task(4), recipe, 0, None, "a"), keep=True)

        def largest(bench: Bench) -> float:
            found = bench.slots.plain("a")
            assert found is not None
            bench.slots.drop("a")
            return max(plain.b.abs().max().item() for plain in found.values())

        return await llama_engine.run(largest)

    rms = await llama_engine.run(lambda bench: bench.slots.weight_rms(SMALL.targets))
    assert rms == pytest.approx(0.02, rel=0.2)  # transformers draws a fresh model's weights so
    assert await moved(0.0) == pytest.approx(1e-2, rel=1e-3)
    assert await moved(rms) == pytest.approx(1e-2, rel=1e-3)
    assert await moved(4 * rms) == pytest.approx(2.5e-3, rel=1e-3)


async def test_training_ends_early_once_nothing_is_left_to_learn_and_settles_first(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    update = train_module.Training._update

    def noted(self: Training, recipe: Recipe) -> None:
        rates.append(self.optimizer.param_groups[0]["lr"])
        update(self, recipe)

    monkeypatch.setattr(train_module.Training, "_update", noted)
    learnt = replace(SMALL, steps=40, stop_loss=100.0)
    report = await train_adapter(llama_engine, TrainRequest(letters_task(4), learnt, 0, None, "a"))
    window = train_module.STOP_WINDOW
    assert len(report.losses) == window + 6 == len(rates)
    assert rates[window:] == sorted(rates[window:], reverse=True), "it decays at once"
    assert rates[-1] < 0.2 * rates[window - 1]
    never = replace(learnt, steps=12, stop_loss=0.0)
    report = await train_adapter(llama_engine, TrainRequest(letters_task(4), never, 0, None, "a"))
    assert len(report.losses) == 12


def test_recipes_are_found_by_name_and_told_apart_by_hash() -> None:
    texts, cells = letters_task(4), Task((Demonstration("1 0 0", "0 1 0"), Demonstration("0 2 0", "0 0 2")))
    standard = recipe("standard", texts)
    assert (standard, recipe("standard", cells)) == RECIPES["standard"]
    assert standard.id == recipe("standard", texts).id != standard.with_steps(standard.steps + 1).id
    assert standard.id != recipe("standard", cells).id
    with pytest.raises(TaskError, match="Unknown recipe 'none'; choose one of: quick, standard"):
        recipe("none", texts)


async def test_a_training_that_paused_goes_on_where_it_stood(llama_engine: Engine) -> None:
    """Same weights, same moments, same place in the schedule; the sequences are drawn anew."""
    whole = replace(SMALL, steps=6, stop_loss=0.0)
    part = await train_adapter(llama_engine, TrainRequest(TASK, whole, 0, None, "a", pause_at=4))
    assert part.reached is not None and len(part.losses) == 4
    begin = average([part.reached, part.reached])
    assert begin.losses == part.reached.losses and torch.equal(begin.weights, part.reached.weights)
    kept = begin.weights.clone()

    training = Training(TrainRequest(TASK, whole, 0, None, "b", begin), iter(()), lambda: False)

    def start(bench: Bench) -> tuple[torch.Tensor, float, float]:
        training.start(bench)
        flat = training.weights.flat.clone()
        training.done(0.5, [], 1, 0.0)  # an update without a gradient: momentum alone moves the weights
        moved = (training.weights.flat - flat).abs().max().item()
        rate = training.optimizer.param_groups[0]["lr"]
        training.drop(bench)
        return flat, moved, rate

    flat, moved, rate = await llama_engine.run(start)
    assert torch.equal(flat, kept.to(flat.dtype))
    assert moved > 0 and rate == pytest.approx(whole.learning_rate * rate_factor(4, whole))
    assert torch.equal(begin.weights, kept), "a beginning can be used again"
    rest = await train_adapter(llama_engine, TrainRequest(TASK, whole, 0, None, "a", begin))
    assert len(rest.losses) == 6 and rest.losses[:4] == part.losses and rest.reached is None


async def test_demonstrations_longer_than_the_models_context_are_left_out(llama_engine: Engine) -> None:
    short, most = letters_task(3), llama_engine.loaded.context_length
    long = Demonstration("a" * 2 * most, "b")
    report = await train_adapter(
        llama_engine,
        TrainRequest(Task((*short.demonstrations, long), short.instruction), SMALL, 0, None, "a"),
    )
    assert report.tokens < most * SMALL.steps
    with pytest.raises(TaskError, match=f"No demonstration fits in the model's context of {most} tokens"):
        await train_adapter(llama_engine, TrainRequest(Task((long,)), SMALL, 0, None, "a"))
    assert await is_plain(llama_engine)


async def test_memory_that_runs_out_beside_the_passes_is_told_as_such(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for where in ("_update", "start"):
        with monkeypatch.context() as patched:
            patched.setattr(Training, where, no_room)
            with pytest.raises(OutOfMemory, match="smaller model"):
                await train_adapter(llama_engine, TrainRequest(letters_task(3), SMALL, 0, None, "a"))
        assert await is_plain(llama_engine)


async def test_an_adapter_is_taken_off_although_its_training_is_cancelled_while_it_waits(
    llama_engine: Engine,
) -> None:
    """The slice that takes it off is queued behind another one when the task is cancelled."""
    held, go_on = threading.Event(), threading.Event()

    def wait(_: Bench) -> None:
        held.set()
        go_on.wait(10)

    def hold(step: TrainStep) -> None:
        if step.step == 2:
            llama_engine.submit(wait)

    endless = replace(SMALL, steps=10_000, stop_loss=0.0)
    task = asyncio.create_task(
        train_adapter(llama_engine, TrainRequest(letters_task(3), endless, 0, None, "a"), hold)
    )
    while not held.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()  # also while it cleans up
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await is_plain(llama_engine)
