import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.gain import GainModel
from policies.rule import Rule
from policies.types import Costs, Decision, Policy, Signals, Situation
from policies.utility import WORTH
from tests.policies.situations import REUSE, TRAIN, probed, signals, situation

RULE: Policy = Rule()


def taken(decision: Decision) -> str | None:
    return "probe" if decision.step == "probe" else decision.arm


@pytest.mark.parametrize("n_queries,step", [(1, "icl"), (32, "probe"), (1000, "probe")])
def test_before_the_probe_a_single_query_is_answered_and_many_are_worth_a_look(
    n_queries: int, step: str
) -> None:
    assert taken(RULE.decide(situation(signals(n_queries=n_queries)))) == step


@pytest.mark.parametrize("prefer,step", [("fast", "icl"), ("balanced", "icl"), ("accurate", "probe")])
def test_before_the_probe_worth_decides_what_two_queries_deserve(prefer: str, step: str) -> None:
    assert taken(RULE.decide(situation(signals(n_queries=2), worth_s=WORTH[prefer]))) == step


@pytest.mark.parametrize("n_queries,arm", [(1, "icl"), (32, TRAIN), (1000, TRAIN)])
def test_after_the_probe_training_is_spread_over_what_it_serves(n_queries: int, arm: str) -> None:
    assert taken(RULE.decide(situation(probed(n_queries=n_queries)))) == arm


def test_a_weak_gain_pays_for_a_thousand_queries_but_not_for_thirty_two() -> None:
    weak = probed(probe_accuracy_after=0.0, probe_logprob_after=-0.94, probe_logprob_gain_low=0.01)
    assert taken(RULE.decide(situation(replace(weak, n_queries=32)))) == "icl"
    assert taken(RULE.decide(situation(replace(weak, n_queries=1000)))) == TRAIN


@pytest.mark.parametrize("prefer,arm", [("fast", "icl"), ("balanced", TRAIN), ("accurate", TRAIN)])
def test_after_the_probe_worth_decides_what_sixteen_queries_deserve(prefer: str, arm: str) -> None:
    assert taken(RULE.decide(situation(probed(n_queries=16), worth_s=WORTH[prefer]))) == arm


def test_repeats_expected_later_count_like_queries_asked_now() -> None:
    assert taken(RULE.decide(situation(probed(n_queries=1)))) == "icl"
    assert taken(RULE.decide(situation(probed(n_queries=1, expected_repeats=31)))) == TRAIN


def test_the_reason_gives_gain_queries_cost_worth_and_breakeven() -> None:
    decision = RULE.decide(situation(probed()))
    assert decision.expected_gain is not None and decision.expected_gain_low is not None
    gain = f"{decision.expected_gain:.2f} (at least {decision.expected_gain_low:.2f})"
    assert decision.reason == (
        f"Training is expected to add {gain} correct answers per query over 32 queries; "
        "it costs 60 s, worth 30 s per correct answer: break-even 0.0625."
    )
    assert 0.0 < decision.expected_gain_low < decision.expected_gain < 1.0
    assert decision.expected_cost_s == 60.0
    assert decision.details["gain_breakeven"] == pytest.approx(60 / 30 / 32)
    assert decision.policy == RULE.version


def test_a_probe_says_what_it_costs_and_forced_steps_have_propensity_one() -> None:
    decision = RULE.decide(situation(signals()))
    assert (decision.step, decision.arm, decision.expected_cost_s, decision.propensity) == (
        "probe",
        None,
        12.0,
        1.0,
    )
    assert "a probe of 12 s tells whether it does" in decision.reason


def test_staying_because_nothing_could_pay_names_the_best_case() -> None:
    decision = RULE.decide(situation(signals(n_queries=1)))
    assert "at best 0.75 correct answers per query over 1 query" in decision.reason
    assert "break-even 2.4: icl answers" in decision.reason
    assert (decision.expected_gain, decision.expected_cost_s) == (0.0, 0.0)
    assert decision.details["gain_optimistic"] == pytest.approx(0.75)


def test_no_headroom_no_probe_however_many_queries() -> None:
    assert taken(RULE.decide(situation(signals(loo_accuracy=1.0, n_queries=100_000)))) == "icl"


def test_without_demonstrations_zero_shot_answers() -> None:
    decision = RULE.decide(situation(signals(n_demonstrations=0), feasible=("zero-shot",)))
    assert decision.arm == "zero-shot"
    assert "no demonstrations" in decision.reason


def test_two_demonstrations_are_too_few_whatever_is_at_stake_and_three_are_not() -> None:
    two = RULE.decide(situation(signals(n_demonstrations=2, n_queries=1000)))
    assert two.arm == "icl"
    assert "2 demonstrations are too few to hold any out (at least 3)" in two.reason
    assert RULE.decide(situation(signals(n_demonstrations=3, n_queries=1000))).step == "probe"


def test_where_training_is_not_feasible_icl_answers_and_says_so() -> None:
    decision = RULE.decide(situation(signals(), feasible=("icl",)))
    assert decision.arm == "icl"
    assert decision.reason == "Training is not feasible here: icl answers."


def test_without_a_probe_the_prior_alone_does_not_train() -> None:
    decision = RULE.decide(situation(signals(n_queries=100_000), probe_feasible=False))
    assert decision.arm == "icl"
    assert "judged without a probe" in decision.reason


def test_a_probe_that_did_not_improve_the_log_probability_vetoes_training() -> None:
    harmed = probed(probe_logprob_after=-1.1, probe_logprob_gain_low=-0.3, n_queries=100_000)
    decision = RULE.decide(situation(harmed))
    assert decision.arm == "icl"
    assert "did not improve the held-out log-probability (-1 to -1.1 nats per token)" in decision.reason


def test_a_fall_of_held_out_accuracy_vetoes_training_but_a_single_flip_does_not() -> None:
    better = {"loo_accuracy": 0.2, "probe_accuracy_before": 0.3, "n_queries": 1000}
    fell = RULE.decide(situation(probed(probe_accuracy_after=0.1, **better)))
    assert fell.arm == "icl"
    assert "held-out accuracy fell from 30% to 10%" in fell.reason
    flipped = situation(probed(probe_accuracy_after=0.2, **better))
    assert RULE.decide(flipped).arm == TRAIN
    assert Rule(tolerated_losses=0).decide(flipped).arm == "icl"


def test_a_checked_adapter_is_taken_where_its_answer_pays() -> None:
    both = ("icl", REUSE, TRAIN)
    dear = Costs(probe_s=12.0, train_s=900.0, answer_s=10.0)
    unprobed = RULE.decide(situation(signals(), feasible=both, costs=dear))
    assert (unprobed.step, unprobed.arm) == ("answer", REUSE)
    assert RULE.decide(situation(signals(), feasible=both)).step == "probe"
    few = RULE.decide(situation(signals(n_demonstrations=2), feasible=both))
    assert (few.arm, few.expected_cost_s) == (REUSE, 10.0)
    assert "The checked adapter like-task is expected to add 0.25 (at least 0.10)" in few.reason
    single = RULE.decide(situation(signals(n_queries=1), feasible=both))
    assert single.arm == "icl"
    assert "That does not pay" in single.reason


def test_beside_a_checked_adapter_training_must_win_by_more_than_it_costs() -> None:
    both = ("icl", REUSE, TRAIN)
    assert RULE.decide(situation(probed(n_queries=1000), feasible=both)).arm == TRAIN
    dear = Costs(probe_s=12.0, train_s=1500.0, answer_s=10.0)
    assert RULE.decide(situation(probed(n_queries=64), feasible=both, costs=dear)).arm == REUSE
    harmed = probed(probe_logprob_after=-1.1, n_queries=1000)
    assert RULE.decide(situation(harmed, feasible=both)).arm == REUSE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loo_accuracy", "n_queries", "probe_logprob_after", "query_logprob"])
def test_a_signal_that_is_not_finite_is_an_error_that_names_it(name: str, bad: float) -> None:
    with pytest.raises(PolicyError, match=f"Signal {name} is {bad}"):
        RULE.decide(situation(replace(probed(), **{name: bad})))  # type: ignore[arg-type]


def test_signals_costs_and_worth_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(PolicyError, match=r"Signal loo_accuracy is 1\.2, .* between 0 and 1"):
        RULE.decide(situation(signals(loo_accuracy=1.2)))
    with pytest.raises(PolicyError, match="Cost train_s is nan"):
        RULE.decide(situation(signals(), costs=Costs(1.0, math.nan, 1.0)))
    with pytest.raises(PolicyError, match="worth_s is 0"):
        RULE.decide(situation(signals(), worth_s=0.0))
    with pytest.raises(PolicyError, match="tolerated_losses is -1"):
        Rule(tolerated_losses=-1)


def test_the_version_changes_with_any_parameter_and_only_then() -> None:
    assert Rule().version == Rule().version
    assert len({Rule().version, Rule(tolerated_losses=2).version, Rule(GainModel(model_sd=0.2)).version}) == 3


share, seconds = st.floats(0.0, 1.0), st.floats(0.0, 1000.0)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    values: dict[str, float] = {
        "n_demonstrations": draw(st.integers(0, 50)),
        "n_queries": draw(st.integers(1, 2000)),
    }
    values["loo_accuracy"] = draw(share)
    seen: Signals = signals(**values)
    if draw(st.booleans()):
        before, logprob = draw(share), draw(st.floats(-10.0, 0.0))
        removed = -logprob * draw(st.floats(-0.2, 1.0))  # a fifth more to all of it gone: harm is among them
        seen = probed(
            **values,
            probe_accuracy_before=before,
            probe_accuracy_after=draw(st.floats(0.8 * before, 1.0)),
            probe_logprob_before=logprob,
            probe_logprob_after=logprob + removed,
            probe_logprob_gain_low=removed - draw(share),
        )
    feasible = ("icl", REUSE, TRAIN) if draw(st.booleans()) else ("icl", TRAIN)
    costs = Costs(draw(seconds), draw(seconds), draw(seconds))
    return situation(seen, costs=costs, feasible=feasible, worth_s=draw(st.floats(0.01, 1e5)))


EAGER = {"icl": 0, REUSE: 1, "probe": 2, TRAIN: 2}


@settings(max_examples=300, deadline=None)
@given(here=situations(), more=st.floats(0.0, 1e5), dearer=st.floats(1.0, 10.0))
def test_more_queries_or_a_larger_worth_never_turn_train_into_stay(
    here: Situation, more: float, dearer: float
) -> None:
    before = EAGER[taken(RULE.decide(here)) or ""]
    repeats = replace(here, signals=replace(here.signals, expected_repeats=more))
    assert EAGER[taken(RULE.decide(repeats)) or ""] >= before
    worthier = replace(here, worth_s=here.worth_s * dearer)
    assert EAGER[taken(RULE.decide(worthier)) or ""] >= before


def test_an_adapter_whose_check_shows_what_it_wins_answers_few_queries_and_is_trained_on_for_many() -> None:
    costs = Costs(probe_s=12.0, train_s=20.0, answer_s=1.0)
    evidence = probed(n_queries=1)
    few = situation(evidence, feasible=("icl", REUSE, TRAIN), costs=costs, checked=evidence)
    assert Rule().decide(few).arm == REUSE
    assert Rule().decide(replace(few, checked=None, feasible=("icl", TRAIN))).arm == "icl"
    many = replace(few, signals=probed(n_queries=1000))
    assert Rule().decide(many).arm == TRAIN
    harmful = probed(probe_logprob_after=-1.5, probe_accuracy_after=0.0)
    assert Rule().decide(replace(few, signals=harmful, checked=harmful)).arm == "icl"


def test_what_staying_still_takes_is_not_held_against_the_others() -> None:
    """Queries that were not asked in context yet cost seconds whatever is decided."""
    here = situation(probed())
    owed = replace(here, costs=replace(here.costs, rest_s=8.0))
    before, after = RULE.decide(here), RULE.decide(owed)
    assert before.arm == after.arm == TRAIN and before.expected_cost_s == after.expected_cost_s == 60.0
    assert after.details["gain_breakeven"] == pytest.approx(52 / 60 * before.details["gain_breakeven"])
    assert "it costs 60 s, worth" in before.reason and "it costs 60 s (in context 8 s), worth" in after.reason
    stays = RULE.decide(replace(owed, worth_s=1e-3))
    assert stays.arm == "icl" and stays.expected_cost_s == 8.0
    only_answer = replace(here, costs=Costs(0.0, 0.0, 10.0, rest_s=30.0))
    assert RULE.decide(only_answer).details["gain_breakeven"] == 0.0, "never below nothing"


def test_what_staying_still_takes_can_make_training_pay() -> None:
    here = situation(probed(), costs=Costs(0.0, 1.0, 100.0))
    low = RULE.decide(here).details["gain_low"]
    worth_s = 100.5 / (low * 32)
    assert RULE.decide(replace(here, worth_s=worth_s)).arm == "icl"
    owed = replace(here, worth_s=worth_s, costs=Costs(0.0, 1.0, 100.0, rest_s=50.0))
    assert RULE.decide(owed).arm == TRAIN


def test_of_three_held_out_demonstrations_none_may_be_lost() -> None:
    lost = probed(probe_accuracy_before=2 / 3, probe_accuracy_after=1 / 3, n_demonstrations=3)
    decision = RULE.decide(situation(lost, worth_s=300.0))
    assert decision.arm == "icl" and "held-out accuracy fell from 67% to 33%" in decision.reason
    kept = replace(lost, probe_accuracy_after=2 / 3)
    assert RULE.decide(situation(kept, worth_s=300.0)).arm == TRAIN
