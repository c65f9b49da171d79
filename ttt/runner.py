"""Two ways to run packed tokens through a model with a key/value cache: fused, and by transformers.

Both take tokens in one row with a mask of who sees whom, and give next-token logits. Which one a model
gets is decided once, when it is loaded; see `decoder.read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ttt.attention import Rows, additive, attend, masked
from ttt.decoder import Decoder, Layer
from ttt.errors import ModelError


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed tokens of one forward pass, and what each of them sees."""

    ids: Tensor
    """(tokens,)."""
    positions: Tensor
    """(tokens,), of each in its own path."""
    allowed: Tensor
    """(tokens, keys), boolean; keys are all those run before, then these."""
    key_positions: Tensor
    """(keys,)."""
    causal: bool
    """Whether `allowed` is the plain triangle of one sequence without anything before it."""
    keep: Tensor
    """Indices of the tokens whose next-token logits are wanted."""

    def near(self, window: int) -> Tensor:
        """`allowed`, and not further back than the window."""
        return self.allowed & (self.positions[:, None] - self.key_positions[None, :] < window)


class Runner(Protocol):
    """A model with a cache that grows with each batch."""

    @property
    def length(self) -> int:
        """Keys in the cache."""
        ...

    @property
    def vocabulary(self) -> int: ...

    def run(self, batch: Batch) -> Tensor:
        """(kept, vocabulary), float32, on the CPU."""
        ...

    def crop(self, keys: int) -> None:
        """Forget all but the first `keys` keys."""
        ...


PAYS = 4
"""Decoding steps after which it pays to make weights ready for more: it takes as long as some ten steps save."""
FEW_TOKENS = 64
"""A forward pass of at most so many tokens, after others, counts as a decoding step."""


class DecoderRunner:
    """Through `Decoder`, with key and value buffers of our own."""

    def __init__(
        self,
        decoder: Decoder,
        decoding: Decoder | None = None,
        prefix: Tensor | None = None,
        between: Callable[[], None] = lambda: None,
        ready: Callable[[Decoder], Decoder] = lambda decoding: decoding,
    ) -> None:
        """
        Args:
            decoding: the same weights in the form that decodes faster; runs passes of few tokens.
            ready: what makes `decoding` faster still, in the same type, where there is more than a few steps' work for it.
            prefix: keys and values to begin with, (layers, 2, kv heads, tokens, head size).
            between: called between layers.
        """
        self._decoder, self._between = decoder, between
        self._ready, self._steps = ready, 0
        self._decoding = decoding = decoding or decoder
        n, shape = len(decoder.layers), (decoder.kv_heads, 0, decoder.head_size)
        self._keys = [torch.empty(shape, dtype=decoding.dtype, device=decoder.device) for _ in range(n)]
        self._values = list(self._keys)
        self._length = 0
        if prefix is not None:
            self._keys, self._values = (list(prefix[:, i].to(decoding.dtype)) for i in (0, 1))
            self._length = prefix.shape[3]

    @property
    def length(self) -> int:
        return self._length

    def cached(self) -> Tensor:
        """All keys and values, (layers, 2, kv heads, tokens, head size)."""
        n = self._length
        pairs = zip(self._keys, self._values, strict=True)
        return torch.stack([torch.stack([k[:, :n], v[:, :n]]) for k, v in pairs])

    @property
    def vocabulary(self) -> int:
        return len(self._decoder.head)

    def crop(self, keys: int) -> None:
        self._length = keys

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        few = len(batch.ids) <= FEW_TOKENS and self._length > 0
        self._steps += few
        if few and self._steps == PAYS:
            self._decoding = self._ready(self._decoding)
        decoder, start = self._decoding if few else self._decoder, self._length
        end = start + len(batch.ids)
        self._reserve(end)
        self._length = end
        windows = {layer.window for layer in decoder.layers}
        masks: dict[int | None, list[Rows] | None] = {}
        for window in windows:
            reaches = window is None or int(batch.key_positions.max()) < window
            if batch.causal and reaches:
                masks[window] = None
                continue
            allowed = batch.allowed if window is None else batch.near(window)
            masks[window] = masked(allowed, decoder.dtype, decoder.device)

        def look(index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.inference_mode(False):
                self._between()
            keys, values = self._keys[index], self._values[index]
            keys[:, start:end] = k.transpose(0, 1)
            values[:, start:end] = v.transpose(0, 1)
            seen, mixed = keys[:, :end].to(q.dtype), values[:, :end].to(q.dtype)
            return attend(q, seen, mixed, layer.scale, masks[layer.window])

        hidden = decoder.hidden(batch.ids.to(decoder.device), batch.positions.to(decoder.device), look)
        return decoder.logits(hidden[batch.keep.to(decoder.device)]).cpu()

    def _reserve(self, n: int) -> None:
        have = self._keys[0].shape[1]
        if n <= have:
            return
        for buffers in (self._keys, self._values):
            for i, old in enumerate(buffers):
                new = old.new_empty(old.shape[0], max(n, 2 * have, 256), old.shape[2])
                new[:, : self._length] = old[:, : self._length]
                buffers[i] = new


class TransformersRunner:
    """Through the model's own code; for those that `decoder.read` does not know."""

    def __init__(self, model: PreTrainedModel) -> None:
        """
        Raises:
            ModelError: the model has layers that packed tokens can't be run through.
        """
        self._model = model
        self._cache = DynamicCache()
        self._length = 0
        config = model.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self._window: int | None = getattr(config, "sliding_window", None)
        self._layer_types = set(getattr(config, "layer_types", None) or ())
        unknown = self._layer_types - {"full_attention", "sliding_attention"}
        if unknown:
            raise ModelError(
                f"This model has layers of type {', '.join(sorted(unknown))}, where only full and sliding-window "
                "attention can be run; choose another model."
            )

    @property
    def length(self) -> int:
        return self._length

    def crop(self, keys: int) -> None:
        if self._length > keys:
            self._cache.crop(keys - self._length)  # negative: how many to remove
        self._length = keys

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        device = self._model.device
        self._length += len(batch.ids)
        output = self._model(
            input_ids=batch.ids[None].to(device),
            position_ids=batch.positions[None].to(device),
            attention_mask=self._masks(batch),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=batch.keep.to(device),
        )
        logits: Tensor = output.logits[0].float().cpu()
        return logits

    def _masks(self, batch: Batch) -> Any:
        full = self._additive(batch.allowed)
        if self._window is None or self._layer_types == {"full_attention"}:
            return full
        near = self._additive(batch.near(self._window))
        # A model that names no layer types has the window in all of its layers.
        return {"full_attention": full, "sliding_attention": near} if self._layer_types else near

    def _additive(self, allowed: Tensor) -> Tensor:
        return additive(allowed, self._model.dtype, self._model.device)[None, None]  # (1, 1, tokens, keys)
