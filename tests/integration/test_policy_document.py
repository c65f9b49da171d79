"""Every command on policies and the Python of the page on the policy run, in their order, on simulated outcomes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policies.outcomes import write_rows
from router.cli.main import main
from tests.policies.simulated import simulate
from ttt.formats import read_task

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/policy.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_rows(simulate(60, 2, seed=1).rows, tmp_path / "outcomes.jsonl")
    fresh = [replace(row, family=f"fresh-{row.family}") for row in simulate(600, seed=2).rows]
    write_rows(fresh, tmp_path / "fresh.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTT_ROUTER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def test_the_commands_run_in_their_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    ttt-router ((?:policy|tune) .*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        assert main(command.split()) == 0, capsys.readouterr().err
    assert (folder / "tuned/tune.png").exists() and (folder / "learned.json").exists()
    assert "is in force." in capsys.readouterr().out


def test_the_task_that_the_page_asks_is_there() -> None:
    asked = re.findall(r"^    ttt-router solve (\S+)", PAGE, flags=re.MULTILINE)
    assert len(asked) == 4
    for name in asked:
        file = read_task(ROOT / name)
        assert len(file.task.demonstrations) == 10 and len(file.queries) == 1


def test_the_python_runs(folder: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\S+ [\d.]+ s train:auto is expected to add", done.stdout)


def test_the_line_of_a_log_that_the_page_shows_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r'^    (\{"family": "f1".*?\}\})$', PAGE, flags=re.MULTILINE | re.DOTALL)
    one = " ".join(line.split())
    (folder / "decisions.jsonl").write_text("\n".join(one.replace('"f1"', f'"f{i}"') for i in range(60)))
    assert main(["policy", "eval", "--log", "decisions.jsonl"]) == 0
    assert "DR " in capsys.readouterr().out
