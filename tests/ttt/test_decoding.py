"""The type that decodes faster is measured once, remembered, and gives the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.ttt.conftest import load_tiny
from ttt import decoding
from ttt.decoder import Decoder, read
from ttt.decoding import converted, decoding_decoder
from ttt.runner import DecoderRunner
from ttt.tree import Append, TokenTree


@pytest.fixture
def decoder(tiny_model: Path) -> Decoder:
    found = read(load_tiny(tiny_model).model)
    assert found is not None
    return found


def told(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float) -> list[torch.dtype]:
    asked: list[torch.dtype] = []

    def seconds(decoder: Decoder, dtype: torch.dtype, repeats: int = 5) -> float:
        asked.append(dtype)
        return {torch.bfloat16: bfloat16, torch.float32: float32}[dtype]

    monkeypatch.setattr(decoding, "step_seconds", seconds)
    return asked


@pytest.mark.parametrize(("float32", "chosen"), [(0.5, torch.float32), (0.9, torch.bfloat16)])
def test_float32_decodes_only_where_it_is_clearly_faster_and_is_asked_once(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float32: float, chosen: torch.dtype
) -> None:
    asked = told(monkeypatch, 1.0, float32)
    half, file = converted(decoder, torch.bfloat16), tmp_path / "new" / "decoding.json"
    assert [decoding_decoder(half, file).dtype for _ in range(2)] == [chosen] * 2
    assert asked == [torch.bfloat16, torch.float32]
    (figures,) = json.loads(file.read_text()).values()
    assert figures == {"bfloat16": 1.0, "float32": float32}


def test_a_second_copy_is_only_made_where_there_is_room_for_it(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, 1.0, 0.1)
    half = converted(decoder, torch.bfloat16)
    monkeypatch.setattr(decoding, "memory", lambda: (10**12, 10_000))
    assert decoding_decoder(half) is half
    monkeypatch.setattr(decoding, "memory", lambda: (10**12, 10**12))
    assert decoding_decoder(half).dtype == torch.float32


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"bfloat16": "fast"}}', "{"])
def test_a_broken_memory_is_measured_again(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    asked, file = told(monkeypatch, 1.0, 0.1), tmp_path / "decoding.json"
    file.write_text(content)
    assert decoding_decoder(converted(decoder, torch.bfloat16), file).dtype == torch.float32
    assert len(asked) == 2


def test_a_model_in_float32_has_nothing_to_choose(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch, 1.0, 0.1)
    assert decoding_decoder(decoder) is decoder and asked == []


def test_the_measurement_takes_time_in_both_types(decoder: Decoder) -> None:
    assert decoding.step_seconds(decoder, torch.float32) > 0
    assert decoding.step_seconds(converted(decoder, torch.bfloat16), torch.bfloat16) > 0


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
