"""Adapters on one model: each active in turn, none when none is asked for, nothing left when dropped."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.ttt.conftest import SMALL, load_tiny
from ttt.errors import AdapterError
from ttt.integrity import parameters_hash
from ttt.lora import AdapterSlots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IDS = torch.arange(3, 33)[None]  # (1, 30)


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return load_tiny(tiny_model).model


@pytest.fixture
def llama(tiny_llama: Path) -> PreTrainedModel:
    return load_tiny(tiny_llama).model


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def under(slots: AdapterSlots, name: str | None) -> torch.Tensor:
    with slots.active(name) as model:
        return logits(model)


def fill(slots: AdapterSlots, name: str, seed: int) -> None:
    """Random weights, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in slots.parameters(name):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


def is_plain(model: PreTrainedModel, slots: AdapterSlots) -> bool:
    inside = any("lora" in n.lower() for n, _ in model.named_modules())
    return slots.names == () and not inside and not hasattr(model, "peft_config")


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A saved adapter of the tiny Llama."""
    slots = AdapterSlots(load_tiny(tiny_llama).model)
    slots.create("saved", SMALL, 0)
    fill(slots, "saved", 1)
    slots.save("saved", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed(model: PreTrainedModel) -> None:
    before = logits(model)
    slots = AdapterSlots(model)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        slots.create(name, SMALL, seed)
        assert torch.equal(under(slots, name), before)
    a, b, c = (slots.parameters(name) for name in "abc")
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_making_an_adapter_leaves_the_callers_random_numbers_alone(llama: PreTrainedModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    AdapterSlots(llama).create("a", SMALL, 1)
    assert torch.equal(torch.rand(3), expected)


def test_each_of_two_adapters_gives_its_own_logits_and_none_gives_the_base(model: PreTrainedModel) -> None:
    base, digest = logits(model), parameters_hash(model)
    expected = {}
    for name, seed in (("a", 1), ("b", 2)):  # each alone, on the same model
        alone = AdapterSlots(model)
        alone.create(name, SMALL, 0)
        fill(alone, name, seed)
        expected[name] = under(alone, name)
        alone.drop(name)
    assert not torch.allclose(expected["a"], base, atol=1e-3)
    assert not torch.allclose(expected["a"], expected["b"], atol=1e-3)
    slots = AdapterSlots(model)
    for name, seed in (("a", 1), ("b", 2)):
        slots.create(name, SMALL, 0)
        fill(slots, name, seed)
    for chosen in ("a", None, "b", "a", None, None, "b"):
        assert torch.equal(under(slots, chosen), base if chosen is None else expected[chosen])
    assert parameters_hash(model) == digest


def test_dropping_one_leaves_the_other_and_dropping_both_the_plain_model(model: PreTrainedModel) -> None:
    base, digest = logits(model), parameters_hash(model)
    slots = AdapterSlots(model)
    for name, seed in (("a", 1), ("b", 2)):
        slots.create(name, SMALL, 0)
        fill(slots, name, seed)
    kept = under(slots, "a")
    under(slots, "b")  # the active one is dropped
    slots.drop("b")
    assert slots.names == ("a",)
    assert torch.equal(under(slots, None), base)
    assert torch.equal(under(slots, "a"), kept)
    slots.drop("a")
    assert is_plain(model, slots)
    assert torch.equal(logits(model), base)
    assert parameters_hash(model) == digest
    assert not any(p.requires_grad for p in model.parameters())
    slots.create("again", SMALL, 0)
    assert slots.names == ("again",)


def test_dropping_what_is_not_attached_touches_nothing(llama: PreTrainedModel) -> None:
    slots = AdapterSlots(llama)
    slots.drop("never there")
    slots.create("only", SMALL, 0)
    slots.drop("never there")
    assert slots.names == ("only",)


def test_a_name_is_attached_once(llama: PreTrainedModel, folder: Path) -> None:
    slots = AdapterSlots(llama)
    slots.create("a", SMALL, 0)
    fill(slots, "a", 3)
    before = under(slots, "a")
    with pytest.raises(AdapterError, match="'a' is attached already"):
        slots.create("a", SMALL, 1)
    with pytest.raises(AdapterError, match="'a' is attached already"):
        slots.load("a", folder)
    assert torch.equal(under(slots, "a"), before)


def test_an_adapter_that_is_not_attached_is_named_with_those_that_are(llama: PreTrainedModel) -> None:
    slots = AdapterSlots(llama)
    with pytest.raises(AdapterError, match="No adapter 'b' is attached; attached are: none"):
        under(slots, "b")
    slots.create("a", SMALL, 0)
    with pytest.raises(AdapterError, match="attached are: a"):
        slots.parameters("b")


def test_a_saved_adapter_comes_back_as_it_was(model: PreTrainedModel, tmp_path: Path) -> None:
    slots = AdapterSlots(model)
    slots.create("a", SMALL, 0)
    fill(slots, "a", 1)
    expected = under(slots, "a")
    slots.save("a", tmp_path / "adapter")
    slots.drop("a")
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    slots.load("first", tmp_path / "adapter")
    slots.load("second", tmp_path / "adapter")
    assert torch.equal(under(slots, "first"), expected)
    assert torch.equal(under(slots, "second"), expected)


def test_the_saved_configuration_is_the_same_in_every_process(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(SMALL.targets)
    assert (config["r"], config["lora_alpha"]) == (SMALL.rank, SMALL.alpha)


def other_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": config["r"] * 2}))


def other_layers(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["query_key_value"]}))


def other_model(folder: Path) -> None:
    """Of a model with twice the width."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    wider = {n: torch.cat([w, w], dim=1 if "lora_A" in n else 0) for n, w in weights.items()}
    save_file(wider, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def deeper_model(folder: Path) -> None:
    """Of a model with one layer, so that half of the tensors are missing."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    first = {n: w for n, w in weights.items() if "layers.0" in n}
    save_file(first, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def base_weights(folder: Path) -> None:
    """With a tensor that would overwrite the base model's."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.norm.weight"] = torch.zeros(32)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = [
    other_rank,
    other_layers,
    other_model,
    deeper_model,
    base_weights,
    truncated,
    no_json,
    no_weights,
    no_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_that_does_not_fit_is_refused_and_leaves_nothing(
    llama: PreTrainedModel, folder: Path, damage: object, beside: bool
) -> None:
    assert callable(damage)
    base, digest = logits(llama), parameters_hash(llama)
    slots = AdapterSlots(llama)
    if beside:
        slots.load("good", folder)
        good = under(slots, "good")
    damage(folder)
    with pytest.raises(AdapterError) as caught:
        slots.load("bad", folder)
    message = str(caught.value)
    assert str(folder) in message and "train it again" in message and "\n" not in message
    assert torch.equal(under(slots, None), base)
    assert parameters_hash(llama) == digest
    if beside:
        assert slots.names == ("good",)
        assert torch.equal(under(slots, "good"), good)
    else:
        assert is_plain(llama, slots)


def test_the_size_of_the_weights_is_the_median_of_their_layers_with_and_without_adapters(
    llama: PreTrainedModel,
) -> None:
    slots, targets = AdapterSlots(llama), ("q_proj", "down_proj")
    layers = [m for n, m in llama.named_modules() if n.endswith(targets) and isinstance(m, torch.nn.Linear)]
    wanted = statistics.median(m.weight.float().pow(2).mean().sqrt().item() for m in layers)
    assert slots.weight_rms(targets) == pytest.approx(wanted)
    attached = AdapterSlots(llama)
    attached.create("a", replace(SMALL, targets=targets), 0)
    assert attached.weight_rms(targets) == pytest.approx(wanted)


def test_a_recipe_for_other_layers_names_those_that_there_are(llama: PreTrainedModel) -> None:
    from dataclasses import replace

    slots = AdapterSlots(llama)
    with pytest.raises(AdapterError, match="None of the layers query_key_value .*q_proj.*recipe"):
        slots.create("a", replace(SMALL, targets=("query_key_value",)), 0)
    assert is_plain(llama, slots)
