"""Training sequences: labels are the answers and one token of their end, and no demonstration is forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from tests.ttt.conftest import letters_task
from ttt.dataset import Sequence, sequences
from ttt.prompts import PromptFormat
from ttt.recipes import Data, Recipe
from ttt.task import Demonstration, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDE = Recipe("wide", shots=100, sequence_tokens=4000)
CELLS = Task(tuple(Demonstration(f"0 0 {i}", f"{i} 0 0") for i in range(1, 6)))


def labelled(tokenizer: PreTrainedTokenizerFast, sequence: Sequence) -> list[str]:
    """Each run of labels as text."""
    runs: list[list[int]] = []
    before = False
    for token, label in zip(sequence.ids, sequence.labels, strict=True):
        if label and not before:
            runs.append([])
        if label:
            runs[-1].append(token)
        before = label
    return [str(tokenizer.decode(run)) for run in runs]


def shown(tokenizer: PreTrainedTokenizerFast, sequence: Sequence) -> list[str]:
    """The inputs in the order in which the sequence shows them."""
    text = str(tokenizer.decode(list(sequence.ids)))
    return [part.split("\nA:")[0] for part in text.split("Q: ")[1:]]


def test_labels_are_exactly_the_answers_and_one_token_of_their_end(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = letters_task(6)
    fmt = PromptFormat(tiny_tokenizer, task)
    answers = {d.input: d.output for d in task.demonstrations}
    for sequence in islice(sequences(task, fmt, WIDE, 0), 5):
        assert labelled(tiny_tokenizer, sequence) == [
            f" {answers[x]}\n" for x in shown(tiny_tokenizer, sequence)
        ]
        assert sequence.ids[: len(fmt.head())] == fmt.head()


def test_each_sequence_shows_all_in_an_order_of_its_own(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = letters_task(6)
    stream = sequences(task, PromptFormat(tiny_tokenizer, task), WIDE, 0)
    orders = [tuple(shown(tiny_tokenizer, s)) for s in islice(stream, 8)]
    assert all(sorted(order) == sorted(d.input for d in task.demonstrations) for order in orders)
    assert len(set(orders)) > 4


@pytest.mark.parametrize("seed", range(4))
def test_demonstrations_that_do_not_fit_together_are_all_used_over_a_few_sequences(
    tiny_tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    task = letters_task(12, seed=3)
    fmt = PromptFormat(tiny_tokenizer, task)
    segment = max(len(fmt.segment(d)) for d in task.demonstrations)
    recipe = Recipe("narrow", sequence_tokens=len(fmt.head()) + 5 * segment)
    used: Counter[str] = Counter()
    for sequence in islice(sequences(task, fmt, recipe, seed), 3 * 12):
        assert len(sequence.ids) <= recipe.sequence_tokens
        used.update(shown(tiny_tokenizer, sequence))
    assert set(used) == {d.input for d in task.demonstrations}
    few = islice(sequences(task, fmt, recipe, seed), 3)
    assert {x for s in few for x in shown(tiny_tokenizer, s)} == set(used), "12 by 5 are done in three"


def test_a_demonstration_longer_than_a_sequence_is_one_of_its_own(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = Task((*letters_task(4).demonstrations, Demonstration("long " * 40, "long")))
    fmt = PromptFormat(tiny_tokenizer, task)
    taken = list(islice(sequences(task, fmt, Recipe("narrow", sequence_tokens=60), 0), 6))
    long = [s for s in taken if len(s.ids) > 60]
    assert long and all(len(shown(tiny_tokenizer, s)) == 1 for s in long)
    assert {x for s in taken for x in shown(tiny_tokenizer, s)} >= {d.input for d in task.demonstrations[:4]}


def test_the_same_seed_gives_the_same_stream_and_another_another(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    fmt = PromptFormat(tiny_tokenizer, CELLS)
    first, again, other = (list(islice(sequences(CELLS, fmt, WIDE, seed), 4)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_symbols_are_permuted_only_where_the_recipe_says_so(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    fmt = PromptFormat(tiny_tokenizer, CELLS)
    known = {fmt.render(d.input) for d in CELLS.demonstrations}
    plain = replace(WIDE, augmentations=("order",))
    seen = {x for s in islice(sequences(CELLS, fmt, plain, 0), 5) for x in shown(tiny_tokenizer, s)}
    assert seen == known
    seen = {x for s in islice(sequences(CELLS, fmt, WIDE, 0), 5) for x in shown(tiny_tokenizer, s)}
    assert seen - known


@pytest.mark.parametrize("name", ["symmetry", "shift", "scale", "tile"])
def test_transformed_sequences_are_consistent_in_themselves(
    tiny_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    """The task is to read backwards, and so it stays under every transform."""
    recipe = replace(WIDE, augmentations=("order", "symbols", name))
    task = Task(tuple(Demonstration(f"0 {i} 0 0 0", f"0 0 0 {i} 0") for i in range(1, 6)))
    fmt = PromptFormat(tiny_tokenizer, task)
    forms = set()
    for sequence in islice(sequences(task, fmt, recipe, 0), 12):
        inputs = [x.replace(" ", "") for x in shown(tiny_tokenizer, sequence)]
        outputs = [fmt.parse(text).replace(" ", "") for text in labelled(tiny_tokenizer, sequence)]
        if name != "shift":  # whose margins are not the same on both sides
            assert [x[::-1] for x in inputs] == outputs
        assert all(sorted(x) == sorted(y) for x, y in zip(inputs, outputs, strict=True))
        forms.add("".join("0" if c == "0" else "x" for c in inputs[0]))
    assert len(forms) > 1


# ------------------------------------------------------------------------------------------ explicit tasks


EXPLICIT = replace(WIDE, data="leave-one-out", steps=100)


def passes(
    task: Task, fmt: PromptFormat, recipe: Recipe, n: int, tokenizer: PreTrainedTokenizerFast
) -> list[list[list[str]]]:
    """What the first two passes over the fixed set show, `n` sequences each."""
    taken = [shown(tokenizer, s) for s in islice(sequences(task, fmt, recipe, 0), 2 * n)]
    return [taken[:n], taken[n:]]


def test_leave_one_out_puts_each_last_after_all_others_once_a_copy(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = letters_task(5)
    inputs = sorted(d.input for d in task.demonstrations)
    fmt = PromptFormat(tiny_tokenizer, task)
    first, second = passes(task, fmt, replace(EXPLICIT, copies=3), 15, tiny_tokenizer)
    assert Counter(s[-1] for s in first) == {x: 3 for x in inputs}
    assert all(sorted(s) == inputs for s in first)
    assert sorted(first) == sorted(second) and first != second, "the same set again, in another order"
    assert len({tuple(s) for s in first}) > 5, "copies have orders of their own"


def test_leave_two_out_tops_up_with_every_pair(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = letters_task(4)
    fmt = PromptFormat(tiny_tokenizer, task)
    first, _ = passes(task, fmt, replace(EXPLICIT, data="leave-two-out"), 4 + 12, tiny_tokenizer)
    assert Counter(map(len, first)) == {4: 4, 3: 12}
    inputs = {d.input for d in task.demonstrations}
    missing = Counter((s[-1], *(inputs - set(s))) for s in first if len(s) == 3)
    assert len(missing) == 12 and set(missing.values()) == {1}


def test_the_fixed_set_ends_at_its_tokens_and_at_what_training_can_see(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = letters_task(6)
    fmt = PromptFormat(tiny_tokenizer, task)
    one = len(next(sequences(task, fmt, EXPLICIT, 0)).ids)
    for recipe in (
        replace(EXPLICIT, copies=50, data_tokens=8 * one - 1),
        replace(EXPLICIT, copies=50, steps=4, batch=2),
    ):
        first, second = passes(task, fmt, recipe, 8, tiny_tokenizer)
        assert sorted(first) == sorted(second)
        assert {s[-1] for s in first} == {d.input for d in task.demonstrations}, (
            "cut off, all come about as often"
        )


def test_explicit_tasks_keep_to_shots_and_tokens(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = letters_task(8)
    fmt = PromptFormat(tiny_tokenizer, task)
    taken = list(islice(sequences(task, fmt, replace(EXPLICIT, shots=3), 0), 8))
    assert all(len(shown(tiny_tokenizer, s)) == 3 for s in taken)
    limit = len(fmt.head()) + 4 * max(len(fmt.segment(d)) for d in task.demonstrations)
    taken = list(islice(sequences(task, fmt, replace(EXPLICIT, sequence_tokens=limit), 0), 8))
    assert all(len(shown(tiny_tokenizer, s)) >= 4 and len(s.ids) <= limit for s in taken)


def test_one_demonstration_can_not_be_left_out_and_is_trained_on_alone(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = letters_task(1)
    (only,) = islice(sequences(task, PromptFormat(tiny_tokenizer, task), EXPLICIT, 0), 1)
    assert shown(tiny_tokenizer, only) == [task.demonstrations[0].input]


@pytest.mark.parametrize("data", ["sampled", "leave-one-out"])
def test_direct_sequences_show_one_demonstration_and_use_all(
    tiny_tokenizer: PreTrainedTokenizerFast, data: Data
) -> None:
    task = letters_task(6)
    recipe = replace(WIDE, form="direct", data=data)
    taken = [
        shown(tiny_tokenizer, s)
        for s in islice(sequences(task, PromptFormat(tiny_tokenizer, task), recipe, 0), 12)
    ]
    assert all(len(s) == 1 for s in taken) and {s[0] for s in taken} == {d.input for d in task.demonstrations}


# ---------------------------------------------------------------------------------------------------- loss


def test_the_last_output_alone_may_be_the_label(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = letters_task(5)
    fmt = PromptFormat(tiny_tokenizer, task)
    answers = {d.input: d.output for d in task.demonstrations}
    for s in islice(sequences(task, fmt, replace(WIDE, loss="last-output"), 0), 3):
        assert labelled(tiny_tokenizer, s) == [f" {answers[shown(tiny_tokenizer, s)[-1]]}\n"]


def test_all_tokens_after_the_instruction_may_be_labels(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = letters_task(4)
    fmt = PromptFormat(tiny_tokenizer, task)
    (s,) = islice(sequences(task, fmt, replace(WIDE, loss="all-tokens"), 0), 1)
    head = len(fmt.head())
    assert head > 0 and not any(s.labels[:head]) and all(s.labels[head:])
    plain = replace(task, instruction="")
    (s,) = islice(
        sequences(plain, PromptFormat(tiny_tokenizer, plain), replace(WIDE, loss="all-tokens"), 0), 1
    )
    assert not s.labels[0] and all(s.labels[1:]), "nothing predicts the first token"


def test_a_part_of_a_task_is_treated_as_the_whole(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Without the one output of a single cell the part looks like cells, whose symbols could be permuted."""
    part = Task(tuple(Demonstration(f"{i} {i + 1} {i}", f"{i} {i} {i}") for i in range(4)))
    whole = replace(part, demonstrations=(*part.demonstrations, Demonstration("1 2 1", "5")))

    def seen(written: Task | None) -> set[str]:
        fmt = PromptFormat(tiny_tokenizer, written or part)
        taken = islice(sequences(part, fmt, WIDE, 0, written), 6)
        return {x for s in taken for x in shown(tiny_tokenizer, s)}

    given = {d.input for d in part.demonstrations}
    assert {x.replace(" ", "") for x in seen(None)} - {x.replace(" ", "") for x in given}
    assert {x.replace(" ", "") for x in seen(whole)} <= {x.replace(" ", "") for x in given}
