"""A fingerprint is of what is asked, not of how it is written; a clean task says what was changed."""

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt.errors import TaskError
from ttt.task import Demonstration, Task, clean_task, fingerprint

PLAIN = Task((Demonstration("one", "1"), Demonstration("two", "2")), "Count.")
demonstrations = st.builds(Demonstration, st.text(max_size=5), st.text(max_size=5))


def test_a_fingerprint_is_the_tagged_hash_of_the_canonical_task() -> None:
    canonical = '["Count.",[["one","1"],["two","2"]]]'
    assert (
        fingerprint(PLAIN) == PLAIN.fingerprint == f"task1:{hashlib.sha256(canonical.encode()).hexdigest()}"
    )


@given(shown=st.lists(demonstrations, max_size=5), seed=st.integers(0, 9))
def test_order_repeats_and_name_do_not_count(shown: list[Demonstration], seed: int) -> None:
    mixed = shown + shown[:2]
    random.Random(seed).shuffle(mixed)
    assert fingerprint(Task(tuple(mixed), name="a name")) == fingerprint(Task(tuple(shown)))


@pytest.mark.parametrize(
    "written",
    [
        replace(PLAIN, instruction="  Count.\n"),
        replace(PLAIN, demonstrations=(Demonstration("one ", "\t1"), Demonstration("two\r\n", "2"))),
    ],
)
def test_white_space_around_texts_does_not_count(written: Task) -> None:
    assert fingerprint(written) == fingerprint(PLAIN)


def test_unicode_forms_and_line_endings_do_not_count() -> None:
    composed, decomposed = "caf\u00e9\nau lait", "cafe\u0301\r\nau lait"
    one, other = (Task((Demonstration(text, "x"),)) for text in (composed, decomposed))
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, instruction="Add."),
        replace(PLAIN, demonstrations=PLAIN.demonstrations[:1]),
        replace(PLAIN, demonstrations=(Demonstration("one", "2"), Demonstration("two", "1"))),
        replace(PLAIN, demonstrations=(Demonstration("1", "one"), Demonstration("2", "two"))),
        replace(PLAIN, demonstrations=(Demonstration("o ne", "1"), Demonstration("two", "2"))),
    ],
)
def test_another_task_has_another_fingerprint(other: Task) -> None:
    assert fingerprint(other) != fingerprint(PLAIN)


def test_cleaning_drops_duplicates_and_says_so() -> None:
    twice = replace(PLAIN, demonstrations=(*PLAIN.demonstrations, Demonstration(" one", "1\n")))
    cleaned, notes = clean_task(twice)
    assert cleaned == PLAIN
    assert notes == ("1 duplicate demonstration(s) dropped, 2 left.",)


def test_cleaning_keeps_a_contradiction_and_names_it() -> None:
    task = Task((Demonstration("one", "1"), Demonstration("one ", "I")))
    cleaned, (note,) = clean_task(task)
    assert cleaned == task
    assert "'one'" in note and "2 different outputs" in note


def test_a_clean_task_stays_as_it_is() -> None:
    assert clean_task(PLAIN) == (PLAIN, ())


@pytest.mark.parametrize(
    ("bad", "side"), [(Demonstration(" ", "x"), "input"), (Demonstration("x", ""), "output")]
)
def test_an_empty_side_is_refused_with_its_number(bad: Demonstration, side: str) -> None:
    with pytest.raises(TaskError, match=f"Demonstration 3 has an empty {side}"):
        clean_task(replace(PLAIN, demonstrations=(*PLAIN.demonstrations, bad)))
