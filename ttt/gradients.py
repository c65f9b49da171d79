"""One adapter under training: its weights and gradients as flat tensors, and the loss that fills them.

Fused (`backward`) where the model and the adapter are known in every detail, else autograd through
transformers and PEFT. A prefix has its own (`prefix`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Protocol

from ttt.dataset import Sequence
from ttt.engine import Bench
from ttt.errors import AdapterError
from ttt.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from ttt.decoder import Plain


class Trainable(Protocol):
    """Weights that an optimiser moves; writing to `flat` changes the attached adapter."""

    flat: torch.Tensor
    """(parameters,), in the model's type."""
    grads: torch.Tensor
    """(parameters,), of the last `loss`."""

    def loss(self, bench: Bench, batch: Many[Sequence]) -> tuple[float, int]:
        """Mean cross-entropy over labelled tokens (nats) and their number; overwrites `grads`."""
        ...


def trainable(bench: Bench, name: str) -> Trainable:
    """The attached adapter `name`, ready to be trained."""
    prefix = bench.slots.prefix(name)
    if prefix is not None:
        return prefix
    lora = bench.fused_lora(name)
    return PeftAdapter(bench, name) if lora is None else FusedAdapter(bench, name, lora)


def weights_like(bench: Bench, name: str, recipe: Recipe) -> torch.Tensor:
    """A copy of an attached adapter's weights as `trainable` lays out those of a fresh adapter of `recipe`, of its
    scale: (parameters,), float32.

    Raises:
        AdapterError: it is not of the recipe's rank or layers.
    """
    import torch

    from ttt.flat_lora import LoraWeights

    plain = None if bench.slots.prefix(name) is not None else bench.slots.plain(name)
    if plain is None:
        raise AdapterError(f"The adapter {name!r} is no plain LoRA, so no training can go on from it.")
    ranks = {m.a.shape[0] for m in plain.values()}
    wanted, found = set(bench.slots.present(recipe.targets)), {path.rsplit(".", 1)[-1] for path in plain}
    if ranks != {recipe.rank} or wanted != found:
        raise AdapterError(
            f"The adapter {name!r} has rank {', '.join(map(str, sorted(ranks)))} on {', '.join(sorted(found))}, and the "
            f"recipe {recipe.name!r} rank {recipe.rank} on {', '.join(sorted(wanted))}; start from nothing."
        )
    (scale,) = {m.scale for m in plain.values()}
    fused = bench.decoder is not None and bench.decoder.covers(plain)
    if fused and bench.decoder is not None:
        flat = LoraWeights(bench.decoder, plain).flat
    else:
        flat = torch.cat([p.detach().flatten() for p in bench.slots.parameters(name)])
    return flat.float() * math.sqrt(scale * recipe.rank / recipe.alpha)  # scale · B A stays what it is


def losses(
    bench: Bench,
    steps: Many[tuple[Trainable, Many[Sequence]]],
    between: Callable[[], None] = lambda: None,
) -> list[tuple[float, int]]:
    """`loss` of several adapters, each on its own batch: in one pass where all are fused.

    Args:
        between: called between layers where they are fused; what it raises ends the pass.
    """
    from ttt.backward import loss_and_gradients

    fused = [(adapter.weights, batch) for adapter, batch in steps if isinstance(adapter, FusedAdapter)]
    if len(fused) == len(steps) and bench.decoder is not None:
        return loss_and_gradients(bench.decoder, fused, between)
    return [adapter.loss(bench, batch) for adapter, batch in steps]


class FusedAdapter:
    """Through `backward.loss_and_gradients`."""

    def __init__(self, bench: Bench, name: str, plain: dict[str, Plain]) -> None:
        from ttt.flat_lora import LoraWeights

        assert bench.decoder is not None
        self.weights = LoraWeights(bench.decoder, plain)
        bench.slots.rebind(name, self.weights.views)
        self.flat, self.grads = self.weights.flat, self.weights.grads

    def loss(self, bench: Bench, batch: Many[Sequence]) -> tuple[float, int]:
        from ttt.backward import loss_and_gradients

        assert bench.decoder is not None
        return loss_and_gradients(bench.decoder, [(self.weights, batch)])[0]


class PeftAdapter:
    """Through autograd, in one go: the model itself wears the adapter meanwhile."""

    def __init__(self, bench: Bench, name: str) -> None:
        import torch

        self.name = name
        self.parameters = bench.slots.parameters(name)
        self.flat = torch.cat([p.detach().flatten() for p in self.parameters])
        self.grads = torch.zeros_like(self.flat)
        sizes = [p.numel() for p in self.parameters]
        for parameter, view in zip(self.parameters, torch.split(self.flat, sizes), strict=True):
            parameter.data = view.view_as(parameter)

    def loss(self, bench: Bench, batch: Many[Sequence]) -> tuple[float, int]:
        import torch

        try:
            with bench.slots.active(self.name) as model, torch.enable_grad():
                for parameter in self.parameters:
                    parameter.requires_grad_(True)
                loss, n = batch_loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            zero = torch.zeros(())
            parts = [(p.grad if p.grad is not None else zero.expand_as(p)).flatten() for p in self.parameters]
            torch.cat([part.to(self.grads) for part in parts], out=self.grads)
            return float(loss.detach()), n
        finally:
            for parameter in self.parameters:
                parameter.grad = None


def batch_loss(model: torch.nn.Module, batch: Many[Sequence]) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy over labelled tokens (scalar, float32) and their number.

    Rows are padded on the right, which causal attention never looks at, so no mask is needed. Logits are
    made only for positions that predict a label in some row.
    """
    import torch

    device = next(model.parameters()).device
    length = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), -100, dtype=torch.long)
    for row, s in enumerate(batch):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
        mask = torch.tensor(s.labels)
        mask[0] = False  # nothing predicts the first token
        labels[row, : len(s.ids)][mask] = ids[row, : len(s.ids)][mask]
    targets = labels[:, 1:]  # (batch, length - 1)
    keep = (targets != -100).any(dim=0).nonzero()[:, 0]  # positions that predict a label
    logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=keep.to(device)).logits
    chosen = targets[:, keep].to(device)  # (batch, kept)
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), chosen.flatten(), ignore_index=-100
    )
    return loss, int((chosen != -100).sum())
