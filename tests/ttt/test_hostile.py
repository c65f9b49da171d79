"""Adapters, model files and tasks made to run code, to take memory or time, or to change the model: refused."""

from __future__ import annotations

import json
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ttt.conftest import SMALL, load_tiny
from ttt.errors import AdapterError, FormatError, ModelDamaged, TaskError
from ttt.integrity import parameters_hash
from ttt.lora import AdapterSlots
from ttt.model_files import read_json, weight_shapes
from ttt.recipe_files import read_recipes
from ttt.tables import parse_json
from ttt.task import (
    MAX_CHARACTERS,
    MAX_DEMONSTRATIONS,
    MAX_QUERIES,
    MAX_TASK_CHARACTERS,
    Demonstration,
    Query,
    Task,
    check_size,
)

Change = Callable[[Path], None]


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A saved adapter of the tiny Llama."""
    slots = AdapterSlots(load_tiny(tiny_llama).model)
    slots.create("saved", SMALL, 0)
    slots.save("saved", tmp_path / "adapter")
    return tmp_path / "adapter"


def sets(**values: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def weights(alter: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        stored = load_file(file)
        alter(stored)
        save_file(stored, file, metadata={"format": "pt"})

    return change


def fill_first(value: float) -> Change:
    return weights(lambda stored: stored[sorted(stored)[0]].view(-1)[:1].fill_(value))


def as_doubles(stored: dict[str, torch.Tensor]) -> None:
    stored.update({name: tensor.double() for name, tensor in stored.items()})


def config_text(text: str) -> Change:
    return lambda folder: _ignore((folder / "adapter_config.json").write_text(text))


def _ignore(_: object) -> None:
    """For a lambda that returns nothing."""


def huge_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def pickle_as_safetensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))


CHANGES: list[tuple[str, Change, str]] = [
    ("a rank of billions", sets(r=10**9), "rank r is 1000000000"),
    ("a rank of no number", sets(r="8"), "rank r is '8'"),
    ("a rank that is true", sets(r=True), "rank r is True"),
    ("a rank below one", sets(r=0), "rank r is 0"),
    ("an infinite scale", sets(lora_alpha=float("inf")), "lora_alpha is inf"),
    ("a huge scale", sets(lora_alpha=10**400), "lora_alpha is 1000"),
    ("a regular expression", sets(target_modules="(a+)+$"), "list of layers' names"),
    ("one in a list", sets(target_modules=["(a+)+$"]), "no layer's name"),
    ("no target", sets(target_modules=[]), "list of layers' names"),
    ("repeated layers", sets(layer_replication=[[0, 2], [0, 2]]), "layer_replication"),
    ("copied modules", sets(modules_to_save=["embed_tokens"]), "modules_to_save"),
    ("an initialisation that changes the base", sets(init_lora_weights="pissa"), "init_lora_weights"),
    ("a code path by name", sets(megatron_config={"a": 1}, megatron_core="os"), "megatron"),
    ("ranks by pattern", sets(rank_pattern={"(a+)+$": 4}), "rank_pattern"),
    ("trained tokens", sets(trainable_token_indices=[1]), "trainable_token_indices"),
    ("biases", sets(bias="all"), "bias"),
    ("code to import", sets(auto_mapping={"parent_library": "os"}), "auto_mapping"),
    ("an unknown key", sets(surprise={"a": 1}), "surprise"),
    ("another kind", sets(peft_type="IA3"), "peft_type is 'IA3'"),
    ("a list for a kind", sets(peft_type=["LORA"]), "peft_type"),
    ("no object", config_text("[]"), "no JSON object"),
    ("deep nesting", config_text('{"a":' * 100_000), "nested too deeply"),
    ("a number too long", config_text('{"r": ' + "9" * 10_000 + "}"), "does not fit"),
    ("a large file", config_text('{"a": "' + "x" * 2**21 + '"}'), "larger than"),
    ("no text", lambda f: _ignore((f / "adapter_config.json").write_bytes(b"\xff\xfe\x00")), "does not fit"),
    ("NaN", fill_first(float("nan")), "not finite"),
    ("infinity", fill_first(float("inf")), "not finite"),
    ("doubles", weights(as_doubles), "float64"),
    ("a huge header", huge_header, "does not fit"),
    ("a pickle", pickled, "has no adapter_model.safetensors"),
    ("a pickle by another name", pickle_as_safetensors, "does not fit"),
    (
        "a tensor of the model's",
        weights(lambda s: s.update({"base_model.model.lm_head.weight": torch.zeros(300, 32)})),
        "lm_head",
    ),
    ("an empty prefix", sets(peft_type="CARTRIDGE"), "prefix"),
]


@pytest.mark.parametrize(("change", "words"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_hostile_adapter_is_refused_at_once_and_changes_nothing(
    tiny_llama: Path,
    folder: Path,
    change: Change,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_tiny(tiny_llama).model
    before, slots = parameters_hash(model), AdapterSlots(model)
    change(folder)
    started = time.process_time()
    with pytest.raises(AdapterError) as caught:
        slots.load("bad", folder)
    assert time.process_time() - started < 5
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert slots.names == () and parameters_hash(model) == before
    assert not (tmp_path / "ran").exists()


def test_what_this_program_saves_is_read_and_so_are_usual_ways_of_others(
    tiny_llama: Path, folder: Path
) -> None:
    slots = AdapterSlots(load_tiny(tiny_llama).model)
    slots.load("own", folder)
    sets(
        use_rslora=True, lora_dropout=0.05, init_lora_weights="gaussian", revision="main", velora_config=None
    )(folder)
    slots.load("other", folder)
    assert slots.names == ("own", "other")


def test_json_that_is_deep_long_or_repeats_a_key_is_refused_quickly() -> None:
    many = ", ".join(f'"k{i}": 1' for i in range(200_000))
    for text, words in (
        ("[" * 10**6, "nested too deeply"),
        ('{"a":' * 10**6, "nested too deeply"),
        (f'{{{many}, "k199999": 2}}', "stands twice"),
        ("1" * 10**6 + "x", "not valid JSON"),
    ):
        started = time.process_time()
        with pytest.raises(FormatError, match=words):
            parse_json(text, "It")
        assert time.process_time() - started < 5
    assert parse_json("9" * 100_000, "It") == "9" * 100_000


def test_model_files_that_are_bombs_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 10**6)
    with pytest.raises(ModelDamaged):
        read_json(tmp_path / "config.json")
    for header in (struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 10**6) + b"[" * 10**6):
        (tmp_path / "model.safetensors").write_bytes(header)
        with pytest.raises(ModelDamaged, match="no readable safetensors header"):
            weight_shapes(tmp_path)


def test_a_recipe_file_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("steps = " + "[" * 100_000)
    with pytest.raises(TaskError, match="nested too deeply|not TOML"):
        read_recipes(str(tmp_path / "r.toml"))


@pytest.mark.parametrize(
    ("task", "queries", "words"),
    [
        (
            Task((Demonstration("a", "b"),) * (MAX_DEMONSTRATIONS + 1)),
            1,
            "10001 demonstrations.*leave some out",
        ),
        (Task((Demonstration("a" * (MAX_CHARACTERS + 1), "b"),)), 1, "input of demonstration 1.*shorten it"),
        (Task((Demonstration("a", "b"), Demonstration("a", "b" * 10**6))), 1, "output of demonstration 2"),
        (Task((), "i" * (MAX_CHARACTERS + 1)), 1, "The instruction has"),
        (Task((Demonstration("a" * 10**5, "b"),) * 60), 1, f"at most {MAX_TASK_CHARACTERS}"),
        (Task(), MAX_QUERIES + 1, "10001 queries"),
        (
            Task((Demonstration("a", "b\0"),)),
            1,
            "The output of demonstration 1 has a NUL character.*remove it",
        ),
        (Task((), "i\0"), 1, "The instruction has a NUL"),
        (Task((), "i", "na\0me"), 1, "The name has a NUL"),
    ],
)
def test_tasks_without_bounds_are_refused_in_one_sentence(task: Task, queries: int, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        check_size(task, [Query("q")] * queries)


def test_turns_count_as_well() -> None:
    with pytest.raises(TaskError, match="Query 1 has"):
        check_size(Task(), [Query("q", turns=(("a", "b" * (MAX_CHARACTERS + 1)),))])
