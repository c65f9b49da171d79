"""Rows come back as written; what can't be learned from is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.outcomes import as_json, distinct, hash_rows, parse_row, read_rows, write_rows
from tests.policies.simulated import TRAIN, simulate

ROWS = simulate(3, 2, seed=4).rows


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_rows_come_back_equal_from_their_file_form(seed: int, n: int) -> None:
    for row in simulate(n, seed=seed).rows:
        assert parse_row(json.loads(json.dumps(as_json(row)))) == row


def test_files_and_folders_are_read_and_what_stands_twice_counts_once(tmp_path: Path) -> None:
    write_rows(ROWS[:4], tmp_path / "a.jsonl")
    write_rows(ROWS[2:], tmp_path / "b.jsonl")
    assert read_rows([tmp_path]) == ROWS
    assert read_rows([tmp_path / "b.jsonl"]) == ROWS[2:]


def test_the_hash_of_rows_is_of_their_content_not_their_order() -> None:
    assert hash_rows(ROWS) == hash_rows(ROWS[::-1])
    assert hash_rows(ROWS) != hash_rows(ROWS[1:])


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda d: d.update(signals_version=7), "version 7 of the signals"),
        (lambda d: d["signals"].update(loo_accuracy=math.nan), "signal loo_accuracy is nan"),
        (lambda d: d["signals"].update(mood=1.0), "unknown signal 'mood'"),
        (lambda d: d["signals"].pop("prompt_tokens"), "lacks the signal 'prompt_tokens'"),
        (lambda d: d["arms"]["icl"].update(correct=1.2), "arm icl: correct is 1.2"),
        (lambda d: d["arms"]["icl"].update(n_queries=0), "n_queries is 0"),
        (lambda d: d["arms"]["icl"].update(seconds=-1), "seconds is -1"),
        (lambda d: d["arms"]["icl"]["seconds_parts"].update(icl=math.inf), "seconds of icl is inf"),
        (lambda d: d.update(arms={}), "at least one arm"),
        (lambda d: d["probe"]["steps"].append(9), "lists of one length"),
        (lambda d: d.update(text="secret"), "unknown key 'text'"),
        (lambda d: d.pop("machine"), "lacks 'machine'"),
        (lambda d: d.update(seed=True), "seed is True"),
        (lambda d: d.update(family=""), "family is ''"),
    ],
)
def test_an_impossible_row_is_refused_with_its_line(
    change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path
) -> None:
    data = json.loads(json.dumps(as_json(ROWS[1])))
    change(data)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(as_json(ROWS[0])) + "\n\n" + json.dumps(data) + "\n")
    with pytest.raises(PolicyError, match=says) as caught:
        read_rows([file])
    assert "line 3" in str(caught.value)


def test_what_is_no_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"family": \n')
    with pytest.raises(PolicyError, match="line 1 is not JSON"):
        read_rows([tmp_path])


def test_no_rows_at_all_say_how_to_get_some(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(PolicyError, match="ttt-router collect"):
        read_rows([tmp_path])
    with pytest.raises(PolicyError, match="can't be read"):
        read_rows([tmp_path / "none.jsonl"])


def test_rows_that_contradict_one_another_are_both_named() -> None:
    other = json.loads(json.dumps(as_json(ROWS[0])))
    other["arms"][TRAIN]["correct"] = 1.0 - other["arms"][TRAIN]["correct"] / 2
    with pytest.raises(PolicyError, match="second and first say different things"):
        distinct([("first", ROWS[0]), ("second", parse_row(other))])


def test_without_the_probe_its_signals_are_unmeasured() -> None:
    assert ROWS[0].measured(probed=True).probed
    hidden = ROWS[0].measured(probed=False)
    assert not hidden.probed and hidden.probe_accuracy_before is None
    assert hidden.loo_accuracy == ROWS[0].signals["loo_accuracy"]
