"""Which recipe trains best on this task: successive halving, judged on the demonstrations alone.

Each candidate trains on both halves of the demonstrations (of three on each two), as `crossfit` does, all of them in shared passes. At
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

from collections.abc import Callable

from ttt.candidates import candidates
from ttt.carry import undoubted
from ttt.crossfit import folds, judge_folds
from ttt.engine import Engine
from ttt.entrant import Entrant, StepTokens
from ttt.errors import Cancelled
from ttt.prompts import PromptFormat
from ttt.race import Race, Searched
from ttt.recipes import Recipe, as_written
from ttt.task import Task
from ttt.train import TrainStep


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
        TaskError: fewer than three demonstrations.
        TrainingFailed: the recipe as it is fails, or `should_stop` said so. A candidate that fails is dropped.
    """
    written = as_written(task, recipe.rows)
    parts = folds(written, seed)

    def go_on() -> None:
        beat()
        if should_stop():
            raise Cancelled("The search was cancelled; the model is unchanged.")

    nobody = [None] * len(parts)
    base = plain = await judge_folds(engine, parts, nobody)
    if written.indexed:  # what in-context learning would have said
        plain = await judge_folds(engine, folds(task, seed), nobody)
    fmt = PromptFormat(engine.loaded.tokenizer, written, as_turns=engine.loaded.as_turns)
    tokens = StepTokens.of(fmt, task, recipe)
    listed = candidates(task, undoubted(task, recipe))
    entrants = [Entrant(engine, parts, candidate, seed, should_stop) for candidate in listed]
    race = Race(
        engine, task, parts, entrants, base, plain, recipe, seed, tokens, bool(fmt.hints), emit, go_on
    )
    try:
        return await race.run()
    finally:
        await engine.clean_up(race.drop)
