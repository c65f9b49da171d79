"""What README and examples show is run here, on a tiny model where any model will do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def run(code: list[str], model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "TTT_ROUTER_MODEL": str(model),
        "TTT_ROUTER_DATA_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        code, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_example_runs(tiny_llama: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "examples/ask.py"], tiny_llama, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r" in [\d.]+ s, episode [0-9a-f]{32}", done.stdout)


def test_the_python_of_the_readme_runs(tiny_llama: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = run([sys.executable, "-c", block], tiny_llama, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "icl" in done.stdout


def test_the_first_command_of_the_readme_answers(tiny_llama: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^    ttt-router (solve --demos .*)$", README, flags=re.MULTILINE)
    words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', line)]
    done = run([str(Path(sys.executable).with_name("ttt-router")), *words], tiny_llama, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_the_readme_shows_the_graph_as_it_is() -> None:
    from router.graph import build_graph

    drawn = build_graph().get_graph().draw_mermaid()
    edges = {line.strip() for line in drawn.splitlines() if "-->" in line or "-.->" in line}
    (shown,) = re.findall(r"```mermaid\n(.*?)```", README, flags=re.DOTALL)
    assert edges
    assert edges == {line.strip() for line in shown.splitlines() if "-->" in line or "-.->" in line}


@pytest.mark.parametrize("name", re.findall(r"\]\(((?:docs|examples)/[^)]+)\)", README))
def test_every_document_that_the_readme_links_to_exists(name: str) -> None:
    assert (ROOT / name).exists()
