"""Context tuning: untouched it is in-context learning, its gradients are those of the model's own code, what is
saved is what PEFT reads, and demonstrations do not see themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.ttt.conftest import babble, letters_task, load_tiny
from ttt.crossfit import cross_fit
from ttt.dataset import after_prefix, shown_prefix
from ttt.engine import Bench, Engine
from ttt.errors import AdapterError, ContextOverflow, TrainingFailed
from ttt.icl import answer
from ttt.judging import judge
from ttt.prefix import FROZEN, Prefix, read_prefix
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe
from ttt.task import Query, Task
from ttt.train import TrainReport, TrainRequest, train_adapter
from ttt.views import vote_answers

CONTEXT = Recipe("context", form="prefix", learning_rate=1e-1, steps=12, batch=3, stop_loss=0.0)
TASK = letters_task(6)
QUERIES = [Query(x) for x in ("abcd", "dcba", "a", "bbbbccccdddd")]


def shown(engine: Engine, task: Task = TASK) -> tuple[PromptFormat, list[Any], Any]:
    fmt = PromptFormat(engine.loaded.tokenizer, task)
    segments = [fmt.segment(d) for d in task.demonstrations]
    return fmt, segments, shown_prefix(fmt, segments, tuple(range(len(segments))))


async def attach(engine: Engine, name: str = "prefix", task: Task = TASK) -> None:
    """An untrained prefix."""
    ids = shown(engine, task)[2].ids
    await engine.run(lambda bench: bench.slots.put(name, read_prefix(bench, ids)))


async def trained(engine: Engine, folder: Path | None = None, task: Task = TASK) -> TrainReport:
    return await train_adapter(engine, TrainRequest(task, CONTEXT, 0, folder, "prefix"), keep=True)


async def test_untouched_it_answers_as_in_context_learning(loud_engine: Engine) -> None:
    await attach(loud_engine)
    plain = await answer(loud_engine, TASK, QUERIES)
    got = await answer(loud_engine, TASK, QUERIES, adapter="prefix")
    for a, b in zip(plain.answers, got.answers, strict=True):
        assert (
            a.text == b.text and a.n_tokens == b.n_tokens and a.logprob == pytest.approx(b.logprob, abs=1e-4)
        )
    known, held = replace(TASK, demonstrations=TASK.demonstrations[:4]), TASK.demonstrations[4:]
    await attach(loud_engine, "four", known)
    base = await judge(loud_engine, known, held, adapter=None)
    same = await judge(loud_engine, known, held, adapter="four")
    assert same.correct == base.correct and same.logprob == pytest.approx(base.logprob, abs=1e-4)


def by_transformers(
    bench: Bench, kv: torch.Tensor, tokens: Sequence[int], hidden: tuple[int, int]
) -> torch.Tensor:
    """Logits of one sequence after a prefix, by the model's own code; (tokens, vocabulary)."""
    n, m = kv.shape[3], len(tokens)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kv):
        cache.update(keys[None], values[None], layer)
    at = torch.arange(n, n + m)
    allowed = torch.ones(m, n + m, dtype=torch.bool).tril(n)
    allowed[:, slice(*hidden)] = False
    full = torch.zeros(1, 1, m, n + m).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    config: Any = bench.loaded.model.config
    masks: Any = full
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        near = allowed & (at[:, None] - torch.arange(n + m) < config.sliding_window)
        masks = {
            "full_attention": full,
            "sliding_attention": torch.zeros_like(full).masked_fill_(~near, torch.finfo(torch.float32).min),
        }
    model: Any = bench.loaded.model
    out = model(
        input_ids=torch.tensor([list(tokens)]),
        position_ids=at[None],
        attention_mask=masks,
        past_key_values=cache,
    )
    logits: torch.Tensor = out.logits[0].float()
    return logits


async def test_loss_and_gradients_are_those_of_the_models_own_code(loud_engine: Engine) -> None:
    """On a prompt longer than Gemma's window; every demonstration hides itself."""
    _, segments, prompt = shown(loud_engine)
    batch = [s for s, _ in zip(after_prefix(segments, prompt, CONTEXT, 0), range(3), strict=False)]
    assert len(prompt.ids) > 3 * 16 and all(s.hidden[1] > s.hidden[0] > 0 for s in batch)

    def compare(bench: Bench) -> None:
        prefix = read_prefix(bench, prompt.ids)
        loss, n = prefix.loss(bench, batch)
        leaf = prefix.kv.detach().clone().requires_grad_()
        with torch.enable_grad():
            each = []
            for s in batch:
                logprobs = torch.log_softmax(by_transformers(bench, leaf, s.ids, s.hidden), dim=-1)
                each += [-logprobs[i - 1, s.ids[i]] for i in range(1, len(s.ids)) if s.labels[i]]
            expected = torch.stack(each).mean()
            (gradient,) = torch.autograd.grad(expected, leaf)
        assert n == len(each) and loss == pytest.approx(float(expected.detach()), rel=1e-4)
        own = prefix.grads.view(prefix.kv.shape)
        assert not own[:, :, :, :FROZEN].any() and float(own.norm()) > 0
        gradient[:, :, :, :FROZEN] = 0
        torch.testing.assert_close(own, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))

    await loud_engine.run(compare)


async def test_no_demonstration_sees_itself(llama_engine: Engine) -> None:
    """With the rest of the prefix held still, its own keys and values have no gradient."""
    _, segments, prompt = shown(llama_engine)
    (first,) = [s for s, _ in zip(after_prefix(segments, prompt, CONTEXT, 0), range(1), strict=False)]
    start, end = first.hidden
    assert prompt.ids[start:end] == first.ids

    def gradients(bench: Bench) -> torch.Tensor:
        prefix = read_prefix(bench, prompt.ids)
        prefix.loss(bench, [first])
        return prefix.grads.view(prefix.kv.shape)

    grads = await llama_engine.run(gradients)
    assert not grads[:, :, :, start:end].any() and grads[:, :, :, end:].any()


async def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(engine: Engine) -> None:
    before = await engine.base_hash()
    plain = await answer(engine, TASK, QUERIES)
    report = await trained(engine)
    assert len(report.losses) == 12 and max(report.losses[-3:]) < min(report.losses[:3]) - 0.03
    after = await answer(engine, TASK, QUERIES, adapter="prefix")
    assert [a.logprob for a in after.answers] != [a.logprob for a in plain.answers]
    assert await engine.base_hash() == before and await answer(engine, TASK, QUERIES) == plain
    assert report.trainable_parameters == await engine.run(lambda b: b.slots.prefix("prefix").flat.numel())  # type: ignore[union-attr]


async def test_saved_and_attached_again_it_answers_the_same(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    await trained(engine, folder)
    first = await answer(engine, TASK, QUERIES, adapter="prefix")
    await engine.run(lambda bench: bench.slots.drop("prefix"))
    assert sorted(f.name for f in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    async with engine.adapter(folder) as name:
        assert (await answer(engine, TASK, QUERIES, adapter=name)).answers == first.answers


async def test_peft_reads_the_saved_folder_as_its_cartridge(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    engine = Engine(load_tiny(tiny_llama))
    folder = tmp_path / "adapter"
    await trained(engine, folder)
    ids = PromptFormat(engine.loaded.tokenizer, TASK).question("abcd")
    own = await engine.run(
        lambda b: by_transformers(b, b.slots.prefix("prefix").kv, ids, (0, 0)).detach()  # type: ignore[union-attr]
    )
    engine.close()
    peft: Any = PeftModel.from_pretrained(load_tiny(tiny_llama).model, str(folder))
    with torch.inference_mode():
        theirs = peft(input_ids=torch.tensor([list(ids)])).logits[0].float()
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4)


async def test_the_same_seed_trains_the_same_prefix(llama_engine: Engine, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await trained(llama_engine, tmp_path / name)
        await llama_engine.run(lambda bench: bench.slots.drop("prefix"))
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    configs = [(tmp_path / name / "adapter_config.json").read_text() for name in ("one", "two")]
    assert (
        files[0] == files[1] and configs[0] == configs[1] and json.loads(configs[0])["num_frozen_tokens"] == 1
    )


async def test_a_prefix_of_another_model_is_refused(
    llama_engine: Engine, tiny_gemma3: Path, tmp_path: Path
) -> None:
    await trained(llama_engine, tmp_path / "adapter")
    other = Engine(load_tiny(tiny_gemma3))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "adapter_config.json").write_text((tmp_path / "adapter" / "adapter_config.json").read_text())
    from safetensors.torch import save_file

    save_file({"prompt_embeddings": torch.zeros(5, 7)}, damaged / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"prompt_embeddings of \(5, 7\).*train it again"):
        async with other.adapter(damaged):
            pass
    other.close()


async def test_a_model_whose_layers_are_not_known_is_told(llama_engine: Engine) -> None:
    llama_engine._bench = replace(llama_engine._bench, decoder=None)
    with pytest.raises(TrainingFailed, match="knows the layers of Llama"):
        await trained(llama_engine)
    assert await llama_engine.run(lambda bench: bench.slots.names) == ()


async def test_a_query_that_does_not_fit_behind_the_prefix_is_told(llama_engine: Engine) -> None:
    await attach(llama_engine)
    long = Query("ab" * 60)
    short = replace(TASK, demonstrations=TASK.demonstrations[:1])
    n = len(shown(llama_engine)[2].ids)
    llama_engine.loaded = replace(llama_engine.loaded, context_length=n + 70)
    with pytest.raises(ContextOverflow, match="trained prefix, the longest query"):
        await answer(llama_engine, short, [long], adapter="prefix")


async def test_only_the_plain_view_votes_behind_a_prefix(llama_engine: Engine) -> None:
    await trained(llama_engine)
    plain = await answer(llama_engine, TASK, QUERIES, adapter="prefix")
    voted = await vote_answers(llama_engine, TASK, QUERIES, plain, 3, adapter="prefix")
    assert voted.views == ("plain",) and voted.answers == plain.answers and voted.left_out


async def test_halves_are_judged_from_the_prefix_of_the_other_half(tiny_qwen2: Path) -> None:
    engine = Engine(babble(load_tiny(tiny_qwen2), ("a", "b", "\n", ":")))
    untrained = replace(CONTEXT, learning_rate=1e-12, steps=1)
    same = await cross_fit(engine, TASK, untrained, 0)
    assert same.logprob_after == pytest.approx(same.logprob_before, abs=1e-4)
    moved = await cross_fit(engine, TASK, CONTEXT, 0)
    assert moved.logprob_before == same.logprob_before and moved.logprob_after != same.logprob_after
    assert await engine.run(lambda bench: bench.slots.names) == ()
    engine.close()


def test_a_prefix_is_one_flat_tensor() -> None:
    prefix = Prefix(torch.arange(2 * 2 * 1 * 3 * 2.0).view(2, 2, 1, 3, 2))
    prefix.flat.add_(1)
    assert prefix.n_tokens == 3 and float(prefix.kv[0, 0, 0, 0, 0]) == 1.0
