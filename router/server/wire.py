"""Answers as OpenAI's clients read them: bodies, stream chunks and headers."""

from __future__ import annotations

import json
import time
from typing import Any

from router.receipt import Receipt
from router.server.service import Asked, final_text

HEADER_CHARS = 300
NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class Wire:
    """One request's answers, as chat messages or as completions."""

    def __init__(self, asked: Asked, *, chat: bool) -> None:
        self.asked, self.chat = asked, chat
        self.created = int(time.time())
        self.id = ""

    def body(self, receipt: Receipt) -> dict[str, Any]:
        """The whole answer."""
        text, reason = final_text(self.asked, receipt)
        return self._whole(text, reason, receipt.episode_id, usage(receipt), account(self.asked, receipt))

    def note(self, reply: str) -> dict[str, Any]:
        """A reply that no model gave."""
        return self._whole(reply, "stop", "", NO_TOKENS, noted(self.asked))

    def note_chunks(self, reply: str, counted: bool) -> list[str]:
        """The same streamed; `counted` asks for the tokens."""
        more = noted(self.asked)
        said = [self.chunk(reply, more, first=True), self.chunk("", more, "stop")]
        return [*said, self.usage_chunk(NO_TOKENS, more)] if counted else said

    def chunk(
        self, text: str, more: dict[str, Any], reason: str | None = None, *, first: bool = False
    ) -> str:
        """A piece of a streamed answer."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.chat:
            choice["delta"] = ({"role": "assistant"} if first else {}) | (
                {"content": text} if text or first else {}
            )
        else:
            choice["text"] = text
        return event({**self._frame(chunk=True), "choices": [choice], "ttt_router": more})

    def usage_chunk(self, counted: dict[str, int], more: dict[str, Any]) -> str:
        return event({**self._frame(chunk=True), "choices": [], "usage": counted, "ttt_router": more})

    def _whole(
        self, text: str, reason: str, episode_id: str, counted: dict[str, int], more: dict[str, Any]
    ) -> dict[str, Any]:
        self.id = episode_id
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self._frame(chunk=False), "choices": [choice], "usage": counted, "ttt_router": more}

    def _frame(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id or 'note'}",
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
        }


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=True, separators=(',', ':'))}\n\n"


def comment(text: str) -> str:
    """A line that clients skip and proxies see."""
    return f": {' '.join(text.split())}\n\n"


def usage(receipt: Receipt) -> dict[str, int]:
    """Tokens of the answer, and of the views that voted on it; what training ran over is in the receipt."""
    prompt, completion = receipt.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def account(asked: Asked, receipt: Receipt) -> dict[str, Any]:
    """The field `ttt_router` of an answer."""
    return {
        **receipt.account,
        "when": asked.options["when"],
        "adapter": receipt.adapter,
        "fallback": receipt.fallback,
        "n_demonstrations": len(asked.reading.task.demonstrations),
        "understood": list(asked.reading.understood),
        "notes": list(receipt.notes),
        "ignored": list(asked.ignored),
    }


def noted(asked: Asked) -> dict[str, Any]:
    """The same where nothing was asked."""
    said = asked.reading.latest
    return {
        "arm": None,
        "episode_id": said.episode_id if said is not None else None,
        "cost_s": 0.0,
        "reason": "The message taught something and asked nothing.",
        "n_demonstrations": len(asked.reading.task.demonstrations),
        "understood": list(asked.reading.understood),
        "ignored": list(asked.ignored),
    }


def headers(more: dict[str, Any]) -> dict[str, str]:
    """The short account as response headers."""
    found = {
        "x-ttt-router-arm": more.get("arm"),
        "x-ttt-router-episode": more.get("episode_id"),
        "x-ttt-router-cost-s": f"{more['cost_s']:.3f}" if "cost_s" in more else None,
        "x-ttt-router-reason": more.get("reason"),
    }
    return {
        k: " ".join(str(v).split()).encode("ascii", "replace").decode()[:HEADER_CHARS]
        for k, v in found.items()
        if v
    }
