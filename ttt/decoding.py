"""Which number type decodes faster on this machine: measured once, remembered.

Reading a prompt is one large product, where bfloat16 wins wherever the processor has it. Decoding is
many thin ones, and there some processors and libraries are far slower in bfloat16 than in float32
(over a second a token has been seen). So the two are timed on one layer and the head of the model at hand.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.decoder import Decoder, Fused, Layer, Norm
from ttt.hardware import memory

ROWS = 8
"""Queries decoded at the same time, in the measurement."""
MARGIN = 0.7
"""Float32 must take at most this share of the time: it also costs twice the model's memory once more."""


def decoding_decoder(decoder: Decoder, remembered: Path | None = None) -> Decoder:
    """The decoder for decoding steps: `decoder`, or a float32 copy of it where that is clearly faster.

    Args:
        remembered: a JSON file of earlier measurements; None measures and forgets.
    """
    if decoder.device.type != "cpu" or decoder.dtype != torch.bfloat16:
        return decoder
    key = f"{platform.processor() or platform.machine()} x{os.cpu_count()} {tuple(decoder.layers[0].gate_up.weight.shape)}"
    known = _read(remembered)
    if key not in known:
        known[key] = {
            str(t).removeprefix("torch."): step_seconds(decoder, t) for t in (torch.bfloat16, torch.float32)
        }
        _write(remembered, known)
    wide = known[key]["float32"] < MARGIN * known[key]["bfloat16"] and _room(decoder)
    return converted(decoder, torch.float32) if wide else decoder


def _room(decoder: Decoder) -> bool:
    """Whether free memory holds a float32 copy, and another one with an adapter merged in."""
    n = decoder.embedding.numel() + sum(f.weight.numel() for layer in decoder.layers for f in layer.linears)
    return 2 * 4 * n < memory()[1]


@torch.inference_mode()
def step_seconds(decoder: Decoder, dtype: torch.dtype, repeats: int = 5) -> float:
    """Seconds of the products of one decoding step of `ROWS` queries in `dtype`, from one layer and the head."""
    layer = decoder.layers[0]
    weights = [fused.weight.to(dtype) for fused in layer.linears]
    head = decoder.head[: 2**13].to(dtype)

    def products(matrices: list[Tensor]) -> float:
        inputs = [torch.ones(ROWS, m.shape[1], dtype=dtype) for m in matrices]
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for x, m in zip(inputs, matrices, strict=True):
                F.linear(x, m)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    return products(weights) * len(decoder.layers) + products([head]) * len(decoder.head) / len(head)


def converted(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """A copy in another type; the embedding and the head too."""

    def norm(n: Norm | None) -> Norm | None:
        return None if n is None else replace(n, weight=n.weight if n.late else n.weight.to(dtype))

    def fused(f: Fused) -> Fused:
        return replace(f, weight=f.weight.to(dtype), bias=None if f.bias is None else f.bias.to(dtype))

    def layer(item: Layer) -> Layer:
        norms = {
            name: norm(getattr(item, name))
            for name in ("attention_norm", "q_norm", "k_norm", "attention_post", "mlp_norm", "mlp_post")
        }
        linears = {name: fused(getattr(item, name)) for name in ("qkv", "out", "gate_up", "down")}
        return replace(item, **norms, **linears)  # type: ignore[arg-type]

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


def _read(file: Path | None) -> dict[str, dict[str, float]]:
    if file is None or not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        return {str(k): {t: float(v[t]) for t in ("bfloat16", "float32")} for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # a measurement that can't be read is made again


def _write(file: Path | None, known: dict[str, dict[str, float]]) -> None:
    if file is None:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(file)
    except OSError:
        return  # a folder that can't be written to only means measuring again next time
