import json
import math
from typing import Any

import pytest

from policies.cost import KINDS, CostModel, Sizes
from policies.errors import PolicyError

SIZES = Sizes(
    n_demonstrations=10,
    prefix_tokens=500,
    query_tokens=1600,
    decode_steps=40,
    probe_train_tokens=4000,
    train_tokens=16000,
)


def test_a_guess_follows_from_parameters_and_flops_per_second() -> None:
    costs = CostModel.guess(100_000_000, prefill_flops_per_s=2e11, train_flops_per_s=1e11, decode_step_s=0.1)
    assert costs.predict("prefill", 1000) == pytest.approx(1.0)
    assert costs.predict("train", 1000) == pytest.approx(4.0)
    assert costs.predict("decode", 10) == pytest.approx(1.0)


def test_seconds_of_each_step_add_up_from_the_rates() -> None:
    model = CostModel.guess(100_000_000, prefill_flops_per_s=2e11, train_flops_per_s=1e11, decode_step_s=0.1)
    assert model.icl_s(SIZES) == pytest.approx(2.1 + 4.0)
    assert model.loo_s(SIZES) == pytest.approx(5.0)
    costs = model.costs(SIZES)
    assert costs.probe_s == pytest.approx(16.0 + 5.0)
    assert costs.train_s == pytest.approx(64.0)
    assert costs.answer_s == pytest.approx(model.icl_s(SIZES))


def test_the_first_observation_replaces_the_guess_and_leaves_other_rates_alone() -> None:
    model = CostModel.guess(135_000_000)
    prefill = model.predict("prefill", 1000)
    model.observe("train", tokens=2000, seconds=9.0)
    assert model.predict("train", 1000) == pytest.approx(4.5)
    assert model.predict("prefill", 1000) == prefill


def test_reading_calibrates_the_rate_of_training_until_something_was_trained() -> None:
    model = CostModel.guess(135_000_000)
    reading, training = (model.predict(kind, 1000) for kind in ("prefill", "train"))
    model.observe("prefill", 20, reading)
    assert model.predict("train", 1000) == training, "twenty tokens are mostly overhead"
    model = CostModel.guess(135_000_000)
    model.observe("prefill", 1000, reading / 50)  # a machine fifty times as fast
    assert model.predict("train", 1000) == pytest.approx(training / 50)
    model.observe("prefill", 1000, reading / 50)
    assert model.predict("train", 1000) == pytest.approx(training / 50), "in proportion, not again and again"
    model.observe("train", 1000, 7.0)
    model.observe("prefill", 1000, reading)
    assert model.predict("train", 1000) == 7.0, "what was seen counts"


def test_observations_are_averaged_first_and_then_followed() -> None:
    model = CostModel.guess(135_000_000)
    model.observe("decode", 1, 1.0)
    model.observe("decode", 1, 3.0)
    assert model.predict("decode", 1) == pytest.approx(2.0)
    for _ in range(20):
        model.observe("decode", 1, 5.0)
    assert model.predict("decode", 1) == pytest.approx(5.0, rel=0.01)
    model.observe("decode", 1, 15.0)
    assert model.predict("decode", 1) == pytest.approx(8.0, rel=0.01)  # one outlier does not take over


def test_json_brings_back_rates_and_what_they_have_seen() -> None:
    model = CostModel.guess(135_000_000)
    for seconds in (1.0, 2.0, 3.0):
        model.observe("train", 1000, seconds)
    again = CostModel.from_json(model.to_json())
    assert again == model
    model.observe("train", 1000, 9.0)
    again.observe("train", 1000, 9.0)
    assert again.predict("train", 1000) == model.predict("train", 1000)


@pytest.mark.parametrize(
    "tokens,seconds", [(0, 1.0), (-5, 1.0), (10, -1.0), (10, math.nan), (math.inf, 1.0), (1, 1e9)]
)
def test_an_impossible_observation_is_refused_and_changes_nothing(tokens: float, seconds: float) -> None:
    model = CostModel.guess(135_000_000)
    before = model.to_json()
    with pytest.raises(PolicyError):
        model.observe("train", tokens, seconds)
    assert model.to_json() == before


def test_an_unknown_kind_of_work_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match="'sleep'; choose one of prefill, train, decode"):
        CostModel.guess(135_000_000).predict("sleep", 1)  # type: ignore[arg-type]


def changed(**rate: Any) -> str:
    data = json.loads(CostModel.guess(135_000_000).to_json())
    data["rates"]["train"] |= rate
    return json.dumps(data)


@pytest.mark.parametrize(
    "text,says",
    [
        ("{", "not JSON"),
        ("[]", "list"),
        ('{"cost_model": 1}', "must have"),
        ('{"cost_model": 2, "rates": {}}', "format 2"),
        ('{"cost_model": 1, "rates": {"train": {}}}', "rates"),
        (changed(seconds_per_token=math.nan), "finite"),
        (changed(seconds_per_token=-1.0), "between"),
        (changed(seconds_per_token="fast"), "must be a number"),
        (changed(observations=-1), "count"),
        (changed(colour="red"), "colour"),
    ],
)
def test_a_file_that_is_not_a_cost_model_is_refused(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        CostModel.from_json(text)


def test_sizes_and_guesses_must_be_finite_and_not_negative() -> None:
    with pytest.raises(PolicyError, match=r"Sizes\.train_tokens is -1"):
        Sizes(10, 500, 1600, 40, 4000, -1)
    with pytest.raises(PolicyError, match="n_parameters is 0"):
        CostModel.guess(0)
    with pytest.raises(PolicyError, match="rate decode"):
        CostModel.guess(135_000_000, decode_step_s=math.nan)


def test_guesses_for_a_small_model_are_of_the_right_order() -> None:
    """16 steps of two 600-token sequences took 22 to 101 s on two cores; a fifth to twice will do."""
    assert 4 < CostModel.guess(135_000_000).predict("train", 16 * 2 * 600) < 200
    assert set(KINDS) == {"prefill", "train", "decode"}
