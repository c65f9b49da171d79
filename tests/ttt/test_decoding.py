"""The type that decodes faster is measured once, remembered, and gives the same answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ttt.conftest import load_tiny
from ttt import decoding
from ttt.decoder import Decoder, Plain, read
from ttt.decoding import Way, converted, decoding_decoder, packed, ways
from ttt.runner import DecoderRunner
from ttt.tree import Append, TokenTree


@pytest.fixture
def decoder(tiny_model: Path) -> Decoder:
    found = read(load_tiny(tiny_model).model)
    assert found is not None
    return found


def told(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[Way]:
    """The ways that are measured, as they are asked; each takes its seconds."""
    asked: list[Way] = []

    def measured(decoder: Decoder, way: Way, repeats: int = 5) -> float:
        asked.append(way)
        return seconds[way]

    monkeypatch.setattr(decoding, "ways", lambda: tuple(seconds))
    monkeypatch.setattr(decoding, "step_seconds", measured)
    return asked


def form(decoder: Decoder) -> tuple[torch.dtype, bool]:
    return decoder.dtype, decoder.packed_head is not None


@pytest.mark.parametrize(
    ("packed", "float32", "chosen"),
    [
        (0.8, 0.9, (torch.bfloat16, False)),
        (0.8, 0.5, (torch.float32, False)),
        (0.4, 0.5, (torch.bfloat16, True)),
    ],
)
def test_another_way_decodes_only_where_it_is_clearly_faster_and_is_asked_once(
    decoder: Decoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: float,
    float32: float,
    chosen: Any,
) -> None:
    asked = told(monkeypatch, bfloat16=1.0, packed=packed, float32=float32)
    half, file = converted(decoder, torch.bfloat16), tmp_path / "new" / "decoding.json"
    assert [form(decoding_decoder(half, file)) for _ in range(2)] == [chosen] * 2
    assert asked == ["bfloat16", "packed", "float32"]
    (figures,) = json.loads(file.read_text()).values()
    assert figures == {"bfloat16": 1.0, "packed": packed, "float32": float32}


def test_a_second_copy_is_only_made_where_there_is_room_for_it(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, bfloat16=1.0, packed=0.5, float32=0.1)
    half = converted(decoder, torch.bfloat16)
    n = decoder.embedding.numel() + sum(f.weight.numel() for layer in decoder.layers for f in layer.linears)
    for free, chosen in (
        (4 * n - 1, (torch.bfloat16, False)),
        (8 * n - 1, (torch.bfloat16, True)),
        (8 * n + 1, (torch.float32, False)),
    ):
        monkeypatch.setattr(decoding, "memory", lambda free=free: (10**12, free))
        assert form(decoding_decoder(half)) == chosen


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"bfloat16": "fast"}}', "{"])
def test_a_broken_memory_is_measured_again(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    asked, file = told(monkeypatch, bfloat16=1.0, float32=0.1), tmp_path / "decoding.json"
    file.write_text(content)
    assert decoding_decoder(converted(decoder, torch.bfloat16), file).dtype == torch.float32
    assert len(asked) == 2


def test_a_model_in_float32_has_nothing_to_choose(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch, bfloat16=1.0, float32=0.1)
    assert decoding_decoder(decoder) is decoder and asked == []


def test_the_measurement_takes_time_in_every_way(decoder: Decoder) -> None:
    half = converted(decoder, torch.bfloat16)
    assert all(decoding.step_seconds(half, way) > 0 for way in ways())


needs_packing = pytest.mark.skipif("packed" not in ways(), reason="no oneDNN with bfloat16 here")


@needs_packing
def test_packed_weights_give_what_the_weights_give_with_an_adapter_too(decoder: Decoder) -> None:
    half = converted(decoder, torch.bfloat16)
    name, shape = half.layers[0].down.names[0], half.layers[0].down.weight.shape
    lora = {name: Plain(torch.ones(1, shape[1]), torch.ones(shape[0], 1), 0.05)}
    prompt, steps = list(range(3, 60)), list(range(50, 60))

    def logits(first: Decoder, then: Decoder | None, **ready: Any) -> torch.Tensor:
        tree = TokenTree(DecoderRunner(first, then, **ready))
        node = tree.child(0)
        tree.append([Append(node, prompt)])
        return torch.cat([tree.append([Append(node, [token], keep=1)])[0] for token in steps])

    quick = packed(half)
    assert quick.layers[0].qkv.weight is half.layers[0].qkv.weight and form(quick) == (torch.bfloat16, True)
    plain = logits(half, None)
    assert torch.allclose(logits(half, quick), plain, atol=0.02 * float(plain.abs().max()))
    merged = quick.merged(lora)
    assert merged.layers[0].down.packed is None and merged.layers[1].down.packed is not None
    other = logits(half.merged(lora), None, ready=partial(packed, head=quick.packed_head))
    with_adapter = logits(half.merged(lora), None)
    assert torch.allclose(other, with_adapter, atol=0.02 * float(with_adapter.abs().max()))
    assert not torch.allclose(other, plain, atol=0.02 * float(plain.abs().max()))


def test_few_tokens_run_in_the_other_type_and_nearly_agree(decoder: Decoder) -> None:
    """Prompt in bfloat16, steps in float32: closer to float32 throughout than bfloat16 throughout is far from it."""
    half = converted(decoder, torch.bfloat16)
    wide = converted(half, torch.float32)
    prompt, steps = list(range(3, 103)), list(range(50, 60))

    def logits(first: Decoder, then: Decoder) -> torch.Tensor:
        tree = TokenTree(DecoderRunner(first, then))
        node = tree.child(0)
        tree.append([Append(node, prompt)])
        return torch.cat([tree.append([Append(node, [token], keep=1)])[0] for token in steps])

    exact = logits(wide, wide)
    mixed = (logits(half, wide) - exact).norm() / exact.norm()
    rough = (logits(half, half) - exact).norm() / exact.norm()
    assert 0 < mixed < rough < 0.1
