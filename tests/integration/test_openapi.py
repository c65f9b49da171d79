"""schemathesis asks what no client would: nothing but documented answers, and no 5xx."""

from __future__ import annotations

from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from router.agent import Router
from tests.router.conftest import OpenRouter, open_router
from tests.router.server import running

__all__ = ["open_router"]

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


def asked(agent: Router, n: int) -> Counter[int]:
    """Statuses of about `n` requests, valid and not, over all operations; every response is checked."""
    statuses: Counter[int] = Counter()
    with running(agent, queue=1000) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        posts = [o for o in operations if o.method.upper() == "POST"]
        for mode, some, share in (
            (GenerationMode.POSITIVE, operations, 0.8),
            (GenerationMode.NEGATIVE, posts, 0.2),
        ):
            few = settings(
                max_examples=max(1, round(n * share / len(some))),
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            for operation in some:

                def call(case: schemathesis.Case[Any]) -> None:
                    response = case.call()
                    statuses[response.status_code] += 1
                    case.validate_response(response, checks=CHECKS)

                few(given(case=operation.as_strategy(generation_mode=mode))(call))()
    return statuses


def test_a_few_requests_of_every_kind_get_documented_answers(open_router: OpenRouter) -> None:
    statuses = asked(open_router(), 120)
    assert sum(statuses.values()) >= 60 and statuses[200] > 0 and statuses[400] > 0
