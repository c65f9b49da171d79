"""What clients may send, and what of it is used, ignored or refused.

Unknown fields are taken and named in the answer as ignored: OpenAI's clients send many. Fields whose meaning
we would betray by ignoring them are refused (`REFUSED`). Our own knobs are in one field, `ttt_router`, which
takes nothing unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt

from router.conversation import Message
from router.server.errors import ApiError
from ttt.recipes import RECIPES

MAX_MESSAGES = 4096
MAX_VOTES = 16
"""Each costs nearly as much as an answer."""
PLAIN_MODELS = ("auto", "icl", "ttt", "zero-shot")
USED = {
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "ttt_router",
}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "audio": (),
    "web_search_options": (),
}
"""Fields that are not supported, and the values (besides null) under which they ask for nothing."""


class Knobs(BaseModel):
    """Our own options; the answer has a field of the same name."""

    model_config = ConfigDict(extra="forbid")
    prefer: Literal["fast", "balanced", "accurate"] | None = Field(
        default=None, description="5, 30 or 300 seconds of compute for one more correct answer."
    )
    worth_s: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="The same in seconds, in place of `prefer`."
    )
    when: Literal["wait", "background", "never"] | None = Field(
        default=None, description="Train before the answer, behind it, or not at all."
    )
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        default=None, description="Seconds by which the best answer there is is given."
    )
    expected_repeats: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        default=None, description="Further queries of this task that will come."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(default=None, description="Of training.")
    recipe: str | None = Field(
        default=None,
        description="How to train: a name. Files are not read for clients.",
        json_schema_extra={"enum": [*RECIPES, None]},
    )
    votes: Annotated[StrictInt, Field(ge=1, le=MAX_VOTES)] | None = Field(
        default=None, description="Views of the task that vote on the answer."
    )
    examples: StrictBool = Field(
        default=True, description="Whether examples inside one message are recognised."
    )
    corrections: StrictBool = Field(
        default=True, description="Whether approvals and corrections are recognised."
    )


class Part(BaseModel):
    """A part of a message's content; only text is supported."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, Field(json_schema_extra={"enum": ["text"]})]
    text: str | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Annotated[str, Field(json_schema_extra={"enum": ["system", "developer", "user", "assistant"]})]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    include_usage: StrictBool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: Annotated[
        str,
        Field(description="`auto` decides by itself; `reuse:…` is an adapter that /v1/models lists."),
    ]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1, le=2**20)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    ttt_router: Knobs | None = None

    @property
    def stops(self) -> list[str]:
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [s for s in found if s]

    @property
    def knobs(self) -> Knobs:
        return self.ttt_router or Knobs()

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    def ignored(self) -> list[str]:
        """Fields that were sent and have no effect.

        Raises:
            ApiError: one that is not supported and would change the answer.
        """
        names = []
        for name, value in (self.model_extra or {}).items():
            if name in WITHOUT_EFFECT and value is not None and value not in WITHOUT_EFFECT[name]:
                raise ApiError(
                    400,
                    f"{name} is not supported: answers are one text each, decoded greedily; leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )
            if value is not None and name not in WITHOUT_EFFECT:
                names.append(name)
        return sorted(names)


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=2**20)] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> list[Message]:
        """The messages as plain texts.

        Raises:
            ApiError: a role or content that is not supported.
        """
        return [_plain(i, message) for i, message in enumerate(self.messages)]


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


def _whole(text: str) -> str:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("it holds half of a surrogate pair")
    return text


class FeedbackRequest(BaseModel):
    """`POST /v1/feedback`: exactly one of `right` and `answer`."""

    model_config = ConfigDict(extra="forbid")
    episode_id: Annotated[str, Field(min_length=1, max_length=64)]
    right: StrictBool | None = None
    answer: Annotated[str, AfterValidator(_whole)] | None = None


def _plain(place: int, message: ChatMessage) -> Message:
    param = f"messages.{place}"
    roles: dict[str, Literal["system", "user", "assistant"]] = {
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
    }
    extra = {name for name, value in (message.model_extra or {}).items() if value}
    if message.role not in roles or extra & {"tool_calls", "function_call"}:
        raise ApiError(
            400,
            f"Message {place + 1} has role {message.role[:40]!r} or calls tools, which is not supported; use the roles "
            f"{', '.join(roles)} and texts.",
            param=param,
            code="unsupported_message",
        )
    if isinstance(message.content, str):
        return Message(roles[message.role], message.content)
    other = sorted({p.type[:40] for p in message.content or [] if p.type != "text"})
    if message.content is None or other or extra & {"audio"}:
        raise ApiError(
            400,
            f"Message {place + 1} has {', '.join(other) or 'no'} content; only text is supported.",
            param=f"{param}.content",
            code="unsupported_content",
        )
    return Message(roles[message.role], "\n".join(p.text or "" for p in message.content))
