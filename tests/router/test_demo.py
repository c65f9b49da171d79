"""The demo end to end on a tiny random model, and its picture."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from router.demo import run_demo, show_demo
from router.demo_report import DemoReport, total_lines
from router.errors import RouterError
from router.plots import Point, cost_accuracy_png
from router.receipt import Receipt
from router.settings import Settings
from router.statistics import paired_difference
from tests.policies.situations import Looking
from ttt.errors import Cancelled
from ttt.recipes import CELLS

TRAIN, STAY = AlwaysArm("train:standard"), AlwaysArm("icl")
PROBE_THEN_TRAIN = Looking("probe_accuracy_before", "train:standard")
LAST_STEP = f"Training: step {CELLS.steps} of {CELLS.steps}"
SIZE: dict[str, Any] = {"families": ("shift", "lottery"), "n_demonstrations": 6, "n_queries": 3}


@pytest.fixture
def settings(tiny_llama: Path) -> Settings:
    return Settings(model=str(tiny_llama), device="cpu", dtype="float32", recipe="standard", policy="rule")


def seconds(receipt: Receipt, *names: str) -> float:
    return sum(s.seconds for s in receipt.steps if s.name in names)


def begun_s(receipt: Receipt) -> float:
    """Seconds of training that a probe did for the adapter."""
    train, probe = receipt.step("train"), receipt.step("probe")
    if train is None or probe is None or not train.detail.get("of_these_by_probe"):
        return 0.0
    return float(probe.detail["training_s"])


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's own header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def check_sums(report: DemoReport) -> None:
    for f in report.families:
        assert f.icl.seconds == pytest.approx(seconds(f.receipt, "icl"))
        assert f.router.seconds == pytest.approx(f.receipt.seconds)
        receipts = [f.receipt] + [r for r in (f.ttt_receipt,) if r is not None]
        begun = sum(begun_s(r) for r in receipts)
        assert f.ttt.seconds == pytest.approx(begun + sum(seconds(r, "train", "answer") for r in receipts))
        assert sum(r.step("train") is not None for r in receipts) == 1, "an adapter is trained once"
    for point, ways in zip(
        report.points, zip(*((f.icl, f.ttt, f.router) for f in report.families), strict=True), strict=True
    ):
        assert point.seconds == pytest.approx(sum(w.seconds for w in ways))
        n = sum(len(w.correct) for w in ways)
        assert point.accuracy == pytest.approx(sum(sum(w.correct) for w in ways) / n)
        assert 0 <= point.low <= point.accuracy <= point.high <= 1


def test_show_demo_prints_table_totals_and_progress_and_writes_figures_and_picture(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = show_demo(settings, tmp_path / "out", **SIZE)
    check_sums(report)
    shown = capsys.readouterr()
    for text in (
        "family",
        "ICL",
        "router",
        "TTT",
        "arm taken",
        "shift",
        "lottery",
        "mean, sum",
        "utility",
        " s",
    ):
        assert text in shown.out
    assert "[1/2] shift" in shown.err and "[2/2] lottery" in shown.err and "Decision: " in shown.err
    assert LAST_STEP in shown.err

    data = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [f["family"] for f in data["families"]] == ["shift", "lottery"]
    for written, f in zip(data["families"], report.families, strict=True):
        read = Receipt.from_dict(written["receipts"]["router"])
        assert json.loads(json.dumps(read.as_dict())) == json.loads(json.dumps(f.receipt.as_dict()))
        assert written["arms"]["router"]["seconds"] == pytest.approx(written["receipts"]["router"]["seconds"])
        assert len(written["queries"]) == len(written["gold"]) == 3 and len(written["demonstrations"]) == 6
    assert [p["label"] for p in data["points"]] == ["always ICL", "always TTT", "router"]
    assert data["model"] == "tiny-llama" and data["worth_s"] == 30
    width, height = png_size(tmp_path / "out" / "demo.png")
    assert width >= 800 and height >= 500 and (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["demo.json", "demo.png"]


def test_where_the_router_trains_its_adapter_is_the_ttt_line_and_is_reused(
    settings: Settings, tmp_path: Path
) -> None:
    lines: list[str] = []
    report = run_demo(settings, tmp_path, lines.append, policy=TRAIN, **SIZE)
    check_sums(report)
    kept = [f for f in report.families if f.arm == "train:standard"]
    assert kept, "the guard has nothing against an adapter of a random model here"
    assert all(f.ttt_receipt is None and f.ttt.correct == f.router.correct for f in kept)
    assert report.reuse is not None and report.reuse.arm.startswith("reuse:")
    assert report.reuse.step("train") is None and report.reuse.step("icl") is None
    assert report.reuse.fingerprint == kept[0].receipt.fingerprint
    assert report.reuse.texts == kept[0].receipt.texts
    told = "\n".join(total_lines(report))
    assert "no training step" in told and "the same answers" in told
    assert any(LAST_STEP in line for line in lines)
    assert any(line.strip().startswith("Guard: the adapter is accepted") for line in lines)


def test_what_a_probe_trained_is_paid_for_by_the_ttt_line(settings: Settings, tmp_path: Path) -> None:
    report = run_demo(settings, tmp_path, lambda _: None, policy=PROBE_THEN_TRAIN, **SIZE)
    check_sums(report)
    begun = [f for f in report.families if begun_s(f.receipt)]
    assert begun
    for f in begun:
        assert f.ttt.seconds > seconds(f.receipt, "train", "answer")


def test_where_the_router_stays_training_is_asked_for_outright(settings: Settings, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    own = replace(settings, data_dir=str(mine), database_url=f"sqlite:///{mine}/mine.db")
    report = run_demo(own, tmp_path / "out", lambda _: None, policy=STAY, **SIZE)
    assert not mine.exists(), "the user's own store is left alone"
    check_sums(report)
    for f in report.families:
        assert f.arm == "icl" and f.ttt_receipt is not None and f.ttt_receipt.arm.startswith("train:")
        assert f.router.correct == f.icl.correct
        assert f.receipt.step("train") is None
    assert report.reuse is None
    assert "nothing to show of reuse" in "\n".join(total_lines(report))
    icl = [(f.icl.correct, f.router.correct) for f in report.families]
    assert report.against_icl == paired_difference(icl, 0) == (0, 0, 0)


def test_a_vetoed_adapter_is_not_trained_again_for_the_ttt_line(settings: Settings, tmp_path: Path) -> None:
    few = {**SIZE, "n_demonstrations": 2}  # too few to hold any out, so the guard vetoes
    report = run_demo(settings, tmp_path, lambda _: None, policy=TRAIN, **few)
    check_sums(report)
    for f in report.families:
        assert f.arm == "icl (vetoed)" and f.router.correct == f.icl.correct
        assert f.ttt_receipt is not None and f.ttt_receipt.step("train") is None
        assert f.ttt_receipt.arm.startswith("reuse:")
    assert report.reuse is None


def test_without_matplotlib_one_line_says_so_and_no_old_picture_stays(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "demo.png").write_bytes(b"of an earlier run")
    lines: list[str] = []
    run_demo(
        settings, tmp_path, lines.append, policy=STAY, families=("shift",), n_demonstrations=4, n_queries=2
    )
    assert [line for line in lines if line.startswith("No picture")] == [
        "No picture: matplotlib is not installed; install it with: pip install 'ttt-router[plot]'"
    ]
    assert (tmp_path / "demo.json").exists() and not (tmp_path / "demo.png").exists()


def test_a_stop_ends_the_demo_and_leaves_no_half_figures(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run_demo(settings, tmp_path, lambda _: None, should_stop=lambda: True, **SIZE)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_in_a_sentence_before_the_model_is_loaded(tmp_path: Path) -> None:
    nowhere = Settings(model=str(tmp_path / "no-model"))
    with pytest.raises(RouterError, match="no demo family 'sudoku'"):
        run_demo(nowhere, tmp_path / "out", print, families=("sudoku",))
    with pytest.raises(RouterError, match="0 families"):
        run_demo(nowhere, tmp_path / "out", print, families=())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RouterError, match=r"folder .*file can't be written \(File exists\); name another"):
        run_demo(nowhere, tmp_path / "file", print)


def test_the_picture_needs_points_and_takes_extreme_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 points"):
        cost_accuracy_png([], tmp_path / "none.png")
    points = [Point("a", 0, 0, 0, 0), Point("b", 1, 1, 1, 0.001), Point("c", 1, 0, 1, 0.001)]
    cost_accuracy_png(points, tmp_path / "extreme.png", n_queries=1, worth_s=1e6)
    assert png_size(tmp_path / "extreme.png")[0] >= 800


def test_importing_the_demo_loads_nothing_heavy() -> None:
    code = (
        "import sys, router.demo; "
        "print([m for m in ('torch', 'transformers', 'langgraph', 'matplotlib', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_always_icl_is_asked_by_itself_where_the_router_asked_a_sample(
    settings: Settings, tmp_path: Path
) -> None:
    lines: list[str] = []
    size = SIZE | {"n_queries": 24}
    report = run_demo(settings, tmp_path, lines.append, policy=PROBE_THEN_TRAIN, **size)
    first, second = report.families
    assert first.receipt.icl_at_once, "a new machine is measured by all queries"
    assert second.receipt.step("sample") is not None and second.receipt.icl_texts == ()
    assert first.icl.seconds == seconds(first.receipt, "icl") and second.icl.seconds > 0
    assert len(second.icl.correct) == len(second.router.correct) == 24
    assert sum("For always-ICL" in line for line in lines) == 1
