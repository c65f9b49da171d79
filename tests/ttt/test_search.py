"""The search for a recipe: who runs how far, who is chosen, and what that costs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest

from tests.ttt.conftest import SMALL, letters_task
from tests.ttt.test_crossfit import halves
from ttt import race as racing
from ttt import search as searching
from ttt.candidates import DEFAULT, Candidate, candidates
from ttt.carry import Carried, carry
from ttt.crossfit import LEVEL, Fold, cross_fit, folds, judge_folds, lower_bound
from ttt.engine import Engine
from ttt.errors import Cancelled, NonFiniteLoss, TaskError
from ttt.halving import LONGEST, TAIL, best_of, lasting, pays, rungs
from ttt.judging import Judged
from ttt.measure import TaskSize, task_size
from ttt.race import Searched, Trial
from ttt.recipes import CELLS, LONG, RECIPES, TEXT, Recipe, as_written
from ttt.search import search
from ttt.task import Demonstration, Task
from ttt.train import Beginning, TrainRequest, TrainStep, train_adapter

AUTO = replace(SMALL, name="auto", steps=12, probe_steps=4, stop_loss=0.0, search=3.0)
ALONE = replace(AUTO, search=1.0)
"""Its budget has room for nothing but the default."""
ROWS = Task(tuple(Demonstration(f"{i} 0 0", f"0 {i} 0") for i in range(1, 7)))
CHOICE = Task(
    tuple(Demonstration(f"Which?\nOptions:\n(A) {x}\n(B) b", "(A)" if x < "b" else "(B)") for x in "adaf")
)
LABELS = Task(tuple(Demonstration(f"say {i}", "yes" if i % 2 else "no") for i in range(6)))


def names(task: Task, recipe: Recipe) -> list[str]:
    return [c.name for c in candidates(task, recipe)]


def at(found: Searched, steps: int) -> list[Trial]:
    return [trial for trial in found.trials if trial.steps == steps]


async def attached(engine: Engine) -> tuple[str, ...]:
    return await engine.run(lambda bench: bench.slots.names)


# Candidates


def test_candidates_follow_from_the_content() -> None:
    text, cells = RECIPES["auto"]
    rates = ["half-rate", "double-rate", "last-output"]
    assert names(letters_task(4), text) == [DEFAULT, *rates]
    assert names(CHOICE, text) == [DEFAULT, "options", *rates]
    assert names(LABELS, text) == [DEFAULT, "labels", *rates]
    assert names(ROWS, cells) == [DEFAULT], "what differs there is seen by `carry`"


def test_no_two_candidates_are_the_same_on_the_task() -> None:
    permuted = replace(RECIPES["auto"][0], augmentations=("order", "labels"))
    assert "labels" not in names(LABELS, permuted) and "labels" in names(LABELS, RECIPES["auto"][0])
    last = replace(RECIPES["auto"][0], loss="last-output")
    assert "last-output" not in names(letters_task(4), last)


def test_candidates_differ_from_the_recipe_in_what_they_are_named_for() -> None:
    default, half, double, last = candidates(letters_task(4), RECIPES["thorough"][0])
    assert default.recipe == replace(TEXT, name="thorough.default")
    assert half.recipe == replace(TEXT, name="thorough.half-rate", learning_rate=TEXT.learning_rate / 2)
    assert double.recipe.learning_rate == 2 * TEXT.learning_rate and last.recipe.loss == "last-output"


def test_rungs_are_half_a_probe_a_probe_and_its_doubles_up_to_half_of_the_steps() -> None:
    assert rungs(CELLS) == (5, 10, 20)
    assert rungs(TEXT) == (1, 3, 6)
    assert rungs(replace(TEXT, steps=2)) == (1,)


# The choice


def test_the_lower_bound_is_that_of_students_t() -> None:
    from scipy.stats import ttest_1samp

    changes = [0.3, -0.1, 0.4, 0.2, 0.1]
    interval = ttest_1samp(changes, 0.0, alternative="greater").confidence_interval(0.975)
    assert lower_bound(changes, 0.025) == pytest.approx(interval.low)


@pytest.mark.parametrize("k", [1, 4])
def test_useless_candidates_replace_the_default_in_at_most_the_stated_share(k: int) -> None:
    """Whoever is better by chance among `k` that are the default over again, judged on ten demonstrations."""
    rng, n, runs = random.Random(0), 10, 3000
    replaced = 0
    for _ in range(runs):
        hard = [rng.gauss(-1.0, 0.5) for _ in range(n)]

        def judged(hard: Sequence[float] = hard) -> list[float]:
            return [x + rng.gauss(0.0, 0.2) for x in hard]

        others = {str(i): judged() for i in range(k)}
        best = max(others, key=lambda name: mean(others[name]))  # what halving leaves
        name, low = best_of(judged(), {best: others[best]}, k)
        assert (name != DEFAULT) == (low > 0)
        replaced += name != DEFAULT
    error = math.sqrt(LEVEL * (1 - LEVEL) / runs)
    assert replaced / runs <= LEVEL + 3 * error
    assert replaced / runs > LEVEL / 3, "a test that never rejects chooses nothing"


def test_one_that_is_clearly_better_replaces_the_default() -> None:
    default = [-1.0, -1.2, -0.8, -1.1, -0.9, -1.0]
    better = [x + 0.3 + 0.02 * i for i, x in enumerate(default)]
    assert best_of(default, {"worse": default, "better": better}, 4)[0] == "better"


def test_more_pays_where_the_gain_exceeds_its_standard_error() -> None:
    before = [-1.0, -2.0, -3.0, -4.0]
    assert pays(before, [x + 0.1 for x in before])
    assert not pays(before, before) and not pays(before, [x - 0.1 for x in before])
    assert not pays(before, [x + change for x, change in zip(before, (1.0, -1.0, 1.0, -0.9), strict=True)])


# The race, on tiny models


async def test_the_worse_half_is_dropped_at_each_rung(llama_engine: Engine) -> None:
    digest = await llama_engine.base_hash()
    steps: list[TrainStep] = []
    found = await search(llama_engine, letters_task(8), AUTO, 0, emit=steps.append)
    first, second = at(found, 2), at(found, 4)
    assert [t.candidate for t in first] == [DEFAULT, "half-rate", "double-rate", "last-output"]
    others = sorted(first[1:], key=lambda t: -(t.logprob_after or -math.inf))
    assert [t.candidate for t in second] == [DEFAULT, others[0].candidate]
    assert all(t.outcome == "dropped: in the worse half" for t in others[1:])
    assert [t.outcome for t in found.trials].count("chosen") == 1
    assert len({t.logprob_before for t in found.trials}) == 1, "the base model is judged once"
    assert found.recipe.search == 0 and found.reason.endswith(f": {found.recipe.steps} steps.")
    assert [s.step for s in steps] == list(range(1, len(steps) + 1)) and steps[-1].step == steps[-1].of
    assert await attached(llama_engine) == () and await llama_engine.base_hash() == digest


async def test_the_same_seed_finds_the_same(llama_engine: Engine) -> None:
    one, again = [await search(llama_engine, letters_task(6), AUTO, 3) for _ in range(2)]
    assert replace(one, evidence=replace(one.evidence, train_s=0.0)) == replace(
        again, evidence=replace(again.evidence, train_s=0.0)
    )


async def test_a_search_among_one_is_a_probe(llama_engine: Engine) -> None:
    """One look, and weights, losses and evidence are those of a probe."""
    task = letters_task(6)
    found = await search(llama_engine, task, ALONE, 1)
    begun: list[Beginning] = []
    evidence = await cross_fit(llama_engine, task, ALONE, 1, begun=begun.append)
    assert [(t.candidate, t.steps) for t in found.trials] == [(DEFAULT, 4)]
    assert [steps for steps, _ in found.looks] == [4] and found.reason.startswith("More training ")
    assert found.evidence.logprob_after == pytest.approx(evidence.logprob_after, abs=1e-4)
    assert found.evidence.tokens == evidence.tokens
    assert found.begin.losses == pytest.approx(begun[0].losses, abs=1e-4)
    assert (found.begin.weights - begun[0].weights).abs().max() < 1e-4


async def test_no_demonstration_is_judged_by_what_has_seen_its_label(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one label changed, every candidate judges all others of its half as before, since it saw only the other
    half; and where it saw the label, it judges otherwise."""
    seen: list[Judged] = []

    async def spy(engine: Engine, parts: tuple[Fold, Fold], adapters: Sequence[str | None]) -> Judged:
        seen.append(await judge_folds(engine, parts, adapters))
        return seen[-1]

    for module in (searching, racing):
        monkeypatch.setattr(module, "judge_folds", spy)
    task, changed = letters_task(6, seed=5), 2
    shown = list(task.demonstrations)
    shown[changed] = Demonstration(shown[changed].input, "z z")
    found = await search(engine, task, AUTO, 1)
    n = 1 + len(at(found, 2))  # the base, then each candidate at the first rung
    before, seen[:] = seen[:n], []
    await search(engine, replace(task, demonstrations=tuple(shown)), AUTO, 1)
    after = seen[:n]
    own = next(half for half in halves(task, 1) if changed in half)
    assert n == 5
    for was, now in zip(before, after, strict=True):
        for i in range(6):
            same = now.logprob[i] == pytest.approx(was.logprob[i], abs=1e-4)
            assert same == (i in own - {changed})


async def test_the_winners_rungs_are_part_of_its_training(llama_engine: Engine) -> None:
    task = letters_task(6)
    found = await search(llama_engine, task, AUTO, 0)
    reached = len(found.begin.losses)
    last = found.trials[-1] if found.trials[-1].outcome == "chosen" else found.trials[-2]
    assert reached == last.steps >= 4
    request = TrainRequest(task, found.recipe, 0, None, "a", found.begin)
    rest = await train_adapter(llama_engine, request)
    assert rest.losses[:reached] == found.begin.losses and len(rest.losses) == found.recipe.steps
    alone = await train_adapter(llama_engine, replace(request, begin=None))
    assert rest.tokens / alone.tokens == pytest.approx(1 - reached / found.recipe.steps, abs=0.05)
    assert rest.losses[reached] < alone.losses[0]


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.0, 4.0])
async def test_search_and_training_together_keep_the_budget(llama_engine: Engine, budget: float) -> None:
    """It bounds what goes beyond the recipe: that and its one look are always afforded."""
    task, recipe = letters_task(8), replace(AUTO, steps=24, search=budget)
    found = await search(llama_engine, task, recipe, 0)
    judged = len(found.trials) * task_size(llama_engine, task, ()).prefix_tokens
    training = await train_adapter(llama_engine, TrainRequest(task, found.recipe, 0, None, "a", found.begin))
    alone = await train_adapter(llama_engine, TrainRequest(task, replace(recipe, search=0.0), 0, None, "a"))
    looked = judged if budget > 1.0 else 0
    assert found.evidence.tokens + looked + training.tokens <= max(budget, 1.15) * alone.tokens * 1.05
    tried = [trial.candidate for trial in found.trials if trial.steps == 2]
    left_out = [t.candidate for t in found.trials if t.outcome == "not tried: the budget has no room"]
    if budget == 1.0:
        assert tried == left_out == [], "nothing to choose, nothing to say of it"
    else:
        assert tried[0] == DEFAULT and len(tried) + len(left_out) == 4 and (len(tried) == 4 or budget < 2)


async def test_a_long_prompt_is_trained_on_as_long_as_a_short_one(llama_engine: Engine) -> None:
    """Sequences are cut at `sequence_tokens`, judging reads all: that must not cost a recipe its own steps."""
    recipe = replace(ALONE, steps=24, learning_rate=2e-3, sequence_tokens=24)
    found = await search(llama_engine, letters_task(8), recipe, 0)
    assert found.recipe.steps == (24 if "pays at 4 steps" in found.reason else 4 + round(TAIL * 24))


async def test_where_more_does_not_pay_training_is_short(llama_engine: Engine) -> None:
    still = replace(AUTO, steps=16, learning_rate=1e-12, search=10.0)
    found = await search(llama_engine, letters_task(6), still, 0)
    last = max(t.steps for t in found.trials)
    assert last <= 4, "the rung of eight steps is not run"
    assert found.recipe.steps == last + round(TAIL * 16) and "More training does not pay" in found.reason
    assert "The default stays" in found.reason and found.recipe.name == "auto.default"


async def test_where_more_pays_training_is_as_long_as_the_budget_allows(llama_engine: Engine) -> None:
    recipe = replace(AUTO, steps=16, learning_rate=2e-3, search=10.0)
    found = await search(llama_engine, letters_task(8), recipe, 0)
    assert "More training still pays at 8 steps" in found.reason
    assert found.recipe.steps == LONGEST * 16
    tight = await search(llama_engine, letters_task(8), replace(recipe, search=1.0), 0)
    assert tight.recipe.steps <= 16


def test_a_shorter_training_does_not_raise_its_rate_any_further() -> None:
    half = replace(CELLS, steps=40, warmup=0.5, learning_rate=2e-3)
    short = lasting(half, 20, 10)
    assert (short.steps, short.learning_rate, short.warmup) == (20, 1e-3, 0.5)
    assert lasting(half, 60, 10) == half.with_steps(60) and lasting(half, 40, 10) == half
    past = lasting(TEXT, 7, 3)
    assert (past.steps, past.learning_rate) == (7, TEXT.learning_rate) and past.warmup == TEXT.warmup


async def test_a_search_that_is_cancelled_judges_nothing_more(llama_engine: Engine) -> None:
    beats: list[int] = []
    steps: list[TrainStep] = []
    with pytest.raises(Cancelled, match="The search was cancelled"):
        await search(
            llama_engine,
            letters_task(6),
            ALONE,
            0,
            emit=steps.append,
            should_stop=lambda: len(steps) == 8,
            beat=lambda: beats.append(len(steps)),
        )
    assert beats == [8] and await attached(llama_engine) == ()


def long_rows(width: int, n: int = 8) -> Task:
    pairs = (("6 " * i + "5 " * (width - i), "5 " * (width - i) + "6 " * i) for i in range(1, n + 1))
    return Task(tuple(Demonstration(*pair) for pair in pairs))


def test_only_long_rows_are_written_with_index_hints_and_halves_as_the_whole() -> None:
    assert as_written(long_rows(LONG), "long-indexed").indexed
    assert not as_written(long_rows(LONG - 1), "long-indexed").indexed
    assert as_written(long_rows(5), "indexed").indexed and not as_written(long_rows(99), "plain").indexed
    assert not as_written(Task(), "long-indexed").indexed


async def test_augmentations_of_rows_with_hints_must_gain_half_of_what_these_do_as_they_are(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, Mapping[Demonstration, float] | None]] = []

    async def noted(engine: Engine, task: Task, parts: tuple[Fold, Fold], *rest: Any) -> tuple[Carried, ...]:
        asked.append((parts[0].task.indexed, rest[-1]))
        return await carry(engine, task, parts, *rest)

    monkeypatch.setattr(racing, "carry", noted)
    recipe = replace(ALONE, augmentations=("symmetry",), rows="indexed")
    found = await search(llama_engine, long_rows(9), recipe, 0)
    (trial,) = found.trials
    assert trial.logprob_after is not None
    assert trial.logprob_after > trial.logprob_before
    as_asked = await judge_folds(llama_engine, folds(long_rows(9), 0), (None, None))
    assert found.evidence.logprob_before == as_asked.logprob, "what in-context learning would have said"
    assert trial.logprob_before != pytest.approx(mean(as_asked.logprob))
    await search(llama_engine, long_rows(9), replace(recipe, rows="plain"), 0)
    (hinted, least), plain = asked
    assert hinted and least is not None and plain == (False, None) and found.recipe.rows == "indexed"
    assert mean(least.values()) == pytest.approx((trial.logprob_after - trial.logprob_before) / 2)
    (mirrored,) = found.augmentations
    assert mirrored.change is not None and mirrored.low is not None
    assert mirrored.low < mirrored.change - mean(least.values()) and mirrored.kept is (mirrored.low > 0)


async def test_a_better_recipe_replaces_the_default(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(task: Task, recipe: Recipe) -> tuple[Candidate, ...]:
        plain = replace(recipe, search=0.0)
        return Candidate(DEFAULT, replace(plain, learning_rate=1e-7)), Candidate("faster", plain)

    monkeypatch.setattr("ttt.search.candidates", listed)
    found = await search(llama_engine, letters_task(8), AUTO, 0)
    by_name = {trial.candidate: trial.logprob_after for trial in at(found, 2)}
    default, faster = by_name[DEFAULT], by_name["faster"]
    assert default is not None and faster is not None and faster > default
    assert "Beyond doubt the recipe faster" in found.reason
    (chosen,) = [t for t in found.trials if t.outcome == "chosen"]
    assert chosen.candidate == "faster" and chosen.logprob_after is not None
    assert mean(found.evidence.logprob_after) < chosen.logprob_after, "less what the choice flatters it by"
    assert mean(found.evidence.logprob_after) > default


async def test_a_candidate_that_fails_is_dropped(
    llama_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(task: Task, recipe: Recipe) -> tuple[Candidate, ...]:
        plain = replace(recipe, search=0.0)
        return Candidate(DEFAULT, plain), Candidate("wild", replace(plain, learning_rate=1e30))

    monkeypatch.setattr(searching, "candidates", listed)
    found = await search(llama_engine, letters_task(6), AUTO, 0)
    wild = next(trial for trial in found.trials if trial.candidate == "wild")
    assert wild.outcome.startswith("dropped: Training on this task failed") and wild.logprob_after is None
    assert found.reason.startswith("No other recipe is left")
    assert await attached(llama_engine) == ()


async def test_a_search_that_fails_or_is_cancelled_leaves_nothing(llama_engine: Engine) -> None:
    digest = await llama_engine.base_hash()
    with pytest.raises(NonFiniteLoss):
        await search(llama_engine, letters_task(4), replace(AUTO, learning_rate=1e30), 0)
    steps: list[TrainStep] = []
    with pytest.raises(Cancelled):
        await search(
            llama_engine, letters_task(4), AUTO, 0, emit=steps.append, should_stop=lambda: len(steps) >= 5
        )
    with pytest.raises(TaskError, match="at least 3 demonstrations, the task has 2; add some"):
        await search(llama_engine, letters_task(2), AUTO, 0)
    assert await attached(llama_engine) == () and await llama_engine.base_hash() == digest


def test_the_size_of_rows_with_hints_is_that_of_their_prompt(llama_engine: Engine) -> None:
    for width in (9, LONG):
        size, hinted = (
            task_size(llama_engine, task, ())
            for task in (long_rows(width), replace(long_rows(width), indexed=True))
        )
        assert size.hinted_tokens == hinted.prefix_tokens > size.prefix_tokens
        assert size.long_rows == (width == LONG)
    assert task_size(llama_engine, letters_task(6), ()).hinted_tokens == 0


def test_what_a_search_may_cost_is_known_before() -> None:
    size = TaskSize("t", 10, 400, 100, 4.0, 5)
    (text, cells), thorough = RECIPES["auto"], RECIPES["thorough"][0]
    for one in (size.train_tokens, size.probe_tokens, size.rest_tokens):
        assert one(text) == one(replace(TEXT, steps=text.steps)), "one look is a probe"
    assert size.train_tokens(thorough) == 3 * size.train_tokens(TEXT)
    assert size.probe_tokens(thorough) + size.rest_tokens(thorough) == size.train_tokens(thorough)
    assert size.rest_tokens(thorough) == size.rest_tokens(TEXT)
    few = replace(size, n_demonstrations=2)
    assert few.probe_tokens(thorough) == 0 and few.train_tokens(thorough) == few.train_tokens(TEXT)
    rows = replace(size, cells=True)
    checks = 4 * 400  # the plain and three augmentations, before and after, at half the price
    plain = replace(cells, search=0.0)
    assert rows.probe_tokens(cells) == rows.probe_tokens(plain) + checks
    assert rows.train_tokens(cells) == rows.train_tokens(plain) + checks
    assert rows.train_tokens(RECIPES["thorough"][1]) == rows.train_tokens(cells), (
        "nothing else is tried there"
    )


async def test_the_price_of_a_search_is_what_it_runs(llama_engine: Engine) -> None:
    for task in (letters_task(8), Task((*ROWS.demonstrations, Demonstration("0 7 0", "7 0 0")))):
        recipe = replace(ALONE, augmentations=("order",))
        found = await search(llama_engine, task, recipe, 0)
        assert task_size(llama_engine, task, ()).probe_tokens(recipe) == pytest.approx(
            found.evidence.tokens, rel=0.15
        )
