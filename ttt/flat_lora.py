"""All weights of one LoRA adapter in one flat tensor, and their gradients in another.

An optimiser then moves one tensor instead of hundreds, and linear layers that read the same input share one
down-projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.decoder import Decoder, Fused, Plain


@dataclass(frozen=True, slots=True)
class Up:
    """B of one module."""

    rows: slice
    """Of the fused output."""
    ranks: slice
    """Of the fused down-projection."""
    b: Tensor
    """(outputs, rank)."""
    grad: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """LoRA of linear layers that share their input."""

    a: Tensor
    """(ranks of all, inputs)."""
    grad: Tensor
    ups: tuple[Up, ...]


class LoraWeights:
    """One adapter's weights in one flat tensor, and their gradients in another."""

    def __init__(self, decoder: Decoder, modules: Mapping[str, Plain]) -> None:
        """Copies the values of `modules`, which all have one scale."""
        n = sum(m.a.numel() + m.b.numel() for m in modules.values())
        (self.scale,) = {m.scale for m in modules.values()}
        self.flat = torch.empty(n, dtype=decoder.dtype, device=decoder.device)
        self.grads = torch.zeros_like(self.flat)
        self.views: dict[str, tuple[Tensor, Tensor]] = {}
        """Name → A, B as views of `flat`."""
        self._next = 0
        self.pairs = [tuple(self._pair(f, modules) for f in layer.linears) for layer in decoder.layers]
        assert self._next == n  # every adapted layer is part of the decoder
        self.layout = (self.scale, *((name, tuple(m.a.shape)) for name, m in sorted(modules.items())))
        """Equal for adapters of the same shape."""

    def _take(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        span = slice(self._next, self._next + rows * columns)
        self._next = span.stop
        return self.flat[span].view(rows, columns), self.grads[span].view(rows, columns)

    def _pair(self, fused: Fused, modules: Mapping[str, Plain]) -> Pair | None:
        named = [(name, rows) for name, rows in zip(fused.names, fused.rows, strict=True) if name in modules]
        if not named:
            return None
        ranks = [modules[name].a.shape[0] for name, _ in named]
        a, grad_a = self._take(sum(ranks), modules[named[0][0]].a.shape[1])
        ups, start = [], 0
        for (name, rows), rank in zip(named, ranks, strict=True):
            own = slice(start, start + rank)
            b, grad_b = self._take(rows.stop - rows.start, rank)
            a[own].copy_(modules[name].a)
            b.copy_(modules[name].b)
            self.views[name] = (a[own], b)
            ups.append(Up(rows, own, b, grad_b))
            start += rank
        return Pair(a, grad_a, tuple(ups))
