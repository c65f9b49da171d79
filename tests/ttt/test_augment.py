"""Views: what is applied can be inverted, orders are permutations, and the background stays."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt.augment import View, identity, random_view, symbol_alphabet
from ttt.task import Demonstration, Task

rows = st.lists(st.sampled_from("0123456789"), min_size=2, max_size=6).map(" ".join)
cells = st.lists(rows, min_size=1, max_size=3).map("\n".join)
tasks = st.lists(st.builds(Demonstration, cells, cells), min_size=1, max_size=5).map(lambda d: Task(tuple(d)))


@given(task=tasks, seed=st.integers(0, 999), reverse=st.booleans(), text=cells | st.text(max_size=20))
def test_inverting_undoes_applying(task: Task, seed: int, reverse: bool, text: str) -> None:
    view = random_view(task, random.Random(seed), symbol_alphabet(task), reverse=reverse)
    assert view.invert(view.apply(text)) == text
    assert view.apply(view.invert(text)) == text


@given(task=tasks, seed=st.integers(0, 999), reverse=st.booleans())
def test_a_view_shows_each_demonstration_once_and_transformed_alike(
    task: Task, seed: int, reverse: bool
) -> None:
    view = random_view(task, random.Random(seed), symbol_alphabet(task), reverse=reverse)
    assert sorted(view.order) == list(range(len(task.demonstrations)))
    for shown, original in zip(view.demonstrations(task), view.order, strict=True):
        assert view.invert(shown.input) == task.demonstrations[original].input
        assert view.invert(shown.output) == task.demonstrations[original].output


@given(task=tasks, seed=st.integers(0, 999))
def test_the_background_is_never_permuted_and_no_two_symbols_become_one(task: Task, seed: int) -> None:
    counts = {c: 0 for c in "0123456789"}
    for d in task.demonstrations:
        for c in (d.input + d.output).replace(" ", "").replace("\n", ""):
            counts[c] += 1
    commonest = {c for c, n in counts.items() if n == max(counts.values())}
    view = random_view(task, random.Random(seed), symbol_alphabet(task))
    fixed = {c for c in counts if view.apply(c) == c}
    assert fixed & commonest
    assert len({view.apply(c) for c in counts}) == len(counts)


def test_symbols_are_those_shown_without_the_commonest() -> None:
    assert symbol_alphabet(Task((Demonstration("( ( [", "[ {"), Demonstration("( (", "( {")))) == ("[", "{")


def test_digits_bring_all_of_one_to_nine() -> None:
    assert symbol_alphabet(Task((Demonstration("0 0 5", "5 0 0"),))) == tuple("123456789")


@pytest.mark.parametrize(
    "task",
    [
        Task(),
        Task((Demonstration("0 1", "1 0"), Demonstration("0 1", "one"))),
        Task((Demonstration("a", "b"),)),
    ],
)
def test_a_task_that_is_not_made_of_cells_has_no_symbols_to_permute(task: Task) -> None:
    assert symbol_alphabet(task) == ()
    view = random_view(task, random.Random(0), ())
    assert view.symbols == () and view.name == "order"
    assert view.apply("0 1 2") == "0 1 2"


def test_reversal_is_row_by_row() -> None:
    assert View((0,), reverse=True).apply("1 2 3\n4 5") == "3 2 1\n5 4"
    assert View((0,), (("1", "2"), ("2", "1")), True).name == "order+symbols+reverse"


def test_the_identity_changes_nothing() -> None:
    task = Task((Demonstration("1 2", "2 1"), Demonstration("3 4", "4 3")))
    assert identity(2).demonstrations(task) == task.demonstrations
