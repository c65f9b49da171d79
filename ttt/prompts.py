"""Task and query → token ids and label masks: the paper's raw completion prompt, tokenised by segment.

The prompt is the published few-shot one (arXiv 2411.07279, BIG-Bench-Hard): an instruction, then
`Q: …\\nA: …\\n\\n` for each demonstration, then `Q: …\\nA:`. A plain question without demonstrations is written in
the model's own chat template, and so, where that is set, are demonstrations, as earlier turns (`turns`). Special tokens that a text spells out stay text. Segments are tokenised apart and
concatenated, so that orders, subsets and shared prefixes need no second tokenisation and the cache of
a prefix is valid for everything that follows it. A task whose cells are single characters between
spaces ("0 0 5 5") is written without the spaces where that is one token a cell: half the tokens.

Where the task says so, a long row of such cells is written with *index hints* (arXiv 2310.16028): a letter before every
few of them, in questions and answers alike (`a0055b5000`). A model copies cells well, but loses count in a run of equal
ones; a letter tells it where it is, and where to look. What moves by a cell or two is harder to learn with them.

Knows nothing of models beyond their tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ttt.errors import ContextOverflow, TaskError
from ttt.task import Demonstration, Query, Task
from ttt.turns import Turns, turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "qa1"
"""Version of the template, part of every adapter's key."""
TURNS_TEMPLATE = "turns1"
"""The same for demonstrations as turns of a chat."""

SEPARATOR = "\n\n"
HINTED = 4
"""Cells behind each index hint."""
HINTS = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""Letters that number the parts of a row, again and again; the first set that no cell is of."""
_CELLS = re.compile(r"\S(?: \S)+(?:\n\S(?: \S)+)*")


def is_cells(text: str) -> bool:
    """Whether `text` is rows of single characters with one space between, two or more a row."""
    return _CELLS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Segment:
    """One demonstration as tokens: the question up to `A:`, and the answer with its terminator."""

    question: tuple[int, ...]
    answer: tuple[int, ...]
    terminator: tuple[int, ...]
    hints: tuple[int, ...] = ()
    """Positions in `answer` that are index hints, not content."""

    @property
    def ids(self) -> tuple[int, ...]:
        return self.question + self.answer + self.terminator

    def __len__(self) -> int:
        return len(self.question) + len(self.answer) + len(self.terminator)


class PromptFormat:
    """How one task is written for one tokenizer. Cheap to make; holds no tensors."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        queries: Sequence[Query] = (),
        as_turns: bool = False,
    ) -> None:
        """
        Args:
            queries: those that will be asked; they say whether this is plain questions to a chat model.
            as_turns: whether demonstrations are written as turns of the tokenizer's chat template.

        Raises:
            TaskError: `as_turns`, and the template can't be used for that.
        """
        self._tokenizer = tokenizer
        self._turns: Turns | None = None
        self.chat = is_chat(tokenizer, task, queries)
        texts = [t for d in task.demonstrations for t in (d.input.strip(), d.output.strip())]
        self.compact = bool(texts) and all(is_cells(t) for t in texts) and self._one_token_a_cell(texts)
        self.hints = self._hints(texts) if self.compact and task.indexed else ""
        """Letters of the index hints; empty without."""
        self.multi_line = any("\n" in d.output.strip() for d in task.demonstrations)
        blank_lines = any(SEPARATOR in d.output.strip() for d in task.demonstrations)
        self.stop: tuple[str, ...] = (
            ("\nQ:",) if blank_lines else (SEPARATOR,) if self.multi_line else ("\n",)
        )
        if not task.demonstrations:
            self.stop = () if self.chat else (SEPARATOR, "\nQ:")
        self.instruction = task.instruction.strip()
        if as_turns and task.demonstrations:
            self._turns = turns_of(tokenizer, bool(self.instruction))
            self.stop = (self._written_out(self._turns.closing),)

    @property
    def template(self) -> str:
        """Template version with the rendering that this task got."""
        if self.chat:
            return "chat"
        template = TEMPLATE if self._turns is None else TURNS_TEMPLATE
        return template + ("-indexed" if self.hints else "-compact" if self.compact else "")

    def head(self) -> tuple[int, ...]:
        """Beginning-of-sequence token where the tokenizer adds one, then the instruction; a chat template
        brings its own."""
        if self.chat:
            return ()
        if self._turns is not None:
            first, *second = (_template_ids(self._tokenizer, piece) for piece in self._turns.opening)
            return first + (self._ids(self.instruction) + second[0] if second else ())
        bos = _tokenised(self._tokenizer, "", True)
        bos = bos[:1] if bos and bos[0] == self._tokenizer.bos_token_id else ()
        if not self.instruction:
            return bos
        return bos + self._ids(self.instruction) + self.separator

    @cached_property
    def separator(self) -> tuple[int, ...]:
        """Token ids of the blank line as they come out inside running text, before a `Q`."""
        before, after = self._ids("a"), self._ids("Q")
        whole = self._ids("a" + SEPARATOR + "Q")
        middle = whole[len(before) : len(whole) - len(after)]
        if whole[: len(before)] == before and whole[len(whole) - len(after) :] == after and middle:
            return middle
        return self._ids(SEPARATOR)

    @cached_property
    def ending(self) -> tuple[int, ...]:
        """Tokens that decoding stops at for certain when they follow an answer."""
        if self._turns is not None:
            return _template_ids(self._tokenizer, self._turns.closing)
        return self.separator + (self._ids("Q:") if self.stop == ("\nQ:",) else ())

    def question(self, text: str) -> tuple[int, ...]:
        if self._turns is not None:
            return self._ids(self.render(text)) + _template_ids(self._tokenizer, self._turns.answering)
        return self._ids(f"Q: {self.render(text)}\nA:")

    def asked(self, query: Query) -> tuple[int, ...]:
        """All that follows the shared prefix, up to where the answer begins."""
        if not self.chat:
            return self.question(query.input)
        messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for user, assistant in query.turns or ():
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": query.input.strip()})
        return _templated(self._tokenizer, messages)

    def answer(self, text: str) -> tuple[int, ...]:
        lead = " " if self._turns is None else self._turns.lead
        return self._ids(f"{lead}{self.render(text)}")

    def segment(self, d: Demonstration) -> Segment:
        after = self.separator if self._turns is None else self.ending
        answer = self.answer(d.output)
        return Segment(self.question(d.input), answer, after, self._hinted(d.output, len(answer)))

    def render(self, text: str) -> str:
        text = text.strip()
        if not self.compact or not is_cells(text):
            return text
        text = text.replace(" ", "")
        return "\n".join(map(self._with_hints, text.split("\n"))) if self.hints else text

    def parse(self, text: str) -> str:
        """The answer in a decoded completion: up to the first stop string, in the task's own form."""
        for stop in self.stop:
            text = text.split(stop, 1)[0]
        text = text.strip()
        if self.compact and text and not any(c == " " for c in text):
            return "\n".join(" ".join(self._without_hints(row)) for row in text.split("\n"))
        return text

    def _with_hints(self, row: str) -> str:
        """A row of cells with a letter before each part."""
        parts = (row[i : i + HINTED] for i in range(0, len(row), HINTED))
        return "".join(self._letter(n) + part for n, part in enumerate(parts))

    def _without_hints(self, row: str) -> str:
        """The cells: all but the letters, which no demonstration has for cells. One left out moves nothing."""
        return "".join(c for c in row if c not in self.hints)

    def _letter(self, n: int) -> str:
        return self.hints[n % len(self.hints)]

    def _hinted(self, output: str, n_tokens: int) -> tuple[int, ...]:
        """Positions of the index hints among the tokens of an answer, each of which is one character from the end."""
        text = self.render(output)
        if not self.hints or not is_cells(output.strip()):
            return ()
        lead = n_tokens - len(text)
        return tuple(range(lead, n_tokens, HINTED + 1))

    def max_new_tokens(self, task: Task) -> int:
        """Decoding budget: twice the longest known answer and eight; 256 where none is known."""
        if not task.demonstrations:
            return 256
        return 2 * max(len(self.answer(d.output)) for d in task.demonstrations) + 8

    def _ids(self, text: str) -> tuple[int, ...]:
        return _tokenised(self._tokenizer, text, False)

    def _written_out(self, closing: str) -> str:
        """What tells that an answer has ended: the special token that closes it, or all that follows it."""
        token = _template_ids(self._tokenizer, closing)[0]
        special = token in self._tokenizer.all_special_ids
        return str(self._tokenizer.decode([token])) if special else closing.rstrip() or closing

    def _hints(self, texts: Sequence[str]) -> str:
        """The letters, where rows stand alone, one is longer than a part, and each letter stays one token."""
        if any("\n" in t for t in texts) or max(len(t.split()) for t in texts) <= HINTED:
            return ""
        symbols = sorted({c for t in texts for c in t if not c.isspace()})
        for letters in HINTS:
            joined = "".join(letter + c for letter in letters for c in symbols)
            if not set(letters) & set(symbols) and len(self._ids(joined)) == len(joined):
                return letters
        return ""

    def _one_token_a_cell(self, texts: Sequence[str]) -> bool:
        symbols = sorted({c for t in texts for c in t if not c.isspace()})
        joined = "".join(symbols) * 2 + "".join(c * 4 for c in symbols)  # also side by side with themselves
        return len(self._ids(joined)) == len(joined) and len(self._ids("0 " + joined[0])) > 2


def is_chat(tokenizer: PreTrainedTokenizerBase, task: Task, queries: Sequence[Query]) -> bool:
    """Whether these are plain questions, and the model has a chat template to ask them in."""
    plain = not task.demonstrations and any(q.turns is not None for q in queries)
    return plain and bool(tokenizer.chat_template)


def _templated(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """
    Raises:
        TaskError: the template refuses these messages.
    """
    from jinja2 import TemplateError

    try:
        ids: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
    except TemplateError as error:
        if messages[0]["role"] != "system":
            raise TaskError(
                f"The model's chat template refuses these messages ({error}); ask in other ones."
            ) from error
        # Some templates know no system message: their authors put it before the first question.
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return _templated(tokenizer, [first, *messages[2:]])
    return tuple(ids)


@lru_cache(maxsize=2048)
def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[int, ...]:
    """One answer asks some eighty times for the tokens of a few texts, at 60 µs each."""
    return tuple(tokenizer(text, add_special_tokens=special, split_special_tokens=True).input_ids)


@lru_cache(maxsize=256)
def _template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of what a chat template writes, special ones included."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids)


def select(segments: Sequence[Segment], budget: int, order: Sequence[int]) -> tuple[int, ...]:
    """The first demonstrations in `order` whose tokens fit in `budget`, each either whole or not at all.

    Raises:
        ContextOverflow: not even the shortest one fits.
    """
    chosen: list[int] = []
    used = 0
    for index in order:
        if used + len(segments[index]) <= budget:
            chosen.append(index)
            used += len(segments[index])
    if segments and not chosen:
        shortest = min(len(s) for s in segments)
        raise ContextOverflow(
            f"No demonstration fits the context: the shortest takes {shortest} tokens and {max(budget, 0)} are free; "
            "shorten the demonstrations or choose a model with a longer context."
        )
    return tuple(chosen)
