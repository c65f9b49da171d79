"""Evaluation: the report's shape and sums, going on where it stopped, and gold answers that touch nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.baselines import AlwaysArm
from policies.types import Policy
from router import versions
from router.errors import RouterError
from router.evaluate import EvaluateOptions, Progress, evaluate, summarise
from router.events import Done
from router.metrics import MetricError
from router.settings import Settings
from router.statistics import mcnemar_exact, paired_difference, wilson_interval
from store import Store
from tests.router.conftest import OTHER, POOR, QUICK, RICH, TRUSTING
from ttt.errors import TaskError
from ttt.formats import read_family
from ttt.pools import sample, split
from ttt.recipes import RECIPES

OPTIONS = EvaluateOptions(demonstrations=4, queries=3)
Use = Callable[[Policy], None]


def write_family(folder: Path, name: str, n: int = 24, output: str = "ok") -> Path:
    """A native file of `n` items with one output, as an answerless task of demonstrations."""
    pairs = [{"input": f"{name} {i:02d}", "output": output} for i in range(n)]
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"name": name, "demonstrations": pairs}))
    return file


@pytest.fixture
def settings(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(RECIPES, "quick", (QUICK, QUICK))
    monkeypatch.setitem(RECIPES, "other", (OTHER, OTHER))
    return Settings(
        model=str(tiny_llama), device="cpu", dtype="float32", recipe="quick", worth_s=RICH, policy="rule"
    )


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Have another policy decide than the built-in rule."""
    return lambda policy: monkeypatch.setattr(versions, "Rule", lambda: policy)


def step_s(row: dict[str, Any], name: str) -> float:
    return float(sum(s["seconds"] for s in row["auto"]["steps"] if s["name"] == name))


def test_the_report_has_the_documented_form(settings: Settings, tmp_path: Path, use: Use) -> None:
    use(TRUSTING)
    out = tmp_path / "reports" / "report.json"
    arms = ("icl", "ttt", "auto", "zero-shot")
    paths = [write_family(tmp_path, "aa"), write_family(tmp_path, "bb")]
    report = evaluate(paths, replace(OPTIONS, out=out, arms=arms), settings)
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert report["options"]["arms"] == list(arms) and report["settings"]["recipe"] == "quick"
    assert report["model"]["name"] and report["model"]["revision"].startswith("sha256:")
    assert [(row["family"], row["seed"]) for row in report["families"]] == [("aa", 0), ("bb", 0)]
    for row in report["families"]:
        assert row["n_queries"] == 3 and row["answerable"] is True and row["chance"] == 0.0
        assert row["majority"] == 1.0 and list(row["arms"]) == list(arms)
        for cell in row["arms"].values():
            assert len(cell["correct"]) == len(cell["answers"]) == 3 and set(cell["correct"]) <= {0, 1}
            assert cell["accuracy"] == sum(cell["correct"]) / 3
            assert cell["seconds"] == pytest.approx(sum(cell["seconds_parts"].values()))
            assert (cell["low"], cell["high"]) == wilson_interval(sum(cell["correct"]), 3)
            assert cell["correct"] == [int(text == "ok") for text in cell["answers"]]
        assert row["auto"]["reason"] and row["auto"]["signals"]["n_demonstrations"] == 4
    summary = report["summary"]
    assert set(summary["arms"]) == set(arms)
    assert set(summary["differences"]) == {"ttt - icl", "auto - icl", "auto - ttt"}
    assert not list(out.parent.glob(".*")), "no temporary file stays"


def test_seconds_are_of_the_steps_that_an_arm_would_have_run_alone(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    use(TRUSTING)
    asked: list[str] = []
    report = evaluate(
        [write_family(tmp_path, "aa")],
        OPTIONS,
        settings,
        lambda p: asked.append(p.event.receipt.arm) if isinstance(p.event, Done) else None,
    )
    (row,) = report["families"]
    auto, icl, ttt = (row["arms"][name] for name in ("auto", "icl", "ttt"))
    assert auto["arm"] == ttt["arm"] == "train:quick" and icl["arm"] == "icl"
    assert asked == ["train:quick"], "one run serves all three arms"
    assert ttt["answers"] == auto["answers"] != icl["answers"]
    assert auto["seconds"] == pytest.approx(sum(s["seconds"] for s in row["auto"]["steps"]))
    assert icl["seconds"] == step_s(row, "icl") > 0
    (probe,) = (s for s in row["auto"]["steps"] if s["name"] == "probe")
    begun_s = probe["detail"]["training_s"]
    assert ttt["seconds"] == pytest.approx(begun_s + step_s(row, "train") + step_s(row, "answer"))
    assert 0 < step_s(row, "train") < ttt["seconds"] < auto["seconds"]


def test_an_adapter_that_auto_refused_still_answers_for_ttt_at_its_whole_price(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    use(AlwaysArm("train:quick"))
    kept = tmp_path / "kept"
    options = replace(OPTIONS, demonstrations=2, store=kept, arms=("auto", "ttt"))
    report = evaluate([write_family(tmp_path, "aa")], options, settings)
    (row,) = report["families"]
    auto, ttt = row["arms"]["auto"], row["arms"]["ttt"]
    assert auto["arm"] == "icl" and "vetoed" in row["auto"]["fallback"]
    opened = Store.open(f"sqlite:///{kept / 'router.db'}", kept / "adapters")
    asked_ttt, asked_auto = opened.episodes.recent(5)
    opened.close()
    assert asked_ttt.arm.startswith("reuse:") and asked_auto.arm == "icl"
    assert ttt["arm"] == "train:quick", "by what was trained, so that its outcome is that arm's"
    assert ttt["seconds"] == pytest.approx(step_s(row, "train") + asked_ttt.seconds)
    assert ttt["answers"] == [a["text"] for a in asked_ttt.receipt["answers"]] != auto["answers"]


def test_where_auto_stays_ttt_trains_for_itself(settings: Settings, tmp_path: Path) -> None:
    report = evaluate([write_family(tmp_path, "aa")], OPTIONS, replace(settings, worth_s=POOR))
    (row,) = report["families"]
    assert row["arms"]["auto"]["arm"] == "icl" and row["arms"]["ttt"]["arm"] == "train:quick"
    assert row["arms"]["auto"]["answers"] == row["arms"]["icl"]["answers"]
    assert row["arms"]["ttt"]["seconds"] > row["arms"]["auto"]["seconds"] > 0


def test_each_arm_may_be_run_alone_and_gives_the_same_answers(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    use(TRUSTING)
    paths = [write_family(tmp_path, "aa")]
    together = evaluate(paths, OPTIONS, settings)["families"][0]
    for arm in OPTIONS.arms:
        alone = evaluate(paths, replace(OPTIONS, arms=(arm,)), settings)["families"][0]
        assert alone["arms"][arm]["answers"] == together["arms"][arm]["answers"], arm
        assert ("auto" in alone) is (arm == "auto")


def test_each_run_starts_with_an_empty_store_unless_told_otherwise(
    settings: Settings, tmp_path: Path
) -> None:
    paths, mine = [write_family(tmp_path, "aa")], tmp_path / "mine"
    own = replace(settings, data_dir=str(mine), database_url=f"sqlite:///{mine / 'x.db'}")
    only = replace(OPTIONS, arms=("ttt",))
    runs = [evaluate(paths, only, own)["families"][0]["arms"]["ttt"] for _ in range(2)]
    assert [run["arm"] for run in runs] == ["train:quick"] * 2 and not mine.exists()
    shared = replace(only, store=tmp_path / "shared")
    runs = [evaluate(paths, shared, own)["families"][0]["arms"]["ttt"] for _ in range(2)]
    assert runs[0]["arm"] == "train:quick" and runs[1]["arm"].startswith("reuse:")


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


def test_an_interrupted_run_goes_on_where_it_stopped(settings: Settings, tmp_path: Path) -> None:
    paths = [write_family(tmp_path, "aa"), write_family(tmp_path, "bb")]
    out = tmp_path / "report.json"
    options = replace(OPTIONS, out=out, arms=("icl",), seeds=(0, 1))

    def stop_after_the_first(progress: Progress) -> None:
        if progress.row is not None:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate(paths, options, settings, stop_after_the_first)
    first = json.loads(out.read_text())
    assert [(r["family"], r["seed"]) for r in first["families"]] == [("aa", 0)] and first["summary"] == {}

    begun: list[tuple[str, int, int, int]] = []

    def note(p: Progress) -> None:
        if p.row is None and p.event is None:
            begun.append((p.family, p.seed, p.number, p.of))

    report = evaluate(paths, replace(options, resume=True), settings, note)
    assert begun == [("aa", 1, 2, 4), ("bb", 0, 3, 4), ("bb", 1, 4, 4)]
    assert report["families"][0] == first["families"][0] and len(report["families"]) == 4
    assert json.loads(out.read_text())["summary"] == report["summary"] != {}
    again = evaluate(paths, replace(options, resume=True), settings)
    assert again["families"] == report["families"], "nothing was left to do"


def test_resume_without_a_report_begins_one(settings: Settings, tmp_path: Path) -> None:
    options = replace(OPTIONS, out=tmp_path / "new.json", resume=True, arms=("icl",))
    assert len(evaluate([write_family(tmp_path, "aa")], options, settings)["families"]) == 1


def test_a_report_made_otherwise_is_not_gone_on_with(settings: Settings, tmp_path: Path) -> None:
    paths, out = [write_family(tmp_path, "aa")], tmp_path / "report.json"
    options = replace(OPTIONS, out=out, arms=("icl",))
    evaluate(paths, options, settings)
    before = out.read_text()
    again = replace(options, resume=True)
    with pytest.raises(RouterError, match="made with other options"):
        evaluate(paths, replace(again, queries=2), settings)
    with pytest.raises(RouterError, match="made with other settings"):
        evaluate(paths, again, replace(settings, seed=9))
    assert evaluate(paths, again, replace(settings, data_dir="elsewhere"))["families"]
    with pytest.raises(RouterError, match="--resume needs --out"):
        evaluate(paths, replace(again, out=None), settings)
    assert out.read_text() == before
    out.write_text("{")
    with pytest.raises(RouterError, match="can't be read"):
        evaluate(paths, again, settings)


def test_what_can_not_be_run_is_refused_before_the_model_is_loaded(
    settings: Settings, tmp_path: Path
) -> None:
    paths, nowhere = [write_family(tmp_path, "aa")], replace(settings, model="/none/such")
    with pytest.raises(RouterError, match="'best'"):
        evaluate(paths, replace(OPTIONS, arms=("icl", "best")), nowhere)
    with pytest.raises(MetricError, match="'rouge'"):
        evaluate(paths, replace(OPTIONS, metric="rouge"), nowhere)
    with pytest.raises(TaskError, match="'aa'.*30 were asked for"):
        evaluate(paths, replace(OPTIONS, demonstrations=30), nowhere)
    with pytest.raises(TaskError, match="none.json"):
        evaluate([tmp_path / "none.json"], OPTIONS, nowhere)


def test_a_report_that_can_not_be_written_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = replace(OPTIONS, arms=("icl",), out=tmp_path / "file" / "report.json")
    with pytest.raises(RouterError, match="can't be written"):
        evaluate([write_family(tmp_path, "aa")], options, settings)


def test_gold_answers_of_queries_reach_neither_signals_decisions_nor_answers(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    """The same family with the outputs of its query pool scrambled: only what is counted right changes."""
    use(TRUSTING)
    true, scrambled = tmp_path / "true", tmp_path / "scrambled"
    for folder in (true, scrambled):
        folder.mkdir()
        write_family(folder, "aa")
    held = {item.input for item in split(read_family(true / "aa.json")).queries}
    data = json.loads((true / "aa.json").read_text())
    for i, pair in enumerate(data["demonstrations"]):
        if pair["input"] in held:
            pair["output"] = f"nonsense {i}"
    (scrambled / "aa.json").write_text(json.dumps(data))

    rows = [evaluate([folder / "aa.json"], OPTIONS, settings)["families"][0] for folder in (true, scrambled)]
    one, two = rows
    assert one["auto"]["signals"] == two["auto"]["signals"] and one["auto"]["signals"]["loo_logprob"] < 0
    chosen = ("step", "arm", "propensity", "expected_gain", "expected_gain_low")  # seconds do differ
    assert [[d[k] for k in chosen] for d in one["auto"]["decisions"]] == [
        [d[k] for k in chosen] for d in two["auto"]["decisions"]
    ]
    for arm in OPTIONS.arms:
        assert one["arms"][arm]["answers"] == two["arms"][arm]["answers"]
        assert one["arms"][arm]["arm"] == two["arms"][arm]["arm"]
    losses = [[s["detail"].get("last_loss") for s in row["auto"]["steps"]] for row in rows]
    assert losses[0] == losses[1]
    assert one["majority"] != two["majority"], "the scrambled answers were really read"
    assert not any(any(cell["correct"]) for cell in two["arms"].values())


def test_variants_of_arms_stand_beside_the_plain_ones(settings: Settings, tmp_path: Path) -> None:
    arms = ("icl", "ttt", "icl:2", "icl:calibrated", "icl@3", "ttt@3", "ttt:other")
    report = evaluate([write_family(tmp_path, "aa")], replace(OPTIONS, arms=arms), settings)
    (row,) = report["families"]
    assert tuple(row["arms"]) == arms and list(report["summary"]["arms"]) == list(arms)
    took = {name: cell["arm"] for name, cell in row["arms"].items()}
    assert took["icl:2"] == "icl:2" and took["icl@3"] == "icl" and took["ttt:other"] == "train:other"
    assert took["icl:calibrated"] == "icl", "one output is no set of labels"
    assert took["ttt@3"] == took["ttt"] == "train:quick", "it met that adapter"
    assert row["arms"]["ttt@3"]["seconds"] > row["arms"]["ttt"]["seconds"] / 2, "and is paid for all the same"
    compared = {
        "ttt - icl",
        "icl:2 - icl",
        "icl:calibrated - icl",
        "icl@3 - icl",
        "ttt@3 - icl",
        "ttt:other - icl",
    }
    assert set(report["summary"]["differences"]) == compared


def test_mislabelled_demonstrations_are_recorded_and_reach_only_the_task(
    settings: Settings, tmp_path: Path
) -> None:
    pairs = [{"input": f"aa {i:02d}", "output": "ab"[i % 2]} for i in range(40)]
    file = tmp_path / "aa.json"
    file.write_text(json.dumps({"name": "aa", "demonstrations": pairs}))
    options = replace(OPTIONS, demonstrations=8, arms=("icl",))
    clean, flipped = (
        evaluate([file], replace(options, flip_labels=share), settings)["families"][0]
        for share in (0.0, 0.25)
    )
    assert "mislabelled" not in clean and len(flipped["mislabelled"]) == 2
    assert clean["n_queries"] == flipped["n_queries"] and clean["majority"] == flipped["majority"]
    assert flipped["arms"]["icl"]["correct"] == [
        int(a == b) for a, b in zip(flipped["arms"]["icl"]["answers"], gold_of(file, options), strict=True)
    ], "judged by the true labels"


def gold_of(file: Path, options: EvaluateOptions) -> tuple[str, ...]:
    return sample(split(read_family(file)), options.demonstrations, options.queries, 0).gold


def test_three_demonstrations_are_enough_and_two_are_not(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    """Of three each is judged by a training on the others; of two there is no evidence, and `auto` answers in context."""
    use(TRUSTING)
    paths = [write_family(tmp_path, "aa")]
    (three,) = evaluate(paths, replace(OPTIONS, demonstrations=3), settings)["families"]
    assert three["arms"]["ttt"]["arm"] == three["arms"]["auto"]["arm"] == "train:quick"
    assert [s["name"] for s in three["auto"]["steps"]][3:] == ["probe", "train", "guard", "answer"]
    (two,) = evaluate(paths, replace(OPTIONS, demonstrations=2), settings)["families"]
    assert two["arms"]["ttt"]["arm"] == "train:quick" and two["arms"]["auto"]["arm"] == "icl"
    assert two["arms"]["auto"]["answers"] == two["arms"]["icl"]["answers"]


# The summary, by hand


def row(family: str, seed: int = 0, **arms: tuple[str, list[int], float]) -> dict[str, Any]:
    """`name=(arm taken, right or wrong, seconds)`."""
    cells = {
        name.replace("_", "-"): {"arm": a, "correct": c, "accuracy": sum(c) / len(c), "seconds": s}
        for name, (a, c, s) in arms.items()
    }
    return {"family": family, "seed": seed, "arms": cells}


def test_the_summary_of_nothing_is_empty() -> None:
    assert summarise([]) == {}


def test_the_summary_pools_queries_and_sums_seconds() -> None:
    rows = [
        row("a", icl=("icl", [0, 0, 0, 1], 1.0), auto=("train:x", [1, 1, 0, 1], 5.0)),
        row("b", icl=("icl", [1, 1], 0.5), auto=("icl", [1, 1], 0.75)),
    ]
    got = summarise(rows)
    icl, auto = got["arms"]["icl"], got["arms"]["auto"]
    assert (icl["accuracy"], icl["mean_over_families"]) == (0.5, pytest.approx((0.25 + 1) / 2))
    assert (icl["low"], icl["high"]) == wilson_interval(3, 6)
    assert (auto["seconds"], auto["share_trained"], icl["share_trained"]) == (5.75, 0.5, 0.0)
    difference = got["differences"]["auto - icl"]
    expected = paired_difference([([0, 0, 0, 1], [1, 1, 0, 1]), ([1, 1], [1, 1])], seed=0)
    assert difference["mean"] == pytest.approx(2 / 6) == expected.mean
    assert (difference["low"], difference["high"]) == (expected.low, expected.high)
    assert list(got["differences"]) == ["auto - icl"] and difference["families_below"] == []


def test_only_arms_that_every_row_has_are_summed_up() -> None:
    both = row("a", icl=("icl", [1], 1.0), ttt=("train:x", [0], 1.0))
    got = summarise([both, row("b", icl=("icl", [1], 1.0))])
    assert list(got["arms"]) == ["icl"] and got["differences"] == {}


def test_families_below_are_those_that_stay_significant_after_holm() -> None:
    """Losses without any win: 5 of 16 has p = .0625, 8 has p = .0078 and 7 p = .0156; of three tests Holm
    asks .0167 for the smallest and .025 for the next."""

    def losing(n: int, of: int = 16) -> tuple[tuple[str, list[int], float], tuple[str, list[int], float]]:
        return ("icl", [1] * of, 1.0), ("icl", [0] * n + [1] * (of - n), 1.0)

    rows = [
        row(name, icl=before, auto=after)
        for name, (before, after) in (("five", losing(5)), ("seven", losing(7)), ("eight", losing(8)))
    ]
    assert mcnemar_exact([1] * 16, [0] * 7 + [1] * 9) == pytest.approx(2 / 2**7)
    assert summarise(rows)["differences"]["auto - icl"]["families_below"] == ["seven", "eight"]
    many = rows + [row(f"equal {i}", icl=losing(0)[0], auto=losing(0)[1]) for i in range(5)]
    below = summarise(many)["differences"]["auto - icl"]["families_below"]
    assert below == [], "of eight tests .0078 is too much for .00625"


def test_a_family_that_is_significantly_better_is_not_below() -> None:
    better = row("a", icl=("icl", [0] * 12, 1.0), auto=("icl", [1] * 12, 1.0))
    assert summarise([better])["differences"]["auto - icl"]["families_below"] == []


def test_seeds_of_a_family_are_tested_together() -> None:
    """Three losses each are nothing, six together are significant (p = .031)."""
    pair = {"icl": ("icl", [1] * 8, 1.0), "auto": ("icl", [0] * 3 + [1] * 5, 1.0)}
    one = summarise([row("a", 0, **pair)])["differences"]["auto - icl"]
    both = summarise([row("a", 0, **pair), row("a", 1, **pair)])["differences"]["auto - icl"]
    assert one["families_below"] == [] and both["families_below"] == ["a"]


def test_in_context_learning_is_run_alone_where_the_router_asked_a_sample(
    settings: Settings, tmp_path: Path, use: Use
) -> None:
    use(TRUSTING)
    paths = [write_family(tmp_path, name, 80) for name in ("aa", "bb")]
    first, second = evaluate(paths, replace(OPTIONS, queries=24), settings)["families"]
    assert [s["name"] for s in first["auto"]["steps"]][:2] == ["look-up", "icl"]
    assert [s["name"] for s in second["auto"]["steps"]][:2] == ["look-up", "sample"]
    for row in (first, second):
        assert len(row["arms"]["icl"]["answers"]) == 24 and list(row["arms"]["icl"]["seconds_parts"]) == [
            "icl"
        ]
    assert "icl" not in second["arms"]["auto"]["seconds_parts"]
