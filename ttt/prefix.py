"""Context tuning: the demonstrations' keys and values are trained in place of weights.

In context, demonstrations are read once into keys and values, which every query then looks at. Here these are
what learns (CT-KV: arXiv 2507.04221). Untouched they are plain in-context learning. Each step predicts answers of a
few demonstrations, each with its own keys and values hidden, so that none can be copied (leave-one-out; what later
demonstrations took over from it when they were read stays visible, as published). The published token dropout is
left out. The first token never moves: models use it as an attention sink.

A prefix is saved as PEFT's CARTRIDGE adapter, which holds just this. It does not run through PEFT: packed tokens
and shared prefixes need a cache of our own.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.attention import attend, masked
from ttt.dataset import Sequence
from ttt.decoder import Decoder, Layer, rms_norm
from ttt.errors import TrainingFailed
from ttt.runner import DecoderRunner
from ttt.tree import TokenTree

if TYPE_CHECKING:
    from ttt.engine import Bench

FROZEN = 1
"""Tokens at the beginning that never move."""


class Prefix:
    """Keys and values of a prompt's beginning, in one flat tensor with one of gradients; `gradients.Trainable`."""

    def __init__(self, kv: Tensor) -> None:
        """`kv`: (layers, 2, kv heads, tokens, head size), keys rotated to their positions."""
        self.flat = kv.flatten()
        self.grads = torch.zeros_like(self.flat)
        self.kv = self.flat.view(kv.shape)

    @property
    def n_tokens(self) -> int:
        return self.kv.shape[3]

    def loss(self, bench: Bench, batch: Many[Sequence]) -> tuple[float, int]:
        """As `gradients.Trainable`; the sequences follow the prefix, each at its end, and see nothing of one another
        nor of what each hides."""
        assert bench.decoder is not None
        leaf = self.kv.detach().requires_grad_()
        with torch.enable_grad():
            loss, n = _loss(bench.decoder, leaf, batch)
            (gradient,) = torch.autograd.grad(loss, leaf)
        gradient[:, :, :, :FROZEN] = 0
        self.grads.copy_(gradient.flatten())
        return float(loss.detach()), n

    def save(self, folder: Path, base: str) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`; `base` is the model's name."""
        from peft import CartridgeConfig
        from safetensors.torch import save_file

        layers, _, heads, n, size = self.kv.shape
        config = CartridgeConfig(
            base_model_name_or_path=base,
            task_type="CAUSAL_LM",
            inference_mode=True,
            num_virtual_tokens=n,
            num_layers=layers,
            num_attention_heads=heads,
            token_dim=heads * size,
            num_transformer_submodules=1,
            num_frozen_tokens=FROZEN,
        )
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        rows = self.kv.permute(3, 0, 1, 2, 4).reshape(n, -1)  # (tokens, layers · 2 · kv heads · size)
        save_file({"prompt_embeddings": rows.contiguous()}, folder / "adapter_model.safetensors")


def load_prefix(stored: dict[str, Tensor], like: Decoder, room: int | None = None) -> Prefix:
    """The prefix that `save` wrote, for the model `like`, whose context has `room` tokens.

    Raises:
        ValueError: it is of another model, or longer than its context.
    """
    rows = stored.get("prompt_embeddings")
    layers, width = len(like.layers), like.kv_heads * like.head_size
    if rows is None or rows.dim() != 2 or rows.shape[1] != layers * 2 * width:
        found = "no prompt_embeddings" if rows is None else f"prompt_embeddings of {tuple(rows.shape)}"
        raise ValueError(f"it has {found} where the model needs (tokens, {layers * 2 * width})")
    if not len(rows) or (room is not None and len(rows) > room):
        raise ValueError(f"it has {len(rows)} tokens where the model's context has {room}")
    kv = rows.view(len(rows), layers, 2, like.kv_heads, like.head_size).permute(1, 2, 3, 0, 4)
    return Prefix(kv.to(like.device, like.dtype).contiguous())


def read_prefix(bench: Bench, ids: Many[int]) -> Prefix:
    """The prefix that reading `ids` gives: plain in-context learning, until it is trained.

    Raises:
        TrainingFailed: the model runs through transformers, where a prefix can't be trained.
    """
    from ttt.generate import grow

    if bench.decoder is None:
        raise TrainingFailed(
            f"Context tuning knows the layers of Llama, Qwen and Gemma 3, not those of {bench.loaded.name}; use a "
            "recipe that trains LoRA."
        )
    runner = DecoderRunner(bench.decoder, bench.decoding)
    grow(TokenTree(runner), TokenTree.ROOT, ids)
    return Prefix(runner.cached().to(bench.decoder.dtype, copy=True))


def _loss(decoder: Decoder, kv: Tensor, batch: Many[Sequence]) -> tuple[Tensor, int]:
    """Mean cross-entropy over labelled tokens, and their number."""
    device, n = decoder.device, kv.shape[3]
    ids = torch.tensor([t for s in batch for t in s.ids], device=device)
    at = torch.tensor([n + i for s in batch for i in range(len(s.ids))])
    owner = torch.tensor([row for row, s in enumerate(batch) for _ in s.ids])
    seen = torch.ones(len(batch), n, dtype=torch.bool)  # (sequences, prefix tokens)
    for row, s in enumerate(batch):
        seen[row, slice(*s.hidden)] = False
    own = (owner[:, None] == owner) & (at[:, None] >= at)
    allowed = torch.cat([seen[owner], own], dim=1)  # (tokens, prefix tokens and tokens)
    keys_at = torch.cat([torch.arange(n), at])
    masks = {}
    for window in {layer.window for layer in decoder.layers}:
        near = allowed if window is None else allowed & (at[:, None] - keys_at < window)
        masks[window] = masked(near, decoder.dtype, device)

    def look(index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (
            torch.cat([kv[index, which], new.transpose(0, 1)], 1) for which, new in enumerate((k, v))
        )
        return attend(q, keys, values, layer.scale, masks[layer.window])

    hidden = decoder.run(ids, at.to(device), look)
    labelled = torch.tensor([own and i > 0 for s in batch for i, own in enumerate(s.labels)])
    where = labelled.nonzero()[:, 0].to(device)
    logits = F.linear(rms_norm(hidden[where - 1], decoder.norm)[0], decoder.head).float()
    return F.cross_entropy(logits, ids[where]), len(where)


def is_prefix(config: dict[str, Any]) -> bool:
    """Whether an `adapter_config.json` is that of a prefix."""
    return config.get("peft_type") == "CARTRIDGE"
