"""The packages' borders: who may import whom, and that importing is cheap."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "peft", "langgraph")


@pytest.mark.parametrize(
    "package", ["router", "policies", "store", "ttt", "ttt.task", "ttt.errors", "policies.types"]
)
def test_importing_a_package_loads_no_heavy_library(package: str) -> None:
    code = f"import {package}, sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_layers_hold() -> None:
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
