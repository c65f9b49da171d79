"""A conversation as a few-shot task: messages → a task and what is asked of it.

The ordinary convention: system messages are the instruction, earlier user/assistant pairs are demonstrations,
the last user message is the query. What this router itself answered earlier is no demonstration, since a
model's answer is no label, until the user approves or corrects it:

- *approval*: "yes", "right", "correct", "exactly", "perfect", "that's right" and the like, and nothing else;
- *correction*: "no, it should be X", "wrong: the answer is X", "it should be X", "the right answer is X",
  "correction: X"; "this should be X" only after a no. X loses quotes around it or, without quotes, one final full
  stop.

Both speak of the answer just before them, and only of one that this router gave: in anybody else's words they
are texts like any other. Just after examples that asked nothing there is no answer to speak of: an approval then
says nothing, and a correction is a text. Examples inside one message (`router.examples`) are recognised only while the
conversation holds no pairs that somebody else wrote, and never in an answer. So a text that imitates a
delimiter stays text. Everything can be switched off by the caller. Pure; knows nothing of models or servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from router.errors import ConversationError
from router.examples import parse_examples
from ttt.task import Demonstration, Query, Task

Role = Literal["system", "user", "assistant"]
EXPECTED_REPEATS = 8.0
"""Further queries that a conversation which has had an answer is taken to bring: it will go on."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_APPROVAL = re.compile(
    r"(?:yes|right|correct|exactly|perfect|(?:yes,? )?that(?:['’]s| is|['’]s) (?:right|correct))[.!]*",
    re.IGNORECASE,
)
_IT = r"(?:it|this|that|the (?:right |correct )?(?:answer|output))"
_CORRECTIONS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"(?:no|nope|wrong|incorrect|not quite)\b[\s,.:;!–—-]*{_IT}\s+should(?: have)? (?:be|been)\b[:\s]*(.+)",
        r"(?:no|nope|wrong|incorrect|not quite)\b[\s,.:;!–—-]*should(?: have)? (?:be|been)\b[:\s]*(.+)",
        r"(?:no|nope|wrong|incorrect|not quite)\b[\s,.:;!–—-]*the (?:right |correct )?(?:answer|output) (?:is|was)\b[:\s]*(.+)",
        r"(?:it|the (?:right |correct )?(?:answer|output)) should(?: have)? (?:be|been)\b[:\s]*(.+)",
        r"the (?:right|correct) (?:answer|output) (?:is|was)\b[:\s]*(.+)",
        r"correction:\s*(.+)",
    )
)
_QUOTES = (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("«", "»"))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Said:
    """What the user said of an earlier answer."""

    episode_id: str
    right: bool
    answer: str | None
    """The right answer, of a correction."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a conversation asks."""

    task: Task
    query: Query | None
    """None where the last message only taught something: an approval, a correction or examples."""
    latest: Said | None
    """What the last message said of the answer before it."""
    understood: tuple[str, ...]
    """A sentence for each thing that was recognised."""

    @property
    def ongoing(self) -> bool:
        """Whether there were answers before, so that more queries are to be expected."""
        return self.query is not None and bool(self.query.turns)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One input and its output, and where the output is from."""

    input: str
    output: str
    source: Literal["given", "own", "approved", "corrected"]
    episode_id: str = ""


def correction(text: str) -> str | None:
    """The right answer where `text` is a correction."""
    for pattern in _CORRECTIONS:
        if found := pattern.fullmatch(text.strip()):
            answer = found[1].strip()
            for left, right in _QUOTES:
                if len(answer) > 2 and answer.startswith(left) and answer.rstrip(".").endswith(right):
                    return answer.rstrip(".")[1:-1].strip() or None
            single = answer.endswith(".") and not answer.endswith("..")
            return (answer[:-1].strip() if single else answer) or None
    return None


def note(task: Task) -> str:
    """The reply to a message that asks nothing."""
    n = len(task.demonstrations)
    return f"Noted: the task has {n} demonstration{'s' if n != 1 else ''} now."


def is_approval(text: str) -> bool:
    return _APPROVAL.fullmatch(text.strip()) is not None


def read_conversation(
    messages: Sequence[Message],
    own: Mapping[int, str] | None = None,
    *,
    examples: bool = True,
    corrections: bool = True,
) -> Reading:
    """What `messages` ask.

    Args:
        own: places of assistant messages that this router wrote, each with its episode; an empty one for a
            message that only took note of something.
        examples: whether examples inside one message are recognised.
        corrections: whether approvals and corrections are.

    Raises:
        ConversationError: no messages, roles out of order, an empty message, or a last one that is not the user's.
    """
    own = own or {}
    instruction = "\n\n".join(m.content.strip() for m in messages if m.role == "system" and m.content.strip())
    talk = _in_order(messages, own)
    turns: list[_Turn] = []
    told: list[Demonstration] = []
    words: list[str] = [instruction] if instruction else []
    notes: list[str] = []
    asked: str | None = None
    latest: Said | None = None
    taught = False  # by examples that asked nothing, just before: there is no answer to speak of
    for place, answered in talk:
        user, reply = messages[place].content, "" if answered is None else messages[answered].content
        heard = _heard(turns, user) if corrections and not taught else None
        if heard is not None:
            turns[-1] = heard
            latest = _said(heard) if answered is None else None
            continue
        query: str | None = user
        ours = answered is None or answered in own
        if corrections and taught and ours and is_approval(user):
            continue
        if examples and ours and not any(t.source == "given" for t in turns):
            found = parse_examples(user)
            if found is not None:
                told += found.demonstrations
                words += [found.instruction] if found.instruction else []
                query = found.query
                taught = query is None
                notes.append(_shown(place, found.notation, len(found.demonstrations), query))
        if query is None:
            continue
        if answered is None:
            asked = query
        elif answered not in own:
            turns.append(_Turn(query, reply, "given"))
            taught = False
        elif own[answered]:
            turns.append(_Turn(query, reply, "own", own[answered]))
            taught = False
    shown = [Demonstration(t.input, t.output) for t in turns if t.source != "own" and t.output.strip()]
    task = Task((*told, *shown), "\n\n".join(words))
    earlier = tuple((messages[u].content, messages[a].content) for u, a in talk if a is not None)
    return Reading(task, None if asked is None else Query(asked, earlier), latest, (*notes, *_counts(turns)))


def _in_order(messages: Sequence[Message], own: Mapping[int, str]) -> list[tuple[int, int | None]]:
    """Places of the user's messages and of their replies; the last one has no reply yet. Only a reply of this
    router's may be empty: a model can say nothing, and be corrected."""
    talk: list[tuple[int, int | None]] = []
    for place, message in enumerate(messages):
        if _SURROGATE.search(message.content):
            raise ConversationError(
                f"Message {place + 1} of {len(messages)}, from the {message.role}, holds half of a surrogate pair; "
                "replace it by a whole character."
            )
        if message.role == "system":
            continue
        if not message.content.strip() and place not in own:
            raise ConversationError(
                f"Message {place + 1} of {len(messages)}, from the {message.role}, is empty; give it a text."
            )
        waiting = bool(talk) and talk[-1][1] is None
        if (message.role == "user") == waiting:
            after = "a user message that has no answer yet" if waiting else "no user message that it answers"
            raise ConversationError(
                f"Message {place + 1} of {len(messages)} is from the {message.role} and follows {after}; "
                "let user and assistant messages alternate, beginning with the user's."
            )
        if waiting:
            talk[-1] = (talk[-1][0], place)
        else:
            talk.append((place, None))
    if not talk:
        raise ConversationError("There is no user message to answer; end the messages with one.")
    if talk[-1][1] is not None:
        raise ConversationError(
            "The last message is from the assistant; end the messages with the user's: answers are not continued."
        )
    return talk


def _heard(turns: Sequence[_Turn], text: str) -> _Turn | None:
    """The last turn with what `text` says of its answer, or None where it says nothing of one of ours."""
    if not turns or turns[-1].source == "given":
        return None
    if is_approval(text):
        return replace(turns[-1], source="approved") if turns[-1].source == "own" else turns[-1]
    answer = correction(text)
    return None if answer is None else replace(turns[-1], output=answer, source="corrected")


def _said(turn: _Turn) -> Said:
    right = turn.source == "approved"
    return Said(turn.episode_id, right, None if right else turn.output)


def _shown(place: int, notation: str, n: int, query: str | None) -> str:
    asked = "no query" if query is None else f"the query {_short(query)}"
    return f"Message {place + 1}: {n} example(s) written as {notation}, and {asked}."


def _counts(turns: Sequence[_Turn]) -> list[str]:
    told = {
        "given": "earlier user/assistant pair(s) as demonstrations",
        "approved": "approved answer(s) as demonstrations",
        "corrected": "corrected answer(s) as demonstrations",
        "own": "earlier answer(s) of this router, neither approved nor corrected, not used as demonstrations",
    }
    counts = {source: sum(t.source == source for t in turns) for source in told}
    return [f"{n} {told[source]}." for source, n in counts.items() if n]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
