"""Views: what is applied can be inverted, what can't be inverted is refused, and content decides what applies."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt.augment import AUGMENTATIONS, DEFAULT, View, check_names, identity, space, symbol_alphabet
from ttt.content import content_kind, read_choice, read_rows
from ttt.errors import TaskError
from ttt.task import Demonstration, Query, Task
from ttt.transforms import Labels, Options, Scale, Shift, Symbols, Symmetry, Tile

symbols = st.sampled_from("0123456789")
rows = st.lists(symbols, min_size=2, max_size=6).map(" ".join)


@st.composite
def grids(draw: st.DrawFn) -> str:
    width = draw(st.integers(2, 4))
    return "\n".join(" ".join(draw(symbols) for _ in range(width)) for _ in range(draw(st.integers(1, 3))))


@st.composite
def questions(draw: st.DrawFn) -> str:
    option = st.text("ab cd-", min_size=1, max_size=5).filter(str.strip).map(str.strip)
    n = draw(st.integers(2, 6))
    mark = draw(st.sampled_from(["(A)", "A)", "A.", "A:"]))
    lines = [f"{mark.replace('A', chr(65 + i))} {draw(option)}" for i in range(n)]
    head = draw(st.sampled_from(["Which one?\n", "A story.\nWith lines.\n", "Options:\nmore\n", ""]))
    return f"{head}Options:\n" + "\n".join(lines)


def n_options(question: str) -> int:
    read = read_choice(question)
    assert read is not None
    return len(read.options)


@st.composite
def choices(draw: st.DrawFn) -> Demonstration:
    question = draw(questions())
    mark = draw(st.sampled_from(["(A)", "A)", "A.", "A"]))
    return Demonstration(question, mark.replace("A", chr(65 + draw(st.integers(0, n_options(question) - 1)))))


def tasks_of(pairs: st.SearchStrategy[Demonstration]) -> st.SearchStrategy[Task]:
    return st.lists(pairs, min_size=1, max_size=5).map(lambda d: Task(tuple(d), "Do it."))


sequence_tasks = tasks_of(st.builds(Demonstration, rows, rows))
grid_tasks = tasks_of(st.builds(Demonstration, grids(), grids()))
choice_tasks = tasks_of(choices())
label_tasks = st.lists(st.sampled_from(["yes", "no", "may be"]), min_size=2, max_size=3, unique=True).map(
    lambda labels: Task(tuple(Demonstration(f"input {i}", x) for i, x in enumerate(labels * 2)))
)
text_tasks = tasks_of(st.builds(Demonstration, st.text(min_size=1, max_size=8), st.text(min_size=1)))
any_task = st.one_of(sequence_tasks, grid_tasks, choice_tasks, label_tasks, text_tasks)


@given(task=any_task, seed=st.integers(0, 9999))
def test_every_demonstration_of_a_view_is_turned_back_to_what_it_was(task: Task, seed: int) -> None:
    view = space(task, AUGMENTATIONS).draw(random.Random(seed))
    assert sorted(view.order) == list(range(len(task.demonstrations)))
    shown = view.task(task)
    assert shown.instruction == task.instruction
    for d, i in zip(shown.demonstrations, view.order, strict=True):
        original = task.demonstrations[i]
        assert (view.invert(d.output, original.input) or "").strip() == original.output.strip()
        assert view.question(original.input) == d.input
        assert view.query(Query(original.input)) == Query(d.input)


@given(
    task=any_task,
    seed=st.integers(0, 9999),
    prediction=grids()
    | rows
    | st.text(max_size=12)
    | st.sampled_from(["(A)", "(Z)", "yes", "0 1\n2", "5", ""]),
)
def test_a_prediction_is_turned_back_or_refused_and_never_altered(
    task: Task, seed: int, prediction: str
) -> None:
    """What is turned back would have become the very prediction under the view."""
    view = space(task, AUGMENTATIONS).draw(random.Random(seed))
    question = task.demonstrations[0].input
    back = view.invert(prediction, question)
    if back is not None:
        again = view.demonstration(Demonstration(question, back))
        assert again is not None and again.output.strip() == prediction.strip()


@given(task=any_task, seed=st.integers(0, 99))
def test_the_default_is_order_and_for_cells_symbols(task: Task, seed: int) -> None:
    kind = content_kind(task)
    assert space(task).names == (DEFAULT if kind in ("grid", "sequence") else ("order",))
    view = space(task).draw(random.Random(seed))
    assert all(isinstance(t, Symbols) for t in view.transforms)


def test_the_default_draws_what_it_always_drew() -> None:
    """An order, then a permutation of the symbols, from one stream: measured accuracies rest on it."""
    task = Task(tuple(Demonstration(f"0 0 {i}", f"{i} 0 0") for i in range(1, 6)))
    rng, drawn = random.Random(7), random.Random(7)
    for _ in range(5):
        order, image = list(range(5)), list("123456789")
        rng.shuffle(order)
        rng.shuffle(image)
        view = space(task).draw(drawn)
        assert view.order == tuple(order)
        assert view.question("1 2 3 4 5 6 7 8 9") == " ".join(image)


@given(task=sequence_tasks | grid_tasks, seed=st.integers(0, 999))
def test_the_background_is_never_permuted_and_no_two_symbols_become_one(task: Task, seed: int) -> None:
    counts = {c: 0 for c in "0123456789"}
    for d in task.demonstrations:
        for c in (d.input + d.output).replace(" ", "").replace("\n", ""):
            counts[c] += 1
    commonest = {c for c, n in counts.items() if n == max(counts.values())}
    view = space(task, ("symbols",)).draw(random.Random(seed))
    assert {c for c in counts if view.question(c) == c} & commonest
    assert len({view.question(c) for c in counts}) == len(counts)


def test_symbols_are_those_shown_without_the_commonest() -> None:
    assert symbol_alphabet(Task((Demonstration("( ( [", "[ {"), Demonstration("( (", "( {")))) == ("[", "{")


def test_digits_bring_all_of_one_to_nine() -> None:
    assert symbol_alphabet(Task((Demonstration("0 0 5", "5 0 0"),))) == tuple("123456789")


@pytest.mark.parametrize(
    ("pairs", "kind", "names"),
    [
        ([], "text", ("order",)),
        ([("0 1", "1 0")], "sequence", ("order", "symbols", "symmetry", "shift", "scale", "tile")),
        ([("0 1\n1 0", "1 0")], "grid", ("order", "symbols", "symmetry", "shift", "scale", "tile")),
        ([("0 1 1\n1 0", "1 0")], "grid", ("order", "symbols")),
        ([("0 1\n1", "1 0")], "text", ("order",)),
        ([("0 1", "one")], "text", ("order",)),
        ([("Q?\nOptions:\n(A) x\n(B) y", "(B)")], "choice", ("order", "options")),
        ([("Q?\nOptions:\n(A) x\n(B) y", "(C)")], "text", ("order",)),
        ([("Q?\nA. x\nB. y", "B")], "choice", ("order", "options")),
        ([("Q?\nA. x\nB. y", "(B")], "text", ("order",)),
        ([("Q?\nOptions:\n(A) x\n(B) y", "y")], "text", ("order",)),
        ([("Q?\nOptions:\n- Yes\n- No", "Yes"), ("b", "No")] * 2, "labels", ("order", "labels")),
        ([("a", "Yes"), ("b", "No"), ("c", "Yes")], "text", ("order",)),
        ([("a", "Yes"), ("b", "Yes")], "text", ("order",)),
    ],
)
def test_what_applies_follows_from_the_content(
    pairs: list[tuple[str, str]], kind: str, names: tuple[str, ...]
) -> None:
    task = Task(tuple(Demonstration(*pair) for pair in pairs))
    assert (content_kind(task), space(task, AUGMENTATIONS).names) == (kind, names)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which?\nOptions:\n(A) 12/11/1937\n(B) 12/25/1937\n", ("12/11/1937", "12/25/1937")),
        ("Options:\n(A) a (B) b\n(B) c", ("a (B) b", "c")),
        ("Which?\nOptions:\n(A) only one", None),
        ("Which?\nOptions:\n(A) x\n(C) y", None),
        ("Which?\nOptions:\n(A) x\n(B) y\nThink well.", None),
        ("(A) x\n(B) y", None),
        ("Which?\nA. x\nB. y", ("x", "y")),
        ("Which?\nA) x\nB. y", None),
        ("Plan A. first\nA: x\nB: y y\nC: z", ("x", "y y", "z")),
    ],
)
def test_options_are_read_only_as_a_whole_list_at_the_end(text: str, options: tuple[str, ...] | None) -> None:
    read = read_choice(text)
    assert (read.options if read is not None else None) == options
    if read is not None:
        assert str(read) == text.strip()


def test_the_letter_follows_its_option() -> None:
    turned = Options((2, 0, 1, *range(3, 26)))
    question = "Which?\nOptions:\n(A) red\n(B) green\n(C) blue"
    assert turned.input(question) == "Which?\nOptions:\n(A) blue\n(B) red\n(C) green"
    assert turned.output("(A)", question) == "(B)" and turned.invert("(B)", question) == "(A)"
    assert turned.invert("(D)", question) is None and turned.invert("green", question) is None
    assert turned.input("no options here") is None
    other = "Which?\nA. red\nB. green\nC. blue"
    assert turned.input(other) == "Which?\nA. blue\nB. red\nC. green"
    assert turned.output("A", other) == "B" and turned.invert("B.", other) == "A."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("mirror", "3 2 1\n6 5 4"),
        ("flip", "4 5 6\n1 2 3"),
        ("rotate-90", "4 1\n5 2\n6 3"),
        ("rotate-180", "6 5 4\n3 2 1"),
        ("rotate-270", "3 6\n2 5\n1 4"),
        ("transpose", "1 4\n2 5\n3 6"),
        ("anti-transpose", "6 3\n5 2\n4 1"),
    ],
)
def test_the_symmetries_of_the_square(name: str, shown: str) -> None:
    turned = Symmetry(name)  # type: ignore[arg-type]
    assert turned.input("1 2 3\n4 5 6") == shown
    assert turned.invert(shown, "") == "1 2 3\n4 5 6"


def test_a_single_row_is_only_ever_mirrored() -> None:
    task = Task((Demonstration("0 0 1", "1 0 0"), Demonstration("0 2 2", "2 2 0")))
    rng = random.Random(0)
    views = {space(task, ("symmetry",)).draw(rng).question("1 2 3") for _ in range(20)}
    assert views == {"1 2 3", "3 2 1"}
    drawn = [space(task, AUGMENTATIONS).draw(rng) for _ in range(200)]
    assert all("\n" not in (view.question("1 2 3") or "\n") for view in drawn)
    assert {name for view in drawn for name in view.transformation} == {
        "symbols", "mirror", "shift", "scale", "tile"
    }  # fmt: skip
    assert all(sum(t in ("shift", "scale", "tile") for t in view.transformation) <= 1 for view in drawn)


def test_a_malformed_prediction_is_refused() -> None:
    assert Symmetry("transpose").invert("1 2\n3", "") is None
    assert Symmetry("mirror").invert("no cells", "") is None
    assert Scale(True).invert("1 1 2 2\n1 1 2 2", "") == "1 2"
    assert Scale(True).invert("1 1 2 2\n1 1 2 3", "") is None
    assert Scale(True).invert("1 1 2\n1 1 2", "") is None
    assert Scale(False).invert("1 1 2 2", "") == "1 2"
    assert Tile(False).invert("1 2 1 2", "") == "1 2" and Tile(False).invert("1 2 2 1", "") is None
    assert Tile(True).invert("1 2\n1 2", "") == "1 2" and Tile(True).invert("1 2", "") is None
    assert Shift((0, 1, 0, 2), "0").invert("0 0 5 5 0", "") == "5 5"
    assert Shift((0, 1, 0, 2), "0").invert("0 3 5 5 0", "") is None
    assert Shift((0, 1, 0, 2), "0").invert("0 0 0", "") is None
    assert Shift((1, 0, 0, 0), "0").invert("0 0\n1 2", "") == "1 2"


def test_labels_are_renamed_in_answers_only() -> None:
    swap = Labels((("Yes", "No"), ("No", "Yes")))
    d = Demonstration("Is No the answer?\nOptions:\n- Yes\n- No", " No ")
    assert View((0,), (swap,)).demonstration(d) == Demonstration(d.input, "Yes")
    assert swap.invert("No", d.input) == "Yes" and swap.invert("Perhaps No", d.input) == "Perhaps No"


def test_a_view_names_what_it_changes() -> None:
    swap = Symbols((("1", "2"), ("2", "1")))
    assert View((1, 0), (swap, Symmetry("mirror"))).name == "order+symbols+mirror"
    assert View((0, 1), (Scale(False),)).name == "scale" and identity(2).name == "plain"


def test_the_identity_changes_nothing() -> None:
    task = Task((Demonstration("1 2", "2 1"), Demonstration("3 4", "4 3")))
    assert identity(2).task(task) == task


def test_without_order_the_demonstrations_stay_where_they_are() -> None:
    task = Task(tuple(Demonstration(f"0 {i}", f"{i} 0") for i in range(1, 8)))
    assert space(task, ("symbols",)).draw(random.Random(0)).order == tuple(range(7))


def test_an_unknown_augmentation_is_named_with_the_choices() -> None:
    with pytest.raises(TaskError, match="'colour'; choose from: order, symbols, symmetry"):
        check_names(("order", "colour"))
    assert check_names(["tile", "order", "tile"]) == ("order", "tile")


def test_a_view_of_another_task_says_which_demonstration_it_can_not_show() -> None:
    task = Task((Demonstration("1 2", "2 1"), Demonstration("word", "x")))
    with pytest.raises(TaskError, match="Demonstration 2 can't be shown under mirror"):
        View((0, 1), (Symmetry("mirror"),)).task(task)
    assert View((0,), (Symmetry("mirror"),)).query(Query("word")) is None
    asked = Query("0 1", (("hello", "hi"),))
    assert View((0,), (Symmetry("mirror"),)).query(asked) == replace(asked, input="1 0")


@given(text=rows | grids(), margins=st.tuples(*[st.integers(0, 2)] * 4))
def test_a_shift_leaves_every_object_whole(text: str, margins: tuple[int, int, int, int]) -> None:
    shown = Shift(margins, "0").input(text)
    assert shown is not None
    before, after = read_rows(text), read_rows(shown)
    assert before is not None and after is not None
    above, right, below, left = margins
    assert len(after) == len(before) + above + below and len(after[0]) == len(before[0]) + left + right
    assert [row[left : left + len(before[0])] for row in after[above : above + len(before)]] == list(before)


def test_the_number_of_demonstrations_is_that_of_the_task() -> None:
    task = Task((Demonstration("0 1", "1 0"),) * 3)
    assert len(space(task).draw(random.Random(1)).order) == 3
    assert replace(space(task), names=()).draw(random.Random(1)) == identity(3)
