"""Are the base model's weights in memory still those that were loaded? A cheap look often, all of them on request.

Nothing here ever writes to them, so a change is a fault: of this program, a library, or the memory. The cheap look
compares eight values of each tensor, and whether torch counted a change in place, in about 10 µs a tensor: it sees
a merge, an update or an overwritten tensor, not a single flipped bit. `ttt.engine` then loads the model anew.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SAMPLES = 8
"""Values of each tensor that are compared."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Watch:
    """Remembers a model's base tensors as they are now. For the thread that owns the model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.remember()

    def remember(self) -> None:
        """Take what is there now for right."""
        rng = random.Random(0)
        self._where = {
            name: torch.tensor([rng.randrange(t.numel()) for _ in range(SAMPLES)], device=t.device)
            for name, t in base_tensors(self._model)
            if t.numel()
        }
        self._seen = {
            name: self._look(name, t) for name, t in base_tensors(self._model) if name in self._where
        }

    @torch.no_grad()
    def changed(self) -> str | None:
        """The name of a tensor that is not what it was, None where none shows a change."""
        found = {name: t for name, t in base_tensors(self._model) if t.numel()}
        for name, (version, values) in self._seen.items():
            if name not in found:
                return name
            now, here = self._look(name, found[name])
            if now != version or not torch.equal(here, values):
                return name
        return None

    def _look(self, name: str, tensor: Tensor) -> tuple[int, Tensor]:
        flat = tensor.detach().reshape(-1)
        version = 0 if tensor.is_inference() else tensor._version
        return version, flat[self._where[name]].view(_BITS[flat.element_size()])


def base_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters of the base model by the names that they have without adapters. (Buffers are not among them: some
    rotary embeddings grow theirs.)"""
    for name, tensor in model.named_parameters():
        if "lora_" not in name:
            yield name.replace(".base_layer", ""), tensor


@torch.no_grad()
def restore(model: Any, fresh: Any) -> None:
    """Write the base tensors of `fresh` over those of `model`, where they are, so that all who use them see it."""
    right = dict(base_tensors(fresh))
    for name, tensor in base_tensors(model):
        tensor.data.copy_(right[name])


def parameters_hash(model: Any) -> str:
    """SHA-256 over names, types and bytes of all tensors of the base model; LoRA tensors are skipped."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(f"{plain} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(data.tobytes())
    return digest.hexdigest()
