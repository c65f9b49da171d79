"""The demo's generators: right answers by an independent reading of each rule, and no leaks."""

from __future__ import annotations

import random
import re
from collections import Counter
from datetime import datetime
from itertools import groupby

import pytest

from router.demo_tasks import DEFAULT_FAMILIES, FAMILIES, demo_task
from router.errors import RouterError
from ttt.augment import symbol_alphabet
from ttt.prompts import is_cells

N = 60
"""Items looked at in each family."""
PUZZLES = ("fill", "shift", "denoise", "mirror", "recolour")
UNLEARNABLE = ("recolour", "lottery")


def items(family: str, seed: int = 0) -> list[tuple[str, str]]:
    return FAMILIES[family](random.Random(seed), N)


def runs(row: str) -> list[tuple[str, int]]:
    """Runs of equal cells, as (symbol, length)."""
    return [(symbol, len(list(same))) for symbol, same in groupby(row)]


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_distinct_and_the_same_for_the_same_seed(family: str) -> None:
    first = items(family)
    assert len({given for given, _ in first}) == N
    assert first == items(family) != items(family, seed=1)
    assert all(given.strip() and answer.strip() for given, answer in first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_queries_never_repeat_a_demonstration(family: str, seed: int) -> None:
    asked = demo_task(family, 8, 16, seed)
    assert (len(asked.task.demonstrations), len(asked.queries), len(asked.gold)) == (8, 16, 16)
    assert not {d.input for d in asked.task.demonstrations} & set(asked.queries)
    assert asked == demo_task(family, 8, 16, seed)
    assert (
        asked.task.instruction == ""
        and asked.task.name == family
        and asked.summary.endswith((".", "ISO 8601.", "know."))
    )


@pytest.mark.parametrize("family", PUZZLES)
def test_puzzles_are_rows_of_ten_cells_on_a_background_of_zeros(family: str) -> None:
    for given, answer in items(family):
        assert is_cells(given) and is_cells(answer)
        assert len(given.split(" ")) == len(answer.split(" ")) == 10
    alphabet = symbol_alphabet(demo_task(family, 8, 16, 0).task)
    assert alphabet == tuple("123456789")


def test_fill_keeps_two_markers_and_fills_what_is_between() -> None:
    for given, answer in items("fill"):
        row = given.replace(" ", "")
        markers = [i for i, cell in enumerate(row) if cell != "0"]
        assert len(markers) == 2 and row[markers[0]] == row[markers[1]] and markers[1] - markers[0] > 1
        assert answer.replace(" ", "") == re.sub(r"[1-9]0+[1-9]", lambda m: m[0].replace("0", m[0][0]), row)


def test_shift_is_a_rotation_that_loses_nothing() -> None:
    for given, answer in items("shift"):
        cells = given.split(" ")
        assert cells[-1] == "0"
        assert answer.split(" ") == cells[-1:] + cells[:-1]


def test_denoise_removes_all_lone_cells_and_there_are_some() -> None:
    for given, answer in items("denoise"):
        found = runs(given.replace(" ", ""))
        assert any(symbol != "0" and length == 1 for symbol, length in found)
        assert sum(symbol != "0" and length > 1 for symbol, length in found) == 1
        kept = "".join((symbol if length > 1 else "0") * length for symbol, length in found)
        assert answer.replace(" ", "") == kept


def test_mirror_reverses_between_the_zeros() -> None:
    for given, answer in items("mirror"):
        expected = re.sub("[1-9]+", lambda m: m[0][::-1], given.replace(" ", ""))
        assert answer.replace(" ", "") == expected != given.replace(" ", "")


def test_dates_are_read_back_by_the_standard_library() -> None:
    for given, answer in items("dates"):
        written = "%B %d, %Y" if "," in given else "%d %B %Y"
        assert datetime.strptime(given, written).date().isoformat() == answer


def test_log_fields_are_those_of_the_line() -> None:
    for given, answer in items("log-fields"):
        service, level, code = re.fullmatch(r"\[(\w+)\] (\w+) (\d+) call .+", given).groups()  # type: ignore[union-attr]
        assert answer == f"{level}|{service}|{code}"


def test_house_codes_follow_from_the_message() -> None:
    words = {"Invoice": "FIN", "Refund": "FIN", "App": "TEC", "Screen": "TEC", "Parcel": "LOG", "Box": "LOG"}
    for given, answer in items("house-code"):
        department, city, rank = answer.split("-")
        assert department == words[given.split()[0]]
        assert given.split()[-1].upper().startswith(city) and len(city) == 3
        assert rank == {"customer": "2", "supplier": "1"}[given.split()[-3]]


def test_units_add_up() -> None:
    factors = {"kg": 1000, "g": 1, "km": 1000, "m": 1, "l": 1000, "ml": 1}
    for given, answer in items("units"):
        whole, large, rest, small = given.split()
        assert answer == f"{int(whole) * factors[large] + int(rest) * factors[small]} {small}"


def test_recolour_keeps_the_block_and_draws_its_colour_anew() -> None:
    drawn: dict[str, set[str]] = {}
    for given, answer in items("recolour"):
        before, after = set(given) - {"0", " "}, set(answer) - {"0", " "}
        assert len(before) == len(after) == 1 and before != after
        old, new = before.pop(), after.pop()
        assert given.replace(old, "x") == answer.replace(new, "x")
        drawn.setdefault(old, set()).add(new)
    assert all(len(colours) > 1 for colours in drawn.values())


def test_lottery_has_four_prizes_none_rare_and_no_rule_in_the_last_digit() -> None:
    won = Counter(answer for _, answer in items("lottery"))
    assert len(won) == 4 and min(won.values()) >= N // 10
    by_digit: dict[str, set[str]] = {}
    for given, answer in items("lottery"):
        by_digit.setdefault(given[-1], set()).add(answer)
    assert any(len(prizes) > 2 for prizes in by_digit.values())


def test_eight_demonstrations_show_every_kind_of_a_closed_set() -> None:
    for seed in range(5):
        levels = {d.output.split("|")[0] for d in demo_task("log-fields", 8, 16, seed).task.demonstrations}
        topics = {d.input.split(",")[0] for d in demo_task("house-code", 8, 16, seed).task.demonstrations}
        units = {d.output.split()[1] for d in demo_task("units", 8, 16, seed).task.demonstrations}
        assert (len(levels), len(topics), len(units)) == (3, 6, 3)


def test_the_default_demo_has_puzzles_practical_tasks_and_one_beyond_learning() -> None:
    chosen = set(DEFAULT_FAMILIES)
    assert chosen <= set(FAMILIES) and len(chosen) == len(DEFAULT_FAMILIES)
    assert chosen & set(PUZZLES) and chosen & set(UNLEARNABLE) and chosen - set(PUZZLES) - set(UNLEARNABLE)


def test_an_unknown_family_or_an_impossible_number_is_named() -> None:
    with pytest.raises(RouterError, match="no demo family 'sudoku'; choose from: fill"):
        demo_task("sudoku", 8, 16, 0)
    with pytest.raises(RouterError, match="0 demonstrations and 16 queries"):
        demo_task("fill", 0, 16, 0)
    with pytest.raises(RouterError, match="different items, not 5008; ask for fewer"):
        demo_task("fill", 8, 5000, 0)
