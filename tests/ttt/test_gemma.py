"""Gemma 3 in every detail that sets it apart, on prompts several windows long: the fused decoder gives what the
model's own code gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.conftest import _common, _save_tiny
from tests.ttt.conftest import load_tiny
from ttt import tree as tree_module
from ttt.decoder import read
from ttt.generate import Stopper, decode, grow
from ttt.model import LoadedModel
from ttt.runner import DecoderRunner, TransformersRunner
from ttt.tree import Append, TokenTree

WINDOW = 16


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Five layers with a window to one without, two rotary bases, one key head, scale and head size of their own."""
    from transformers import Gemma3TextConfig

    common: dict[str, Any] = _common(tiny_tokenizer) | {"num_key_value_heads": 1, "num_hidden_layers": 7}
    config = Gemma3TextConfig(
        **common,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=[*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        },
    )
    return _save_tiny(tmp_path_factory.mktemp("models") / "gemma", config, tiny_tokenizer)


@pytest.fixture(scope="module")
def loaded(gemma: Path) -> LoadedModel:
    made = load_tiny(gemma)
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return made


@pytest.fixture
def tree(loaded: LoadedModel) -> TokenTree:
    decoder = read(loaded.model)
    assert decoder is not None and {layer.window for layer in decoder.layers} == {WINDOW, None}
    return TokenTree(DecoderRunner(decoder))


def ids(n: int) -> list[int]:
    return [(i * i + 3 * i) % 290 + 3 for i in range(n)]


def by_itself(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """(tokens, vocabulary)."""
    model: Any = loaded.model
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0].float()
    return logits


@pytest.mark.parametrize("chunk", [512, 7, WINDOW])
def test_a_prompt_of_several_windows_gives_the_models_own_logits(
    loaded: LoadedModel, tree: TokenTree, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "CHUNK_TOKENS", chunk)
    tokens = ids(5 * WINDOW + 3)
    node = tree.child(TokenTree.ROOT)
    (got,) = tree.append([Append(node, tokens, keep=len(tokens))])
    torch.testing.assert_close(got, by_itself(loaded, tokens), rtol=1e-4, atol=1e-4)


def test_branches_look_back_over_the_prefix_as_far_as_their_window(
    loaded: LoadedModel, tree: TokenTree
) -> None:
    prefix, questions = ids(3 * WINDOW), [ids(5)[::-1], ids(WINDOW + 9)[::-1], ids(1)]
    node = grow(tree, TokenTree.ROOT, prefix)
    got = tree.append([Append(tree.child(node), q, keep=len(q)) for q in questions])
    for logits, question in zip(got, questions, strict=True):
        alone = by_itself(loaded, prefix + question)[len(prefix) :]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_what_lies_beyond_every_window_reaches_an_answer_through_the_full_layer_alone(
    loaded: LoadedModel,
) -> None:
    """A tree without its full layer would not see that the first tokens differ."""
    near = by_itself(loaded, ids(6 * WINDOW))
    far = by_itself(loaded, [5, 9, *ids(6 * WINDOW)[2:]])
    assert not torch.equal(near[-1], far[-1])


def test_decoding_goes_on_over_windows_as_generate_does(loaded: LoadedModel, tree: TokenTree) -> None:
    prefix, question, n = ids(2 * WINDOW), ids(7)[::-1], 2 * WINDOW + 5
    node = grow(tree, TokenTree.ROOT, prefix)
    (said,) = decode(tree, [(node, question)], Stopper(loaded.tokenizer, (), ()), n)
    model: Any = loaded.model
    given = torch.tensor([prefix + question])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=n, eos_token_id=None
    )
    assert said.text == loaded.tokenizer.decode(out[0, given.shape[1] :].tolist())
    assert said.n_tokens == n


def test_transformers_own_way_agrees(loaded: LoadedModel, tree: TokenTree) -> None:
    """The runner for models that are not known in detail."""
    other = TokenTree(TransformersRunner(loaded.model))
    prefix, questions = ids(3 * WINDOW), [ids(5)[::-1], ids(9)]
    found = []
    for each in (tree, other):
        node = grow(each, TokenTree.ROOT, prefix)
        found.append(each.append([Append(each.child(node), q, keep=len(q)) for q in questions]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
