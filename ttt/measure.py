"""How large a task is, in tokens: what costs are estimated from. No forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ttt.carry import CHECKED, FEWEST
from ttt.content import content_kind
from ttt.crossfit import MIN_DEMONSTRATIONS, shape
from ttt.halving import rungs
from ttt.prompts import PromptFormat
from ttt.recipes import Recipe, as_written
from ttt.task import Query, Task

if TYPE_CHECKING:
    from ttt.engine import Engine


@dataclass(frozen=True, slots=True)
class TaskSize:
    """Tokens of one task with its queries under one model's tokenizer."""

    template: str
    n_demonstrations: int
    prefix_tokens: int
    query_tokens: int
    """Of all queries together."""
    answer_tokens: float
    """Mean over the demonstrations' outputs."""
    longest_answer: int
    cells: bool = False
    hinted_tokens: int = 0
    """Of the demonstrations where rows of cells have index hints; 0 where they can't."""
    long_rows: bool = False

    def train_tokens(self, recipe: Recipe) -> int:
        """Tokens that a training runs over, over all steps; with its search, at most, where other recipes are tried."""
        once = _tokens(recipe, self.n_demonstrations, self._written(recipe))
        if self._chooses(recipe):
            return round(once * recipe.search)
        return once + self._of_folds(recipe) + self._checks(recipe)

    def probe_tokens(self, recipe: Recipe) -> int:
        """Tokens that all folds of the cross-fitted probe train on, or a search at most; 0 where it is not
        feasible."""
        if not self._halves:
            return 0
        first = replace(recipe, form="in-context", steps=recipe.probed)
        n_folds, shown = shape(self.n_demonstrations)
        once = n_folds * _tokens(first, shown, self._written(recipe) * (n_folds - 1) // n_folds)
        if not self._chooses(recipe):
            return once + self._checks(recipe)
        return max(once, self.train_tokens(recipe) - self.rest_tokens(recipe))

    def rest_tokens(self, recipe: Recipe) -> int:
        """Tokens of a training that goes on from the probe; of all of it where there is none."""
        begun = self._halves and recipe.form == "in-context"
        rest = recipe.with_steps(max(1, recipe.steps - recipe.probed)) if begun else recipe
        return _tokens(rest, self.n_demonstrations, self._written(recipe))

    def _of_folds(self, recipe: Recipe) -> int:
        """Tokens that beginning on folds takes beyond beginning on all: nothing for two halves."""
        n_folds, _ = shape(self.n_demonstrations)
        if not self._halves or recipe.form != "in-context":
            return 0
        first = _tokens(recipe.with_steps(recipe.probed), self.n_demonstrations, self._written(recipe))
        return first * (n_folds - 2)

    def _chooses(self, recipe: Recipe) -> bool:
        """Whether the recipe's search has room for a second candidate (see `search`); on cells there is none."""
        first = rungs(recipe)[0]
        two = 2 * (first + 1) + recipe.steps - first
        return self._halves and not self.cells and two <= recipe.search * recipe.steps

    def _checks(self, recipe: Recipe) -> int:
        """What it costs to see which augmentations hold, in tokens trained on: judging is half as dear."""
        names = (
            set(recipe.augmentations) & set(CHECKED)
            if self.cells and recipe.search and self.n_demonstrations >= FEWEST
            else ()
        )
        return (1 + len(names)) * self._written(recipe) if names else 0

    def _written(self, recipe: Recipe) -> int:
        """Tokens of the demonstrations as the recipe writes them."""
        hinted = recipe.rows == "indexed" or (recipe.rows == "long-indexed" and self.long_rows)
        return self.hinted_tokens if hinted and self.hinted_tokens else self.prefix_tokens

    @property
    def _halves(self) -> bool:
        """Whether there are enough demonstrations for some to be judged on."""
        return self.n_demonstrations >= MIN_DEMONSTRATIONS


def _tokens(recipe: Recipe, n_demonstrations: int, prefix_tokens: int) -> int:
    shots = 1 if recipe.form in ("direct", "prefix") else recipe.shots
    share = min(1.0, shots / max(n_demonstrations, 1))
    return recipe.steps * recipe.batch * min(round(prefix_tokens * share), recipe.sequence_tokens)


def task_size(engine: Engine, task: Task, queries: Sequence[Query]) -> TaskSize:
    """Measure `task` with the engine's tokenizer."""
    fmt = PromptFormat(engine.loaded.tokenizer, task, queries, engine.loaded.as_turns)
    hinted = PromptFormat(
        engine.loaded.tokenizer, as_written(task, "indexed"), queries, engine.loaded.as_turns
    )
    segments = [fmt.segment(d) for d in task.demonstrations]
    answers = [len(s.answer) for s in segments]
    return TaskSize(
        fmt.template,
        len(segments),
        len(fmt.head()) + sum(map(len, segments)),
        sum(len(fmt.asked(q)) for q in queries),
        sum(answers) / len(answers) if answers else 0.0,
        max(answers, default=fmt.max_new_tokens(task)),
        content_kind(task) in ("grid", "sequence"),
        len(hinted.head()) + sum(len(hinted.segment(d)) for d in task.demonstrations) if hinted.hints else 0,
        as_written(task, "long-indexed").indexed,
    )
