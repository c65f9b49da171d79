"""What a stream of one answer is made of, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.types import Decision, Signals
from router.receipt import Answered, Receipt


@dataclass(frozen=True, slots=True)
class Started:
    """The task was read and understood."""

    fingerprint: str
    notes: tuple[str, ...]
    episode_id: str


@dataclass(frozen=True, slots=True)
class CacheHit:
    """An adapter for exactly this task is there; nothing else is done but answering."""

    adapter: str


@dataclass(frozen=True, slots=True)
class AnswerGrew:
    """What is sure of the final answer to query number `query` so far: a beginning of it. Only sent while an
    answer is decoded that nothing can replace any more."""

    query: int
    text: str


@dataclass(frozen=True, slots=True)
class ICLDone:
    """In-context answers to all queries are there."""

    answers: tuple[Answered, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """In-context answers to `n` of `of` queries are there; that is enough to decide on. The others may never be
    asked."""

    n: int
    of: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SignalsReady:
    signals: Signals
    seconds: float


@dataclass(frozen=True, slots=True)
class Decided:
    decision: Decision


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Step `step` of `of`, of the probe or of the training."""

    phase: Literal["probe", "halves", "train"]
    step: int
    of: int
    loss: float


@dataclass(frozen=True, slots=True)
class GuardDone:
    accept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """Another arm answers than the one decided on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event."""

    receipt: Receipt


Event = (
    Started
    | CacheHit
    | AnswerGrew
    | ICLDone
    | Sampled
    | SignalsReady
    | Decided
    | TrainingStep
    | GuardDone
    | FellBack
    | Done
)
