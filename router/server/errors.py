"""Errors as OpenAI's clients know them: `{"error": {message, type, param, code}}`, with the right status.

    400 invalid_request_error    the request, a parameter, the messages, the task
    401 authentication_error     no key or a wrong one
    404 not_found_error          unknown model, episode or address
    405 invalid_request_error    a method that this address does not have
    413 invalid_request_error    a body above the limit
    422 timeout_error            the caller's deadline came before there was any answer; clients try 408 and
                                 504 again by themselves, which would miss the same deadline
    429 rate_limit_error         the queue is full; `Retry-After` says for how long
    500 server_error             what we did not foresee
    503 server_error             shutting down, or the store or the model can't be used

Knows nothing of routes.
"""

from __future__ import annotations

from typing import Any

from router.errors import RouterError


class ApiError(RouterError):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kinds = {
            401: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
            422: "timeout_error",
        }
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: BaseException) -> ApiError:
    """What to tell a client of `error`; an unforeseen one is told without its text."""
    from policies.errors import PolicyError
    from router.errors import ConversationError
    from store.errors import NotFound, StoreError
    from ttt.errors import Cancelled, ContextOverflow, TaskError, TrainingFailed, TTTError

    if isinstance(error, ApiError):
        return error
    kinds: list[tuple[type[BaseException], int, str | None]] = [
        (ConversationError, 400, "invalid_messages"),
        (ContextOverflow, 400, "context_length_exceeded"),
        (TaskError, 400, "invalid_task"),
        (PolicyError, 400, None),
        (RouterError, 400, None),
        (NotFound, 404, "not_found"),
        (StoreError, 503, "store_unavailable"),
        (Cancelled, 422, "deadline_exceeded"),
        (TrainingFailed, 500, "training_failed"),
        (TTTError, 503, "model_unavailable"),
    ]
    for kind, status, code in kinds:
        if isinstance(error, kind):
            param = "messages" if code == "invalid_messages" else None
            return ApiError(status, str(error), param=param, code=code)
    return ApiError(500, "An unforeseen error; the server's log has its traceback.", code="internal_error")
