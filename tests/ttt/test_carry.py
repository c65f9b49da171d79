"""Which augmentations keep a task's rule: what was learned without one carries over to it, or does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest

from tests.ttt.conftest import SMALL
from ttt import carry as carrying
from ttt.carry import CHECKED, Carried, carry, checked, kept, undoubted
from ttt.crossfit import folds, lower_bound
from ttt.engine import Engine
from ttt.errors import ContextOverflow
from ttt.judging import Judged, judge
from ttt.recipes import CELLS, RECIPES, TEXT
from ttt.search import search
from ttt.task import Demonstration, Task

AUTO = replace(
    SMALL,
    name="auto",
    steps=40,
    probe_steps=30,
    stop_loss=0.0,
    search=1.5,
    augmentations=("order", "symmetry"),
)


def rows(output: str, n: int = 8, seed: int = 0) -> Task:
    """Any row of five cells, always the same answer."""
    rng = random.Random(seed)
    return Task(tuple(Demonstration(" ".join(rng.choices("0123", k=5)), output) for _ in range(n)))


DIRECTED, MIRRORED, STILL = (
    rows("1 2 3 0 0"),
    rows("1 2 3 2 1"),
    Task(tuple(Demonstration(f"{i} 0 {i}", f"0 {i} 0") for i in range(1, 7))),
)
TEXTS = Task(tuple(Demonstration(f"say {i}", f"it is {i}") for i in range(6)))


def test_only_what_may_break_a_rule_is_checked() -> None:
    assert checked(DIRECTED, CELLS) == ("symbols", "symmetry", "shift")
    assert checked(TEXTS, TEXT) == () and checked(TEXTS, CELLS) == ()
    ragged = Task((*DIRECTED.demonstrations, Demonstration("1 0 0\n1 0", "0 0")))
    assert checked(ragged, CELLS) == ("symbols",), "whole rows can't be mirrored there"


def test_the_first_steps_go_without_what_is_doubted() -> None:
    assert undoubted(DIRECTED, CELLS).augmentations == ("order", "symbols", "shift")
    assert undoubted(TEXTS, TEXT) == TEXT
    everything = RECIPES["paper-arc"][1]
    assert undoubted(DIRECTED, everything).augmentations == ("order", "symbols", "shift")


def test_what_holds_is_trained_with_and_what_does_not_is_left_out() -> None:
    found = (
        Carried("symbols", 8, -0.1, False),
        Carried("symmetry", 8, 0.2, True),
        Carried("shift", 8, 0.1, True),
    )
    assert kept(undoubted(DIRECTED, CELLS), found).augmentations == ("order", "symmetry", "shift")
    assert kept(TEXT, ()) == TEXT


async def test_what_is_doubted_must_hold_beyond_chance_the_more_so_the_more_is_tried(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean gain of .1 with a standard error of .07: enough for what seldom breaks a rule; a lower bound above 0 at
    10 % for one that is doubted, below 0 at 10 % / 2 for one of two."""
    changes = [0.4, -0.1, 0.1, 0.3, -0.2, 0.1, 0.02, 0.2]

    async def told(_: object, __: object, shown: Sequence[Demonstration], **how: Any) -> Judged:
        gained = changes[: len(shown)] if how["adapter"] else [0.0] * len(shown)
        return Judged((False,) * len(shown), tuple(gained))

    monkeypatch.setattr(carrying, "judge", told)
    halves = folds(DIRECTED, 0)
    whole = (replace(halves[0], held_out=DIRECTED.demonstrations), replace(halves[1], held_out=()))
    verdicts = {}
    for names in (("shift",), ("scale",), ("scale", "tile")):
        monkeypatch.setattr(
            carrying, "_turned", lambda task, d, name, rng, first=names[0]: d if name == first else None
        )
        found = await carry(llama_engine, DIRECTED, whole, ("a", "b"), names, 0)
        verdicts[names] = found[0]
    assert verdicts["shift",].kept and verdicts["shift",].low is None
    assert all(v.change == pytest.approx(mean(changes)) for v in verdicts.values())
    one, of_two = verdicts["scale",], verdicts["scale", "tile"]
    assert one.low == pytest.approx(lower_bound(changes, 0.1)) and lower_bound(changes, 0.1) > 0 and one.kept
    assert of_two.low == pytest.approx(lower_bound(changes, 0.05)) and lower_bound(changes, 0.05) < 0
    assert not of_two.kept


@pytest.mark.parametrize(("task", "holds"), [(DIRECTED, False), (MIRRORED, True)])
async def test_a_rule_with_a_direction_is_not_mirrored(llama_engine: Engine, task: Task, holds: bool) -> None:
    digest = await llama_engine.base_hash()
    found = await search(llama_engine, task, AUTO, 0)
    (verdict,) = found.augmentations
    assert verdict.augmentation == "symmetry" and verdict.kept == holds
    assert verdict.change is not None and (verdict.change > 0) == holds
    assert found.recipe.augmentations == (("order", "symmetry") if holds else ("order",))
    assert ("does not carry over under symmetry" in found.reason) != holds
    assert await llama_engine.base_hash() == digest


async def test_a_search_goes_without_what_it_could_not_judge_and_says_so(llama_engine: Engine) -> None:
    found = await search(llama_engine, STILL, AUTO, 0)
    assert found.augmentations == (Carried("symmetry", 0, None, False),)
    assert found.recipe.augmentations == ("order",) and found.reason.endswith(
        "Could not be judged, so left out: symmetry."
    )


async def test_what_changes_no_demonstration_is_not_judged(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> Judged:
        raise AssertionError("there is nothing to judge")

    monkeypatch.setattr(carrying, "judge", never)
    found = await carry(llama_engine, STILL, folds(STILL, 0), ("a", "b"), ("symmetry",), 0)
    assert found == (Carried("symmetry", 0, None, False),), "what is doubted needs evidence"


async def test_what_does_not_fit_is_not_judged(llama_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def overflows(*_: object, **__: object) -> Judged:
        raise ContextOverflow("too long")

    monkeypatch.setattr(carrying, "judge", overflows)
    names = ("symbols", "symmetry")
    found = await carry(llama_engine, DIRECTED, folds(DIRECTED, 0), ("a", "b"), names, 0)
    assert [(v.change, v.kept) for v in found] == [(None, True), (None, False)]


async def test_each_half_is_judged_by_what_has_not_seen_it(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformed demonstrations are the other half's alone, once for the base model and once for the adapter."""
    asked: list[tuple[Task, list[Demonstration], str | None]] = []

    async def spy(
        engine: Engine,
        task: Task,
        held_out: Sequence[Demonstration],
        *,
        adapter: str | None,
        written: Task,
    ) -> Judged:
        asked.append((task, list(held_out), adapter))
        return await judge(engine, task, held_out, adapter=None, written=written)

    monkeypatch.setattr(carrying, "judge", spy)
    task, parts = DIRECTED, folds(DIRECTED, 1)
    found = await carry(llama_engine, task, parts, ("one", "other"), ("symmetry",), 0)
    assert [(shown, adapter) for shown, _, adapter in asked] == [
        (parts[0].task, None),
        (parts[0].task, "one"),
        (parts[1].task, None),
        (parts[1].task, "other"),
    ]
    for (_, judged, _), part in zip(asked, (parts[0], parts[0], parts[1], parts[1]), strict=True):
        back = [d.input[::-1] for d in judged]
        assert set(back) <= {d.input for d in part.held_out}
    assert [v.change for v in found] == [0.0] and not found[0].kept, (
        "nothing was learned that could carry over"
    )


def test_all_augmentations_of_cells_are_checked_but_order() -> None:
    from ttt.augment import AUGMENTATIONS

    of_cells = {name for name, kinds in AUGMENTATIONS.items() if "sequence" in kinds}
    assert set(CHECKED) == of_cells - {"order"}
