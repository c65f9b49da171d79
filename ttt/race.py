"""A search under way: who runs, what that has cost, and what became of whom. The rules are in `halving`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from ttt.candidates import DEFAULT
from ttt.carry import Carried, carry, checked, kept
from ttt.crossfit import CrossFitResult, Fold, judge_folds
from ttt.engine import Bench, Engine
from ttt.entrant import Entrant, StepTokens
from ttt.errors import Cancelled, TrainingFailed
from ttt.halving import LONGEST, TAIL, best_of, lasting, pays, rungs
from ttt.judging import Judged
from ttt.recipes import Recipe
from ttt.task import Task
from ttt.train import Beginning, TrainStep

HINTED_SHARE = 0.5
"""Of what held-out demonstrations as they are have gained, what transformed ones must gain where rows have index hints."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate at one rung, as the receipt shows it."""

    candidate: str
    steps: int
    """On either half; 0 was not tried."""
    logprob_before: float
    """Mean over held-out demonstrations, nats per token: of the base model."""
    logprob_after: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Searched:
    """What was chosen, and on what evidence."""

    recipe: Recipe
    """With the number of steps that pays."""
    shorter: Recipe | None
    """The same for the shorter training; None where the recipe that the search began at offers none."""
    evidence: CrossFitResult
    """Of the chosen candidate at its last rung; of one that replaced the default, less what the choice flatters
    it by. Tokens and seconds are those of all candidates."""
    looks: tuple[tuple[int, Judged], ...]
    """The chosen candidate at each rung: steps on either half, and the held-out demonstrations as judged."""
    trials: tuple[Trial, ...]
    augmentations: tuple[Carried, ...]
    """Which of the recipe's own keep the task's rule."""
    reason: str
    """Why this recipe and so many steps."""
    begin: Beginning = field(compare=False, repr=False)
    """Where training on all demonstrations goes on."""


class Race:
    """The search itself: who runs, what that has cost, and what became of whom."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        parts: tuple[Fold, ...],
        entrants: Sequence[Entrant],
        base: Judged,
        plain: Judged,
        recipe: Recipe,
        seed: int,
        tokens: StepTokens,
        hinted: bool,
        emit: Callable[[TrainStep], None],
        go_on: Callable[[], None],
    ) -> None:
        self.engine, self.parts, self.base, self.recipe, self.emit = engine, parts, base, recipe, emit
        self.entrants = list(entrants)
        """The default first."""
        self.go_on = go_on
        self.plain = plain
        """The base model on rows as they are."""
        self.hinted = hinted
        self.task, self.seed, self.expected = task, seed, tokens
        self.trials: list[Trial] = []
        self.flattery = 0.0
        """Nats per token by which the choice may flatter the one chosen."""
        self.tried = self.judgements = self.done = self.planned = 0
        self.why = ""

    def drop(self, bench: Bench) -> None:
        """Take all adapters off."""
        for entrant in self.entrants:
            entrant.drop(bench)

    async def run(self) -> Searched:
        ladder = rungs(self.recipe)
        alive = await self._first(self.entrants, ladder[0])
        for number, rung in enumerate(ladder):
            if number:
                alive = await self._affordable(alive, rung)
            if len(alive) == 1 and rung != self.recipe.probed:
                if rung < self.recipe.probed:
                    continue  # nothing to choose: one look, as a probe's
                break  # evidence as strong as a probe's is there
            alive = await self._advance(alive, rung)
            leader = max(alive, key=lambda e: e.mean)
            if leader.mean <= mean(self.base.logprob):
                break  # what has not helped by now seldom does, and looking on costs as much again
            if len(leader.judged) > 1 and not pays(leader.judged[-2].logprob, leader.logprob):
                break
            if rung != ladder[-1]:
                alive = await self._keep(alive, max(2, len(alive) // 2), "dropped: in the worse half")
        (chosen,) = await self._choose(alive)
        self._say(chosen, "chosen")
        verdicts = await self._carried(chosen)
        steps, recipe = self._steps(chosen), kept(chosen.recipe, verdicts)
        begin = await self.engine.run(chosen.finish)
        return Searched(
            lasting(recipe, steps, chosen.steps),
            self._shorter(chosen, recipe),
            self._evidence(chosen),
            tuple(zip(chosen.rungs, chosen.judged, strict=True)),
            tuple(self.trials),
            verdicts,
            " ".join(filter(None, (self.why, self._why_so_long(chosen, steps), _why_without(verdicts)))),
            begin,
        )

    async def _carried(self, chosen: Entrant) -> tuple[Carried, ...]:
        """Which augmentations hold, by the chosen one's trainings."""
        names = checked(self.task, self.recipe)
        if not names:
            return ()
        # With index hints all demonstrations gain by the letters, which way ever the rule goes.
        gained = [after - before for before, after in zip(self.base.logprob, chosen.logprob, strict=True)]
        least = (
            {d: HINTED_SHARE * gain for d, gain in zip(self.task.demonstrations, gained, strict=True)}
            if self.hinted and mean(gained) > 0
            else None
        )
        found = await carry(
            self.engine, self.task, self.parts, chosen.adapters, names, self.seed, self.go_on, least
        )
        self.judgements += 1 + len(names) if any(verdict.change is not None for verdict in found) else 0
        return found

    # ------------------------------------------------------------------------------------------------- cost

    def _step_tokens(self, entrant: Entrant) -> float:
        """Of both folds together."""
        return entrant.tokens / entrant.steps if entrant.tokens else self.expected.halves

    def _whole_step_tokens(self, entrant: Entrant) -> float:
        """Of a step on all demonstrations."""
        return self._step_tokens(entrant) * self.expected.whole / self.expected.halves

    @property
    def _left(self) -> float:
        """Tokens that the budget still has."""
        budget = self.recipe.search * self.recipe.steps * self._whole_step_tokens(self.entrants[0])
        return budget - sum(e.tokens for e in self.entrants) - self.judgements * self.expected.prefix

    def _fits(self, alive: Sequence[Entrant], rung: int) -> bool:
        """Whether these can go to `rung` and one of them to the recipe's end."""
        on = sum((rung - e.steps) * self._step_tokens(e) + self.expected.prefix for e in alive)
        rest = (self.recipe.steps - rung) * self._whole_step_tokens(self.entrants[0])
        return on + rest <= self._left

    # ------------------------------------------------------------------------------------------------ rungs

    async def _first(self, alive: list[Entrant], rung: int) -> list[Entrant]:
        """As many as the budget has room for."""
        n = len(alive)
        while n > 1 and not self._fits(alive[:n], rung):
            n -= 1
        for entrant in alive[n:] if n > 1 else ():
            self._record(entrant, "not tried: the budget has no room")
        self.tried = n - 1
        return alive[:n]

    async def _affordable(self, alive: list[Entrant], rung: int) -> list[Entrant]:
        """Those who can go on; where there is no room for two, the choice is made now."""
        n = len(alive)
        ranked = self._ranked(alive)
        while n > 2 and not self._fits(ranked[:n], rung):
            n -= 1
        if n > 1 and not self._fits(ranked[:n], rung):
            return await self._choose(alive)
        return await self._keep(alive, n, "dropped: the budget has no room")

    async def _advance(self, alive: list[Entrant], rung: int) -> list[Entrant]:
        """Train to `rung` and judge; those that did not fail."""
        self.planned += sum(len(self.parts) * (rung - e.steps) for e in alive)
        ended = await asyncio.gather(
            *(e.advance(self.engine, rung, self._emit) for e in alive), return_exceptions=True
        )
        going: list[Entrant] = []
        for entrant, error in zip(alive, ended, strict=True):
            if error is None:
                self.go_on()
                entrant.judged.append(await judge_folds(self.engine, self.parts, entrant.adapters))
                entrant.rungs.append(rung)
                self.judgements += 1
                if entrant is self.entrants[0] or all(map(math.isfinite, entrant.logprob)):
                    self._record(entrant, "goes on", entrant.mean)
                    going.append(entrant)
                    continue
                error = TrainingFailed("A held-out log-probability is not finite.")
            needed = entrant is self.entrants[0] or len(alive) == 1
            if needed or isinstance(error, Cancelled) or not isinstance(error, TrainingFailed):
                raise error
            self._record(entrant, f"dropped: {error}")
            await self.engine.run(entrant.drop)
        return going

    def _emit(self, step: TrainStep) -> None:
        self.done += 1
        self.emit(TrainStep(self.done, self.planned, step.loss))

    # ----------------------------------------------------------------------------------------------- choice

    def _ranked(self, alive: Sequence[Entrant]) -> list[Entrant]:
        """The default, since all others are held against it, then the best of the others."""
        default, *others = alive
        return [default, *sorted(others, key=lambda e: -e.mean)]

    async def _keep(self, alive: list[Entrant], n: int, otherwise: str) -> list[Entrant]:
        ranked = self._ranked(alive)
        for entrant in ranked[n:]:
            self._say(entrant, otherwise)
            await self.engine.run(entrant.drop)
        return ranked[:n]

    async def _choose(self, alive: list[Entrant]) -> list[Entrant]:
        """The default, or the best of the others where it is better beyond doubt; the only one left as it is."""
        if len(alive) == 1:
            if self.tried and not self.why:
                self.why = "No other recipe is left to be held against the default."
            return alive
        default, *others = self._ranked(alive)
        name, low = best_of(default.logprob, {e.name: e.logprob for e in others}, self.tried)
        best = others[0]
        advantage = best.mean - default.mean
        figures = (
            f"the recipe {best.name} changes the held-out log-probability by {advantage:+.3f} nats per token against the default "
            f"(lower bound {low:+.3f}, corrected for {self.tried} tried)"
        )
        if name == DEFAULT:
            chosen, self.why = default, f"The default stays: {figures}."
        else:
            chosen, self.why, self.flattery = best, f"Beyond doubt {figures}.", advantage - low
        for entrant in alive:
            if entrant is not chosen:
                self._say(entrant, "dropped: not chosen")
                await self.engine.run(entrant.drop)
        return [chosen]

    def _before(self, chosen: Entrant) -> Judged:
        """At the look before the last; the base model, where there was one look."""
        return chosen.judged[-2] if len(chosen.judged) > 1 else self.base

    def _steps(self, chosen: Entrant) -> int:
        """How many steps the training takes in all. The budget bounds only what goes beyond the recipe's own."""
        steps = self.recipe.steps
        if not pays(self._before(chosen).logprob, chosen.logprob):
            return min(steps, chosen.steps + math.ceil(TAIL * steps))
        if len(chosen.judged) == 1:
            return steps
        affordable = chosen.steps + int(self._left / self._whole_step_tokens(chosen))
        return max(steps, min(math.ceil(LONGEST * steps), affordable))

    def _shorter(self, chosen: Entrant, recipe: Recipe) -> Recipe | None:
        """The shorter training by what was chosen; where more does not pay, it is shorter still."""
        short = recipe.shorter
        if short is None:
            return None
        pay = pays(self._before(chosen).logprob, chosen.logprob)
        steps = short.steps if pay else min(short.steps, chosen.steps + math.ceil(TAIL * short.steps))
        return lasting(short, max(steps, chosen.steps + 1), chosen.steps)

    def _why_so_long(self, chosen: Entrant, steps: int) -> str:
        before = self._before(chosen).logprob
        pay = "pays" if len(chosen.judged) == 1 else "still pays"
        if not pays(before, chosen.logprob):
            pay = "does not pay"
        elif steps < math.ceil(LONGEST * self.recipe.steps) and len(chosen.judged) > 1:
            pay += ", as far as the budget goes,"
        change = chosen.mean - mean(before)
        return f"More training {pay} at {chosen.steps} steps ({change:+.3f} nats per token): {steps} steps."

    def _evidence(self, chosen: Entrant) -> CrossFitResult:
        return CrossFitResult(
            self.plain.correct,
            chosen.judged[-1].correct,
            self.plain.logprob,
            tuple(value - self.flattery for value in chosen.logprob),
            sum(e.tokens for e in self.entrants),
            sum(e.seconds for e in self.entrants),
        )

    def _record(self, entrant: Entrant, outcome: str, after: float | None = None) -> None:
        self.trials.append(Trial(entrant.name, entrant.steps, mean(self.base.logprob), after, outcome))

    def _say(self, entrant: Entrant, outcome: str) -> None:
        """What became of an entrant after its last trial."""
        last = max(i for i, trial in enumerate(self.trials) if trial.candidate == entrant.name)
        self.trials[last] = replace(self.trials[last], outcome=outcome)


def _why_without(verdicts: Sequence[Carried]) -> str:
    out = [v for v in verdicts if not v.kept]
    broken = [
        f"{v.augmentation} ({v.change:+.3f} nats per token"
        + (")" if v.low is None else f", lower bound {v.low:+.3f})")
        for v in out
        if v.change is not None
    ]
    unjudged = [v.augmentation for v in out if v.change is None]
    said = (
        [f"What was learned does not carry over under {', '.join(broken)}, or not far enough: left out."]
        if broken
        else []
    )
    said += [f"Could not be judged, so left out: {', '.join(unjudged)}."] if unjudged else []
    return " ".join(said)
