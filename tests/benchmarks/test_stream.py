"""The stream on simulated rows: no row twice, only what was seen is learned, regret that falls and falls again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.errors import PolicyError
from policies.outcomes import TaskOutcome, write_rows
from policies.types import Decision, Policy, Situation
from tests.benchmarks.rows import TRAIN, simulated_rows

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def program() -> Any:
    """The program as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("stream_program", FOLDER / "stream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def how(program: Any) -> Any:
    return program.Settings(TRAIN, 30.0, 10, 0.2)


class ByCollection:
    """Trains in collections where what was seen says that it wins more than nothing; else stays."""

    def __init__(self, rows: Sequence[TaskOutcome]) -> None:
        seen = [row.arms[TRAIN].correct - row.arms["icl"].correct for row in rows[-40:] if TRAIN in row.arms]
        self.trains = bool(seen) and float(np.mean(seen)) > 0.1
        self.version = f"by-collection-{len(rows)}"

    reads = frozenset[str]()

    def decide(self, situation: Situation) -> Decision:
        arm = TRAIN if self.trains else "icl"
        return Decision("answer", arm, 1.0, None, None, 0.0, "as seen lately", self.version)


def learn(rows: Sequence[TaskOutcome]) -> Policy:
    return ByCollection(rows)


def test_each_half_holds_other_collections_and_no_row_comes_twice(program: Any, how: Any) -> None:
    rows = simulated_rows(60)
    first, second = program.halves(rows, [], TRAIN, 100)
    assert {r.collection for r in first}.isdisjoint(r.collection for r in second)
    assert np.mean([r.arms[TRAIN].correct - r.arms["icl"].correct for r in first]) < 0.1
    _, figures, order, _ = program.run(rows, [], how, n=100, orders=2, learn=learn)
    assert len({row.key for row in order}) == len(order) == figures["tasks"] == 100
    with pytest.raises(
        PolicyError, match="needs 65 before the drift and as many after it; there are 60 and 60"
    ):
        program.halves(rows, [], TRAIN, 130)


def test_only_what_a_router_in_use_sees_is_learned_from(program: Any, how: Any) -> None:
    rows = simulated_rows(20)
    best = program.best_utilities(rows, how)
    told: list[Sequence[TaskOutcome]] = []

    def watch(seen: Sequence[TaskOutcome]) -> Policy:
        told.append(list(seen))
        raise PolicyError("too few")

    reachable = [best[row.key] for row in rows]
    taken, policy = program.stream(rows, reachable, watch, how, 0)
    assert [len(seen) for seen in told] == [10, 20, 30]
    assert len({t.policy for t in taken}) == 1 and policy.version == taken[0].policy
    for row, seen, t in zip(rows, told[-1], taken, strict=False):
        assert set(seen.arms) == ({"icl", TRAIN} if t.trained or t.explored else {"icl"})
        assert seen.arms["icl"] == row.arms["icl"] and seen.task == row.task
    blind = program.in_use(rows[0], TRAIN, trained=False, probed=False)
    assert blind.probe is None and all(v is None for k, v in blind.signals.items() if k.startswith("probe_"))
    assert program.in_use(rows[0], TRAIN, trained=True, probed=True) == rows[0]


def test_regret_is_against_a_cascade_that_knows_the_family(program: Any, how: Any) -> None:
    """Worth 30 s: training's 45 s must win over 1.5 of 100 answers."""
    row = simulated_rows(1, 1)[0]

    def with_gain(gain: float, seed: int) -> TaskOutcome:
        arms = {
            name: replace(of, correct=0.5 + (gain if name == TRAIN else 0)) for name, of in row.arms.items()
        }
        return replace(row, arms=arms, seed=seed, task=f"task1:{seed}")

    alone = with_gain(0.3, 0)
    assert program.best_utilities([alone], how)[alone.key] == pytest.approx(80 - 50 / 30)
    lucky, other = with_gain(0.3, 0), with_gain(-0.2, 1)
    best = program.best_utilities([lucky, other], how)
    assert best[lucky.key] == pytest.approx(50 - 5 / 30), "the family's other row says that it does not pay"
    assert best[other.key] == pytest.approx(30 - 50 / 30)


def test_learning_lowers_regret_and_does_so_again_after_the_drift(program: Any, how: Any) -> None:
    """First a world in which nothing pays, then one in which all pays: the learner follows, the fixed one can't."""
    before = simulated_rows(75, 2, pays_at=0.0, seed=1)
    after = [replace(row, family=f"late-{row.family}") for row in simulated_rows(75, 2, pays_at=1.0, seed=2)]
    regrets, figures, _, _ = program.run(before, after, how, n=300, orders=5, learn=learn)
    on = figures["learning"]
    assert regrets["learning"].shape == (5, 300)
    assert on["after_drift"] > 3 * abs(on["before_drift"]) and on["last"] < on["after_drift"] / 2
    assert on["last"] == pytest.approx(float(regrets["learning"][:, -50:].mean()))
    assert 0 < figures["explored_tasks"] < 60


def test_low_again_is_counted_from_the_drift(program: Any) -> None:
    curve = np.array([9.0] * 50 + [3.0] * 100 + [9.0] * 40 + [3.0] * 110)
    found = program.summary(curve[None, :])
    assert (found["first"], found["before_drift"], found["low_again_level"]) == (9.0, 3.0, 5.0)
    assert found["low_again_after_tasks"] == 34, "14 of the 20 tasks from there are at 3: a mean of 4.8"
    flat = program.summary(np.full((1, 300), 4.0))
    assert flat["low_again_after_tasks"] == 0
    never = program.summary(np.r_[curve[:150], np.full(150, 9.0)][None, :])
    assert never["low_again_after_tasks"] is None


def test_the_moving_mean_begins_with_what_there_is(program: Any) -> None:
    assert program.moving(np.array([[2.0, 4.0, 6.0, 8.0]]), 2).tolist() == [[2.0, 3.0, 5.0, 7.0]]


def test_the_program_writes_figures_and_pictures(tmp_path: Path) -> None:
    write_rows(simulated_rows(40), tmp_path / "rows.jsonl")
    command = [
        sys.executable,
        str(FOLDER / "stream.py"),
        str(tmp_path / "rows.jsonl"),
        "--out",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(
        [*command, "--tasks", "80", "--orders", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "s.json").read_text())
    assert len(figures["learning"]["regret"]) == 80 and figures["orders"] == 2
    assert (tmp_path / "s.png").read_bytes()[1:4] == b"PNG" and "<svg" in (tmp_path / "s.svg").read_text()
    assert "not learning" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 8 and "needs 150 before the drift" in done.stderr
    done = subprocess.run([*command, "--live", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--live needs --families" in done.stderr


def test_live_tasks_are_held_against_their_replay(
    program: Any, how: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.outcomes import read_rows
    from router.collect import CollectOptions, collect
    from router.families import PROCEDURES
    from router.families.procedure import write
    from router.settings import Settings
    from tests.router.conftest import QUICK
    from ttt.recipes import RECIPES

    monkeypatch.setitem(RECIPES, "auto", (replace(QUICK, name="auto"),) * 2)
    for name, value in {"MODEL": str(tiny_llama), "DTYPE": "float32", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"TTT_ROUTER_{name}", value)
    files = write([PROCEDURES["words-roman"], PROCEDURES["counting-length"]], tmp_path / "families", 60)
    out = tmp_path / "rows.jsonl"
    settings = Settings(model=str(tiny_llama), device="cpu", dtype="float32")
    collect(files, CollectOptions(out, demonstrations=4, queries=3), settings)
    rows = read_rows([out])
    found = program.live(rows, ByCollection([]), files, how)
    for one, row in zip(found, rows, strict=True):
        assert one["family"] == row.family and one["replayed"]["arm"] == one["live"]["arm"] == "icl"
        assert one["live"]["accuracy"] == one["replayed"]["accuracy"] == row.arms["icl"].correct
        assert one["live"]["seconds"] > 0
    write([PROCEDURES["words-roman"], PROCEDURES["counting-length"]], tmp_path / "families", 60, seed=1)
    with pytest.raises(PolicyError, match="hold no task like that of"):
        program.live(rows, ByCollection([]), files, how)
