"""What the doctor sees of a machine, its folders and a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.agent import Router
from router.cli.main import main
from router.doctor import MODEL_PROBLEM, STORE_PROBLEM, Check, diagnose, folder_check, model_checks
from router.settings import Settings
from ttt.hardware import detect
from ttt.task import Demonstration, Task


def checks_of(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in diagnose(settings)}


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> Settings:
    return Settings(model=str(tiny_llama), device="cpu", dtype="float32", data_dir=str(tmp_path / "data"))


def test_a_sound_machine_has_no_problem_and_every_figure_has_a_unit(settings: Settings) -> None:
    checks = checks_of(settings)
    assert all(check.ok for check in checks.values())
    assert "GiB free of" in checks["memory"].text and "GFLOP/s" in checks["speed"].text
    assert checks["fits"].text.startswith("yes")
    assert checks["training"].text.startswith("trains in ")
    for word in ("in-context learning about", "training", "10 demonstrations of 50 tokens, 32 queries"):
        assert word in checks["times"].text


def test_it_makes_nothing(settings: Settings, isolated: Path) -> None:
    checks = checks_of(settings)
    assert not settings.data_path.exists() and not (isolated / "cache").exists()
    assert "made at the first use" in checks["data"].text


def test_times_follow_earlier_answers(settings: Settings) -> None:
    assert "before any answer was given here" in checks_of(settings)["times"].text
    with Router.open(settings) as opened:
        opened.ask(Task((Demonstration("ab", "a"),)), ["cd"], arm="icl")
    assert "as earlier answers here took" in checks_of(settings)["times"].text
    assert checks_of(settings)["database"].text.startswith("readable, has episodes")


def test_a_model_that_does_not_fit_is_found_before_it_is_loaded(settings: Settings) -> None:
    crowded = replace(detect("cpu", "float32"), memory_free_bytes=100_000)
    check = model_checks(settings, crowded, 1e9)[-1]
    assert check.name == "fits" and check.exit_code == MODEL_PROBLEM
    assert "choose a smaller model" in check.text


@pytest.mark.parametrize(
    ("change", "name"),
    [({"model": "nope"}, "model"), ({"device": "abacus"}, "device")],
    ids=["model", "device"],
)
def test_an_impossible_model_or_device_is_a_problem(
    change: dict[str, Any], name: str, tmp_path: Path
) -> None:
    check = checks_of(replace(Settings(data_dir=str(tmp_path)), **change))[name]
    assert check.exit_code == MODEL_PROBLEM and next(iter(change.values())) in check.text


def test_a_model_that_is_not_fetched_yet_is_no_problem(tmp_path: Path) -> None:
    check = checks_of(Settings(data_dir=str(tmp_path)))["model"]
    assert check.ok and "ttt-router model pull" in check.text


def test_a_file_where_a_folder_should_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = folder_check("data", tmp_path / "file" / "data", "--data-dir")
    assert check.exit_code == STORE_PROBLEM and "--data-dir" in check.text
    assert folder_check("data", tmp_path / "new" / "data", "--data-dir").ok


def test_a_corrupt_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "router.db").write_bytes(b"not a database, surely" * 100)
    check = checks_of(Settings(model="nope", data_dir=str(tmp_path)))["database"]
    assert check.exit_code == STORE_PROBLEM and "damaged" in check.text


def test_the_command_s_exit_code_is_that_of_the_first_problem(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--device", "cpu", "--dtype", "float32", "--data-dir", settings.data_dir]
    assert main(["doctor", "--model", settings.model, *common]) == 0
    assert "PROBLEM" not in capsys.readouterr().out
    assert main(["doctor", "--model", "nope", *common]) == MODEL_PROBLEM
    assert "PROBLEM  model" in capsys.readouterr().out
