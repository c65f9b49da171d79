"""Measurements become the documented signals; what was not measured stays None, never zero."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import pytest
from scipy.stats import t as student

from policies.checks import further_seconds
from policies.cost import CostModel, Sizes
from policies.types import Location, Signals
from router.signals import (
    cheap_signals,
    expected_costs,
    icl_seconds,
    known_before,
    situation,
    with_consistency,
    with_leave_one_out,
    with_probe,
)
from router.state import AdapterRef, Request, State
from tests.router.conftest import OTHER, QUICK, ok_task
from ttt.crossfit import CrossFitResult
from ttt.icl import BATCH, Answer, ICLResult
from ttt.judging import Judged
from ttt.measure import TaskSize
from ttt.task import Demonstration, Query, Task
from ttt.views import Consistency
from ttt.vote import agreement

TASK = Task(tuple(Demonstration(str(i), out) for i, out in enumerate(("a", "b", " a", "a "))))
SIZE = TaskSize("qa1", 4, 100, 60, 1.5, 3)
ICL = ICLResult(
    (Answer("a", -2.0, 4, 0.5, True), Answer("b", -3.0, 1, 1.5, True)),
    prompt_tokens=100,
    n_shown=4,
    question_tokens=60,
    prefill_s=0.1,
    decode_s=0.1,
    decode_steps=4,
)


def cheap() -> Signals:
    return cheap_signals(known(TASK, SIZE, 2, 10.0), ICL)


def known(task: Task, size: TaskSize, n_queries: int, repeats: float) -> Signals:
    request = Request("e", task, (Query("q"),) * n_queries, "auto", 30.0, repeats, (QUICK, QUICK), 0)
    return known_before(State(request=request, task=task, size=size, location=Location("s", (0.6, 0.8))))


def test_signals_of_the_icl_pass() -> None:
    got = cheap()
    assert (got.n_demonstrations, got.n_queries, got.expected_repeats) == (4, 2, 10)
    assert (got.prompt_tokens, got.answer_tokens, got.label_set_size) == (100, 1.5, 0.5)
    assert got.query_logprob == pytest.approx((-0.5 - 3.0) / 2), "per token, then over queries"
    assert got.query_margin == pytest.approx((4 * 0.5 + 1.5) / 5), "over tokens"


def test_what_was_not_measured_is_none() -> None:
    before = known(TASK, SIZE, 2, 10.0)
    assert before.label_set_size == 0.5
    given = {"n_demonstrations", "n_queries", "expected_repeats", "prompt_tokens", "answer_tokens"}
    filled = {name for name, value in before.as_dict().items() if value is not None}
    assert filled == given | {"label_set_size", "train_steps"}
    filled = {name for name, value in cheap().as_dict().items() if value is not None}
    assert filled == given | {"label_set_size", "train_steps", "query_logprob", "query_margin"}


def test_no_demonstrations_have_an_empty_label_set() -> None:
    assert known(Task(), replace(SIZE, n_demonstrations=0), 1, 0.0).label_set_size == 0.0


def test_signals_of_the_augmented_views_are_means_over_queries() -> None:
    agreeing, split = agreement(["a", "a", "a"]), agreement(["a", "b", "c"])
    got = with_consistency(cheap(), Consistency((0, 1), ("order", "order"), (agreeing, split)))
    assert agreeing.agreement == 1 and split.agreement == 0 and split.entropy > agreeing.entropy == 0
    assert got.agreement == 0.5 and got.answer_entropy == pytest.approx(split.entropy / 2)


def test_signals_of_leave_one_out_are_means_over_demonstrations() -> None:
    got = with_leave_one_out(cheap(), Judged((True, False, False, False), (-1.0, -2.0, -3.0, -4.0)))
    assert got.loo_accuracy == 0.25 and got.loo_logprob == -2.5


def test_the_bound_of_the_probe_is_the_paired_one_sided_t_bound() -> None:
    before, after = (-3.0, -2.0, -4.0, -1.0), (-1.0, -1.5, -2.0, -1.2)
    evidence = CrossFitResult((False, True, False, True), (True,) * 4, before, after, 100, 1.0)
    got = with_probe(cheap(), evidence)
    changes = [b - a for a, b in zip(before, after, strict=True)]
    low, _ = student.interval(0.80, 3, loc=mean(changes), scale=stdev(changes) / 2)
    assert got.probe_logprob_gain_low == pytest.approx(low), "90 % one-sided is 80 % two-sided"
    assert (got.probe_accuracy_before, got.probe_accuracy_after) == (0.5, 1.0)
    assert (got.probe_logprob_before, got.probe_logprob_after) == (mean(before), mean(after))
    assert got.probed and got.loo_accuracy is None


def test_expected_costs_are_those_of_the_sizes_in_tokens() -> None:
    costs = CostModel.guess(10**8)
    n_queries = BATCH + 1
    got = expected_costs(costs, SIZE, n_queries, QUICK)
    sizes = Sizes(4, 100, 60, 2 * 3, SIZE.probe_tokens(QUICK), SIZE.rest_tokens(QUICK))
    by_probe = costs.predict("train", SIZE.train_tokens(QUICK) - SIZE.rest_tokens(QUICK))
    assert got == replace(costs.costs(sizes), by_probe_s=by_probe) and by_probe > 0
    alone = expected_costs(costs, SIZE, n_queries, QUICK, probed=False)
    assert alone.train_s == pytest.approx(got.train_s + by_probe) and alone.by_probe_s == 0
    assert got.train_s < alone.train_s < got.probe_s + got.train_s + 1e-9, "a probe is part of the training"
    assert got.train_s > expected_costs(costs, SIZE, n_queries, OTHER).train_s, "more steps cost more"
    assert expected_costs(costs, SIZE, 1, QUICK).answer_s < got.answer_s


def state(n: int, **more: object) -> State:
    task = ok_task(n) if n else Task()
    request = Request("e", task, (Query("q"),), "auto", 30.0, 0.0, (QUICK, QUICK), 0)
    size = replace(SIZE, n_demonstrations=n)
    filled = State(request=request, task=task, size=size, signals=known(task, size, 1, 0.0), asked=(0,))
    filled.update(more)  # type: ignore[typeddict-item]
    return filled


@pytest.mark.parametrize(
    ("n", "feasible", "probe"),
    [
        (0, ("zero-shot",), False),
        (1, ("icl", "train:quick"), False),
        (2, ("icl", "train:quick"), False),
        (3, ("icl", "train:quick"), True),
    ],
)
def test_what_is_feasible_hangs_on_the_demonstrations(n: int, feasible: tuple[str, ...], probe: bool) -> None:
    got = situation(state(n), CostModel.guess(10**6), QUICK)
    assert got.feasible == feasible and got.probe_feasible is probe and got.worth_s == 30.0


def test_a_checked_candidate_makes_reuse_feasible() -> None:
    candidate = AdapterRef("0123456789abcdef" * 4, "/folder", "quick-1", True, ())
    got = situation(state(5, candidate=candidate), CostModel.guess(10**6), QUICK)
    assert got.feasible == ("icl", "reuse:0123456789ab", "train:quick")


def test_a_probe_is_made_once() -> None:
    evidence = CrossFitResult((True,) * 4, (True,) * 4, (-1.0,) * 4, (-1.0,) * 4, 1, 1.0)
    assert not situation(state(5, evidence=evidence), CostModel.guess(10**6), QUICK).probe_feasible


def test_training_costs_the_same_with_a_probe_before_it_and_beginning_by_one() -> None:
    costs = CostModel.guess(10**8)
    first = situation(state(6), costs, QUICK)
    evidence = CrossFitResult((True,) * 6, (True,) * 6, (-1.0,) * 6, (-0.5,) * 6, 1, 1.0)
    then = situation(state(6, evidence=evidence), costs, QUICK)
    at_once = further_seconds(first, "train:quick")
    assert at_once == pytest.approx(first.costs.probe_s + further_seconds(then, "train:quick"))
    assert at_once > costs.predict("train", SIZE.train_tokens(QUICK)) + first.costs.answer_s, (
        "and it is judged"
    )
    assert "train:quick" in situation(state(6), costs, QUICK, at_once * 1.01).feasible
    late = situation(state(6), costs, QUICK, at_once * 0.99)
    assert late.feasible == ("icl",) and not late.probe_feasible, "no time for the guard's evidence"


def test_training_asked_for_outright_is_priced_whole_and_without_evidence_for_a_guard() -> None:
    costs = CostModel.guess(10**8)
    request = replace(state(6)["request"], arm="ttt")
    here = situation(state(6, request=request), costs, QUICK)
    assert not here.probe_feasible
    whole = costs.predict("train", state(6)["size"].train_tokens(QUICK)) + here.costs.answer_s
    assert further_seconds(here, "train:quick") == pytest.approx(whole)


def test_queries_that_were_not_asked_yet_are_owed_by_staying_too() -> None:
    costs = CostModel.guess(1_000_000)
    whole = state(6)
    n = len(whole["request"].queries)
    here, before = situation(whole, costs, QUICK), situation({**whole, "asked": ()}, costs, QUICK)
    assert here.costs.answer_s == pytest.approx(icl_seconds(costs, whole["size"], n, n)) and n == 1
    assert here.costs.rest_s == 0 and before.costs == replace(here.costs, rest_s=here.costs.answer_s)
    many = replace(whole["request"], queries=(Query("x"),) * 64)
    some = situation({**whole, "request": many, "asked": tuple(range(8))}, costs, QUICK).costs
    assert some.rest_s == icl_seconds(costs, whole["size"], 56, 64) and 0 < some.rest_s < some.answer_s
    half = icl_seconds(costs, SIZE, 32, 64)
    assert 0 < half < icl_seconds(costs, SIZE, 64, 64) and icl_seconds(costs, SIZE, 0, 64) == 0.0
    assert half == pytest.approx(costs.icl_s(Sizes(4, 100, 30, 3, 0, 0)))
