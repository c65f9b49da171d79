"""What flows through the graph: plain values only, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import Annotated, Literal, TypedDict

from policies.types import Decision, Location, Signals
from router.receipt import Step
from ttt.crossfit import CrossFitResult
from ttt.icl import ICLResult
from ttt.measure import TaskSize
from ttt.recipes import Recipe
from ttt.task import Query, Task

Arm = Literal["auto", "icl", "ttt", "zero-shot"]
When = Literal["wait", "background", "never"]
"""Whether an answer waits for training, comes before training that goes on behind it, or nothing is trained."""
WHENS: tuple[When, ...] = ("wait", "background", "never")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the router."""

    episode_id: str
    task: Task
    queries: tuple[Query, ...]
    arm: Arm
    worth_s: float
    expected_repeats: float
    recipes: tuple[Recipe, Recipe]
    """For texts, and for tasks made of cells."""
    seed: int
    votes: int = 1
    """Views of the task that vote on each answer."""
    augmentations: tuple[str, ...] | None = None
    """What those views may change; None takes the usual ones that the adapter's training has not left out."""
    when: When = "wait"
    max_tokens: int | None = None
    """Of each answer."""
    shots: int = 0
    """Demonstrations that in-context learning shows; 0 shows all that fit."""
    reuse: bool = False
    """Whether adapters of like tasks are tried."""
    calibrated: bool = False
    """Whether in-context learning answers by calibrated labels, where there is a closed set of them."""
    short: bool = False
    """Whether the shorter training of these recipes was asked for."""
    outright: bool = False
    """Whether training was asked for outright, now or behind the answer: an adapter of this very task then answers
    even if the guard has not accepted it."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter in the store, by values."""

    content_hash: str
    folder: str
    recipe: str
    accepted: bool
    losses: tuple[float, ...]
    """Of its training, step by step, nats per labelled token."""
    rows: str = "plain"
    """How its training wrote rows of cells: `plain` or `indexed`."""
    left_out: tuple[str, ...] = ()
    """Augmentations that its training has judged, and left out."""


@dataclass(frozen=True, slots=True)
class Start:
    """Other tasks' adapters that this task's training begins at."""

    adapters: tuple[str, ...]
    """Content hashes; of several it is the mean."""
    demonstration_hashes: tuple[str, ...]
    """Of all that they have learned from, and those that they began at."""
    seen_inputs: tuple[str, ...]
    """Hashes of these demonstrations' inputs."""


class State(TypedDict, total=False):
    request: Request
    """As it came."""
    task: Task
    """Cleaned; what is worked with."""
    fingerprint: str
    size: TaskSize
    hit: AdapterRef | None
    """An adapter for exactly this task."""
    ready: AdapterRef | None
    """The adapter of this task's shorter training, where more hangs on the answer than when it was trained."""
    candidate: AdapterRef | None
    """An adapter of a subset of the demonstrations, or of a like task, that passed its check on those it has not
    seen."""
    checked: CrossFitResult | None
    """How well that adapter, of a subset, and the base model do on the others."""
    location: Location
    """Where the task lies among others: its embedding (`ttt.embedding`)."""
    solved: bool
    """Whether the candidate does so well that training asked for outright is left out."""
    start: Start | None
    """Where training begins, if not at nothing. `evidence` is then that of the check of these adapters."""
    icl: ICLResult | None
    """In-context answers to the queries that were asked so far."""
    asked: tuple[int, ...]
    """Their numbers: all, or the sample that the decision rests on."""
    signals: Signals
    decisions: Annotated[list[Decision], add]
    evidence: CrossFitResult | None
    """Of the probe, or of the check of other tasks' adapters."""
    chosen: Recipe | None
    """What the search has found, where the recipe asks for one; or how much training is left behind `start`."""
    shorter: Recipe | None
    """The shorter training by what the search has found."""
    trained: AdapterRef | None
    accepted: bool
    """What the guard said."""
    answers: ICLResult | None
    """From the arm that answers in the end."""
    arm: str
    adapter: str
    fallback: str
    notes: Annotated[list[str], add]
    steps: Annotated[list[Step], add]
