"""The decoder-only transformers we know, run by a few large operations a layer.

transformers and PEFT run one layer as some sixty small operations, each a module call of its own. Here
a model's weights are read once into plain `Layer`s (query, key and value as one matrix, gate and up as
another; the model's own parameters become views of these, so nothing is stored twice) and a layer is
about twenty operations over packed tokens: no padding, whatever the sequences' lengths. Which tokens
see which is the business of the `Attention` that is handed in.

`read` returns None for a model that it does not know in every detail; such a model runs through
transformers. Formulas: the models' own code in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

KNOWN = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM")
"""Architectures whose every option is either run here or refused by `read`."""


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm over the last dimension."""

    weight: Tensor
    """(size,): the factor itself (Gemma stores it less one)."""
    eps: float
    late: bool
    """Whether the factor is applied in float32, before rounding to the model's type (Gemma)."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Linear layers that read the same input, as one."""

    names: tuple[str, ...]
    """Of the modules, as in the model."""
    rows: tuple[slice, ...]
    """Of the output, module by module."""
    weight: Tensor
    """(outputs of all, inputs)."""
    bias: Tensor | None
    packed: Tensor | None = None
    """The weight once more as oneDNN's products want it, which else bring it into that order every time: half of a product
    with few rows. None leaves it to them."""

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, inputs) → (tokens, outputs of all)."""
        return linear(x, self.weight, self.bias, self.packed)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    attention_norm: Norm
    qkv: Fused
    q_norm: Norm | None
    k_norm: Norm | None
    out: Fused
    attention_post: Norm | None
    mlp_norm: Norm
    gate_up: Fused
    down: Fused
    mlp_post: Norm | None
    scale: float
    """Of attention scores."""
    window: int | None
    """Positions that a token looks back, itself included; None for all."""
    rope: str | None
    """Which rotary embedding, where a model has several."""

    @property
    def linears(self) -> tuple[Fused, Fused, Fused, Fused]:
        return self.qkv, self.out, self.gate_up, self.down

    def with_linears(self, change: Callable[[Fused], Fused]) -> Layer:
        """A copy with each of them changed."""
        qkv, out, gate_up, down = map(change, self.linears)
        return replace(self, qkv=qkv, out=out, gate_up=gate_up, down=down)


@dataclass(frozen=True, slots=True)
class Plain:
    """One module's LoRA: adds scale · B A x."""

    a: Tensor
    """(rank, inputs)."""
    b: Tensor
    """(outputs, rank)."""
    scale: float


class Attention(Protocol):
    """Softmax attention of packed tokens; knows who sees whom."""

    def __call__(self, index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (tokens, heads, size), k and v (tokens, kv heads, size) of layer `index` → (tokens, heads · size)."""
        ...


@dataclass(frozen=True, slots=True)
class Decoder:
    """A base model's weights, or those of one with an adapter merged in. Never written to."""

    layers: tuple[Layer, ...]
    embedding: Tensor
    """(vocabulary, hidden)."""
    embedding_scale: float
    head: Tensor
    """(vocabulary, hidden)."""
    packed_head: Tensor | None
    """As `Fused.packed`."""
    norm: Norm
    heads: int
    kv_heads: int
    head_size: int
    gelu: bool
    """Whether the MLP's gate is GELU (tanh form) instead of SiLU."""
    rotary: Callable[..., tuple[Tensor, Tensor]]
    """The model's own rotary embedding: (x, positions[, layer type]) → cos, sin."""

    def covers(self, names: Iterable[str]) -> bool:
        """Whether all these linear layers are among those run here."""
        return set(names) <= {n for layer in self.layers for fused in layer.linears for n in fused.names}

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens,) → (tokens, hidden)."""
        x = F.embedding(ids, self.embedding)
        return x * torch.tensor(self.embedding_scale, dtype=x.dtype) if self.embedding_scale != 1 else x

    def rope(self, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """(tokens,) → for each kind of layer cos and sin, (tokens, 1, head size)."""
        found = {}
        like = self.embedding[:1]
        for kind in {layer.rope for layer in self.layers}:
            named = (kind,) if kind is not None else ()
            cos, sin = self.rotary(like, positions[None], *named)
            found[kind] = cos[0, :, None], sin[0, :, None]
        return found

    def heads_of(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, outputs) → query, key and value by head, as views."""
        parts = qkv.view(len(qkv), -1, self.head_size)
        q, k = self.heads, self.heads + self.kv_heads
        return parts[:, :q], parts[:, q:k], parts[:, k:]

    def gate(self, gate_up: Tensor) -> Tensor:
        """The MLP's product: (tokens, 2 · inner) → (tokens, inner)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)).mul_(up)

    @torch.inference_mode()
    def hidden(self, ids: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """`run` without a record for gradients."""
        return self.run(ids, positions, attend)

    def run(self, ids: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """Packed tokens through all layers.

        Args:
            ids: (tokens,).
            positions: (tokens,), of each in its own sequence.

        Returns:
            (tokens, hidden), before the last norm.
        """
        x = self.embed(ids)
        rope = self.rope(positions)
        for index, layer in enumerate(self.layers):
            h, _ = rms_norm(x, layer.attention_norm)
            q, k, v = self.heads_of(layer.qkv(h))
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = rms_norm(q, layer.q_norm)[0], rms_norm(k, layer.k_norm)[0]
            cos, sin = rope[layer.rope]
            mixed = attend(index, layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
            mixed = layer.out(mixed)
            if layer.attention_post is not None:
                mixed, _ = rms_norm(mixed, layer.attention_post)
            x = x + mixed
            h, _ = rms_norm(x, layer.mlp_norm)
            h = self.gate(layer.gate_up(h))
            h = layer.down(h)
            if layer.mlp_post is not None:
                h, _ = rms_norm(h, layer.mlp_post)
            x = x + h
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) → (tokens, vocabulary), float32."""
        return linear(rms_norm(hidden, self.norm)[0], self.head, None, self.packed_head).float()

    @torch.inference_mode()
    def merged(self, lora: Mapping[str, Plain]) -> Decoder:
        """A copy with W + scale · B A in the layers that `lora` names; everything else is shared."""
        return replace(self, layers=tuple(_merged_layer(layer, lora) for layer in self.layers))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """x · weightᵀ + bias, by the packed weight where there is one."""
    if packed is None:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


def rms_norm(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Normed, and the reciprocal root mean square (float32, last dimension 1)."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(norm.eps))
    if norm.late:
        return (wide * rstd).mul_(norm.weight).to(x.dtype), rstd
    return (wide * rstd).to(x.dtype).mul_(norm.weight), rstd


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (tokens, heads, size) by (tokens, 1, size); by -sin it is its own inverse."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


# ---------------------------------------------------------------------------------------------- reading


def read(model: PreTrainedModel) -> Decoder | None:
    """The model's weights as a `Decoder`, or None where it is not known in every detail.

    Call before any adapter is attached. The model's linear layers keep their values and become views of
    the fused matrices.
    """
    config = model.config.get_text_config()
    body = getattr(model, "model", None)
    if type(model).__name__ not in KNOWN or body is None or not _plain(config):
        return None
    gemma = type(model).__name__ == "Gemma3ForCausalLM"
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    layers = []
    for number, (block, kind) in enumerate(zip(body.layers, kinds, strict=True)):
        at, mlp = block.self_attn, block.mlp
        prefix = f"model.layers.{number}"
        has_post = hasattr(block, "pre_feedforward_layernorm")
        layers.append(
            Layer(
                attention_norm=_norm(block.input_layernorm, gemma),
                qkv=_fuse(f"{prefix}.self_attn", at, ("q_proj", "k_proj", "v_proj")),
                q_norm=_norm(at.q_norm, gemma) if hasattr(at, "q_norm") else None,
                k_norm=_norm(at.k_norm, gemma) if hasattr(at, "k_norm") else None,
                out=_fuse(f"{prefix}.self_attn", at, ("o_proj",)),
                attention_post=_norm(block.post_attention_layernorm, gemma) if has_post else None,
                mlp_norm=_norm(
                    block.pre_feedforward_layernorm if has_post else block.post_attention_layernorm, gemma
                ),
                gate_up=_fuse(f"{prefix}.mlp", mlp, ("gate_proj", "up_proj")),
                down=_fuse(f"{prefix}.mlp", mlp, ("down_proj",)),
                mlp_post=_norm(block.post_feedforward_layernorm, gemma) if has_post else None,
                scale=float(at.scaling),
                window=window if kind == "sliding_attention" else None,
                rope=kind if gemma else None,
            )
        )
    return Decoder(
        layers=tuple(layers),
        embedding=body.embed_tokens.weight.detach(),
        embedding_scale=float(config.hidden_size**0.5) if gemma else 1.0,
        head=model.get_output_embeddings().weight.detach(),  # type: ignore[no-untyped-call]
        packed_head=None,
        norm=_norm(body.norm, gemma),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        gelu=_activation(config) != "silu",
        rotary=body.rotary_emb,
    )


def _plain(config: Any) -> bool:
    """Whether the configuration asks for nothing that is not run here."""
    kinds = set(getattr(config, "layer_types", None) or ())
    refused = (
        getattr(config, "attn_logit_softcapping", None),
        getattr(config, "final_logit_softcapping", None),
        getattr(config, "use_bidirectional_attention", None),
        "partial_rotary_factor" in str(getattr(config, "rope_parameters", None)),
        kinds - {"full_attention", "sliding_attention"},
    )
    return _activation(config) in ("silu", "gelu_pytorch_tanh") and not any(refused)


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


def _norm(module: Any, gemma: bool) -> Norm:
    weight = module.weight.detach()
    eps = float(module.eps if gemma else module.variance_epsilon)
    return Norm(1.0 + weight.float() if gemma else weight, eps, gemma)


def _fuse(prefix: str, module: Any, names: Sequence[str]) -> Fused:
    parts = [getattr(module, name) for name in names]
    weight = (
        torch.cat([part.weight.detach() for part in parts]) if len(parts) > 1 else parts[0].weight.detach()
    )
    biases = [part.bias for part in parts]
    bias = torch.cat([b.detach() for b in biases]) if all(b is not None for b in biases) else None
    rows, start = [], 0
    for part in parts:
        rows.append(slice(start, start + part.out_features))
        part.weight.data = weight[rows[-1]]
        start += part.out_features
    return Fused(tuple(f"{prefix}.{name}" for name in names), tuple(rows), weight, bias)


def _merged_layer(layer: Layer, lora: Mapping[str, Plain]) -> Layer:
    def merged(fused: Fused) -> Fused:
        if not any(name in lora for name in fused.names):
            return fused
        weight = fused.weight.clone()
        for name, rows in zip(fused.names, fused.rows, strict=True):
            if name in lora:
                part = lora[name]
                weight[rows] += (part.b.float() @ part.a.float()).mul_(part.scale)
        return replace(fused, weight=weight, packed=None)

    return layer.with_linears(merged)
