"""Adapters on one loaded model: attach, choose, save, load, detach.

LoRA by PEFT: the base weights are frozen and never written to, and with no adapter attached the model is the plain
transformers one again. Trained prefixes (`prefix`) lie beside the model and change nothing in it. Only the thread
that owns the model may call in here.
"""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ttt.adapter_files import read_config, read_weights
from ttt.decoder import Decoder, Plain
from ttt.errors import AdapterError
from ttt.prefix import Prefix, is_prefix, load_prefix
from ttt.recipes import Recipe

T = TypeVar("T")


class AdapterSlots:
    """The adapters now attached to one model, and which of them is active."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        self._base = model
        self._peft: PeftModel | None = None
        self._prefixes: dict[str, Prefix] = {}
        self._rms: dict[tuple[str, ...], float] = {}
        self.after_drop: Callable[[], None] = lambda: None
        """Called when an adapter was taken off."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*(self._peft.peft_config if self._peft is not None else ()), *self._prefixes)

    def prefix(self, name: str) -> Prefix | None:
        """The adapter `name` where it is a trained prefix."""
        return self._prefixes.get(name)

    def put(self, name: str, prefix: Prefix) -> None:
        """Attach a prefix."""
        self._check_free(name)
        self._prefixes[name] = prefix

    def create(self, name: str, recipe: Recipe, seed: int) -> None:
        """A fresh adapter (B = 0, so that it changes nothing yet), the same for the same seed."""
        targets = self.present(recipe.targets)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=targets,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._add(name, config)

    def load(self, name: str, folder: Path, decoder: Decoder | None = None) -> None:
        """Attach a saved adapter; `decoder` is this model's, which a trained prefix needs.

        Raises:
            AdapterError: the folder is no adapter for this model.
        """
        try:
            given, stored = read_config(folder), read_weights(folder)
            if is_prefix(given):
                if decoder is None:
                    raise ValueError("it is a trained prefix, which this model can't begin with")
                room = getattr(self._base.config, "max_position_embeddings", None)
                self.put(name, load_prefix(stored, decoder, room))
                return
            config = LoraConfig.from_pretrained(str(folder))
            peft = self._add(name, config)
            _check_shapes(
                stored, get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
            )
            set_peft_model_state_dict(peft, stored, adapter_name=name)
        except (ValueError, RuntimeError, OSError, KeyError, TypeError, SafetensorError) as error:
            self.drop(name)
            first = (str(error).strip() or type(error).__name__).split("\n", 1)[0][:300]
            raise AdapterError(
                f"The adapter in {folder} does not fit this base model or is damaged ({first}); train it again."
            ) from error

    def save(self, name: str, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`.

        Raises:
            AdapterError: they can't be written.
        """
        try:
            self._save(name, folder)
        except (OSError, SafetensorError) as error:
            first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
            raise AdapterError(
                f"The adapter can't be written to {folder} ({first}); free some disk space or make the folder writable."
            ) from error

    def _save(self, name: str, folder: Path) -> None:
        if name in self._prefixes:
            self._prefixes[name].save(folder, str(self._base.name_or_path))
            return
        peft = self._attached(name)
        config = cast(LoraConfig, peft.peft_config[name])
        config.target_modules = sorted(config.target_modules or ())  # a set, whose order differs by process
        _quiet(
            lambda: peft.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
        )
        nested = folder / name
        if nested.is_dir():  # PEFT puts every adapter but "default" into a folder of its name
            for file in nested.iterdir():
                file.rename(folder / file.name)
            nested.rmdir()
        (folder / "README.md").unlink(missing_ok=True)

    def merge(self, name: str, parts: Sequence[str]) -> None:
        """Attach the mean of attached adapters: of their A and of their B, as in federated averaging, by PEFT's linear
        merging (whose weights count by their roots).

        Raises:
            AdapterError: they are no plain LoRA, or not of one shape.
        """
        self._check_free(name)
        peft = self._attached(parts[0])
        shapes = [self.plain(part) if part not in self._prefixes else None for part in parts]
        kinds = {None if s is None else tuple((k, m.a.shape, m.scale) for k, m in s.items()) for s in shapes}
        if None in kinds or len(kinds) != 1:
            raise AdapterError(f"The adapters {', '.join(parts)} are not of one shape, so they have no mean.")
        with torch.random.fork_rng(devices=[]):
            weights = [1 / len(parts) ** 2] * len(parts)
            _quiet(lambda: peft.add_weighted_adapter(list(parts), weights, name, combination_type="linear"))

    def drop(self, name: str) -> None:
        """Detach if attached; with the last one gone the model is the plain base again."""
        self._prefixes.pop(name, None)
        if self._peft is None or name not in self._peft.peft_config:
            return
        if len(self._peft.peft_config) == 1:
            self._peft.unload()
            if hasattr(self._base, "peft_config"):
                del self._base.peft_config
            self._peft = None
            self._base.requires_grad_(False)
        else:
            peft = self._peft
            _quiet(lambda: peft.delete_adapter(name))
        self.after_drop()

    @contextlib.contextmanager
    def active(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model with adapter `name`, or as it was loaded for None or a prefix, which is a matter of the cache."""
        if name in self._prefixes:
            name = None
        if self._peft is None and name is None:
            yield self._base
        elif name is None:
            assert self._peft is not None
            with self._peft.disable_adapter():
                yield self._base
        else:
            self._attached(name).set_adapter(name)
            yield self._base

    def parameters(self, name: str) -> list[torch.nn.Parameter]:
        """The adapter's own weights, in a fixed order."""
        peft = self._attached(name)
        return [p for n, p in peft.named_parameters() if f".{name}." in n and "lora_" in n]

    def plain(self, name: str) -> dict[str, Plain] | None:
        """The adapter's weights (not copies) by the linear layer they stand beside, or None where it is more
        than scale · B A beside linear layers."""
        peft = self._attached(name)
        found = {}
        for path, module in self._base.named_modules():
            if not isinstance(module, LoraLayer) or name not in module.lora_A:
                continue
            if type(module) is not Linear or module.use_dora[name] or module.lora_bias[name]:
                return None
            down, up = cast(Any, module.lora_A)[name], cast(Any, module.lora_B)[name]
            scale: Any = module.scaling[name]
            found[path] = Plain(down.weight.detach(), up.weight.detach(), float(scale))
        state = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
        return found if len(state) == 2 * len(found) else None

    def rebind(self, name: str, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Let the adapter's layers use these tensors (A, B) as their weights from now on."""
        self._attached(name)
        for path, (a, b) in tensors.items():
            module = cast(LoraLayer, self._base.get_submodule(path))
            module.lora_A[name].weight.data = a
            module.lora_B[name].weight.data = b

    def _add(self, name: str, config: PeftConfig) -> PeftModel:
        self._check_free(name)
        if self._peft is None:
            self._peft = _quiet(
                lambda: get_peft_model(self._base, config, name, autocast_adapter_dtype=False)
            )
        else:
            peft = self._peft
            _quiet(lambda: peft.add_adapter(name, config, autocast_adapter_dtype=False))
        return self._peft

    def _check_free(self, name: str) -> None:
        if name in self.names:
            raise AdapterError(
                f"An adapter {name!r} is attached already; drop it first or choose another name."
            )

    def _attached(self, name: str) -> PeftModel:
        if self._peft is None or name not in self._peft.peft_config:
            raise AdapterError(
                f"No adapter {name!r} is attached; attached are: {', '.join(self.names) or 'none'}."
            )
        return self._peft

    def present(self, targets: tuple[str, ...]) -> list[str]:
        """Those of these linear layers that the model has.

        Raises:
            AdapterError: it has none of them.
        """
        found = {
            n.rsplit(".", 1)[-1] for n, m in self._base.named_modules() if isinstance(m, torch.nn.Linear)
        }
        found |= {n.rsplit(".", 2)[-2] for n, _ in self._base.named_modules() if n.endswith(".base_layer")}
        present = [t for t in targets if t in found]
        if not present:
            raise AdapterError(
                f"None of the layers {', '.join(targets)} is in this model (it has {', '.join(sorted(found))}); "
                "name its linear layers in the recipe."
            )
        return present

    def weight_rms(self, targets: tuple[str, ...]) -> float:
        """Root mean square of the base model's weights in these linear layers: the median over layers.

        Raises:
            AdapterError: it has none of them.
        """
        names = tuple(self.present(targets))
        if names not in self._rms:
            layers = {path.removesuffix(".base_layer"): m for path, m in self._base.named_modules()}
            weights = [
                m.weight
                for path, m in layers.items()
                if isinstance(m, torch.nn.Linear) and path.rsplit(".", 1)[-1] in names
            ]
            norms = [torch.linalg.vector_norm(w, dtype=torch.float32).item() for w in weights]
            self._rms[names] = statistics.median(
                n / w.numel() ** 0.5 for n, w in zip(norms, weights, strict=True)
            )
        return self._rms[names]


def _check_shapes(stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless both hold the same tensors."""
    for key in sorted(stored.keys() | wanted.keys()):
        here = tuple(wanted[key].shape) if key in wanted else "absent"
        there = tuple(stored[key].shape) if key in stored else "absent"
        if here != there:
            raise ValueError(f"{key} is {there} in the folder and {here} in the model")


def _quiet(call: Callable[[], T]) -> T:
    """PEFT warns of a base model without a hub id, which is no fault of a local folder, and transformers
    of names in PEFT's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return call()
