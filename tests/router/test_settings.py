"""Argument beats environment beats file beats default; nonsense is refused with its source and value."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from policies.errors import PolicyError
from router.errors import SettingsError
from router.settings import Settings, changed, read_settings


def config(folder: Path, text: str) -> dict[str, str]:
    file = folder / "settings.toml"
    file.write_text(text)
    return {"TTT_ROUTER_CONFIG": str(file)}


def test_without_any_source_the_defaults_hold() -> None:
    assert read_settings({}, {}) == Settings()


def test_argument_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    env = config(tmp_path, 'model = "file"\ndevice = "cuda"\nseed = 1\nexpected_repeats = 5\n')
    env |= {"TTT_ROUTER_MODEL": "environment", "TTT_ROUTER_DEVICE": "mps"}
    got = read_settings({"model": "argument", "dtype": None}, env)
    assert (got.model, got.device, got.seed, got.dtype) == ("argument", "mps", 1, "auto")
    assert got.expected_repeats == 5.0 and isinstance(got.expected_repeats, float)


def test_the_real_environment_and_the_users_folder_are_read_by_default(
    isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    file = platformdirs.user_config_path("ttt-router", False) / "config.toml"
    assert file.is_relative_to(isolated)
    file.parent.mkdir(parents=True)
    file.write_text("seed = 3\ntracing = false\n")
    monkeypatch.setenv("TTT_ROUTER_TRACING", "true")
    got = read_settings()
    assert got.seed == 3 and got.tracing is True


@pytest.mark.parametrize(
    ("low", "high", "worth"),
    [
        ({"file": "worth_s = 7.0"}, {}, 7.0),
        ({"file": "worth_s = 7.0"}, {"TTT_ROUTER_PREFER": "fast"}, 5.0),
        ({"file": 'prefer = "fast"'}, {"TTT_ROUTER_WORTH_S": "7"}, 7.0),
        ({}, {"TTT_ROUTER_PREFER": "fast", "TTT_ROUTER_WORTH_S": "7"}, 7.0),
        ({"file": 'worth_s = 7.0\nprefer = "fast"'}, {}, 7.0),
    ],
)
def test_a_preference_and_a_number_of_seconds_replace_one_another(
    tmp_path: Path, low: dict[str, str], high: dict[str, str], worth: float
) -> None:
    env = config(tmp_path, low.get("file", "")) | high
    assert read_settings({}, env).worth == worth
    assert read_settings({"prefer": "accurate"}, env).worth == 300.0
    assert read_settings({"worth_s": 2}, env).worth == 2.0


def test_worth_names_an_unknown_preference() -> None:
    with pytest.raises(PolicyError, match="'cheap'.*fast, balanced, accurate"):
        _ = read_settings({"prefer": "cheap"}, {}).worth


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        ({"modle": "x"}, {}, "Unknown setting 'modle' in the arguments; known are: model"),
        ({"seed": 1.5}, {}, "the arguments sets seed to 1.5; it must be a int"),
        ({"seed": True}, {}, "sets seed to True"),
        ({"tracing": 1}, {}, "sets tracing to 1; it must be a bool"),
        ({"model": 3}, {}, "sets model to 3; it must be a str"),
        ({"worth_s": -1.0}, {}, "sets worth_s to -1.0; it must be finite and at least 0"),
        ({"expected_repeats": float("inf")}, {}, "sets expected_repeats to inf"),
        ({}, {"TTT_ROUTER_SEED": "one"}, "TTT_ROUTER_SEED sets seed to 'one'; it must be a int"),
        ({}, {"TTT_ROUTER_TRACING": "perhaps"}, "TTT_ROUTER_TRACING sets tracing to 'perhaps'"),
        ({}, {"TTT_ROUTER_WORTH_S": "nan"}, "TTT_ROUTER_WORTH_S sets worth_s to nan"),
        ({}, {"TTT_ROUTER_CONFIG": "/none/such.toml"}, "/none/such.toml, which does not exist"),
    ],
)
def test_what_can_not_be_is_refused_with_source_and_value(
    arguments: dict[str, Any], env: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings(arguments, env)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = 'x'", "the settings file sets seed to 'x'"),
        ("colour = 1", "Unknown setting 'colour' in the settings file"),
        ("[model]\nname = 'x'", "sets model to {'name': 'x'}; it must be a str"),
        ("seed =", "can't be read"),
        ("worth_s = 1" + "0" * 400, "sets worth_s to a number without bounds"),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings({}, config(tmp_path, text))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("FALSE", False), ("0", False), (" True ", True)]
)
def test_switches_in_the_environment(text: str, value: bool) -> None:
    assert read_settings({}, {"TTT_ROUTER_TRACING": text}).tracing is value


def test_changed_keeps_the_rest_and_the_value_itself_is_frozen() -> None:
    first = Settings(model="m", seed=4)
    assert changed(first, {"seed": 5, "model": None}, "a test") == Settings(model="m", seed=5)
    with pytest.raises(FrozenInstanceError):
        first.seed = 6  # type: ignore[misc]


def test_the_database_is_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    there = read_settings({"data_dir": tmp_path / "x"}, {})
    assert there.data_path == tmp_path / "x" and there.url == f"sqlite:///{tmp_path / 'x' / 'router.db'}"
    assert read_settings({"database_url": "postgresql://h/d"}, {}).url == "postgresql://h/d"
    assert read_settings({"data_dir": "~/x"}, {}).data_path == Path.home() / "x"
