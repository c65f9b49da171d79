"""Adapter folders as they come from outside: read with every doubt, before anything is made of them.

Only a JSON file and safetensors are read: no code is run, nothing is unpickled. Accepted are plain LoRA (scale · B A
beside linear layers) and trained prefixes. PEFT's further ways could copy or repeat layers of the model, change its
weights or ask for any amount of memory, so a setting that this program would not write is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 2**20
MAX_WEIGHTS_BYTES = 4 * 2**30
MAX_RANK, MAX_ALPHA = 1024, 1e6
MAX_TARGETS = 1000
TARGET = re.compile(r"[A-Za-z0-9_.]{1,200}")
"""A layer's name; PEFT would read other texts as regular expressions."""
FREE = {"base_model_name_or_path", "revision", "task_type", "peft_version", "inference_mode", "peft_type"}
"""Keys whose values change nothing here."""


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of `adapter_config.json`.

    Raises:
        ValueError: what is wrong with it.
        OSError: it can't be read.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"it has no {CONFIG_FILE}")
    with file.open("rb") as opened:
        raw = opened.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise ValueError(f"its {CONFIG_FILE} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(raw)
    except RecursionError as error:
        raise ValueError(f"its {CONFIG_FILE} is nested too deeply") from error
    if not isinstance(config, dict):
        raise ValueError(f"its {CONFIG_FILE} is no JSON object")
    if config.get("peft_type") == "LORA":
        _check_lora(config)
    elif config.get("peft_type") != "CARTRIDGE":
        raise ValueError(f"its peft_type is {_shown(config.get('peft_type'))}, LORA or CARTRIDGE is needed")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors, all of them floating-point and finite.

    Raises:
        ValueError: what is wrong with them.
        OSError, SafetensorError: the file can't be read.
    """
    import torch
    from safetensors.torch import load_file

    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"it has no {WEIGHTS_FILE}")
    size = file.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ValueError(f"its {WEIGHTS_FILE} has {size} bytes, at most {MAX_WEIGHTS_BYTES} are read")
    stored = load_file(file)
    for name, tensor in stored.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"{_shown(name)} is of type {tensor.dtype}, a float of 16 or 32 bits is needed")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{_shown(name)} holds values that are not finite")
    return stored


def _check_lora(config: dict[str, Any]) -> None:
    from peft import LoraConfig

    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"its rank r is {_shown(rank)}, a whole number from 1 to {MAX_RANK} is needed")
    if not _number(alpha) or not 0 < alpha <= MAX_ALPHA:
        raise ValueError(f"its lora_alpha is {_shown(alpha)}, a number above 0 and up to a million is needed")
    if not _number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"its lora_dropout is {_shown(dropout)}, a number from 0 to below 1 is needed")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not 1 <= len(targets) <= MAX_TARGETS:
        raise ValueError(f"its target_modules are {_shown(targets)}, a list of layers' names is needed")
    for target in targets:
        if not isinstance(target, str) or not TARGET.fullmatch(target):
            raise ValueError(f"its target_modules name {_shown(target)}, which is no layer's name")
    plain: dict[str, Any] = {"use_rslora": (False, True), "init_lora_weights": (True, False, "gaussian")}
    usual: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    for key, value in config.items():
        if key in FREE | {"r", "lora_alpha", "lora_dropout", "target_modules"}:
            continue
        allowed = plain.get(key, (usual.get(key), None))
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise ValueError(f"it sets {_shown(key)} to {_shown(value)}, which is not plain LoRA")


def _number(value: Any) -> TypeGuard[int | float]:
    return type(value) in (int, float) and value == value


def _shown(value: object) -> str:
    text = repr(value)[:61]
    return text if len(text) <= 60 else text[:59] + "…"
