"""Votes: plurality, ties by probability, agreement with the plain view, entropy in nats."""

import math

import pytest

from ttt.vote import vote


def test_the_commonest_answer_wins_even_against_a_more_probable_one() -> None:
    assert vote(["a", "b", "b"], [0.0, -5.0, -5.0]).winner == "b"


def test_a_tie_goes_to_the_more_probable_answer() -> None:
    assert vote(["a", "b"], [-2.0, -1.0]).winner == "b"
    assert vote(["a", "b"], [-1.0, -2.0]).winner == "a"


def test_a_full_tie_goes_to_the_plain_view() -> None:
    assert vote(["a", "b"], [-1.0, -1.0]).winner == "a"


def test_agreement_is_the_share_of_other_views_with_the_plain_answer() -> None:
    assert vote(["a", "a", "b", "a", "c"], [0.0] * 5).agreement == pytest.approx(2 / 4)
    assert vote(["a"], [0.0]).agreement == 1.0


def test_entropy_is_in_nats() -> None:
    assert vote(["a", "b", "c", "d"], [0.0] * 4).entropy == pytest.approx(math.log(4))
    assert vote(["a", "a"], [0.0] * 2).entropy == 0.0


@pytest.mark.parametrize(("answers", "logprobs"), [([], []), (["a"], [])])
def test_votes_without_answers_or_probabilities_are_refused(
    answers: list[str], logprobs: list[float]
) -> None:
    with pytest.raises(ValueError, match=f"got {len(answers)} and {len(logprobs)}"):
        vote(answers, logprobs)
