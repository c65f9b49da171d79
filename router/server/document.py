"""The OpenAPI document: what the routes and pydantic's models do not say of themselves.

It is as precise as JSON Schema allows, so that a program can make requests from it which are answered. What it
can't say (that a conversation of many messages alternates and ends with the user's, that the model `ttt` needs
demonstrations, that an episode exists) is in words. Knows nothing of how requests are answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.server.schemas import PLAIN_MODELS, WITHOUT_EFFECT

EPISODE = "^[0-9a-f]{6,64}$"
STATUSES = {
    400: "The request, a parameter, the messages or the task can't be used.",
    401: "The API key is missing or wrong.",
    404: "No such model, episode or address.",
    405: "This address does not have this method.",
    413: "The body is above the limit.",
    422: "The caller's deadline came before there was any answer.",
    429: "The queue is full.",
    500: "Unforeseen.",
    503: "Shutting down, or the store or the model can't be used.",
}
SPOKEN = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
"""Roles of short conversations; longer ones go on alike."""
LONGEST_SPOKEN = 6
NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
TEXT = {"type": "string", "pattern": r"\S"}
EVENT = {
    "type": "object",
    "description": "Each event: a piece of the answer as JSON, or `[DONE]`.",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
COUNT = {"type": "integer", "minimum": 0}


def errors() -> dict[int | str, dict[str, Any]]:
    """Every status but 200, with OpenAI's error as its body."""
    texts = {"message": {"type": "string"}, "type": {"type": "string"}, "param": NULLABLE, "code": NULLABLE}
    schema = _object({"error": _object(texts)})
    return {
        status: {"description": text, "content": {"application/json": {"schema": schema}}}
        for status, text in STATUSES.items()
    }


def answers(*, chat: bool) -> dict[int | str, dict[str, Any]]:
    """The answer of either address, whole and as a stream, and where its episode leads."""
    message = _object({"role": {"const": "assistant"}, "content": {"type": "string"}})
    said = {"message": message} if chat else {"text": {"type": "string"}}
    choice = _object({"index": {"const": 0}, "finish_reason": {"enum": ["stop", "length"]}, **said})
    body = _object(
        {
            "id": {"type": "string"},
            "object": {"const": "chat.completion" if chat else "text_completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice, "minItems": 1, "maxItems": 1},
            "usage": _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}),
            "ttt_router": _object(
                {
                    "arm": NULLABLE,
                    "episode_id": NULLABLE,
                    "cost_s": {"type": "number"},
                    "reason": {"type": "string"},
                }
            ),
        }
    )
    episode = "$response.header.x-ttt-router-episode"
    return {
        200: {
            "description": "The answer; with `stream`, server-sent events.",
            "headers": {
                "x-ttt-router-episode": {
                    "description": "Missing where a message taught something and asked nothing.",
                    "schema": {"type": "string", "pattern": EPISODE},
                }
            },
            "content": {
                "application/json": {"schema": body},
                "text/event-stream": {"schema": EVENT},
            },
            "links": {
                "account": {"operationId": "episode", "parameters": {"episode_id": episode}},
                "right": {"operationId": "feedback", "requestBody": {"episode_id": episode, "right": True}},
                "corrected": {
                    "operationId": "feedback",
                    "requestBody": {"episode_id": episode, "answer": "the right answer"},
                },
            },
        }
    }


def complete(document: dict[str, Any], adapters: Sequence[str]) -> dict[str, Any]:
    """`document` with what the models of requests leave out: which models there are now, how a conversation goes,
    and that some options exclude one another. A second time replaces what the first one added."""
    schemas = document["components"]["schemas"]
    models = [*PLAIN_MODELS, *adapters]
    for name in ("ChatRequest", "CompletionRequest"):
        properties = schemas[name]["properties"]
        properties["model"]["enum"] = models
        properties |= {field: {"enum": [None, *values]} for field, values in WITHOUT_EFFECT.items()}
    (named,) = document["paths"]["/v1/models/{model}"]["get"]["parameters"]
    named["schema"]["enum"] = models
    chat = schemas["ChatRequest"]
    chat["properties"]["messages"] |= {
        "description": "They alternate, beginning and ending with the user's; system messages stand anywhere.",
        "anyOf": [
            *(_messages(roles) for roles in SPOKEN),
            {"minItems": LONGEST_SPOKEN + 1},
        ],
    }
    # An adapter brings its own task, and training needs demonstrations.
    alone = {"properties": {"messages": {"maxItems": 1}}}
    taught = {"properties": {"messages": {"minItems": 3}}}
    chat["allOf"] = [
        {"if": {"properties": {"model": {"const": "ttt"}}}, "then": taught},
        {"if": {"properties": {"model": {"pattern": "^reuse:"}}}, "then": alone},
    ]
    prompt = schemas["CompletionRequest"]["properties"]["prompt"]
    prompt["anyOf"] = [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1}]
    both = {"prefer": {"type": "string"}, "worth_s": {"type": "number"}}
    schemas["Knobs"]["not"] = {"required": list(both), "properties": both}
    feedback = schemas["FeedbackRequest"]
    feedback["properties"]["episode_id"] = {"type": "string", "pattern": EPISODE}
    feedback["oneOf"] = [
        {"required": ["right"], "properties": {"right": {"type": "boolean"}, "answer": {"type": "null"}}},
        {"required": ["answer"], "properties": {"answer": {"type": "string"}, "right": {"type": "null"}}},
    ]
    return document


def _messages(roles: Sequence[str]) -> dict[str, Any]:
    return {
        "prefixItems": [_message(role) for role in roles],
        "minItems": len(roles),
        "maxItems": len(roles),
    }


def _message(role: str) -> dict[str, Any]:
    part = _object({"type": {"const": "text"}, "text": TEXT})
    content = {"anyOf": [TEXT, {"type": "array", "items": part, "minItems": 1}]}
    named = [role, "developer"] if role == "system" else [role]
    return _object({"role": {"enum": named}, "content": content})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}
