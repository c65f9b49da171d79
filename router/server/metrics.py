"""What Prometheus may ask: counts and seconds, never a text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server."""

    def __init__(self, in_flight: Callable[[], int], behind: Callable[[], int]) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("ttt_router_requests", "HTTP requests.", ["path", "status"], registry=r)
        self.answers = Counter("ttt_router_answers", "Answers given.", ["arm"], registry=r)
        self.seconds = Histogram(
            "ttt_router_answer_seconds",
            "Wall seconds of an answer, waiting included.",
            ["arm"],
            buckets=SECONDS,
            registry=r,
        )
        self.first_s = Histogram(
            "ttt_router_first_content_seconds",
            "Wall seconds to a stream's first content.",
            buckets=SECONDS,
            registry=r,
        )
        self.tokens = Counter("ttt_router_tokens", "Tokens of answers.", ["kind"], registry=r)
        self.steps = Counter("ttt_router_training_steps", "Training steps waited for.", ["phase"], registry=r)
        self.refused = Counter("ttt_router_refused", "Requests that found the queue full.", registry=r)
        Gauge("ttt_router_in_flight", "Questions waiting or being answered.", registry=r).set_function(
            in_flight
        )
        Gauge("ttt_router_training_behind", "Tasks worked on behind answers.", registry=r).set_function(
            behind
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
