"""Policy, row and cost files made to hang or to crash the reader: one sentence each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies import files
from policies.cost import CostModel
from policies.errors import PolicyError
from policies.outcomes import read_rows
from policies.persist import from_json, load, to_json
from policies.rule import Rule

BOMBS = {
    "lists": "[" * 10**6,
    "objects": '{"a":' * 10**6,
    "in a policy": '{"format": "ttt-router-learned-4", "signals_version": 1, "sha256": "", "parameters": '
    + "[" * 5000
    + "]" * 5000
    + "}",
    "a number too long": "9" * 10_000,
    "not a number": "NaN",
    "empty": "",
    "a surrogate": '"\\ud800"',
    "null": "null",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("read", [from_json, CostModel.from_json], ids=["policy", "costs"])
def test_a_bomb_is_one_sentence(read: Callable[[str], Any], text: str) -> None:
    started = time.process_time()
    with pytest.raises(PolicyError):
        read(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", [t for t in BOMBS.values() if t], ids=[n for n, t in BOMBS.items() if t])
def test_a_bomb_among_rows_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text("\n" + text)
    with pytest.raises(PolicyError, match="line 2"):
        read_rows([tmp_path / "rows.jsonl"])


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    path = tmp_path / "policy.json"
    path.write_text(to_json(Rule()))
    with pytest.raises(PolicyError, match="larger than 100 bytes"):
        load(path)
    with pytest.raises(PolicyError, match="larger than 100 bytes"):
        read_rows([path])


def test_infinite_and_enormous_parameters_are_refused() -> None:
    data = json.loads(to_json(Rule()))
    values: tuple[Any, ...] = (1e308, -1, True, "x", None, [], float("inf"), float("nan"))
    for value in values:
        data["parameters"]["tolerated_losses"] = value
        from policies.checks import content_hash

        body = {k: v for k, v in data.items() if k != "sha256"}
        try:
            data["sha256"] = content_hash(body)
        except ValueError:
            data["sha256"] = "x"
        with pytest.raises(PolicyError):
            from_json(json.dumps(data))
