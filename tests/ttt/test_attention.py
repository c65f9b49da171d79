"""Attention in blocks equals PyTorch's own, forward and backward, whatever the length and the window.

Tolerance 1e-5, and 1e-5 of the largest value, float32: the same sums in another order.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttt import attention
from ttt.attention import BLOCK, attend, causal, causal_back, causal_elsewhere, masked

SCALE = 0.3


def heads(
    tokens: int, heads: int = 6, kv_heads: int = 2, size: int = 16, device: str = "cpu"
) -> list[Tensor]:
    """q (tokens, heads, size), k and v (kv heads, tokens, size)."""
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(tokens, heads, size, generator=generator)
    k, v = (torch.randn(kv_heads, tokens, size, generator=generator) for _ in range(2))
    return [t.to(device) for t in (q, k, v)]


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-5
    )


@pytest.mark.parametrize("window", [None, 1, 7, 200])
@pytest.mark.parametrize("tokens", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_are_as_one_forward_and_backward(tokens: int, window: int | None) -> None:
    q, k, v = heads(tokens)
    found, kept = causal(q, k, v, SCALE, window)
    wanted, recorded = causal_elsewhere(q, k, v, SCALE, window)
    assert close(found, wanted)
    d = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(causal_back(d, kept, SCALE, window), recorded.back(d), strict=True):
        assert close(mine, theirs)


@pytest.mark.parametrize("window", [None, 200])
def test_a_long_sequence_keeps_no_probabilities_and_has_the_same_gradients(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = heads(3 * BLOCK + 5)
    found, kept = causal(q, k, v, SCALE, window)
    d = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    wanted = causal_back(d, kept, SCALE, window)
    monkeypatch.setattr(attention, "KEPT_TOKENS", len(q))
    again, without = causal(q, k, v, SCALE, window)
    assert len(kept.probabilities) == 4 and without.probabilities == [] and torch.equal(again, found)
    assert all(map(torch.equal, causal_back(d, without, SCALE, window), wanted))


def test_a_mask_of_the_triangle_is_causal() -> None:
    q, k, v = heads(2 * BLOCK + 3)
    n = len(q)
    blocks = masked(torch.ones(n, n).tril().bool(), torch.float32, torch.device("cpu"))
    assert close(attend(q, k, v, SCALE, blocks), attend(q, k, v, SCALE, None))


@pytest.mark.parametrize("queries", [1, 4, 40])
def test_keys_in_a_longer_store_are_as_keys_by_themselves(queries: int) -> None:
    """As in decoding, where a store has room for what comes."""
    q, k, v = heads(50)
    allowed = torch.rand(queries, 50, generator=torch.Generator().manual_seed(2)) < 0.9
    stored_k, stored_v = (torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, :50] for t in (k, v))
    assert not stored_k.is_contiguous()
    blocks = masked(allowed, q.dtype, q.device)
    found = attend(q[:queries], stored_k, stored_v, SCALE, blocks)
    assert close(found, attend(q[:queries], k, v, SCALE, blocks))


def test_packed_sequences_look_only_at_their_own_keys_and_at_what_they_share() -> None:
    shared, own, n = 40, 100, 5
    q, k, v = heads(shared + n * own)
    allowed = torch.ones(len(q), len(q)).tril().bool()
    for i in range(n):
        begin = shared + i * own
        allowed[begin : begin + own, shared:begin] = False
    blocks = masked(allowed, torch.float32, torch.device("cpu"))
    assert max(block.mask.shape[1] for block in blocks) <= shared + 3 * own
    found = attend(q, k, v, SCALE, blocks)
    for i in range(n):
        path = [*range(shared), *range(shared + i * own, shared + (i + 1) * own)]
        wanted = attend(q[path], k[:, path], v[:, path], SCALE, None)
        assert close(found[path[shared:]], wanted[shared:])


@pytest.mark.gpu
def test_on_cuda_it_is_what_it_is_on_the_cpu() -> None:
    """Tolerance 1e-3: CUDA multiplies in another order and may round to TensorFloat-32."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA on this machine")
    q, k, v = heads(300)
    wanted = attend(q, k, v, SCALE, None)
    there = heads(300, device="cuda")
    found = attend(there[0], there[1], there[2], SCALE, None).cpu()
    assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()
