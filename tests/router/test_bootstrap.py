"""The composition root: what is checked before the model is loaded, and what is remembered between starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from policies.baselines import AlwaysArm
from policies.errors import PolicyError
from policies.rule import Rule
from router.agent import Router
from router.bootstrap import open_parts, open_store
from router.settings import Settings
from store.errors import DatabaseCorrupt, ReadOnly, StoreError
from tests.router.conftest import QUERIES, TASK, OpenRouter
from ttt.errors import ModelNotFound, TaskError

NO_MODEL = "/none/such-model"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"prefer": "cheap"}, PolicyError, "'cheap'"),
        ({"worth_s": 1e9}, PolicyError, "worth is"),
        ({"recipe": "none such"}, TaskError, "'none such'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_opened(
    tmp_path: Path, options: dict[str, object], error: type[Exception], says: str
) -> None:
    data = tmp_path / "data"
    with pytest.raises(error, match=says):
        open_parts(Settings(model=NO_MODEL, data_dir=str(data), **options))  # type: ignore[arg-type]
    assert not data.exists()


def test_a_model_that_is_not_there_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="such-model"):
        open_parts(Settings(model=NO_MODEL, data_dir=str(tmp_path)))
    handles = Path("/proc/self/fd")
    if handles.is_dir():
        links = [os.readlink(h) for h in handles.iterdir() if h.is_symlink()]
        assert [link for link in links if "router.db" in link] == []


def test_a_data_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReadOnly, match="file"):
        open_store(Settings(data_dir=str(tmp_path / "file" / "data")))


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "router.db").write_text("this is not a database " * 100)
    with pytest.raises(DatabaseCorrupt, match="router.db"):
        open_store(Settings(data_dir=str(tmp_path)))
    assert issubclass(DatabaseCorrupt, StoreError)


def test_the_store_opens_without_the_model(tmp_path: Path) -> None:
    opened = open_store(Settings(model=NO_MODEL, data_dir=str(tmp_path / "a" / "b")))
    assert opened.episodes.recent(3) == [] and (tmp_path / "a" / "b" / "adapters").is_dir()
    opened.close()


def test_the_rule_decides_unless_another_policy_is_given(open_router: OpenRouter) -> None:
    assert open_router().parts.policy == Rule()
    assert open_router(policy=AlwaysArm("icl")).parts.policy == AlwaysArm("icl")


def test_each_router_has_a_name_of_its_own(open_router: OpenRouter) -> None:
    assert open_router().parts.owner != open_router().parts.owner


def test_the_speeds_of_this_machine_are_remembered(open_router: OpenRouter) -> None:
    first = open_router()
    guessed = first.parts.costs.predict("prefill", 1000)
    first.ask(TASK, QUERIES, arm="icl")
    seen = first.parts.costs.predict("prefill", 1000)
    first.close()
    again = open_router()
    assert seen != guessed and again.parts.costs.predict("prefill", 1000) == seen and again.parts.notes == ()
    assert json.loads(again.parts.costs_file.read_text())["rates"]["prefill"]["observations"] == 1


def test_each_model_has_speeds_of_its_own(open_router: OpenRouter, tiny_qwen2: Path) -> None:
    assert open_router().parts.costs_file != open_router(model=str(tiny_qwen2)).parts.costs_file


@pytest.mark.parametrize("text", ["", "{", '{"cost_model": 2, "rates": {}}', "[]"])
def test_damaged_speeds_are_told_and_measured_anew(open_router: OpenRouter, text: str) -> None:
    first = open_router()
    first.close()
    first.parts.costs_file.write_text(text)
    again = open_router()
    (note,) = again.parts.notes
    assert str(first.parts.costs_file) in note and "measured anew" in note
    assert again.ask(TASK, QUERIES, arm="icl").texts
    again.close()
    assert open_router().parts.notes == ()


def test_progress_says_what_takes_time(tiny_llama: Path, tmp_path: Path) -> None:
    said: list[str] = []
    Router.open(model=str(tiny_llama), data_dir=tmp_path, device="cpu", progress=said.append).close()
    assert all(isinstance(line, str) and line for line in said)
