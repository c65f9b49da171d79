"""A chat template cut into pieces, so that demonstrations can be written as its turns.

A template is a program that writes a whole conversation. Few-shot prompts are made of parts that are tokenised
apart: what every conversation begins with, what stands between a question and its answer, and between an answer
and the next question. These are found by rendering a conversation of markers and looking at what lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ttt.errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _ASKED, _SAID = "⟦system⟧", ("⟦q0⟧", "⟦q1⟧", "⟦q2⟧"), ("⟦a0⟧", "⟦a1⟧")


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template writes around the texts of a conversation."""

    opening: tuple[str, ...]
    """Before the first question: one piece, or two with the instruction between them."""
    answering: str
    """Between a question and where its answer begins."""
    lead: str
    """What the template puts before an answer that is there already, such as a space."""
    closing: str
    """Between an answer and the next question."""


@lru_cache(maxsize=32)
def turns_of(tokenizer: PreTrainedTokenizerBase, instruction: bool) -> Turns:
    """The tokenizer's chat template in pieces; `instruction` says whether there is one, as the system's message or,
    where the template knows none, before the first question.

    Raises:
        TaskError: there is no template, or what it writes between texts differs from turn to turn.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise TaskError("This model has no chat template; leave the setting `prompt` at plain.")
    messages = [{"role": "user", "content": _ASKED[0]}]
    for said, asked in zip(_SAID, _ASKED[1:], strict=True):
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": asked}]
    try:
        text = _rendered(
            tokenizer, [*([{"role": "system", "content": _SYSTEM}] if instruction else []), *messages]
        )
    except TemplateError:
        messages[0]["content"] = f"{_SYSTEM}\n\n{_ASKED[0]}" if instruction else _ASKED[0]
        try:
            text = _rendered(tokenizer, messages)
        except TemplateError as error:
            raise TaskError(
                f"The model's chat template refuses few-shot turns ({error}); {_PLAIN}."
            ) from error
    markers = [*([_SYSTEM] if instruction else []), _ASKED[0], _SAID[0], _ASKED[1], _SAID[1], _ASKED[2]]
    pieces, rest = [], text
    for marker in markers:
        before, found, rest = rest.partition(marker)
        if not found:
            raise TaskError(f"The model's chat template does not keep all texts of its turns; {_PLAIN}.")
        pieces.append(before)
    *opening, first, closing, second, last = pieces
    if first != second or closing != last or not closing:
        raise TaskError(
            f"The model's chat template writes earlier turns otherwise than later ones; {_PLAIN}."
        )
    answering, lead = (rest, first.removeprefix(rest)) if rest and first.startswith(rest) else (first, "")
    return Turns(tuple(opening), answering, lead, closing)


_PLAIN = "leave the setting `prompt` at plain"


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return str(text)
