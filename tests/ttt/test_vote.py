"""Votes: the order of views never matters, unanimous answers stay, ties go to the likelier answer."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt.vote import Vote, agreement, attempts, hierarchical, plurality

Rule = Callable[[Iterable[Vote]], str]

one_vote = st.builds(
    Vote,
    st.sampled_from("abcd"),
    st.floats(-900, 0),
    st.integers(1, 60),
    st.sampled_from([(), ("symbols",), ("mirror",)]),
)
many = st.lists(one_vote, min_size=1, max_size=9)
rules = pytest.mark.parametrize("rule", [plurality, hierarchical])


def votes(text: str, logprob: float = -1.0, transformation: str = "") -> list[Vote]:
    """One-token votes, a letter each."""
    return [Vote(c, logprob, 1, (transformation,)) for c in text]


@rules
@given(given_votes=many, seed=st.integers(0, 99))
def test_the_order_of_votes_does_not_matter(rule: Rule, given_votes: list[Vote], seed: int) -> None:
    shuffled = list(given_votes)
    random.Random(seed).shuffle(shuffled)
    assert rule(shuffled) == rule(given_votes)


@rules
@given(given_votes=many)
def test_the_winner_was_voted_for_and_a_unanimous_one_stays(rule: Rule, given_votes: list[Vote]) -> None:
    assert rule(given_votes) in {v.text for v in given_votes}
    same = [Vote("same", v.logprob, v.n_tokens, v.transformation) for v in given_votes]
    assert rule(same) == "same"


@rules
@given(given_votes=many)
def test_a_further_vote_for_the_winner_keeps_it(rule: Rule, given_votes: list[Vote]) -> None:
    winner = rule(given_votes)
    likeliest = max((v for v in given_votes if v.text == winner), key=lambda v: v.logprob)
    assert rule([*given_votes, likeliest]) == winner


@rules
def test_no_votes_are_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match="no votes"):
        rule([])


def test_in_a_plurality_each_vote_weighs_its_probability() -> None:
    assert plurality(votes("aab")) == "a"
    assert plurality([*votes("a", -0.1), *votes("bb", -3.0)]) == "a"
    assert plurality([*votes("a", -0.1), *votes("bb", -0.2)]) == "b"


def test_a_long_answer_weighs_by_its_mean_token() -> None:
    long, short = Vote("long", -20.0, 200), Vote("short", -1.0, 1)
    assert long.probability == pytest.approx(math.exp(-0.1))
    assert plurality([long, short]) == "long"


@rules
def test_ties_go_to_the_likelier_answer_then_to_the_alphabet(rule: Rule) -> None:
    assert rule([Vote("a", -2.0, 2), Vote("b", -1.0, 1)]) == "b"
    assert rule([Vote("b", -1.0, 1), Vote("a", -1.0, 1)]) == "a"
    assert rule([Vote("ab", -1.0, 1), Vote("a", -1.0, 1)]) == "a"


def test_in_a_hierarchy_the_commonest_of_each_transformation_go_on() -> None:
    """`c` has three votes, but is never among the two commonest where it was said."""
    within = [votes("aaabbc", transformation=name) for name in ("mirror", "symbols", "shift")]
    assert hierarchical([v for group in within for v in group]) == "a"
    babble = votes("aabbc", transformation="mirror") + votes("ddeec", transformation="flip")
    rest = votes("f", transformation="shift") + votes("fc", -5.0, "scale")
    assert hierarchical(babble + rest) != "c"
    assert hierarchical(votes("abc", -2.0, "x") + votes("b", -9.0, "y"), top=1) == "a"


def test_two_attempts_are_the_two_best_of_the_hierarchy() -> None:
    cast = votes("aaab", transformation="mirror") + votes("bbc", transformation="shift")
    assert attempts(cast) == ("a", "b")
    assert attempts(cast)[0] == hierarchical(cast) and attempts(cast, 5)[:2] == attempts(cast)
    assert attempts(votes("a")) == ("a",), "there is no second"
    with pytest.raises(ValueError):
        attempts([])


def test_agreement_is_the_share_of_other_views_with_the_plain_answer() -> None:
    assert agreement(["a", "a", "b", "a", "c"]).agreement == pytest.approx(2 / 4)
    assert agreement(["a"]).agreement == 1.0


def test_an_answer_that_could_not_be_turned_back_agrees_with_nothing() -> None:
    found = agreement(["a", None, None])
    assert found.agreement == 0.0 and found.entropy == pytest.approx(math.log(3))


def test_entropy_is_in_nats() -> None:
    assert agreement(["a", "b", "c", "d"]).entropy == pytest.approx(math.log(4))
    assert agreement(["a", "a"]).entropy == 0.0


def test_agreement_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        agreement([])
