"""Which recipe trains best on this task: successive halving, judged on the demonstrations alone.

Each candidate trains on both halves of the demonstrations, as `crossfit` does, all of them in shared passes. At
each rung (so many steps) they pause and are judged: every demonstration once, by an adapter and in a context that
have not seen it. The worse half is dropped, the others go on where they stood (arXiv 1502.07943).

**Many are tried, and the best of many looks better than it is.** So the recipe as it is stays, unless the best
other one is better by a margin: its mean advantage in held-out log-probability, paired over demonstrations, must
have a lower bound above 0 by Student's t at the level 10 % ÷ number of others tried (Bonferroni, which is also the
first step of Holm). So where no other one is better, the recipe is replaced in at most 10 % of tasks (a simulation
in the tests); and with ten demonstrations only clear differences are seen. The evidence of a winner that is not
the default is handed on at that lower bound instead of at its mean.

**Where nothing has been learned there is no second look.** Where the best candidate has not raised the held-out
log-probability over the base model's, the race ends at that rung.

**How long to train** is read from the last two rungs of the recipe that was chosen. Where the later one does not
raise the held-out log-probability by more than its standard error, more does not pay: only the decay of the rate
is left. Where it does, training is as long as the budget allows, up to half as long again; after one look only it
takes the recipe's own steps. That this still pays later is an extrapolation, since the halves end at the latest at
half of the recipe's steps.

Other tasks' adapters as starting points are held against one another beforehand, without a step (`warm`).

The budget bounds what is tried besides, and steps beyond the recipe's own. It is a number of tokens, so that the same
task and seed find the same recipe on any machine: those trained on, and those that judging reads, at half. Training
on all demonstrations goes on from the mean of the winner's two adapters; its rungs are part of that training. Knows
nothing of seconds or of queries.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

from ttt.candidates import DEFAULT, candidates
from ttt.carry import Carried, carry, checked, kept, undoubted
from ttt.crossfit import LEVEL, CrossFitResult, Fold, folds, judge_folds, lower_bound
from ttt.engine import Bench, Engine
from ttt.entrant import Entrant, StepTokens
from ttt.errors import Cancelled, TrainingFailed
from ttt.judging import Judged
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe, as_written
from ttt.task import Task
from ttt.train import Beginning, TrainStep

HINTED_SHARE = 0.5
"""Of what held-out demonstrations as they are have gained, what transformed ones must gain where rows have index hints."""
TAIL = 0.25
"""Steps that are left for the decay of the rate where more training does not pay, as a share of the recipe's."""
LONGEST = 1.5
"""Steps of a training that keeps paying, at most, as a multiple of the recipe's."""


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


async def search(
    engine: Engine,
    task: Task,
    recipe: Recipe,
    seed: int,
    emit: Callable[[TrainStep], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    beat: Callable[[], None] = lambda: None,
) -> Searched:
    """Search from `recipe`, within its budget `recipe.search`.

    Args:
        beat: called before each judging, which `emit` says nothing of.

    Raises:
        TaskError: fewer than four demonstrations.
        TrainingFailed: the recipe as it is fails, or `should_stop` said so. A candidate that fails is dropped.
    """
    written = as_written(task, recipe.rows)
    parts = folds(written, seed)

    def go_on() -> None:
        beat()
        if should_stop():
            raise Cancelled("The search was cancelled; the model is unchanged.")

    base = plain = await judge_folds(engine, parts, (None, None))
    if written.indexed:  # what in-context learning would have said
        plain = await judge_folds(engine, folds(task, seed), (None, None))
    fmt = PromptFormat(engine.loaded.tokenizer, written, as_turns=engine.loaded.as_turns)
    tokens = StepTokens.of(fmt, task, recipe)
    listed = candidates(task, undoubted(task, recipe))
    race = _Race(engine, task, parts, base, plain, recipe, seed, tokens, bool(fmt.hints), emit, go_on)
    race.entrants = [Entrant(engine, parts, candidate, seed, should_stop) for candidate in listed]
    try:
        return await race.run()
    finally:
        await engine.clean_up(race.drop)


def rungs(recipe: Recipe) -> tuple[int, ...]:
    """Steps at which candidates are judged: half of a probe, a probe, twice that, …, up to half of the recipe."""
    found = [max(1, recipe.probed // 2)]
    step = recipe.probed
    while step <= max(recipe.probed, recipe.steps // 2):
        found.append(step)
        step *= 2
    return tuple(dict.fromkeys(found))


def pays(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the paired mean rose by more than its standard error."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return mean(changes) > stdev(changes) / math.sqrt(len(changes))


def best_of(default: Sequence[float], others: Mapping[str, Sequence[float]], tried: int) -> tuple[str, float]:
    """Which of `others` replaces the default, or the default; and the lower bound of the best one's advantage.

    Args:
        default, others: held-out log-probabilities, paired by demonstration.
        tried: how many others there were at the start, those that were dropped included.
    """
    name = max(others, key=lambda other: mean(others[other]))
    low = lower_bound([b - a for a, b in zip(default, others[name], strict=True)], LEVEL / tried)
    return (name if low > 0 else DEFAULT), low


class _Race:
    """The search itself: who runs, what that has cost, and what became of whom."""

    entrants: list[Entrant]
    """The default first."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        parts: tuple[Fold, Fold],
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
        steps = self._steps(chosen)
        begin = await self.engine.run(chosen.finish)
        return Searched(
            lasting(kept(chosen.recipe, verdicts), steps, chosen.steps),
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
        gained = max(0.0, chosen.mean - mean(self.base.logprob))
        least = HINTED_SHARE * gained if self.hinted else 0.0
        found = await carry(
            self.engine, self.task, self.parts, chosen.adapters, names, self.seed, self.go_on, least
        )
        self.judgements += 1 + len(names)
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
        self.planned += sum(2 * (rung - e.steps) for e in alive)
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


def lasting(recipe: Recipe, steps: int, taken: int) -> Recipe:
    """The recipe with another number of steps, `taken` of them made. Where they are fewer, the rate does not rise any
    further: it decays from where it is."""
    if steps >= recipe.steps:
        return recipe.with_steps(steps)
    rising = recipe.warmup * recipe.steps
    reached = min(1.0, taken / rising) if rising > 0 else 1.0
    return replace(
        recipe,
        steps=steps,
        learning_rate=recipe.learning_rate * reached,
        warmup=min(recipe.warmup, taken / steps),
    )


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
