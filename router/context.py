"""Live objects that nodes get at run time; never part of the state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from policies.cost import CostModel
from policies.types import Policy
from router.settings import Settings
from store import Store
from ttt.engine import Engine, Priority
from ttt.executor import Worker
from ttt.train import Beginning


@dataclass(frozen=True)
class Context:
    """One answer's surroundings."""

    engine: Engine
    store: Store
    policy: Policy
    costs: CostModel
    settings: Settings
    owner: str
    """Names this process and router in leases."""
    should_stop: Callable[[], bool] = lambda: False
    should_hurry: Callable[[], bool] = lambda: False
    """Whether measuring and training end now; answers are still written."""
    abandoned: Callable[[], bool] = lambda: False
    """Whether nobody waits for answers any more."""
    deadline: float = math.inf
    """`time.monotonic()` by which there must be an answer."""
    patient: bool = False
    """Whether everybody else's answers go before this one."""
    worker: Worker | None = None
    """Trains in a process of its own; None trains on the engine."""
    beginnings: dict[str, Beginning] = field(default_factory=dict)
    """Where the probe of an episode has left a training to go on."""

    @property
    def priority(self) -> Priority:
        """Of the answer itself."""
        return Priority.SIGNALS if self.patient else Priority.ANSWER

    @property
    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()
