"""Benchmarks are programs, no package: they are imported from their folder, as `python benchmarks/x.py` does."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ttt.recipes import RECIPES, Recipe

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = Recipe("standard", rank=2, alpha=4, learning_rate=1e-2, steps=3, shots=3, sequence_tokens=256)

Program = Callable[[str], Any]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Imports the benchmark of this name; all recipes are tiny ones."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in list(RECIPES):
        monkeypatch.setitem(RECIPES, name, (TINY, TINY))
    return importlib.import_module


def write_families(folder: Path, n: int = 30) -> Path:
    """Two families: rows of cells that are reversed, and words with two labels."""
    folder.mkdir()
    families: dict[str, Callable[[int], tuple[str, str]]] = {
        "cells": lambda i: (" ".join(f"{i:05b}"), " ".join(f"{i:05b}"[::-1])),
        "words": lambda i: (f"word {i}", "yes" if i % 2 else "no"),
    }
    for name, pair in families.items():
        pairs = [dict(zip(("input", "output"), pair(i), strict=True)) for i in range(n)]
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "demonstrations": pairs}))
    return folder
