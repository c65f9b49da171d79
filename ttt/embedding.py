"""A task as a point: what the base model makes of its demonstrations, as one direction.

Two thirds up its layers a model's hidden states on an answer, less those on its question, say what is done to the
input rather than what the input is: tasks that look alike but follow another rule lie apart (docs/reuse.md has
figures). No second model and no adapter: the base alone is read, and of the task only what an adapter's training may
see. Each demonstration is read by itself after the instruction, so that their order does not count. Knows nothing of
where embeddings are kept; whether another task's adapter is any good here only the demonstrations can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from ttt.engine import Bench, Engine, Priority
from ttt.icl import shown_order
from ttt.prompts import PromptFormat
from ttt.task import Task

if TYPE_CHECKING:
    import torch

    from ttt.decoder import Decoder, Layer

EMBEDDING = "answers-less-questions-1"
"""Names how an embedding is made; those of another way are never compared."""
SIZE = 128
"""Numbers of an embedding, at most: wider hidden states are projected (Johnson and Lindenstrauss), so that a hundred
thousand embeddings of any model stay small."""
TOKENS = 2048
"""Of demonstrations that are read, at most; of more a fixed random choice."""
PASS_TOKENS = 512
"""Of one forward pass, unless one demonstration alone has more."""


@dataclass(frozen=True, slots=True)
class _Text:
    ids: tuple[int, ...]
    question: slice
    answer: slice
    """Tokens that predict the answer's."""


async def embed(engine: Engine, task: Task) -> tuple[float, ...]:
    """The task's point, of length 1; empty for a task without demonstrations.

    Mean hidden state of the base model over all tokens that predict an answer's, minus the mean over all others of the
    demonstrations (without the first token, an attention sink), both two thirds up its layers.

    Raises:
        ContextOverflow: no demonstration fits the model's context.
    """
    fmt = PromptFormat(engine.loaded.tokenizer, task, as_turns=engine.loaded.as_turns)
    head = fmt.head()
    segments = [fmt.segment(d) for d in task.demonstrations]
    if not segments:
        return ()
    room = min(TOKENS, engine.loaded.context_length) - len(head)
    texts = []
    for i in shown_order(segments, room):
        start = len(head) + len(segments[i].question) - 1
        answer = slice(start, start + len(segments[i].answer))
        texts.append(_Text((*head, *segments[i].ids), slice(max(1, len(head)), start), answer))

    def sums(bench: Bench, part: Sequence[_Text]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        with torch.inference_mode():
            states = [rows.float() for rows in _hidden(bench, [t.ids for t in part])]
            pairs = list(zip(part, states, strict=True))
            asked = torch.stack([rows[t.question].sum(0) for t, rows in pairs]).sum(0)
            return asked.cpu(), torch.stack([rows[t.answer].sum(0) for t, rows in pairs]).sum(0).cpu()

    found = [await engine.run(partial(sums, part=part), Priority.SIGNALS) for part in _parts(texts)]
    asked, answered = (sum(both[1:], both[0]) for both in zip(*found, strict=True))
    n_asked = sum(max(1, t.question.stop - t.question.start) for t in texts)
    n_answered = sum(t.answer.stop - t.answer.start for t in texts)
    return _point(answered / max(1, n_answered) - asked / n_asked)


def depth(layers: int) -> int:
    """How many of the layers are run."""
    return max(1, round(2 * layers / 3))


def _point(mean: torch.Tensor) -> tuple[float, ...]:
    if len(mean) > SIZE:
        mean = mean @ _projection(len(mean))
    return tuple((mean / mean.norm().clamp_min(1e-12)).tolist())


@lru_cache(maxsize=4)
def _projection(size: int) -> torch.Tensor:
    """Random signs, the same everywhere: (size, SIZE)."""
    import random

    import torch

    bits = random.Random(f"{EMBEDDING} {size}").getrandbits(size * SIZE)
    signs = [1.0 if bit == "1" else -1.0 for bit in f"{bits:0{size * SIZE}b}"]
    return torch.tensor(signs).view(size, SIZE)


def _parts(texts: Sequence[_Text]) -> list[list[_Text]]:
    """In order, in parts of at most `PASS_TOKENS`."""
    parts: list[list[_Text]] = []
    room = 0
    for text in texts:
        if not parts or len(text.ids) > room:
            parts.append([])
            room = PASS_TOKENS
        parts[-1].append(text)
        room -= len(text.ids)
    return parts


def _hidden(bench: Bench, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Each text's hidden states after two thirds of the layers, (tokens, hidden)."""
    import torch

    if bench.decoder is not None:
        return _fused(bench.decoder, texts)
    found = []
    with bench.slots.active(None) as model:
        for text in texts:
            ids = torch.tensor([text], device=model.device)
            out = model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
            found.append(out.hidden_states[depth(len(out.hidden_states) - 1)][0])
    return found


def _fused(decoder: Decoder, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    import torch

    from ttt.attention import attend, masked

    lower = replace(decoder, layers=decoder.layers[: depth(len(decoder.layers))])
    lengths = [len(text) for text in texts]
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(lengths))
    at = torch.cat([torch.arange(n) for n in lengths])
    own = (owner[:, None] == owner) & (at[:, None] >= at)
    masks = {}
    for window in {layer.window for layer in lower.layers}:
        near = own if window is None else own & (at[:, None] - at < window)
        masks[window] = masked(near, lower.dtype, lower.device)

    def look(index: int, layer: Layer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k.transpose(0, 1), v.transpose(0, 1), layer.scale, masks[layer.window])

    ids = torch.tensor([t for text in texts for t in text], device=lower.device)
    return list(torch.split(lower.hidden(ids, at.to(lower.device), look), lengths))
