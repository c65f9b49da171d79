"""Cross-fitted evidence for the decision, and where the training that it is for goes on.

By a probe of the recipe that was asked for or, where that recipe says so, by a search for a better one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from router import signals as measured
from router.context import Context
from router.receipt import Step
from router.state import State
from ttt.carry import undoubted
from ttt.crossfit import MIN_DEMONSTRATIONS, CrossFitResult, cross_fit
from ttt.errors import ContextOverflow
from ttt.recipes import Recipe, fitting, probing
from ttt.search import search
from ttt.task import Task
from ttt.train import Beginning, TrainStep


@dataclass(frozen=True, slots=True)
class Found:
    """Evidence, and the account of it."""

    evidence: CrossFitResult
    losses: tuple[float, ...]
    """Of the short training, nats per token, a step each; mean of its folds."""
    chosen: Recipe | None
    """What a search has found."""
    shorter: Recipe | None
    """The shorter training by that."""
    detail: dict[str, Any]

    def added_to(self, state: State) -> dict[str, Any]:
        """What it adds to the state."""
        return {
            "evidence": self.evidence,
            "chosen": self.chosen,
            "shorter": self.shorter,
            "signals": measured.with_probe(state["signals"], self.evidence, self.losses),
        }


async def seek(
    state: State,
    context: Context,
    emit: Callable[[TrainStep], None],
    beat: Callable[[], None] = lambda: None,
) -> Found:
    """Evidence on the recipe that was asked for, or on the one that a search finds; `context.beginnings` then has
    where its training goes on.

    Raises:
        TaskError: fewer than three demonstrations.
        TrainingFailed: as `cross_fit`.
    """
    request, task = state["request"], state["task"]
    recipe = fitting(request.recipes, task)
    probed = probing(recipe, task)

    def begun(there: Beginning) -> None:
        context.beginnings[request.episode_id] = there

    chosen = shorter = None
    if recipe.search:
        found = await search(
            context.engine,
            task,
            recipe,
            request.seed,
            emit=emit,
            should_stop=context.should_stop,
            beat=beat,
        )
        begun(found.begin)
        evidence, chosen, losses = found.evidence, found.recipe, found.begin.losses
        shorter = found.shorter
        detail = {
            "recipe": chosen.id,
            "steps": len(found.begin.losses),
            "chosen": found.reason,
            "looks": [
                {"steps": steps, "logprob": mean(judged.logprob), "correct": mean(judged.correct)}
                for steps, judged in found.looks
            ],
            "tried": [asdict(trial) for trial in found.trials],
            "augmentations": [asdict(verdict) for verdict in found.augmentations],
        }
    else:
        reached: list[Beginning] = []
        evidence = await cross_fit(
            context.engine, task, probed, request.seed, emit, context.should_stop, reached.append
        )
        losses = reached[0].losses
        if probed == recipe:
            begun(reached[0])
        detail = {"recipe": probed.id, "steps": probed.probed}
    context.costs.observe("train", evidence.tokens, evidence.train_s)
    detail |= {
        "tokens": evidence.tokens,
        "training_s": evidence.train_s,
        "correct_before": list(evidence.correct_before),
        "correct_after": list(evidence.correct_after),
        "logprob_before": list(evidence.logprob_before),
        "logprob_after": list(evidence.logprob_after),
    }
    return Found(evidence, losses, chosen, shorter, detail)


async def seek_first(
    state: State, context: Context, emit: Callable[[TrainStep], None], beat: Callable[[], None]
) -> dict[str, Any]:
    """What a search, or the probe that a training begins by, adds to the state where none came before it; a note where
    a search was asked for and there can be none.

    Raises:
        TrainingFailed: as `search`.
    """
    task, started = state["task"], time.perf_counter()
    recipe = fitting(state["request"].recipes, task)
    searched = bool(recipe.search)
    name = "search" if searched else "probe"
    if len(task.demonstrations) < MIN_DEMONSTRATIONS:
        return {"steps": [], "notes": _unjudged(task, recipe)}
    try:
        found = await seek(state, context, emit, beat)
    except ContextOverflow as error:
        step = Step(name, time.perf_counter() - started, {"failed": str(error)})
        notes = [f"No recipe was searched for: {error}"] if searched else []
        return {"steps": [step], "notes": notes, "evidence": None}
    step = Step(name, time.perf_counter() - started, found.detail)
    return found.added_to(state) | {"steps": [step]}


def _unjudged(task: Task, recipe: Recipe) -> list[str]:
    """What a recipe that searches does without, where there are too few demonstrations to judge anything on."""
    left_out = [name for name in recipe.augmentations if name not in undoubted(task, recipe).augmentations]
    if not left_out:
        return []
    return [
        f"{len(task.demonstrations)} demonstration(s) are too few to judge whether {', '.join(left_out)} keeps the task's "
        f"rule (at least {MIN_DEMONSTRATIONS} are needed): trained without."
    ]
