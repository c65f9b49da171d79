"""How this machine decodes fastest: measured once, remembered.

Reading a prompt is one large product, where bfloat16 wins wherever the processor has it. Decoding is
many thin ones, and there some processors and libraries are far slower in bfloat16 than in float32
(over a second a token has been seen). And oneDNN brings a weight into an order of its own in every product, which takes
longer than a thin product itself, unless it was packed beforehand. So the three are timed on one layer and the head of the
model at hand.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ttt.decoder import Decoder, Fused, Layer, Norm, linear
from ttt.hardware import memory

ROWS = 8
"""Queries decoded at the same time, in the measurement."""
MARGIN = 0.7
"""Another way must take at most this share of the time: packed weights cost the model's memory once more, float32 twice that."""
Way = Literal["bfloat16", "packed", "float32"]
BYTES: dict[Way, int] = {"packed": 2, "float32": 4}
"""Of each number of the copy."""


def decoding_decoder(decoder: Decoder, remembered: Path | None = None) -> Decoder:
    """The decoder for decoding steps: `decoder`, or a packed or float32 copy of it where that is clearly faster.

    Args:
        remembered: a JSON file of earlier measurements; None measures and forgets.
    """
    if decoder.device.type != "cpu" or decoder.dtype != torch.bfloat16:
        return decoder
    key = f"{platform.processor() or platform.machine()} x{os.cpu_count()} {tuple(decoder.layers[0].gate_up.weight.shape)}"
    known = _read(remembered)
    if key not in known:
        known[key] = {way: step_seconds(decoder, way) for way in ways()}
        _write(remembered, known)
    seconds = known[key]
    others = [way for way in ways() if way in BYTES and way in seconds and _room(decoder, way)]
    best = min(others, key=lambda way: seconds[way], default=None)
    if best is None or seconds[best] >= MARGIN * seconds["bfloat16"]:
        return decoder
    return packed(decoder) if best == "packed" else converted(decoder, torch.float32)


def ways() -> tuple[Way, ...]:
    """Those that this build of PyTorch has on this processor."""
    return ("bfloat16", "packed", "float32") if _packs() else ("bfloat16", "float32")


@cache
def _packs() -> bool:
    """Whether weights can be packed here. No flag says so of every processor and build, so it is tried."""
    if not torch._C._has_mkldnn:
        return False
    x, weight = (torch.ones(n, 32, dtype=torch.bfloat16) for n in (2, 64))
    try:
        return bool((linear(x, weight, None, pack(weight)) == 32).all())
    except RuntimeError:  # no kernel for this type on this processor
        return False


def _room(decoder: Decoder, way: Way) -> bool:
    """Whether free memory holds a copy, and another one with an adapter merged in."""
    n = decoder.embedding.numel() + sum(f.weight.numel() for layer in decoder.layers for f in layer.linears)
    return 2 * BYTES[way] * n < memory()[1]


@torch.inference_mode()
def step_seconds(decoder: Decoder, way: Way, repeats: int = 5) -> float:
    """Seconds of the products of one decoding step of `ROWS` queries, from one layer and the head."""
    layer = decoder.layers[0]
    dtype = torch.float32 if way == "float32" else torch.bfloat16
    weights = [fused.weight.to(dtype) for fused in layer.linears]
    head = decoder.head[: 2**13].to(dtype)

    def products(matrices: list[Tensor]) -> float:
        inputs = [torch.ones(ROWS, m.shape[1], dtype=dtype) for m in matrices]
        forms = [pack(m) if way == "packed" else None for m in matrices]
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for x, m, form in zip(inputs, matrices, forms, strict=True):
                linear(x, m, None, form)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    return products(weights) * len(decoder.layers) + products([head]) * len(decoder.head) / len(head)


def pack(weight: Tensor) -> Tensor:
    """The weight in the order of oneDNN's products of few rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)  # type: ignore[no-any-return]


@torch.inference_mode()
def packed(decoder: Decoder, head: Tensor | None = None) -> Decoder:
    """The decoder with its weights packed beside those that it has.

    Args:
        head: packed before; all else is packed where it is not yet.
    """

    def fused(f: Fused) -> Fused:
        return f if f.packed is not None else replace(f, packed=pack(f.weight))

    layers = tuple(layer.with_linears(fused) for layer in decoder.layers)
    return replace(decoder, layers=layers, packed_head=pack(decoder.head) if head is None else head)


def converted(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """A copy in another type; the embedding and the head too."""

    def norm(n: Norm | None) -> Norm | None:
        return None if n is None else replace(n, weight=n.weight if n.late else n.weight.to(dtype))

    def fused(f: Fused) -> Fused:
        bias = None if f.bias is None else f.bias.to(dtype)
        return replace(f, weight=f.weight.to(dtype), bias=bias, packed=None)

    def layer(item: Layer) -> Layer:
        norms = {
            name: norm(getattr(item, name))
            for name in ("attention_norm", "q_norm", "k_norm", "attention_post", "mlp_norm", "mlp_post")
        }
        return replace(item.with_linears(fused), **norms)  # type: ignore[arg-type]

    last = norm(decoder.norm)
    assert last is not None
    embedding = decoder.embedding.to(dtype)
    tied = decoder.head.data_ptr() == decoder.embedding.data_ptr()
    return replace(
        decoder,
        layers=tuple(layer(item) for item in decoder.layers),
        embedding=embedding,
        head=embedding if tied else decoder.head.to(dtype),
        norm=last,
    )


def _read(file: Path | None) -> dict[str, dict[Way, float]]:
    if file is None or not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        return {str(k): {way: float(v[way]) for way in ways()} for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # a measurement that can't be read is made again


def _write(file: Path | None, known: dict[str, dict[Way, float]]) -> None:
    if file is None:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(file)
    except OSError:
        return  # a folder that can't be written to only means measuring again next time
