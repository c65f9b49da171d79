"""A process that is killed while it trains leaves the model's files as they were, and a store that goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from dataclasses import replace
from ttt import recipes
recipes.RECIPES["standard"] = tuple(replace(r, steps=int(sys.argv[3])) for r in recipes.RECIPES["standard"])
from router import reuse, training
reuse.LEASE_S = training.LEASE_S = 2.0  # seconds until a dead owner is taken over
from router.agent import Router
from ttt.task import Demonstration, Task
task = Task(tuple(Demonstration(f"item {i}", "ok") for i in range(4)))
with Router.open(model=sys.argv[1], data_dir=sys.argv[2], device="cpu", dtype="float32", recipe="standard") as router:
    for event in router.stream(task, ["item 9"], arm="ttt"):
        print(type(event).__name__, flush=True)
"""


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def start(model: Path, data: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(model), str(data), str(steps)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_killed_training_leaves_the_model_files_and_no_half_adapter(
    tiny_llama: Path, tmp_path: Path
) -> None:
    before, data = hashes(tiny_llama), tmp_path / "data"
    process = start(tiny_llama, data, 100_000)
    assert process.stdout is not None
    seen = [process.stdout.readline().strip() for _ in range(12)]
    assert seen[-1] == "TrainingStep", "it must be killed while it trains"
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert hashes(tiny_llama) == before
    assert not [p for p in (data / "adapters").glob("*") if (p / "adapter_config.json").exists()]

    again = start(tiny_llama, data, 2)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and out.split()[-1] == "Done"
    adapters = [p for p in (data / "adapters").iterdir() if (p / "adapter_config.json").exists()]
    assert len(adapters) == 1 and json.loads((adapters[0] / "adapter_config.json").read_text())["r"] == 32
    assert hashes(tiny_llama) == before
