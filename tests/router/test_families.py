"""Procedural families: one rule each, the same everywhere, all different, short, and enough of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from router.errors import RouterError
from router.families import PROCEDURES, Procedure, arithmetic, brackets, cells, chosen, edits, letters, words
from router.families.procedure import items, write
from ttt.formats import read_families
from ttt.pools import sample, split
from ttt.prompts import PromptFormat
from ttt.task import canonical_text

ALL = list(PROCEDURES.values())
PER_TASK, SEEDS, QUERIES, AT_LEAST = 10, 3, 128, 60
PROMPT_TOKENS = 600


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[str, str]]]:
    """400 items of each family, or all that there are."""
    return {p.name: items(p, 400) for p in ALL}


def test_there_are_over_a_hundred_in_a_dozen_collections_of_several_kinds() -> None:
    sizes = Counter(p.collection for p in ALL)
    assert len(ALL) >= 100 and len(sizes) >= 12 and min(sizes.values()) >= 5
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", p.name) for p in ALL)
    assert all(p.name.startswith(f"{p.collection}-") for p in ALL)
    assert {bool(p.instruction) for p in ALL} == {True, False}


@pytest.mark.parametrize("procedure", ALL, ids=lambda p: p.name)
def test_a_family_is_one_rule_the_same_in_every_run(procedure: Procedure) -> None:
    first = items(procedure, 200)
    assert items(procedure, 200) == first, "no hidden randomness"
    assert items(procedure, 50) == first[:50]
    answers = dict(first)
    for seed in (1, 2):
        other = items(procedure, 200, seed)
        assert other != first
        assert all(answers.setdefault(x, y) == y for x, y in other), "an input has one output under all seeds"
    assert all(x == canonical_text(x) and y == canonical_text(y) and x and y for x, y in answers.items())


def test_families_hang_on_no_hash_seed_of_the_interpreter(drawn: dict[str, list[tuple[str, str]]]) -> None:
    """Of a release, these do not change: rows are only comparable while the items stay."""
    text = repr([(name, drawn[name][:5]) for name in sorted(drawn) if name.startswith(("lookups", "chance"))])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9f4f664e0c2c126d"


def test_no_two_families_are_the_same_rule_on_the_same_inputs(
    drawn: dict[str, list[tuple[str, str]]],
) -> None:
    answers = {name: dict(found) for name, found in drawn.items()}
    for a, b in combinations(answers, 2):
        shared = answers[a].keys() & answers[b].keys()
        agreeing = sum(answers[a][x] == answers[b][x] for x in shared)
        assert len(shared) < 20 or agreeing < 0.5 * len(shared), f"{a} and {b} agree on {agreeing}"


def test_pools_are_disjoint_and_large_enough(tmp_path: Path) -> None:
    write(ALL, tmp_path, 400)
    families = read_families([tmp_path])
    assert sorted(f.name for f in families) == sorted(PROCEDURES)
    for family in families:
        assert family.folder == PROCEDURES[family.name].collection
        assert family.instruction == PROCEDURES[family.name].instruction
        pools = split(family)
        assert not pools.notes, "no input comes twice"
        whole = len(pools.demonstrations) + len(pools.queries)
        assert whole >= AT_LEAST and len(pools.demonstrations) >= 2 * PER_TASK
        assert len(pools.queries) >= min(QUERIES, whole // 2)
        if whole == 400:
            assert len(pools.demonstrations) >= PER_TASK * SEEDS and len(pools.queries) >= QUERIES
        samples = [sample(pools, PER_TASK, QUERIES, seed) for seed in range(SEEDS)]
        shown = {d.input for s in samples for d in s.task.demonstrations}
        assert not shown & {q.input for s in samples for q in s.queries}
        assert len({s.task.fingerprint for s in samples}) == SEEDS


def test_most_families_have_enough_items_for_three_tasks_of_128_queries(
    drawn: dict[str, list[tuple[str, str]]],
) -> None:
    assert sum(len(found) >= PER_TASK * SEEDS + QUERIES for found in drawn.values()) >= 150


def pieces(text: str) -> int:
    """More tokens than a byte-pair tokenizer makes of English, digits and signs."""
    return len(re.findall(r"\d|[A-Za-z]{1,3}|[^\sA-Za-z\d]", text))


def test_prompts_are_short(drawn: dict[str, list[tuple[str, str]]]) -> None:
    for name, found in drawn.items():
        longest = sorted((pieces(f"Q: {x} A: {y}") + 2 for x, y in found), reverse=True)[:PER_TASK]
        assert sum(longest) <= PROMPT_TOKENS, name


@pytest.mark.slow
def test_prompts_are_short_by_the_built_in_models_tokenizer(
    drawn: dict[str, list[tuple[str, str]]], smollm2: Path
) -> None:
    from transformers import AutoTokenizer

    from ttt.task import Demonstration, Task

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for name, found in drawn.items():
        task = Task(tuple(Demonstration(x, y) for x, y in found), PROCEDURES[name].instruction)
        fmt = PromptFormat(tokenizer, task)
        longest = sorted((len(fmt.segment(d)) for d in task.demonstrations), reverse=True)[:PER_TASK]
        assert len(fmt.head()) + sum(longest) <= PROMPT_TOKENS, name


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (cells.filled(["0", "0", "3", "0", "0", "3", "0"]), ["0", "0", "3", "3", "3", "3", "0"]),
        (cells.hollow(["0", "4", "4", "4", "4", "0"]), ["0", "4", "0", "0", "4", "0"]),
        (cells.mirrored(["0", "1", "2", "3", "0"]), ["0", "3", "2", "1", "0"]),
        (cells.grown(["0", "0", "5", "5", "0", "0"]), ["0", "5", "5", "5", "5", "0"]),
        (cells.longest(["1", "1", "0", "2", "2", "2", "0"]), ["0", "0", "0", "2", "2", "2", "0"]),
        (cells.exchanged(["1", "0", "2", "2"]), ["2", "0", "1", "1"]),
        (cells.shifted(2)(["7", "7", "0", "0"]), ["0", "0", "7", "7"]),
        (letters.swapped_pairs(list("abcd")), list("badc")),
        (letters.along(3)(list("axz")), list("dac")),
        (letters.without_repeats(list("aabba")), list("aba")),
        (arithmetic.spelled(0), "zero"),
        (arithmetic.spelled(19), "nineteen"),
        (arithmetic.spelled(40), "forty"),
        (arithmetic.spelled(99), "ninety-nine"),
        (brackets.depth("( ( ) ( ( ) ) )"), 3),
        (edits.pig_latin("apple"), "appleway"),
        (edits.pig_latin("bread"), "readbay"),
        (
            [words.plural(w) for w in ("city", "day", "box", "mouse", "roof")],
            ["cities", "days", "boxes", "mice", "roofs"],
        ),
        (
            [words.comparative(w) for w in ("big", "dry", "nice", "tall")],
            ["bigger", "drier", "nicer", "taller"],
        ),
        ([words.gerund(w) for w in ("see", "make", "lie", "run")], ["seeing", "making", "lying", "running"]),
        ([words.roman(n) for n in (4, 9, 44, 399)], ["IV", "IX", "XLIV", "CCCXCIX"]),
        (
            [words.ordinal(n) for n in (1, 2, 3, 11, 112, 121)],
            ["1st", "2nd", "3rd", "11th", "112th", "121st"],
        ),
    ],
)
def test_rules_by_hand(got: object, expected: object) -> None:
    assert got == expected


def test_brackets_to_complete_are_whole_with_the_answer_and_not_without() -> None:
    def whole(row: list[str]) -> bool:
        stack: list[str] = []
        for c in row:
            if c in brackets.PAIRS:
                stack.append(brackets.PAIRS[c])
            elif not stack or stack.pop() != c:
                return False
        return not stack

    for x, y in items(PROCEDURES["brackets-complete"], 100):
        assert whole(x.split() + y.split()) and not whole(x.split())
    for x, y in items(PROCEDURES["brackets-balanced"], 200):
        assert whole(x.split()) is (y == "yes")


def test_logic_is_what_python_says() -> None:
    for x, y in items(PROCEDURES["brackets-logic"], 100):
        assert eval(x.replace("true", "True").replace("false", "False")) is (y == "true")


def test_families_are_chosen_by_name_or_collection() -> None:
    assert len(chosen()) == len(ALL)
    assert [p.name for p in chosen(["words-plural"])] == ["words-plural"]
    assert {p.collection for p in chosen(["cells", "codes"])} == {"cells", "codes"}
    with pytest.raises(RouterError, match="no procedural family or collection 'cell'.*cells"):
        chosen(["cell"])
    with pytest.raises(RouterError, match="0 items"):
        items(ALL[0], 0)


def test_a_folder_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="can't be written"):
        write(ALL[:1], tmp_path / "file", 5)
