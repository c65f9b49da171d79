"""What README and examples show is run here, on a tiny model where any model will do."""

from __future__ import annotations

import json
import os
import re
import signal
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


def test_the_example_of_an_agent_runs(tiny_llama: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "examples/agent.py"], tiny_llama, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\(icl, episode [0-9a-f]{32}\)$", done.stdout, flags=re.MULTILINE)) == 2


def test_the_python_of_the_page_on_tools_runs(tiny_llama: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tools.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        done = run([sys.executable, "-c", block], tiny_llama, tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("icl [")


def test_the_server_of_the_page_on_it_answers_and_ends_at_sigterm(tiny_llama: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/server.md").read_text()
    openai, langchain = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (line,) = re.findall(r"^    ttt-router (serve)$", page, flags=re.MULTILINE)
    command = [str(Path(sys.executable).with_name("ttt-router")), line, "--port", "0"]
    environment = {**os.environ, "TTT_ROUTER_MODEL": str(tiny_llama), "TTT_ROUTER_DATA_DIR": str(tmp_path)}
    server = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(found[0] for text in server.stderr if (found := re.search(r"http://\S+/v1", text)))
        for block in (openai, langchain):
            assert "http://127.0.0.1:8000/v1" in block
            code = block.replace("http://127.0.0.1:8000/v1", url)
            done = run([sys.executable, "-c", code], tiny_llama, tmp_path)
            assert done.returncode == 0, done.stderr
            assert re.search(r"\b(icl|reuse|train)", done.stdout.splitlines()[-1])
        server.send_signal(signal.SIGTERM)
        told = server.stderr.read()
        assert server.wait(60) == 0, told
        assert "7 July 2007" not in told
        lines = [json.loads(line) for line in told.splitlines()]
        asked = [line for line in lines if line.get("path") == "/v1/chat/completions"]
        assert len(asked) == 2 and {line["status"] for line in asked} == {200}
        assert all({"time", "level", "logger"} <= set(line) for line in lines)
    finally:
        server.kill()


def test_the_scripted_chat_of_the_page_on_it_answers(tiny_llama: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/chat.md").read_text()
    (line,) = re.findall(r"^    (printf .*)$", page, flags=re.MULTILINE)
    line = line.replace("ttt-router", str(Path(sys.executable).with_name("ttt-router")))
    done = run(["bash", "-c", line], tiny_llama, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "icl answered" not in done.stdout and len(done.stdout.splitlines()) == 1
    assert "nothing could tell whether training helps: icl answers" in done.stderr


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


@pytest.mark.parametrize("page", ["docs/reliability.md", "SECURITY.md"])
def test_each_promise_names_a_test_or_program_that_is_there(page: str) -> None:
    (table,) = re.findall(r"\| shown by \|\n\|[-|]+\|\n((?:\|.*\n)+)", (ROOT / page).read_text())
    rows = table.splitlines()
    assert rows
    for row in rows:
        shown = [name for name in re.findall(r"`([^`]+\.py)`", row.rstrip(" |").rsplit("|", 1)[1])]
        assert shown, row
        for name in shown:
            assert list(ROOT.glob(name if "/" in name else f"tests/**/{name}")), name
