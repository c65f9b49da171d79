"""Grouped softmax attention over packed tokens, forward and backward.

On the CPU in blocks of rows, as plain matrix products and a softmax: at the head sizes of small models that is
two to three times as fast as PyTorch's fused CPU kernel, and the backward pass reuses the
probabilities, or makes those of a long sequence anew: they grow with its square. Elsewhere by PyTorch's own scaled
dot-product attention.

Shapes: q (tokens, heads, size); k and v (kv heads, keys, size), each serving heads / kv heads query heads
without being copied; the result (tokens, heads · size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Rows at a time: a block's scores stay in the cache, and keys after its last row are never looked at."""
KEPT_TOKENS = 2048
"""Length from which on a sequence's probabilities are made anew for the backward pass. SmolLM2-135M's, of 4,096 tokens,
would take 4.5 GB. To make them anew takes a fifth to a third of attention's time."""
FEW_KEYS = 0.75
"""Share of the keys below which a block's own ones are picked out."""
FEW_ROWS = 32
"""Queries of a step of decoding, over all heads that share keys: up to so many are turned in place of the keys."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass of one sequence needs."""

    q: Tensor
    """(kv heads, group, tokens, size), scaled."""
    k: Tensor
    v: Tensor
    probabilities: list[Tensor]
    """By block: (kv heads, group · rows, keys); none of a long sequence."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a masked pass and the keys that any of them sees."""

    rows: slice
    keys: slice | Tensor
    mask: Tensor
    """(rows, keys), additive."""


def additive(allowed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where allowed, else the type's lowest number."""
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask.to(device)


def masked(allowed: Tensor, dtype: torch.dtype, device: torch.device) -> list[Rows]:
    """Blocks of rows for `attend`. Sequences packed together see little of one another: on the CPU each block
    looks only at keys that one of its rows may see.

    Args:
        allowed: (tokens, keys), boolean.
    """
    if device.type != "cpu":
        return [Rows(slice(None), slice(None), additive(allowed, dtype, device))]
    found = []
    for start in range(0, len(allowed), BLOCK):
        own = allowed[start : start + BLOCK]
        seen = own.any(0).nonzero()[:, 0]
        few = len(seen) < FEW_KEYS * allowed.shape[1]  # else copying them costs more than it saves
        keys = seen if few else slice(None)
        found.append(Rows(slice(start, start + len(own)), keys, additive(own[:, keys], dtype, device)))
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: Sequence[Rows] | None) -> Tensor:
    """Attention under the mask of `blocks`, or, without one, causal over one whole sequence."""
    if q.device.type != "cpu":
        return _fused(q, k, v, scale, blocks[0].mask if blocks is not None else None)
    if blocks is None:
        return causal(q, k, v, scale, None)[0]
    grouped = _group(q, len(k)) * scale
    out = torch.empty_like(grouped)
    for block in blocks:
        scores = _scores(grouped[:, :, block.rows], k[:, block.keys])
        scores += block.mask
        out[:, :, block.rows] = _mix(torch.softmax(scores, -1), v[:, block.keys])
    return _ungroup(out)


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> tuple[Tensor, Kept]:
    """Causal attention over one whole sequence, within a window if there is one."""
    grouped = _group(q, len(k)) * scale
    out = torch.empty_like(grouped)
    probabilities = []
    for rows, keys, hidden in _blocks(q.shape[0], window, q.device):
        probability = _probability(grouped[:, :, rows], k[:, keys], hidden)
        out[:, :, rows] = _mix(probability, v[:, keys])
        if q.shape[0] < KEPT_TOKENS:
            probabilities.append(probability.flatten(1, 2))
    return _ungroup(out), Kept(grouped, k, v, probabilities)


def causal_back(d: Tensor, kept: Kept, scale: float, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v of `causal`, from that of its result; all (tokens, heads, size)."""
    q, k, v = kept.q, kept.k, kept.v
    grouped = _group(d.view(q.shape[2], -1, q.shape[3]), len(k))
    dq = torch.empty_like(q)
    dk = torch.zeros(k.shape, dtype=torch.float32)
    dv = torch.zeros(v.shape, dtype=torch.float32)
    for i, (rows, keys, hidden) in enumerate(_blocks(q.shape[2], window, q.device)):
        own = grouped[:, :, rows].flatten(1, 2)
        if kept.probabilities:
            probability = kept.probabilities[i]
        else:
            probability = _probability(q[:, :, rows], k[:, keys], hidden).flatten(1, 2)
        dv[:, keys] += torch.bmm(probability.transpose(1, 2), own)
        score = torch._softmax_backward_data(
            torch.bmm(own, v[:, keys].transpose(1, 2)), probability, -1, probability.dtype
        )
        dq[:, :, rows] = torch.bmm(score, k[:, keys]).view(*q.shape[:2], -1, q.shape[3])
        dk[:, keys] += torch.bmm(score.transpose(1, 2), q[:, :, rows].flatten(1, 2))
    tokens = q.shape[2]
    return _ungroup(dq.mul_(scale)).view(tokens, -1, q.shape[3]), dk.transpose(0, 1), dv.transpose(0, 1)


@dataclass(frozen=True, slots=True)
class KeptElsewhere:
    """A sequence's attention, recorded by autograd."""

    inputs: tuple[Tensor, Tensor, Tensor]
    mixed: Tensor

    def back(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `causal_back`."""
        dq, dk, dv = torch.autograd.grad(self.mixed, self.inputs, d)
        return dq, dk.transpose(0, 1), dv.transpose(0, 1)


def causal_elsewhere(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None
) -> tuple[Tensor, KeptElsewhere]:
    """`causal` by PyTorch's fused kernels, for devices that have good ones."""
    tokens, mask = len(q), None
    if window is not None and tokens > window:
        at = torch.arange(tokens, device=q.device)
        seen = (at[:, None] >= at) & (at[:, None] - at < window)
        mask = torch.zeros(tokens, tokens, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
    with torch.enable_grad():
        inputs = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
        mixed = _fused(*inputs, scale, mask)
    return mixed.detach(), KeptElsewhere(inputs, mixed)


def _blocks(tokens: int, window: int | None, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, the keys that any of them sees, and which of these each does not see: (rows, keys)."""
    for start in range(0, tokens, BLOCK):
        end = min(start + BLOCK, tokens)
        first = 0 if window is None else max(0, start - window + 1)
        row = torch.arange(start, end, device=device)[:, None]
        key = torch.arange(first, end, device=device)
        hidden = key > row
        if window is not None:
            hidden |= row - key >= window
        yield slice(start, end), slice(first, end), hidden


def _probability(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """Of a block of rows: (kv heads, group, rows, keys)."""
    return torch.softmax(_scores(q, k).masked_fill_(hidden, -torch.inf), -1)


def _group(q: Tensor, kv_heads: int) -> Tensor:
    tokens, heads, size = q.shape
    return q.reshape(tokens, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)


def _ungroup(out: Tensor) -> Tensor:
    return out.permute(2, 0, 1, 3).flatten(1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """(kv heads, group, rows, keys)."""
    kv_heads, group, rows, _ = q.shape
    flat = q.flatten(1, 2)
    if group * rows <= FEW_ROWS and not k.is_contiguous():
        # Keys that are part of a longer store would be copied to be transposed; the few queries are turned instead.
        return torch.bmm(k, flat.transpose(1, 2)).transpose(1, 2).contiguous().view(kv_heads, group, rows, -1)
    return torch.bmm(flat, k.transpose(1, 2)).view(kv_heads, group, rows, -1)


def _mix(probability: Tensor, v: Tensor) -> Tensor:
    """(kv heads, group, rows, size)."""
    kv_heads, group, rows, _ = probability.shape
    return torch.bmm(probability.flatten(1, 2), v).view(kv_heads, group, rows, -1)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    tokens, heads, size = q.shape
    shape = (heads // len(k), *k.shape)
    mixed = F.scaled_dot_product_attention(
        q.reshape(tokens, len(k), heads // len(k), size).permute(2, 1, 0, 3),
        k.expand(shape),
        v.expand(shape),
        attn_mask=mask[None, None] if mask is not None else None,
        is_causal=mask is None,
        scale=scale,
    )
    return mixed.permute(2, 1, 0, 3).reshape(tokens, heads * size)
