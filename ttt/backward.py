"""Loss and LoRA gradients of packed sequences, by hand.

Autograd over PEFT's modules spends most of a short step on bookkeeping and on thin products, one after
the other. Here the forward pass keeps just what the backward pass needs, modules that read the same
input share one down-projection, all adapter weights lie in one flat tensor (so do their gradients), and
sequences lie packed one behind the other: nothing is padded and none sees another. Several adapters can
be trained in one pass, each on its own rows. Gradients equal PEFT's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.attention import Kept, KeptElsewhere, causal, causal_back, causal_elsewhere
from ttt.dataset import Sequence
from ttt.decoder import Decoder, Layer, Norm, rms_norm, rotate
from ttt.flat_lora import LoraWeights, Pair

PADDED = 1.25
"""Tokens with padding ÷ tokens without, at most, for tasks to be padded to one length."""
LOGITS = 2**25
"""Elements of the logits made at once (float32: 128 MB)."""


@dataclass(slots=True)
class _Kept:
    """What one layer's backward pass needs of its forward pass."""

    x: Tensor
    rstd: Tensor
    h: Tensor
    q: Tensor
    k: Tensor
    q_rstd: Tensor | None
    k_rstd: Tensor | None
    mixed: Tensor
    out: Tensor
    out_rstd: Tensor | None
    x_mlp: Tensor
    rstd_mlp: Tensor
    h_mlp: Tensor
    gate_up: Tensor
    inner: Tensor
    down: Tensor
    down_rstd: Tensor | None
    low: dict[int, list[Tensor | None]] = field(default_factory=dict)
    """Down-projections by linear layer and task."""


@torch.no_grad()
def loss_and_gradients(
    decoder: Decoder,
    tasks: Many[tuple[LoraWeights, Many[Sequence]]],
    between: Callable[[], None] = lambda: None,
) -> list[tuple[float, int]]:
    """Run each task's sequences with its own adapter, all in one pass; overwrite the adapters' `grads`.

    Args:
        between: called between layers; what it raises ends the pass.

    Returns:
        For each task its mean cross-entropy over labelled tokens, nats, and their number.
    """
    pass_ = _Pass(decoder, tasks, between)
    x = pass_.forward()
    losses, dx = pass_.loss(x)
    pass_.backward(dx)
    return losses


class _Pass:
    def __init__(
        self,
        decoder: Decoder,
        tasks: Many[tuple[LoraWeights, Many[Sequence]]],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.decoder, self.between = decoder, between
        self.loras = [lora for lora, _ in tasks]
        self.rows: list[slice] = []
        self.spans: list[slice] = []
        ids: list[int] = []
        positions: list[int] = []
        kept: list[int] = []
        targets: list[int] = []
        self.counts: list[int] = []
        lengths = [len(s.ids) for _, sequences in tasks for s in sequences]
        longest = max(lengths)
        alike = len({(lora.layout, len(sequences)) for lora, sequences in tasks}) == 1
        # Sequences of about the same length are padded at their end, to run tasks side by side as one batch.
        self.uniform = len(tasks) > 1 and alike and longest * len(lengths) <= PADDED * sum(lengths)
        for _, sequences in tasks:
            begin, labelled = len(ids), len(kept)
            for s in sequences:
                start = len(ids)
                padding = longest - len(s.ids) if self.uniform else 0
                ids += [*s.ids, *[0] * padding]
                positions += range(len(s.ids) + padding)
                wanted = [i for i in range(1, len(s.ids)) if s.labels[i]]
                kept += [start + i - 1 for i in wanted]
                targets += [s.ids[i] for i in wanted]
                self.spans.append(slice(start, len(ids)))
            self.rows.append(slice(begin, len(ids)))
            self.counts.append(len(kept) - labelled)
        device = decoder.device
        self.ids = torch.tensor(ids, device=device)
        self.kept, self.targets = torch.tensor(kept, device=device), torch.tensor(targets, device=device)
        self.rope = decoder.rope(torch.tensor(positions, device=device))
        self.tape: list[_Kept] = []
        self.attended: list[list[Kept | KeptElsewhere]] = []

    # ---- forward

    def forward(self) -> Tensor:
        decoder = self.decoder
        x = decoder.embed(self.ids)
        for index, layer in enumerate(decoder.layers):
            self.between()
            low: dict[int, list[Tensor | None]] = {}
            h, rstd = rms_norm(x, layer.attention_norm)
            raw_q, raw_k, v = decoder.heads_of(self.linear(h, index, 0, low))
            q, k, q_rstd, k_rstd = raw_q, raw_k, None, None
            if layer.q_norm is not None and layer.k_norm is not None:
                q, q_rstd = rms_norm(q, layer.q_norm)
                k, k_rstd = rms_norm(k, layer.k_norm)
            cos, sin = self.rope[layer.rope]
            mixed = self.attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
            out, out_rstd = self.linear(mixed, index, 1, low), None
            added = out
            if layer.attention_post is not None:
                added, out_rstd = rms_norm(out, layer.attention_post)
            x_mlp = x + added
            h_mlp, rstd_mlp = rms_norm(x_mlp, layer.mlp_norm)
            gate_up = self.linear(h_mlp, index, 2, low)
            inner = decoder.gate(gate_up)
            down, down_rstd = self.linear(inner, index, 3, low), None
            added = down
            if layer.mlp_post is not None:
                added, down_rstd = rms_norm(down, layer.mlp_post)
            self.tape.append(
                _Kept(
                    x, rstd, h, raw_q, raw_k, q_rstd, k_rstd, mixed, out, out_rstd,
                    x_mlp, rstd_mlp, h_mlp, gate_up, inner, down, down_rstd, low,
                )
            )  # fmt: skip
            x = x_mlp + added
        return x

    def linear(self, x: Tensor, index: int, which: int, low: dict[int, list[Tensor | None]]) -> Tensor:
        fused = self.decoder.layers[index].linears[which]
        y = F.linear(x, fused.weight, fused.bias)
        low[which] = []
        if self.uniform:
            low[which].append(self.linear_batched(x, y, index, which))
            return y
        for rows, lora in zip(self.rows, self.loras, strict=True):
            pair = lora.pairs[index][which]
            if pair is None:
                low[which].append(None)
                continue
            u = x[rows] @ pair.a.T  # (tokens, ranks)
            if lora.scale != 1:
                u *= lora.scale
            for up in pair.ups:
                y[rows, up.rows].addmm_(u[:, up.ranks], up.b.T)
            low[which].append(u)
        return y

    def pairs(self, index: int, which: int) -> list[Pair]:
        """Every task's LoRA beside this linear layer; none where their common layout has none there."""
        found = [lora.pairs[index][which] for lora in self.loras]
        return [pair for pair in found if pair is not None]

    def linear_batched(self, x: Tensor, y: Tensor, index: int, which: int) -> Tensor | None:
        """Add every task's LoRA to `y` in place; the down-projections (tasks, tokens, ranks)."""
        pairs = self.pairs(index, which)
        if not pairs:
            return None
        n = len(pairs)
        a = torch.stack([p.a for p in pairs])
        u = torch.bmm(x.view(n, -1, x.shape[1]), a.transpose(1, 2))
        if self.loras[0].scale != 1:
            u *= self.loras[0].scale
        y.view(n, -1, y.shape[1]).baddbmm_(u, _blocks(pairs, y.shape[1]).transpose(1, 2))
        return u

    def linear_back_batched(
        self, dy: Tensor, x: Tensor, dx: Tensor, index: int, which: int, u: Tensor | None
    ) -> None:
        """Fill every task's gradients and add what its LoRA sends back to `dx`."""
        if u is None:
            return
        pairs = self.pairs(index, which)
        n = len(pairs)
        above, below = dy.view(n, -1, dy.shape[1]), x.view(n, -1, x.shape[1])
        du = torch.bmm(above, _blocks(pairs, dy.shape[1]))
        for p, grad in zip(pairs, torch.bmm(above.transpose(1, 2), u), strict=True):
            for up in p.ups:
                up.grad.copy_(grad[up.rows, up.ranks])
        if self.loras[0].scale != 1:
            du *= self.loras[0].scale
        for p, grad in zip(pairs, torch.bmm(du.transpose(1, 2), below), strict=True):
            p.grad.copy_(grad)
        a = torch.stack([p.a for p in pairs])
        dx.view(n, -1, dx.shape[1]).baddbmm_(du, a)

    def attend(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        forward = causal if self.decoder.device.type == "cpu" else causal_elsewhere
        if self.uniform:  # sequences side by side, as if they were further heads
            q, k, v = (_beside(t, len(self.spans)) for t in (q, k, v))
            mixed, own = forward(q, k.transpose(0, 1), v.transpose(0, 1), layer.scale, layer.window)
            self.attended.append([own])
            return _behind(mixed.view(len(mixed), len(self.spans), -1), len(self.spans))[:, 0]
        done, kept = [], []
        for span in self.spans:
            mixed, own = forward(
                q[span], k[span].transpose(0, 1), v[span].transpose(0, 1), layer.scale, layer.window
            )
            done.append(mixed)
            kept.append(own)
        self.attended.append(kept)
        return torch.cat(done) if len(done) > 1 else done[0]

    def loss(self, x: Tensor) -> tuple[list[tuple[float, int]], Tensor]:
        """Losses by task, and the gradient of their sum with respect to `x`."""
        decoder = self.decoder
        last = x[self.kept]
        h, rstd = rms_norm(last, decoder.norm)
        weight = torch.cat([torch.full((n,), 1 / max(n, 1)) for n in self.counts]).to(x.device)
        each: list[Tensor] = []
        dh = torch.empty_like(h)
        step = max(1, LOGITS // len(decoder.head))
        for start in range(0, len(h), step):
            self.between()
            part = slice(start, start + step)
            logits = F.linear(h[part], decoder.head).float()
            norm = logits.logsumexp(-1, keepdim=True)
            target = self.targets[part, None]
            each.append((norm - logits.gather(1, target))[:, 0])
            probability = logits.sub_(norm).exp_()
            probability.scatter_add_(1, target, torch.full_like(norm, -1.0))
            dh[part] = probability.mul_(weight[part, None]).to(h.dtype) @ decoder.head
        every = torch.split(torch.cat(each), self.counts)
        losses = [(float(own.mean()) if n else 0.0, n) for own, n in zip(every, self.counts, strict=True)]
        dx = torch.zeros_like(x)
        dx[self.kept] = rms_norm_back(dh, last, rstd, decoder.norm)
        return losses, dx

    # ---- backward

    def backward(self, dx: Tensor) -> None:
        decoder = self.decoder
        for index in reversed(range(len(decoder.layers))):
            self.between()
            layer, kept = decoder.layers[index], self.tape.pop()
            d = dx
            if layer.mlp_post is not None and kept.down_rstd is not None:
                d = rms_norm_back(d, kept.down, kept.down_rstd, layer.mlp_post)
            d = self.linear_back(d, kept.inner, index, 3, kept)
            d = self.linear_back(self.gate_back(d, kept.gate_up), kept.h_mlp, index, 2, kept)
            dx = dx + rms_norm_back(d, kept.x_mlp, kept.rstd_mlp, layer.mlp_norm)
            d = dx
            if layer.attention_post is not None and kept.out_rstd is not None:
                d = rms_norm_back(d, kept.out, kept.out_rstd, layer.attention_post)
            d = self.linear_back(d, kept.mixed, index, 1, kept)
            d = self.attend_back(d, layer, kept)
            d = self.linear_back(d, kept.h, index, 0, kept)
            if index:  # nothing below the first layer learns
                dx = dx + rms_norm_back(d, kept.x, kept.rstd, layer.attention_norm)

    def linear_back(self, dy: Tensor, x: Tensor, index: int, which: int, kept: _Kept) -> Tensor:
        dx = dy @ self.decoder.layers[index].linears[which].weight
        if self.uniform:
            self.linear_back_batched(dy, x, dx, index, which, kept.low[which][0])
            return dx
        for rows, lora, u in zip(self.rows, self.loras, kept.low[which], strict=True):
            pair = lora.pairs[index][which]
            if pair is None or u is None:
                continue
            du = torch.empty_like(u)
            for up in pair.ups:
                own = dy[rows, up.rows]
                du[:, up.ranks] = own @ up.b
                torch.mm(own.T, u[:, up.ranks], out=up.grad)
            if lora.scale != 1:
                du *= lora.scale
            torch.mm(du.T, x[rows], out=pair.grad)
            dx[rows].addmm_(du, pair.a)
        return dx

    def gate_back(self, d: Tensor, gate_up: Tensor) -> Tensor:
        aten: Any = torch.ops.aten
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        d_gate, d_up = both.chunk(2, dim=-1)
        if self.decoder.gelu:
            torch.mul(d, F.gelu(gate, approximate="tanh"), out=d_up)
            d_gate.copy_(aten.gelu_backward(d * up, gate, approximate="tanh"))
        else:
            torch.mul(d, F.silu(gate), out=d_up)
            d_gate.copy_(aten.silu_backward(d * up, gate))
        return both

    def attend_back(self, d: Tensor, layer: Layer, kept: _Kept) -> Tensor:
        """From the mixed values back to the fused query, key and value: (tokens, outputs)."""
        decoder = self.decoder
        n = len(d)
        both = torch.empty(
            n, decoder.heads + 2 * decoder.kv_heads, decoder.head_size, dtype=d.dtype, device=d.device
        )
        dq, dk, dv = decoder.heads_of(both.view(n, -1))
        kept_spans = self.attended.pop()
        if self.uniform:
            count = len(self.spans)
            grads = _attended_back(kept_spans[0], _beside(d[:, None], count).flatten(1), layer)
            for part, grad in zip((dq, dk, dv), grads, strict=True):
                part.copy_(_behind(grad, count))
        else:
            for span, own in zip(self.spans, kept_spans, strict=True):
                dq[span], dk[span], dv[span] = _attended_back(own, d[span], layer)
        cos, sin = self.rope[layer.rope]
        for part, raw, rstd, norm in (
            (dq, kept.q, kept.q_rstd, layer.q_norm),
            (dk, kept.k, kept.k_rstd, layer.k_norm),
        ):
            back = rotate(part, cos, -sin)
            part.copy_(
                rms_norm_back(back, raw, rstd, norm) if norm is not None and rstd is not None else back
            )
        return both.view(n, -1)


def _attended_back(own: Kept | KeptElsewhere, d: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(own, Kept):
        return causal_back(d, own, layer.scale, layer.window)
    return own.back(d)


def _beside(x: Tensor, n: int) -> Tensor:
    """(n · tokens, heads, size), sequence after sequence → (tokens, n · heads, size)."""
    return x.view(n, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _behind(x: Tensor, n: int) -> Tensor:
    """`_beside` undone."""
    return x.reshape(len(x), n, -1, x.shape[-1]).transpose(0, 1).flatten(0, 1)


def _blocks(pairs: Many[Pair], outputs: int) -> Tensor:
    """Every task's B matrices on a diagonal: (tasks, outputs, ranks). Twice the products with slices of the
    output, but no copies of these."""
    b = pairs[0].a.new_zeros(len(pairs), outputs, len(pairs[0].a))
    for own, pair in zip(b, pairs, strict=True):
        for up in pair.ups:
            own[up.rows, up.ranks] = up.b
    return b


def rms_norm_back(d: Tensor, x: Tensor, rstd: Tensor, norm: Norm) -> Tensor:
    """Gradient of `rms_norm` with respect to its input."""
    wide = x.float()
    weighted = d.float() * norm.weight
    common = (weighted * wide).sum(-1, keepdim=True).mul_(rstd.pow(3)).div_(-x.shape[-1])
    return weighted.mul_(rstd).addcmul_(wide, common).to(d.dtype)
