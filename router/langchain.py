"""For LangChain and LangGraph: a router as a tool, and as a chat model.

Both need langchain-core only. As a part of a LangGraph graph, use `Router.graph` with `Router.question`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool
from pydantic import BaseModel, ConfigDict, Field

from router.agent import Router
from router.conversation import EXPECTED_REPEATS, Message, Reading, note, read_conversation
from router.errors import ConversationError
from router.events import AnswerGrew, Done, Event
from router.receipt import Receipt
from ttt.task import Demonstration, Task

DESCRIPTION = (
    "Learns a text transformation from examples and applies it to new inputs, on a local model. Give a few "
    "examples of input and output, and the inputs to transform."
)
KEY = "ttt_router"
"""Of `response_metadata`, and of what is in it."""


class ExampleInput(BaseModel):
    input: str
    output: str


class TaskInput(BaseModel):
    """What the tool is called with."""

    examples: list[ExampleInput] = Field(description="Examples of the task, input and output.")
    inputs: list[str] = Field(description="The inputs to answer.", min_length=1)
    instruction: str = Field(default="", description="What to do, in words; may be empty.")


def as_tool(
    router: Router, *, name: str = "few_shot", description: str = DESCRIPTION, **options: Any
) -> StructuredTool:
    """`router` as a tool; `options` as in `Router.astream`.

    The tool's content is JSON: answers in the order of the inputs, arm, reason and episode; its artifact the
    `Receipt`.
    """

    def asked(examples: Sequence[ExampleInput | Mapping[str, str]], instruction: str) -> Task:
        pairs = [e if isinstance(e, ExampleInput) else ExampleInput(**e) for e in examples]
        return Task(tuple(Demonstration(e.input, e.output) for e in pairs), instruction)

    def call(examples: list[ExampleInput], inputs: list[str], instruction: str = "") -> tuple[str, Receipt]:
        return _told(router.ask(asked(examples, instruction), inputs, **options))

    async def acall(
        examples: list[ExampleInput], inputs: list[str], instruction: str = ""
    ) -> tuple[str, Receipt]:
        return _told(await router.aask(asked(examples, instruction), inputs, **options))

    return StructuredTool.from_function(
        call,
        acall,
        name,
        description,
        args_schema=TaskInput,
        response_format="content_and_artifact",
    )


def _told(receipt: Receipt) -> tuple[str, Receipt]:
    told = {
        "answers": receipt.texts,
        "arm": receipt.arm,
        "reason": receipt.reason,
        "episode_id": receipt.episode_id,
    }
    return json.dumps(told, ensure_ascii=False), receipt


class RouterChatModel(BaseChatModel):
    """A router as a LangChain chat model: messages are read as `router.conversation` says.

    Its own earlier answers are known by their `response_metadata`, so that corrections and approvals of them
    are heard. Tools are not supported.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    router: Router
    arm: Literal["auto", "icl", "ttt", "zero-shot"] = "auto"
    when: Literal["wait", "background", "never"] = "wait"
    prefer: Literal["fast", "balanced", "accurate"] | None = None
    deadline_s: float | None = None
    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return "ttt-router"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.router.settings.model,
            "arm": self.arm,
            "when": self.when,
            "prefer": self.prefer,
        }

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self.router.run(self._agenerate(messages, stop))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reading = self._read(messages, stop)
        if reading.query is None:
            return _result(await self._noted(reading))
        return _result(
            _message(await self.router.aask(reading.task, [reading.query], **self._options(reading)))
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reading = self._read(messages, stop)
        if reading.query is None:
            yield _chunk(self.router.run(self._noted(reading)))
            return
        said = ""
        for event in self.router.stream(reading.task, [reading.query], **self._options(reading)):
            said, chunk = _grown(event, said)
            if chunk is not None:
                if run_manager is not None:
                    run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        reading = self._read(messages, stop)
        if reading.query is None:
            yield _chunk(await self._noted(reading))
            return
        said = ""
        async for event in self.router.astream(reading.task, [reading.query], **self._options(reading)):
            said, chunk = _grown(event, said)
            if chunk is not None:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                yield chunk

    def _read(self, messages: Sequence[BaseMessage], stop: list[str] | None) -> Reading:
        if stop:
            raise ConversationError("Stop strings are not supported by this chat model; leave them out.")
        own = {
            place: message.response_metadata[KEY]["episode_id"]
            for place, message in enumerate(messages)
            if isinstance(message, AIMessage) and KEY in message.response_metadata
        }
        return read_conversation([_plain(i, m) for i, m in enumerate(messages)], own)

    async def _noted(self, reading: Reading) -> AIMessage:
        if reading.latest is not None:
            await self.router.ahear(reading.latest)
        return AIMessage(note(reading.task), response_metadata={KEY: {"episode_id": ""}})

    def _options(self, reading: Reading) -> dict[str, Any]:
        options: dict[str, Any] = {"arm": self.arm, "when": self.when, "prefer": self.prefer}
        options |= {"deadline_s": self.deadline_s, "max_tokens": self.max_tokens}
        if reading.ongoing:
            options["expected_repeats"] = max(self.router.settings.expected_repeats, EXPECTED_REPEATS)
        return options


def _plain(place: int, message: BaseMessage) -> Message:
    """
    Raises:
        ConversationError: a kind of message, or content, that is not supported.
    """
    roles: dict[str, Literal["system", "user", "assistant"]] = {
        "system": "system",
        "human": "user",
        "ai": "assistant",
    }
    kind = message.type.removesuffix("MessageChunk").lower()
    blocks = [message.content] if isinstance(message.content, str) else message.content
    texts = [b if isinstance(b, str) else b.get("text") for b in blocks]
    if kind not in roles or getattr(message, "tool_calls", None) or None in texts:
        raise ConversationError(
            f"Message {place + 1} is of type {message.type!r}, calls tools or holds more than text; only texts of "
            "system, human and AI messages are supported."
        )
    return Message(roles[kind], "".join(map(str, texts)))


def _usage(receipt: Receipt) -> UsageMetadata:
    read, written = receipt.tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _message(receipt: Receipt) -> AIMessage:
    return AIMessage(
        receipt.texts[0], response_metadata={KEY: receipt.account}, usage_metadata=_usage(receipt)
    )


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(message: AIMessage) -> ChatGenerationChunk:
    chunk = AIMessageChunk(
        content=message.content,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
    )
    return ChatGenerationChunk(message=chunk)


def _grown(event: Event, said: str) -> tuple[str, ChatGenerationChunk | None]:
    """What an event adds to the text said so far; the last one brings the account."""
    if isinstance(event, AnswerGrew):
        return event.text, ChatGenerationChunk(message=AIMessageChunk(content=event.text[len(said) :]))
    if isinstance(event, Done):
        message = _message(event.receipt)
        message.content = event.receipt.texts[0][len(said) :]
        return event.receipt.texts[0], _chunk(message)
    return said, None
