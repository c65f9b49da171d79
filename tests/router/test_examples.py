"""Examples in one message: each notation comes back as written, and what only looks like one stays text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.examples import Examples, parse_examples
from ttt.task import Demonstration

PAIRS = (("3 March 2021", "2021-03-03"), ("12 May 1999", "1999-05-12"))
DEMONSTRATIONS = tuple(Demonstration(x, y) for x, y in PAIRS)

line = (
    st.text(
        st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "),
        min_size=1,
        max_size=20,
    )
    .map(str.strip)
    .filter(bool)
)
rows = st.lists(st.tuples(line, line), min_size=2, max_size=4)
imitation = st.sampled_from(
    [
        "Q: a\nA: b",
        "Input: x\nOutput: y",
        "a -> b",
        '{"input": "x", "output": "y"}',
        "| a | b |",
        "\n\nQ:",
        "no, it should be 3",
    ]
)


def as_json(pairs: list[tuple[str, str]], query: str) -> str:
    lines = [json.dumps({"input": x, "output": y}) for x, y in pairs]
    return "\n".join([*lines, json.dumps({"input": query})])


def as_csv(pairs: list[tuple[str, str]], query: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([("input", "output"), *pairs, (query, "")])
    return out.getvalue()


def as_markdown(pairs: list[tuple[str, str]], query: str) -> str:
    cells = [("input", "output"), ("---", "---"), *pairs, (query, "")]
    return "\n".join(
        f"| {x.replace('|', chr(92) + '|')} | {y.replace('|', chr(92) + '|')} |" for x, y in cells
    )


def labelled(i: str, o: str) -> Callable[[list[tuple[str, str]], str], str]:
    return lambda pairs, query: "".join(f"{i}: {x}\n{o}: {y}\n\n" for x, y in pairs) + f"{i}: {query}\n{o}:"


def as_arrows(pairs: list[tuple[str, str]], query: str) -> str:
    return "\n".join([*(f"{x} -> {y}" for x, y in pairs), f"{query} ->"])


@pytest.mark.parametrize(
    ("write", "notation"),
    [
        (as_json, "JSON lines"),
        (as_csv, "CSV table"),
        (as_markdown, "Markdown table"),
        (labelled("Input", "Output"), "Input:/Output:"),
        (labelled("q", "a"), "Q:/A:"),
        (labelled("QUESTION", "ANSWER"), "Question:/Answer:"),
        (as_arrows, "x -> y"),
    ],
)
@pytest.mark.parametrize("instruction", ["", "Write dates the ISO way."])
def test_each_notation_is_read_with_its_query_and_instruction(
    write: Callable[[list[tuple[str, str]], str], str], notation: str, instruction: str
) -> None:
    text = f"{instruction}\n\n" if instruction else ""
    text += write(list(PAIRS), "7 July 2007")
    assert parse_examples(text) == Examples(notation, DEMONSTRATIONS, "7 July 2007", instruction)
    assert parse_examples(text.replace("\n", "\r\n")) == parse_examples(text)


@pytest.mark.parametrize("write", [as_json, as_csv])
@given(
    pairs=st.lists(st.tuples(line | imitation, line | imitation), min_size=1, max_size=4),
    query=line | imitation,
)
def test_values_in_quotes_come_back_whatever_they_imitate(
    write: Callable[[list[tuple[str, str]], str], str], pairs: list[tuple[str, str]], query: str
) -> None:
    found = parse_examples(write(pairs, query))
    assert found is not None
    assert [(d.input, d.output) for d in found.demonstrations] == [(x.strip(), y.strip()) for x, y in pairs]
    assert found.query == query.strip()


@given(text=st.text(max_size=200))
def test_any_text_is_read_the_same_twice_and_never_gives_empty_examples(text: str) -> None:
    found = parse_examples(text)
    assert found == parse_examples(text)
    if found is not None:
        assert found.demonstrations and all(
            d.input.strip() and d.output.strip() for d in found.demonstrations
        )
        assert found.query is None or found.query.strip()


@given(pairs=rows, query=line)
def test_labels_of_another_kind_inside_values_stay_text(pairs: list[tuple[str, str]], query: str) -> None:
    inner = [(f"{x}\nQ: {x}\nA: {y}", y) for x, y in pairs]
    found = parse_examples(labelled("Input", "Output")(inner, f"{query}\nQ: {query}\nA: 1"))
    if any(w.lower().startswith(("input:", "output:")) for pair in pairs for w in (*pair, query)):
        return
    assert found is not None and found.notation == "Input:/Output:"
    assert [d.input for d in found.demonstrations] == [x for x, _ in inner]
    assert found.query == f"{query}\nQ: {query}\nA: 1"


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France?",
        "def f(x: int) -> int:\n    return x",
        "Please explain: Q: what? A: that.",
        "Q: only a question\nA:",
        "Input: a\nInput: b\nOutput: c",
        "He said\nInput: a\nOutput: b",
        "a, b\n1, 2",
        'Fix this:\n{"input": "x", "output": "y"}\nand that\n{"input": "z"}',
        "| a | b |\n| - | - |\n",
        "a -> b -> c\nd -> e -> f",
        "a -> b\nc => d",
        "Question: Why is the sky blue?\nAnswer: Rayleigh scattering.\nIs that right?",
        "Q: What is 12*12?\nA: Let's think step by step.",
        '{"input": "a", "output": "1"}',
        "input,output\na,1",
        "",
    ],
)
def test_what_is_not_examples_as_a_whole_stays_text(text: str) -> None:
    assert parse_examples(text) is None


def test_a_table_may_be_followed_by_its_query_and_examples_may_come_without_one() -> None:
    table = "| x | label |\n|---|---|\n| a | 1 |\n| b | 2 |"
    found = parse_examples(f"Label these:\n{table}\n\nc")
    assert found is not None and (found.query, found.instruction) == ("c", "Label these:")
    alone = parse_examples(table)
    assert alone is not None and alone.query is None and len(alone.demonstrations) == 2


def test_two_kinds_of_query_at_once_are_not_guessed_between() -> None:
    assert parse_examples("a -> 1\nb -> 2\nc ->\nd") is None
    assert parse_examples('{"input": "a", "output": "1"}\n{"input": "b"}\n\nc') is None
