"""Each kind of error has its documented exit code; a file that hides one of the packages is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import router.errors
from policies.errors import PolicyError
from router.errors import PackageShadowed, RouterError, SettingsError, check_packages, exit_code
from router.metrics import MetricError
from store import errors as store_errors
from ttt import errors as ttt_errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 2),
        (RouterError("x"), 3),
        (MetricError("x"), 3),
        (ttt_errors.TaskError("x"), 3),
        (ttt_errors.FormatError("x"), 3),
        (ttt_errors.ContextOverflow("x"), 3),
        (ttt_errors.ModelNotFound("x"), 4),
        (ttt_errors.ModelDamaged("x"), 4),
        (ttt_errors.ModelTooLarge("x"), 4),
        (ttt_errors.AdapterError("x"), 5),
        (store_errors.StoreError("x"), 5),
        (store_errors.DatabaseLocked("x"), 5),
        (store_errors.ReadOnly("x"), 5),
        (ttt_errors.NonFiniteLoss("x"), 6),
        (ttt_errors.OutOfMemory("x"), 6),
        (ttt_errors.Cancelled("x"), 6),
        (store_errors.NotFound("x"), 7),
        (PolicyError("x"), 8),
        (PackageShadowed("x"), 9),
        (KeyboardInterrupt(), 130),
        (ValueError("not ours"), None),
        (ttt_errors.TTTError("no kind of its own"), None),
    ],
)
def test_the_exit_code_of_each_kind(error: BaseException, code: int | None) -> None:
    assert exit_code(error) == code


def test_every_error_of_the_packages_has_an_exit_code() -> None:
    """Those that are raised; `TTTError` is only a base."""
    modules = (router.errors, ttt_errors, store_errors)
    kinds = [k for m in modules for k in vars(m).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 20
    assert [k for k in kinds if k is not ttt_errors.TTTError and exit_code(k("x")) is None] == []


def test_our_own_packages_pass() -> None:
    check_packages()


CHECK = """
import sys
sys.path.insert(0, "")
from router.errors import PackageShadowed, check_packages
try:
    check_packages()
except PackageShadowed as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["store.py", "ttt.py", "policies/__init__.py"])
def test_a_file_of_the_users_that_hides_a_package_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('imported')\n")
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True)
    package = name.removesuffix(".py").split("/")[0]
    assert done.returncode == 0, done.stderr
    assert f"The package {package!r} of ttt-router is hidden by {file}" in done.stdout
    assert "rename that or run from another folder" in done.stdout


def test_in_an_ordinary_folder_nothing_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "unrelated.py").touch()
    (tmp_path / "store").mkdir()  # a folder without __init__.py yields to a real package
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
