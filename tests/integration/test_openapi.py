"""schemathesis asks what no client would: nothing but documented answers, and no 5xx.

Requests come from the OpenAPI document alone: such as fit it, such as do not, and sequences along its links. Only
the number of tokens is cut, and recipes are short, so that thousands take minutes.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from router.agent import Router
from tests.router.conftest import POOR, OpenRouter, open_router
from tests.router.server import running
from ttt.recipes import RECIPES

__all__ = ["open_router"]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
TOKENS = 3
LIMITS = ("max_tokens", "max_completion_tokens")


class Asker:
    """Asks one server, checks every answer, and counts them."""

    def __init__(self, url: str) -> None:
        self.schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        self.operations = [o.ok() for o in self.schema.get_all_operations() if isinstance(o, Ok)]
        self.statuses: dict[str, Counter[int]] = {}
        self.seconds: dict[str, float] = {}

    def count(self, what: str, status: int) -> None:
        self.statuses.setdefault(what, Counter())[status] += 1

    def ask(self, mode: GenerationMode, label: str, n: int) -> None:
        """`n` requests to one operation that fit the document, or do not."""
        (operation,) = [o for o in self.operations if o.label == label]
        what = f"{mode.value} {label}"

        def call(case: schemathesis.Case[Any]) -> None:
            short(case.body)
            response = case.call()
            self.count(what, response.status_code)
            case.validate_response(response, checks=CHECKS)

        started = time.monotonic()
        few(n)(given(case=operation.as_strategy(generation_mode=mode))(call))()
        self.seconds[what] = time.monotonic() - started

    def follow(self, n: int, steps: int) -> None:
        """`n` sequences of at most so many requests along the document's links."""
        asker = self

        class Machine(self.schema.as_state_machine()):  # type: ignore[misc]
            def before_call(self, case: Any) -> None:
                short(case.body)

            def after_call(self, response: Any, case: Any) -> None:
                asker.count("along links", response.status_code)

            def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
                case.validate_response(response, checks=CHECKS)

        started = time.monotonic()
        Machine.run(settings=settings(few(n), stateful_step_count=steps))
        self.seconds["along links"] = time.monotonic() - started

    @property
    def all(self) -> Counter[int]:
        return sum(self.statuses.values(), Counter())


def few(n: int) -> settings:
    return settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def short(body: Any) -> None:
    """Let the answer to `body` be of few tokens; what is wrong with it stays wrong."""
    if not isinstance(body, dict) or not {"messages", "prompt"} & body.keys():
        return
    body.setdefault("max_tokens", TOKENS)
    for name in LIMITS:
        value = body.get(name, TOKENS)
        if value is None or (type(value) is int and value > TOKENS):
            body[name] = TOKENS


def asked(agent: Router, n: int) -> Asker:
    """About `n` requests: the most where there is the most to get wrong."""
    positive, negative = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    with running(agent, queue=1000) as server:
        asker = Asker(server.url)
        for path in ("/v1/models", "/healthz", "/readyz", "/metrics"):
            asker.ask(positive, f"GET {path}", 1)
        asker.ask(positive, "GET /v1/models/{model}", 4)
        assert set(asker.statuses["positive GET /v1/models/{model}"]) == {200}
        for mode, label, share in (
            (positive, "POST /v1/chat/completions", 0.30),
            (positive, "POST /v1/completions", 0.20),
            (positive, "POST /v1/feedback", 0.03),
            (positive, "GET /v1/episodes/{episode_id}", 0.02),
            (negative, "POST /v1/chat/completions", 0.12),
            (negative, "POST /v1/completions", 0.08),
            (negative, "POST /v1/feedback", 0.05),
        ):
            asker.ask(mode, label, max(1, round(n * share)))
        asker.follow(max(1, round(n * 0.20 / 5)), 5)
    return asker


@pytest.fixture(autouse=True)
def quick_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may ask for any recipe: each takes two steps here."""
    for name, pair in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, (replace(pair[0], steps=2), replace(pair[1], steps=2)))


def test_a_few_requests_of_every_kind_get_documented_answers(open_router: OpenRouter) -> None:
    asker = asked(open_router(worth_s=POOR), 150)
    statuses = asker.all
    assert statuses.total() >= 100 and statuses[400] > 0, asker.statuses
    assert statuses[200] >= 0.3 * statuses.total(), asker.statuses
    assert asker.statuses["along links"][200] > 0, asker.statuses


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_requests_get_documented_answers_and_many_of_them_200(
    open_router: OpenRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    asker = asked(open_router(worth_s=POOR), 5500)
    statuses = asker.all
    with capsys.disabled():
        for what, found in asker.statuses.items():
            told = ", ".join(f"{n} × {status}" for status, n in sorted(found.items()))
            print(f"\n{what}: {told} in {asker.seconds[what]:.0f} s", end="")
        print(f"\nall: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= 5000, statuses
    assert statuses[200] >= 0.3 * statuses.total(), statuses
    assert not any(status >= 500 for status in statuses), statuses
