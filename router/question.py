"""What a caller asks, checked: a task, queries and options → the state's request and the nodes' surroundings."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from policies.utility import worth
from router.arms import parse_arm
from router.context import Context
from router.errors import RouterError
from router.settings import Settings
from router.state import WHENS, Request, When
from ttt.augment import check_names
from ttt.errors import TaskError
from ttt.recipes import Recipe, find_recipes, fitting
from ttt.task import Query, Task, check_size

if TYPE_CHECKING:
    from router.bootstrap import Parts


def question(
    settings: Settings,
    parts: Parts,
    recipes: tuple[Recipe, Recipe],
    task: Task,
    queries: Sequence[Query | str],
    *,
    arm: str = "auto",
    prefer: str | None = None,
    worth_s: float | None = None,
    expected_repeats: float | None = None,
    recipe: str | tuple[Recipe, Recipe] | None = None,
    seed: int | None = None,
    votes: int | None = None,
    augmentations: Sequence[str] | None = None,
    when: When = "wait",
    deadline_s: float | None = None,
    max_tokens: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    should_hurry: Callable[[], bool] = lambda: False,
    abandoned: Callable[[], bool] = lambda: False,
    episode_id: str | None = None,
    patient: bool = False,
    reuse: str | None = None,
) -> tuple[Request, Context]:
    """What the graph needs to answer `queries`: the state's `request`, and the context.

    Args:
        settings, parts, recipes: the router's own; recipes for texts, and for tasks made of cells.
        arm: `auto` lets the policy decide; `icl`, `ttt` (training without the guard) and `zero-shot` are obeyed, as
            are their variants, such as `icl:4`, `ttt:short` and `ttt:quick@5` (`router.arms`).
        prefer: fast, balanced or accurate; `worth_s` instead gives seconds for one more correct answer.
        expected_repeats: queries of the same task that will come later; training is spread over them.
        recipe: a name (docs/recipes.md), the path of a `.toml` file, or what `find_recipes` made of them.
        votes: views of the task that vote on each answer; their seconds are in the receipt.
        augmentations: what those views may change (`ttt.augment.AUGMENTATIONS`), as far as it fits the task; the
            usual ones, less those that training has left out, if none are named.
        when: `wait` trains before it answers, where that pays; `background` answers at once and trains behind, so
            that later queries have the adapter; `never` trains nothing, but uses what was trained before.
        deadline_s: seconds from now; what can't be done by then is left out, and the best answer there is by
            then is given.
        max_tokens: of each answer, at most.
        should_stop: asked between slices of work; True ends training early and falls back to ICL.
        should_hurry: asked likewise; True ends measuring, voting and training, and answers are still written.
        abandoned: asked likewise, where `should_stop` is True; True ends answering in context, too.
        patient: everybody else's answers go before this one.
        episode_id: names the episode in place of a random id; one that is there already is left as it is.
        reuse: `near` tries adapters of like tasks, `off` none (docs/reuse.md); a shorter training that is asked for outright
            begins at none.

    Raises:
        TaskError: no queries, a task that can't be used as given, or a recipe or augmentation that there is
            none of.
        RouterError: another option that can't be.
    """
    s = settings
    asked = tuple(Query(q) if isinstance(q, str) else q for q in queries)
    way = parse_arm(arm)
    if not asked:
        raise TaskError("There is nothing to answer: give at least one query.")
    check_size(task, asked)
    for number, q in enumerate(asked, start=1):
        if not q.input.strip():
            raise TaskError(f"Query {number} is empty; give it a text or leave it out.")
    if way.arm == "ttt" and not task.demonstrations:
        raise TaskError("Training needs demonstrations and the task has none; add some or use another arm.")
    if when not in WHENS:
        raise RouterError(f"Unknown time to train {when!r}; choose one of: {', '.join(WHENS)}.")
    if way.arm == "ttt" and when == "never":
        raise RouterError(f"arm={arm!r} trains and when='never' forbids it; give one of them.")
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise RouterError(f"deadline_s is {deadline_s}; it must be a number of seconds above 0.")
    if reuse not in (None, "off", "near"):
        raise RouterError(f"reuse is {reuse!r}; it must be off or near.")
    if max_tokens is not None and max_tokens < 1:
        raise RouterError(f"max_tokens is {max_tokens}; it must be at least 1.")
    wanted = way.votes or (s.votes if votes is None else votes)
    if wanted < 1:
        raise RouterError(f"votes is {wanted}; it must be at least 1.")
    if way.calibrated and wanted > 1:
        raise RouterError(f"arm={arm!r} is not voted on, and votes is {wanted}; give votes=1.")
    if way.recipe and recipe is not None:
        raise RouterError(f"arm={arm!r} names a recipe, and so does recipe={recipe!r}; give one of them.")
    pair = _recipes(way.recipe or recipe, recipes)
    if way.short and when == "background":
        raise RouterError(
            f"arm={arm!r} trains before it answers, and when='background' behind; give one of them."
        )
    if way.short and (recipe_here := fitting(pair, task)).shorter is None:
        raise RouterError(
            f"arm={arm!r}: the recipe {recipe_here.name!r} offers no shorter training; ask for ttt, or set its key short."
        )
    request = Request(
        episode_id or uuid.uuid4().hex,
        task,
        asked,
        "auto" if when == "background" and way.arm == "ttt" else way.arm,
        s.worth if prefer is None and worth_s is None else worth(prefer, worth_s),
        s.expected_repeats if expected_repeats is None else expected_repeats,
        pair,
        s.seed if seed is None else seed,
        wanted,
        None if augmentations is None else check_names(augmentations),
        when,
        max_tokens,
        way.shots,
        (reuse or s.reuse) == "near" and not way.short,
        way.calibrated,
        way.short,
        way.arm == "ttt",
    )
    deadline = math.inf if deadline_s is None else time.monotonic() + deadline_s
    return request, Context(
        parts.engine,
        parts.store,
        parts.policy,
        parts.costs,
        s,
        parts.owner,
        should_stop,
        should_hurry,
        abandoned,
        deadline,
        patient,
        parts.worker,
    )


def _recipes(
    given: str | tuple[Recipe, Recipe] | None, usual: tuple[Recipe, Recipe]
) -> tuple[Recipe, Recipe]:
    return find_recipes(given) if isinstance(given, str) else given or usual
