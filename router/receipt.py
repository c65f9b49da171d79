"""The receipt: the public, immutable account of one answer. Its steps are the trace.

JSON both ways; readable without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

RECEIPT_VERSION = 1
SHADOW = "-shadow"
"""Ends the id of the episode that was trained behind another, to learn from."""
PART_SECONDS = {
    "leave_one_out_s": "leave-one-out",
    "zero_shot_s": "zero-shot",
    "consistency_s": "consistency",
}
"""What the step `signals` consists of: its details, and their names among the seconds of outcome rows."""


READY = "ready"
"""In the detail of the step `look-up`: the adapter of a shorter training is there, and more hangs on this answer."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done, and what it cost."""

    name: str
    """`look-up`, `location`, `sample`, `icl`, `signals`, `reuse-check`, `neighbours`, `probe`, `search`, `train`,
    `guard`, `answer`, `vote`."""
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """One query's answer."""

    text: str
    logprob: float
    """Of the whole answer and its terminator under the arm that gave it, nats."""
    finished: bool
    """False when the token budget or a deadline ended it."""
    n_tokens: int = 0
    """Terminator included."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was asked, decided, done and answered, with seconds."""

    episode_id: str
    fingerprint: str
    task_name: str
    base_model: str
    base_revision: str
    arm: str
    """The arm that answered."""
    answers: tuple[Answered, ...]
    icl_answers: tuple[Answered | None, ...]
    """What in-context learning said, before any votes; None of queries that it was not asked, empty where it was asked
    none."""
    steps: tuple[Step, ...]
    decisions: tuple[Mapping[str, Any], ...]
    """`policies.Decision`s in order, as plain values."""
    signals: Mapping[str, float | None]
    adapter: str
    """Content hash of the adapter that answered; empty for none."""
    fallback: str
    """Why another arm answered than the one decided on; empty when none did."""
    notes: tuple[str, ...]
    """What a person should know: dropped duplicates, demonstrations that did not fit, …"""
    worth_s: float
    n_queries: int
    created_at: float
    """Unix time, s."""
    prompt_tokens: int = 0
    """Read for the answers: the instruction, the demonstrations shown, once, and all queries."""
    location: Mapping[str, Any] | None = None
    """Where the task lies among others, where that was looked at: `policies.Location` as plain values."""
    version: int = RECEIPT_VERSION

    @property
    def seconds(self) -> float:
        """Sum over the steps."""
        return sum(s.seconds for s in self.steps)

    @property
    def tokens(self) -> tuple[int, int]:
        """Read and written for the answers, those of other views that voted included."""
        vote = self.step("vote")
        if vote is not None and "prompt_tokens" in vote.detail:
            return vote.detail["prompt_tokens"], vote.detail["answer_tokens"]
        return self.prompt_tokens, sum(a.n_tokens for a in self.answers)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(a.text for a in self.answers)

    @property
    def icl_texts(self) -> tuple[str, ...]:
        """What in-context learning said, before any votes, where it was asked all queries; empty otherwise."""
        said = tuple(a.text for a in self.icl_answers if a is not None)
        return said if len(said) == self.n_queries else ()

    @property
    def icl_at_once(self) -> bool:
        """Whether in-context learning was asked all queries in one go, as its arm alone would."""
        step = self.step("icl")
        return step is not None and "queries" not in step.detail

    @property
    def reason(self) -> str:
        """Why this arm answered, in a sentence."""
        if self.fallback:
            return self.fallback
        if self.decisions:
            return str(self.decisions[-1]["reason"])
        return "An adapter that was trained for exactly this task, and accepted, was there."

    @property
    def shadow(self) -> str:
        """The arm that is trained behind this answer, for the log alone; empty for none."""
        drawn = self.decisions[-1].get("shadow") if self.decisions and self.arm == "icl" else None
        return drawn or ""

    @property
    def account(self) -> dict[str, Any]:
        """What goes with an answer to other programs: arm, episode, seconds and reason."""
        return {
            "arm": self.arm,
            "episode_id": self.episode_id,
            "cost_s": self.seconds,
            "reason": self.reason,
        }

    def step(self, name: str) -> Step | None:
        """The last step of this name."""
        return next((s for s in reversed(self.steps) if s.name == name), None)

    @property
    def training_s(self) -> float:
        """Seconds of a whole training: of its step, of a search before it or of trying other tasks' adapters, and of
        what a probe has done for it; 0 where there was none."""
        train, search, tried = (self.step(name) for name in ("train", "search", "neighbours"))
        if train is None:
            return 0.0
        seconds = train.seconds + sum(step.seconds for step in (search, tried) if step is not None)
        return seconds + self._probe_trained_s

    @property
    def by_probe_s(self) -> float | None:
        """Of these, what a probe has done or, where none came before, would have done; None where that is not known."""
        train, search = self.step("train"), self.step("search")
        if train is None:
            return None
        if not train.detail.get("of_these_by_probe"):
            alone: float | None = train.detail.get("on_halves_s")
            return alone
        return search.seconds if search is not None else self._probe_trained_s

    @property
    def _probe_trained_s(self) -> float:
        """Seconds of the probe that its training has gone on from."""
        train, probe = self.step("train"), self.step("probe")
        if train is None or probe is None or not train.detail.get("of_these_by_probe"):
            return 0.0
        return probe.seconds if "tried" in probe.detail else float(probe.detail["training_s"])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """Read what `as_dict` wrote.

        Raises:
            ValueError: written by another version.
        """
        if data.get("version") != RECEIPT_VERSION:
            raise ValueError(f"This receipt has version {data.get('version')!r}, expected {RECEIPT_VERSION}.")
        values = {k: v for k, v in data.items() if k != "seconds"}
        for key in ("answers", "icl_answers"):
            values[key] = tuple(None if a is None else Answered(**a) for a in values[key])
        values["steps"] = tuple(Step(**s) for s in values["steps"])
        values["decisions"] = tuple(values["decisions"])
        values["notes"] = tuple(values["notes"])
        return cls(**values)


def signals_seconds(step: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the step `signals`, as plain values: in all, and of its parts."""
    parts = {part: step["detail"][key] for key, part in PART_SECONDS.items() if key in step["detail"]}
    return {"signals": step["seconds"], **parts}
