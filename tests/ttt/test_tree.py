"""A tree of segments on one cache predicts what plain transformers predicts for each path alone.

Tolerance 1e-4 on float32 logits: the same sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.ttt.conftest import load_tiny
from ttt import tree as tree_module
from ttt.decoder import read
from ttt.errors import ModelError
from ttt.generate import grow
from ttt.runner import DecoderRunner, Runner, TransformersRunner
from ttt.tree import Append, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOLERANCE = 1e-4


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    """Each tiny architecture, with weights large enough that every token of the context counts."""
    model = load_tiny(tiny_model).model
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return model


@pytest.fixture(params=["fused", "transformers"])
def tree_of(request: pytest.FixtureRequest) -> Callable[[PreTrainedModel], TokenTree]:
    """An empty tree on each way to run a model."""

    def runner(model: PreTrainedModel) -> Runner:
        if request.param == "transformers":
            return TransformersRunner(model)
        decoder = read(model)
        assert decoder is not None
        return DecoderRunner(decoder)

    return lambda model: TokenTree(runner(model))


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def alone(model: PreTrainedModel, path: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) logits of the path run by itself."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(path)])).logits[0].float()
    return logits


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() < TOLERANCE)


# The Gemma3 model's window is 16 tokens: 10 + 9 crosses it within the query, 40 + 9 lies far beyond it.
@pytest.mark.parametrize("prefix_tokens", [0, 10, 40])
def test_queries_below_a_shared_prefix_are_as_if_each_was_run_alone(
    model: PreTrainedModel, prefix_tokens: int, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    prefix = tokens(prefix_tokens, 0)
    queries = [tokens(9, 1), tokens(4, 2), tokens(17, 3)]
    tree = tree_of(model)
    shared = grow(tree, TokenTree.ROOT, prefix)
    found = tree.append([Append(tree.child(shared), q, keep=len(q)) for q in queries])
    for query, logits in zip(queries, found, strict=True):
        assert close(logits, alone(model, prefix + query)[prefix_tokens:])


def test_a_pass_longer_than_a_chunk_is_cut_without_a_trace(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    monkeypatch.setattr(tree_module, "CHUNK_TOKENS", 7)
    prefix, queries = tokens(40, 0), [tokens(9, 1), tokens(16, 2), tokens(1, 3)]
    tree = tree_of(model)
    shared = grow(tree, TokenTree.ROOT, prefix)
    keep = [9, 3, 1]
    appends = [Append(tree.child(shared), q, k) for q, k in zip(queries, keep, strict=True)]
    for query, k, logits in zip(queries, keep, tree.append(appends), strict=True):
        assert close(logits, alone(model, prefix + query)[-k:])


def test_a_node_grows_token_by_token_beside_its_siblings(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    prefix, paths = tokens(12, 0), [tokens(20, 1), tokens(20, 2)]
    tree = tree_of(model)
    shared = grow(tree, TokenTree.ROOT, prefix)
    nodes = [tree.child(shared) for _ in paths]
    steps = []
    for i in range(20):
        step = tree.append([Append(n, [path[i]], keep=1) for n, path in zip(nodes, paths, strict=True)])
        steps.append(torch.cat(step))  # (paths, vocabulary)
    for row, path in enumerate(paths):
        assert close(torch.stack(steps)[:, row], alone(model, prefix + path)[len(prefix) :])


def test_deep_paths_see_all_their_ancestors_and_nothing_else(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    parts = {name: tokens(11, seed) for seed, name in enumerate("abcdef")}
    tree = tree_of(model)
    a = grow(tree, TokenTree.ROOT, parts["a"])
    b, c = grow(tree, a, parts["b"]), grow(tree, a, parts["c"])
    d = grow(tree, b, parts["d"])
    found = tree.append([Append(tree.child(d), parts["e"], 11), Append(tree.child(c), parts["f"], 11)])
    assert close(found[0], alone(model, parts["a"] + parts["b"] + parts["d"] + parts["e"])[-11:])
    assert close(found[1], alone(model, parts["a"] + parts["c"] + parts["f"])[-11:])


def test_siblings_do_not_see_each_other(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    query = tokens(5, 9)

    def beside(sibling: list[int]) -> torch.Tensor:
        tree = tree_of(model)
        shared = grow(tree, TokenTree.ROOT, tokens(8, 0))
        grow(tree, shared, sibling)
        return tree.append([Append(tree.child(shared), query, keep=5)])[0]

    assert torch.equal(beside(tokens(6, 1)), beside(tokens(6, 2)))


def test_rewinding_restores_exactly(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    tree = tree_of(model)
    shared = grow(tree, TokenTree.ROOT, tokens(20, 0))
    mark = tree.mark()

    def ask() -> torch.Tensor:
        return tree.append([Append(tree.child(shared), tokens(6, 1), keep=6)])[0]

    first = ask()
    tree.rewind(mark)
    assert tree.mark() == mark
    grow(tree, grow(tree, shared, tokens(30, 2)), tokens(3, 3))
    tree.rewind(mark)
    assert torch.equal(ask(), first)


def test_a_tree_can_be_rewound_to_nothing(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    tree = tree_of(model)
    mark = tree.mark()
    first = tree.append([Append(tree.child(TokenTree.ROOT), tokens(6, 1), keep=1)])[0]
    tree.rewind(mark)
    again = tree.append([Append(tree.child(TokenTree.ROOT), tokens(6, 1), keep=1)])[0]
    assert torch.equal(first, again)


def test_tokens_without_wanted_logits_give_none(
    model: PreTrainedModel, tree_of: Callable[[PreTrainedModel], TokenTree]
) -> None:
    tree = tree_of(model)
    (logits,) = tree.append([Append(tree.child(TokenTree.ROOT), tokens(4, 0))])
    assert logits.shape == (0, 300)


def test_a_window_in_all_layers_is_kept_where_the_model_names_no_layer_types(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.2,
    )
    model: PreTrainedModel = MistralForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    prefix, query = tokens(20, 0), tokens(6, 1)
    assert read(model) is None, "not known in every detail"
    tree = TokenTree(TransformersRunner(model))
    shared = grow(tree, TokenTree.ROOT, prefix)
    (logits,) = tree.append([Append(tree.child(shared), query, keep=6)])
    assert close(logits, alone(model, prefix + query)[-6:])


def test_layers_that_a_tree_can_not_be_run_through_are_named(
    tiny_llama: Path,
) -> None:
    model = load_tiny(tiny_llama).model
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="linear_attention.*choose another model"):
        TransformersRunner(model)
