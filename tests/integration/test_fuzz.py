"""Files of every kind that is read from outside, mutated at random: read or refused in one sentence; no hang, no code.

`FUZZ=10000 pytest tests/integration/test_fuzz.py` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from policies.cost import CostModel
from policies.learned import fit
from policies.outcomes import as_json, read_rows
from policies.persist import load, to_json
from policies.rule import Rule
from router.errors import exit_code
from router.settings import read_settings
from tests.policies.simulated import simulate
from tests.ttt.conftest import SMALL, load_tiny
from ttt.errors import AdapterError
from ttt.formats import read_families, read_task
from ttt.integrity import parameters_hash
from ttt.lora import AdapterSlots
from ttt.recipe_files import read_recipes
from ttt.tables import read_demonstrations, read_queries
from ttt.task import check_size, clean_task

FUZZ = int(os.environ.get("FUZZ", "400"))
"""Files of each kind."""
MOST_S = 5.0
SCARCE = [
    b"\x00",
    b"\xff",
    b"\xf0\x9f",
    b"{",
    b"[",
    b'"',
    b"\\",
    b"1e999",
    b"NaN",
    b"null",
    b"-",
    b"9" * 5000,
]
SCARCE += [
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\n",
    b",",
    b"\t",
    b"\\ud800",
    b"../../etc/passwd",
    b"\xef\xbb\xbf",
    b"true",
]
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pickle.find_class",
    "exec",
    "socket.connect",
)

_watching: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching is None or not event.startswith(FORBIDDEN):
        return
    code = args[0] if args else None
    frame: FrameType | None = sys._getframe(1)
    while event == "exec" and frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return  # an import of our own, or a dataclass that it makes
        frame = frame.f_back
    _watching.append(f"{event} {code!r:.200}")


sys.addaudithook(_audit)


@contextmanager
def no_code_is_run() -> Iterator[None]:
    global _watching
    _watching = []
    try:
        yield
        assert not _watching, _watching
    finally:
        _watching = None


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut, repeated, moved, or something scarce put in."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        to = min(len(made), at + rng.choice([1, 2, 8, 64, 1000]))
        way = rng.randrange(6)
        if way == 0 and made:
            made[at % len(made)] ^= 1 << rng.randrange(8)
        elif way == 1:
            del made[at:to]
        elif way == 2:
            made[at:at] = made[at:to] * rng.choice([1, 2, 50])
        elif way == 3:
            made[at:to] = rng.choice(SCARCE)
        elif way == 4:
            made[at:at] = rng.choice(SCARCE)
        else:
            made[at:] = b""
    return bytes(made)


TASK = {
    "name": "n",
    "instruction": "Do it.",
    "demonstrations": [{"input": "a", "output": "b"}, {"input": [[1, 2], [3, 4]], "output": True}],
    "queries": ["c", {"input": 1.5, "output": "d"}],
}
ARC = {"train": [{"input": [[0, 1]], "output": [[1, 0]]}], "test": [{"input": [[1, 1]]}]}
BBH = {"canary": "x", "examples": [{"input": "a", "target": "b"}, {"input": "c", "target": "d"}]}
TOML = b'base = "quick"\nrank = 4\nlearning_rate = 5e-2\naugmentations = ["order"]\n[cells]\nsteps = 9\n'
SETTINGS = b'model = "smollm2-135m"\nvotes = 2\nworth_s = 3.5\nconfidence = 0.8\nquota_bytes = 7\n'


def task(file: Path) -> None:
    found = read_task(file)
    check_size(found.task, found.queries)
    clean_task(found.task)


def family(file: Path) -> None:
    read_families([file])


def rows_of_policy() -> bytes:
    return b"\n".join(json.dumps(as_json(row)).encode() for row in simulate(8, 1, seed=1).rows[:8])


def costs(file: Path) -> None:
    CostModel.from_json(file.read_text(errors="replace"))


def settings(file: Path) -> None:
    read_settings(environment={"TTT_ROUTER_CONFIG": str(file)})


KINDS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "task": (".json", lambda: json.dumps(TASK).encode(), task),
    "arc task": (".json", lambda: json.dumps(ARC).encode(), task),
    "family": (".json", lambda: json.dumps(BBH).encode(), family),
    "arc family": (".json", lambda: json.dumps(ARC | {"test": ARC["train"]}).encode(), family),
    "csv": (".csv", lambda: b'input,output\n"a, b",c\n"d ""e""",f\n', read_demonstrations),
    "tsv": (".tsv", lambda: b"question\tanswer\na\tb\nc\td\n", read_queries),
    "jsonl": (
        ".jsonl",
        lambda: b'{"input": "a", "output": 1}\n{"input": [1, 2], "output": "b"}\n',
        read_queries,
    ),
    "rule": (".json", lambda: to_json(Rule()).encode(), load),
    "policy": (".json", lambda: to_json(fit(simulate(60, 2, seed=1).rows)[0]).encode(), load),
    "rows": (".jsonl", rows_of_policy, lambda file: read_rows([file])),
    "costs": (".json", lambda: CostModel.guess(10**8).to_json().encode(), costs),
    "recipe": (".toml", lambda: TOML, lambda file: read_recipes(str(file))),
    "settings": (".toml", lambda: SETTINGS, settings),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(1800)
def test_mutated_files_are_read_or_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    suffix, make, read = KINDS[kind]
    whole, rng = make(), random.Random(kind)
    file = tmp_path / f"file{suffix}"
    file.write_bytes(whole)
    read(file)  # as it is, it is fine; and what is imported lazily is imported now
    refused = 0
    for number in range(FUZZ):
        data = mutated(whole, rng)
        file.write_bytes(data)
        started = time.process_time()
        with no_code_is_run():
            try:
                read(file)
            except Exception as error:
                refused += 1
                assert exit_code(error) in (2, 3, 8), f"{number}: {error!r:.500}"
                assert str(error).strip(), number
        assert time.process_time() - started < MOST_S, (number, data[:200])
    assert refused > FUZZ / 10


@pytest.mark.timeout(3600)
def test_mutated_adapters_are_loaded_or_refused_and_change_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_tiny(tiny_llama).model
    slots, folder, rng = AdapterSlots(model), tmp_path / "adapter", random.Random(1)
    slots.create("saved", SMALL, 0)
    slots.save("saved", folder)
    slots.drop("saved")
    before = parameters_hash(model)
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    whole = [file.read_bytes() for file in files]
    slots.load("warm", folder)
    slots.drop("warm")
    loaded = refused = 0
    for number in range(FUZZ):
        which = rng.randrange(2)
        for i, file in enumerate(files):
            file.write_bytes(mutated(whole[i], rng) if i == which else whole[i])
        started = time.process_time()
        with no_code_is_run():
            try:
                slots.load("fuzz", folder)
                loaded += 1
                slots.drop("fuzz")
            except AdapterError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1000
        assert time.process_time() - started < MOST_S, number
        assert slots.names == ()
    assert loaded + refused == FUZZ and refused > FUZZ / 4
    assert parameters_hash(model) == before
