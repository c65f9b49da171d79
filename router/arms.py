"""The names of arms that a caller may ask for, such as `icl:4` or `ttt:quick@5`, and what each of them means.

auto                 the policy decides
zero-shot            the instruction alone
icl                  in context: all demonstrations that fit
icl:4                a random choice of four of them, fixed by the seed
icl:calibrated       the likeliest label, corrected by a content-free prior (`ttt.calibrate`)
ttt                  training without the guard, by the recipe in force
ttt:RECIPE           training by that recipe, e.g. `ttt:context`
ttt:short            the shorter training that the recipe in force offers
…@5                  any of these with five views that vote
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from router.errors import RouterError
from router.state import Arm, Request
from ttt.task import Task

PLAIN: tuple[Arm, ...] = ("auto", "icl", "ttt", "zero-shot")
CALIBRATED = "icl:calibrated"
FORMS = f"{', '.join(PLAIN)}, icl:4 (so many demonstrations), {CALIBRATED}, ttt:RECIPE, ttt:short; @5 at the end lets five views vote"

_NAME = re.compile(r"(?P<arm>[a-z-]+)(?::(?P<how>.+?))?(?:@(?P<votes>\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Way:
    """What an arm's name asks for."""

    arm: Arm
    shots: int = 0
    """Demonstrations to show; 0 shows all that fit."""
    calibrated: bool = False
    recipe: str = ""
    """A name or a `.toml` file; the one in force when empty."""
    short: bool = False
    """The shorter training of the recipe in force."""
    votes: int = 0
    """Views that vote; as many as are set elsewhere when 0."""


def parse_arm(name: str) -> Way:
    """What the arm called `name` means.

    Raises:
        RouterError: there is none of this name.
    """
    found = _NAME.fullmatch(name)
    arms = {arm: arm for arm in PLAIN}
    if found is None or found["arm"] not in arms:
        raise RouterError(f"Unknown arm {name!r}; choose one of: {FORMS}.")
    way, how = Way(arms[found["arm"]], votes=int(found["votes"] or 0)), found["how"]
    if found["votes"] is not None and way.votes < 1:
        raise RouterError(f"The arm {name!r} has {way.votes} views vote; give at least 1.")
    if how is None:
        return way
    if way.arm == "ttt":
        return replace(way, short=True) if how == "short" else replace(way, recipe=how)
    if way.arm == "icl" and how == "calibrated":
        return replace(way, calibrated=True)
    if way.arm == "icl" and how.isdecimal() and int(how) > 0:
        return replace(way, shots=int(how))
    raise RouterError(f"Unknown arm {name!r}; choose one of: {FORMS}.")


def shown(task: Task, request: Request) -> Task:
    """The task as the arm shows it: without demonstrations, or with a random choice of them in their order."""
    if request.arm == "zero-shot":
        return replace(task, demonstrations=())
    if not 0 < request.shots < len(task.demonstrations):
        return task
    kept = sorted(random.Random(request.seed).sample(range(len(task.demonstrations)), request.shots))
    return replace(task, demonstrations=tuple(task.demonstrations[i] for i in kept))


def taken(arm: str, request: Request, fallback: str) -> str:
    """The name under which the arm that was decided on goes into the receipt."""
    if arm != "icl" or fallback:
        return arm
    if request.calibrated:
        return CALIBRATED
    return f"icl:{request.shots}" if request.shots else arm
