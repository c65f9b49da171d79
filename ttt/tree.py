"""One key/value cache shared by a tree of token segments.

Few-shot work is made of sequences that begin alike: every query follows the same demonstrations, every
leave-one-out context shares a prefix with others. Here such sequences are nodes of a tree. All tokens
of a forward pass lie in one packed row; a mask lets each token see its own node and that node's
ancestors, at the positions they would have if each path were run by itself. So a prefix is computed
and stored once however many queries follow it, nothing is padded, and answers equal those of running
each path alone up to rounding. Sliding-window layers get a mask by position over the full cache.

Source of the idea: tree attention (SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ttt.runner import Batch, Runner

CHUNK_TOKENS = 512
"""Tokens in one forward pass at most: bounds the mask and the activations."""


@dataclass(frozen=True, slots=True)
class Append:
    """Tokens to append to one node; `keep` counts the last of them whose next-token logits are wanted."""

    node: int
    tokens: Sequence[int]
    keep: int = 0


class TokenTree:
    """Grow with `child` and `append`. A node must not grow any more once it has children."""

    ROOT = 0

    def __init__(self, runner: Runner) -> None:
        """`runner`: a fresh one; what its cache begins with (a trained prefix) is the root's."""
        self._runner = runner
        self.n_begun = runner.length
        """Tokens that the root holds from the start."""
        self._ends = [self.n_begun]
        self._ancestors = torch.ones(1, 1, dtype=torch.bool)  # (nodes, nodes): [i, j] = j is i or above it
        self._key_node = torch.zeros(self.n_begun, dtype=torch.long)  # (keys,)
        self._key_position = torch.arange(self.n_begun)  # (keys,)

    def child(self, parent: int) -> int:
        """A new empty node below `parent`."""
        n = len(self._ends)
        grown = torch.zeros(n + 1, n + 1, dtype=torch.bool)
        grown[:n, :n] = self._ancestors
        grown[n, :n] = self._ancestors[parent]
        grown[n, n] = True
        self._ancestors = grown
        self._ends.append(self._ends[parent])
        return n

    @property
    def vocabulary(self) -> int:
        """Width of logits."""
        return self._runner.vocabulary

    def mark(self) -> tuple[int, int]:
        """Where the tree stands now, for `rewind`."""
        return len(self._ends), len(self._key_node)

    def rewind(self, mark: tuple[int, int]) -> None:
        """Forget all nodes and keys added since `mark` (nodes that stood then must not have grown since)."""
        nodes, keys = mark
        if len(self._key_node) > keys:
            self._runner.crop(keys)
        self._ends = self._ends[:nodes]
        self._ancestors = self._ancestors[:nodes, :nodes]
        self._key_node, self._key_position = self._key_node[:keys], self._key_position[:keys]

    @torch.inference_mode()
    def append(self, items: Sequence[Append]) -> list[torch.Tensor]:
        """Run the model over new tokens of some nodes.

        Returns:
            For each item its logits in float32, (keep, vocabulary): row i is the prediction that
            follows the i-th of its last `keep` tokens.
        """
        ids: list[int] = []
        nodes: list[int] = []
        positions: list[int] = []
        kept: list[int] = []
        owner: list[int] = []
        for index, item in enumerate(items):
            start = self._ends[item.node]
            ids.extend(item.tokens)
            nodes.extend([item.node] * len(item.tokens))
            positions.extend(range(start, start + len(item.tokens)))
            kept.extend(range(len(ids) - item.keep, len(ids)))
            owner.extend([index] * item.keep)
            self._ends[item.node] = start + len(item.tokens)
        results: list[list[torch.Tensor]] = [[] for _ in items]
        cursor = 0
        for begin in range(0, len(ids), CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, len(ids))
            stop = cursor
            while stop < len(kept) and kept[stop] < end:
                stop += 1
            keep = torch.tensor([k - begin for k in kept[cursor:stop]] or [end - begin - 1])
            logits = self._forward(ids[begin:end], nodes[begin:end], positions[begin:end], keep)
            for row, slot in enumerate(range(cursor, stop)):
                results[owner[slot]].append(logits[row])
            cursor = stop
        empty = torch.zeros(0, self._runner.vocabulary)
        return [torch.stack(rows) if rows else empty for rows in results]

    def _forward(
        self, ids: list[int], nodes: list[int], positions: list[int], keep: torch.Tensor
    ) -> torch.Tensor:
        node = torch.tensor(nodes)  # (tokens,)
        position = torch.tensor(positions)  # (tokens,)
        first = not len(self._key_node)
        self._key_node = torch.cat([self._key_node, node])
        self._key_position = torch.cat([self._key_position, position])
        allowed = self._ancestors[node][:, self._key_node]  # (tokens, keys)
        allowed &= self._key_position[None, :] <= position[:, None]
        causal = first and len(set(nodes)) == 1
        return self._runner.run(Batch(torch.tensor(ids), position, allowed, self._key_position, causal, keep))
