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
from ttt.recipes import Recipe
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
    plain = replace(WIDE, symbols=False)
    seen = {x for s in islice(sequences(CELLS, fmt, plain, 0), 5) for x in shown(tiny_tokenizer, s)}
    assert seen == known
    seen = {x for s in islice(sequences(CELLS, fmt, WIDE, 0), 5) for x in shown(tiny_tokenizer, s)}
    assert seen - known


def test_reversed_sequences_are_consistent_in_themselves(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = replace(WIDE, symbols=True, reverse=True)
    fmt = PromptFormat(tiny_tokenizer, CELLS)
    reversed_ = 0
    for sequence in islice(sequences(CELLS, fmt, recipe, 0), 12):
        inputs = shown(tiny_tokenizer, sequence)
        outputs = [fmt.parse(text).replace(" ", "") for text in labelled(tiny_tokenizer, sequence)]
        assert [x.replace(" ", "")[::-1] for x in inputs] == outputs
        reversed_ += inputs[0].replace(" ", "")[0] != "0"
    assert 0 < reversed_ < 12
