"""Collecting outcomes: what a row holds, going on, what is refused, and that no answer key reaches a signal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from policies.errors import PolicyError
from policies.outcomes import ArmOutcome, TaskOutcome, read_rows
from policies.types import SIGNALS_VERSION
from router.agent import Router
from router.collect import Collected, CollectOptions, Shadow, collect
from router.errors import RouterError
from router.evaluate import Progress
from router.events import Decided, ICLDone, TrainingStep
from router.outcome_file import command_file, machine_name
from router.rows import at_its_pace
from router.settings import Settings
from tests.policies.simulated import simulate
from tests.router.conftest import QUICK, WILD
from ttt.crossfit import folds
from ttt.errors import TaskError
from ttt.formats import read_family
from ttt.pools import sample, split
from ttt.recipes import RECIPES
from ttt.task import Demonstration, Task, clean_task

SIMULATED = simulate(2)


@pytest.fixture
def settings(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for recipe in (QUICK, WILD):
        monkeypatch.setitem(RECIPES, recipe.name, (recipe, recipe))
    return Settings(model=str(tiny_llama), device="cpu", dtype="float32", recipe="quick")


@pytest.fixture
def options(tmp_path: Path) -> CollectOptions:
    return CollectOptions(tmp_path / "out" / "rows.jsonl", demonstrations=4, queries=3, arms=("icl",))


def write_family(folder: Path, name: str, outputs: Iterable[str] = ("ok",) * 24) -> Path:
    pairs = [{"input": f"{name} {i:02d}", "output": output} for i, output in enumerate(outputs)]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"name": name, "demonstrations": pairs}))
    return file


def rows_of(options: CollectOptions) -> list[TaskOutcome]:
    return read_rows([options.out])


def test_a_row_has_all_signals_and_what_every_arm_came_to(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    family = write_family(tmp_path / "words", "secret-stem")
    done = collect([family], replace(options, arms=("ttt", "zero-shot")), settings)
    assert done == Collected(1, 0, 0, ())
    (row,) = rows_of(options)
    task = sample(split(read_family(family)), 4, 3, 0).task
    assert (row.family, row.collection, row.seed) == ("secret-stem", "words", 0)
    assert row.task == task.fingerprint and row.n_demonstrations == 4
    assert row.signals_version == SIGNALS_VERSION and row.model.startswith("sha256:")
    assert row.machine.endswith("cpu, float32")
    assert all(value is not None for value in row.signals.values()), "everything was measured"
    assert row.prompt_tokens == row.signals["prompt_tokens"]

    assert set(row.arms) == {"icl", "train:quick", "zero-shot"}
    for arm in row.arms.values():
        assert arm.n_queries == 3 and arm.correct in (0, 1 / 3, 2 / 3, 1) and arm.seconds > 0
    trained, icl = row.arms["train:quick"], row.arms["icl"]
    assert trained.seconds_parts["train"] > 0 and trained.seconds_parts["answer"] > 0
    by_probe_s = trained.seconds_parts["by_probe"]
    assert 0 < by_probe_s < trained.seconds_parts["train"], "named beside, as it is part of the training"
    assert trained.seconds == pytest.approx(sum(trained.seconds_parts.values()) - by_probe_s)
    assert icl.seconds == icl.seconds_parts["icl"], "what signals took is named beside, not in the sum"
    parts = icl.seconds_parts
    assert parts["signals"] == pytest.approx(
        parts["leave-one-out"] + parts["zero-shot"] + parts["consistency"], abs=1e-3
    )

    assert row.probe is not None and row.probe.steps == (0, QUICK.probed) and row.probe.seconds > 0
    before, after = row.probe.heldout_logprob
    assert row.signals["probe_logprob_before"] == pytest.approx(before)
    assert row.signals["probe_logprob_after"] == pytest.approx(after)
    assert row.probe.heldout_accuracy[1] == row.signals["probe_accuracy_after"]

    written = options.out.read_text() + command_file(options.out).read_text()
    shown = [text for d in task.demonstrations for text in (d.input, d.output)]
    assert not any(json.dumps(text) in written for text in shown)


def test_one_pass_in_context_serves_all_arms(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    collect([write_family(tmp_path, "aa")], replace(options, arms=("icl", "ttt")), settings, seen.append)
    kinds = [type(p.event) for p in seen]
    assert kinds.count(ICLDone) == 1
    decisions = [p.event.decision for p in seen if isinstance(p.event, Decided)]
    assert [(d.step, d.arm) for d in decisions] == [("probe", None), ("answer", "train:quick")]
    assert [d.policy for d in decisions] == [Shadow(True).version] * 2
    trained = [p.event.step for p in seen if isinstance(p.event, TrainingStep) and p.event.phase == "train"]
    assert trained == list(range(QUICK.probed + 1, QUICK.steps + 1)), "once, on from the probe"
    last = seen[-1].row
    assert last is not None and list(last["arms"]) == ["icl", "ttt"]


def test_rows_grow_by_seeds_and_go_on_where_they_stopped(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    paths = [write_family(tmp_path / "f", "aa"), write_family(tmp_path / "f", "bb")]
    options = replace(options, seeds=2)

    def stop_in_the_third(progress: Progress) -> None:
        if progress.number == 3 and progress.event is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(paths, options, settings, stop_in_the_third)
    first = options.out.read_bytes()
    assert [(r.family, r.seed) for r in rows_of(options)] == [("aa", 0), ("bb", 0)]
    with options.out.open("ab") as file:
        file.write(b'{"family": "aa", "se')  # as a process that is killed may leave it

    begun: list[tuple[str, int]] = []
    done = collect(
        paths,
        options,
        settings,
        lambda p: begun.append((p.family, p.seed)) if (p.row, p.event) == (None, None) else None,
    )
    assert done == Collected(2, 0, 2, ()) and begun == [("aa", 1), ("bb", 1)]
    assert options.out.read_bytes().startswith(first)
    assert [(r.family, r.seed) for r in rows_of(options)] == [("aa", 0), ("bb", 0), ("aa", 1), ("bb", 1)]
    more = collect([*paths, write_family(tmp_path / "f", "cc")], replace(options, seeds=1), settings)
    assert more == Collected(1, 0, 4, ()), "more families may be added"


def test_further_arms_are_added_to_the_rows_that_are_there(
    settings: Settings, options: CollectOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(QUICK, name="two", short=10)
    monkeypatch.setitem(RECIPES, "two", (two, two))
    settings = replace(settings, recipe="two")
    paths = [write_family(tmp_path / "f", name) for name in ("aa", "bb")]
    assert collect(paths, replace(options, arms=("icl", "ttt")), settings).rows == 2
    before = rows_of(options)
    asked = replace(options, arms=("icl", "ttt", "ttt:short"))

    def stop_in_the_second(progress: Progress) -> None:
        if progress.number == 2 and progress.event is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(paths, asked, settings, stop_in_the_second)
    assert [len(row.arms) for row in rows_of(options)] == [3, 2]
    assert collect(paths, asked, settings) == Collected(0, 1, 2, ())
    after = rows_of(options)
    assert [replace(row, arms=old.arms) for row, old in zip(after, before, strict=True)] == before
    for row, old in zip(after, before, strict=True):
        assert dict(list(row.arms.items())[:2]) == dict(old.arms) and list(row.arms)[2] == "train:two-short"
        long, short = row.arms["train:two"].seconds_parts, row.arms["train:two-short"].seconds_parts
        assert short["by_probe"] + short["answer"] == pytest.approx(long["by_probe"] + long["answer"])
    assert json.loads(command_file(options.out).read_text())["arms"] == ["icl", "ttt", "ttt:short"]
    assert collect(paths, asked, settings) == Collected(0, 0, 2, ())
    with pytest.raises(RouterError, match="were made with arms"):
        collect(paths, replace(options, arms=("icl", "ttt")), settings)


def test_new_rows_and_further_arms_in_one_go_lose_nothing(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    first, second = (write_family(tmp_path / name, name) for name in ("bb", "aa"))
    assert collect([first], options, settings).rows == 1
    link = options.out.with_name("link.jsonl")
    link.symlink_to(options.out)
    command_file(link).symlink_to(command_file(options.out))
    asked = replace(options, out=link, arms=("icl", "icl:2", "icl:calibrated", "zero-shot"))
    assert collect([second, first], asked, settings) == Collected(1, 1, 1, ())
    assert {row.family: len(row.arms) for row in rows_of(options)} == {"aa": 4, "bb": 4}
    assert link.is_symlink() and sorted(f.name for f in options.out.parent.iterdir()) == [
        "link.command.json",
        "link.jsonl",
        "rows.command.json",
        "rows.jsonl",
    ]
    assert collect([second, first], asked, settings) == Collected(0, 0, 2, ()), "a fallback counts as done"


def test_a_further_arm_has_the_pace_of_its_row() -> None:
    """Where no common work was timed, its seconds stay as they are."""
    at_once = ArmOutcome(0.5, 3, 20.0, {"by_probe": 4.0, "train": 14.0, "answer": 6.0})
    slow = ArmOutcome(0.5, 3, 30.0, {"by_probe": 8.0, "train": 18.0, "answer": 12.0})
    row = SIMULATED.rows[0]
    known = replace(row, arms={"icl": row.arms["icl"], "train:two": at_once})
    (found,) = at_its_pace(known, {"train:two-short": slow}).values()
    assert found.seconds == 15.0 and found.seconds_parts == {"by_probe": 4.0, "train": 9.0, "answer": 6.0}
    bare = replace(slow, seconds_parts={"train": 18.0, "answer": 12.0})
    assert at_its_pace(known, {"x": bare}) == {"x": bare}
    assert at_its_pace(row, {"x": slow}) == {"x": slow}
    assert at_its_pace(known, {"train:other": slow}) == {"train:other": slow}, "other work"


def test_rows_made_otherwise_are_refused(settings: Settings, options: CollectOptions, tmp_path: Path) -> None:
    paths = [write_family(tmp_path, "aa")]
    collect(paths, options, settings)
    before = options.out.read_text()
    for changed in (
        replace(options, queries=2),
        replace(options, demonstrations=5),
        replace(options, metric="numeric"),
    ):
        with pytest.raises(RouterError, match="were made with .* now it is .* name another file"):
            collect(paths, changed, settings)
    with pytest.raises(RouterError, match='made with recipes .*"quick-.*"wild-'):
        collect(paths, options, replace(settings, recipe="wild"))
    with pytest.raises(RouterError, match="made with settings"):
        collect(paths, options, replace(settings, votes=3))
    write_family(tmp_path, "aa", ["other"] * 24)
    with pytest.raises(RouterError, match="items have changed"):
        collect(paths, options, settings)
    write_family(tmp_path, "aa")
    command_file(options.out).unlink()
    with pytest.raises(RouterError, match=r"rows.command.json is not beside it"):
        collect(paths, options, settings)
    assert options.out.read_text() == before


def test_a_file_that_no_collection_has_made_is_left_as_it_is(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    mine = replace(options, out=tmp_path / "mine.jsonl")
    mine.out.write_text('{"my": "file"}')  # without an end of its line
    with pytest.raises(PolicyError, match=r"mine.jsonl, line 1"):
        collect([write_family(tmp_path, "aa")], mine, settings)
    assert mine.out.read_text() == '{"my": "file"}'


def test_a_last_row_without_the_end_of_its_line_is_kept(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    paths = [write_family(tmp_path, "aa")]
    collect(paths, options, settings)
    before = options.out.read_text()
    options.out.write_text(before.rstrip("\n"))
    assert collect(paths, options, settings) == Collected(0, 0, 1, ())
    assert options.out.read_text() == before


def test_a_training_that_the_guard_refuses_is_still_an_outcome_of_training(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    """Of two demonstrations none can be held out, so there is no evidence: the run that measures is vetoed."""
    paths = [write_family(tmp_path, "aa")]
    asked = replace(options, demonstrations=2, arms=("icl", "ttt"))
    assert collect(paths, asked, settings).failed == ()
    (row,) = rows_of(asked)
    assert set(row.arms) == {"icl", "train:quick"} and row.arms["train:quick"].seconds_parts["train"] > 0
    assert collect(paths, asked, settings) == Collected(0, 0, 1, ()), "nothing is lacking"


def test_a_preference_changes_no_row(settings: Settings, options: CollectOptions, tmp_path: Path) -> None:
    paths = [write_family(tmp_path, "aa")]
    collect(paths, options, settings)
    assert collect(paths, options, replace(settings, prefer="fast")) == Collected(0, 0, 1, ())


def test_a_task_that_fails_gets_no_row_and_the_others_go_on(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    long = write_family(tmp_path, "long", ["x" * 3000] * 24)
    done = collect([long, write_family(tmp_path, "short")], options, settings)
    assert done.rows == 1 and [r.family for r in rows_of(options)] == ["short"]
    assert (
        len(done.failed) == 1 and done.failed[0].startswith("long seed 0: ") and "context" in done.failed[0]
    )

    wild = replace(options, out=tmp_path / "wild.jsonl", arms=("icl", "ttt"))
    done = collect([tmp_path / "short.json"], wild, replace(settings, recipe="wild"))
    assert done.rows == 0 and "the loss was" in done.failed[0] and not wild.out.exists()


def test_a_row_whose_signals_were_cut_short_is_not_written(
    settings: Settings, options: CollectOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends an answer early, not in an error: a row of what was there by then would mislead."""
    paths = [write_family(tmp_path, "aa")]

    def interrupt(progress: Progress) -> None:
        if isinstance(progress.event, TrainingStep) and progress.event.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):  # where it is noticed between two events
        collect(paths, options, settings, interrupt)
    assert not options.out.exists()
    wild = replace(WILD, name="quick")
    monkeypatch.setitem(RECIPES, "quick", (wild, wild))
    done = collect(paths, options, settings)
    assert done.rows == 0 and "Not all signals were measured: Training on this task failed" in done.failed[0]
    assert not options.out.exists()


def test_no_answer_key_reaches_a_signal(settings: Settings, options: CollectOptions, tmp_path: Path) -> None:
    family = write_family(tmp_path / "a", "aa")
    queries = {item.input for item in split(read_family(family)).queries}
    outputs = ["unheard of" if f"aa {i:02d}" in queries else "ok" for i in range(24)]
    other = write_family(tmp_path / "b", "aa", outputs)
    collect([family], options, settings)
    again = replace(options, out=tmp_path / "again.jsonl")
    collect([other], again, settings)
    (a,), (b,) = rows_of(options), rows_of(again)
    assert a.task == b.task and a.signals == b.signals
    assert a.probe is not None and b.probe is not None
    assert a.probe.heldout_logprob == b.probe.heldout_logprob


def test_too_few_demonstrations_for_a_probe_leave_it_out(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    collect([write_family(tmp_path, "aa")], replace(options, demonstrations=2), settings)
    (row,) = rows_of(options)
    assert row.probe is None and row.signals["probe_logprob_after"] is None
    assert row.signals["loo_accuracy"] is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": ("icl", "auto")}, "auto is no arm to collect"),
        ({"arms": ("icl", "guess")}, "Unknown arm 'guess'"),
        ({"arms": ("icl", "icl@5")}, "icl, icl@5 would write one outcome over another"),
        ({"arms": ("ttt", "ttt:auto")}, "ttt:auto would write one outcome over another"),
        ({"seeds": 0}, "0 seeds"),
        ({"metric": "best"}, "no metric 'best'"),
    ],
)
def test_what_cant_be_collected_is_said_before_the_model_is_loaded(
    options: CollectOptions, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    unusable = Settings(model=str(tmp_path / "no-model"))
    with pytest.raises((RouterError, ValueError), match=message):
        collect([write_family(tmp_path, "aa")], replace(options, **changed), unusable)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="demonstrations to draw from"):
        collect([tmp_path / "aa.json"], replace(options, demonstrations=100), unusable)


def test_no_row_meets_what_another_has_left(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    """The same task under another name trains for itself: its adapter is not found."""
    both = [write_family(tmp_path, "aa"), write_family(tmp_path, "bb")]
    both[1].write_text(both[0].read_text().replace('"name": "aa"', '"name": "bb"'))
    collect(both, replace(options, arms=("ttt",)), settings)
    first, second = rows_of(options)
    assert first.task == second.task and first.signals == second.signals
    assert set(first.arms) == set(second.arms) == {"icl", "train:quick"}
    assert first.arms["train:quick"].correct == second.arms["train:quick"].correct
    assert second.arms["train:quick"].seconds_parts["train"] > 0


def test_a_machine_is_named_by_what_seconds_hang_on() -> None:
    import socket

    name = machine_name("cpu", "bfloat16")
    assert name.endswith(" cores, cpu, bfloat16") and socket.gethostname() not in name


def test_stored_tasks_ask_themselves_half_by_half_with_no_label(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    pairs = tuple(Demonstration(f"in {i}", "ok") for i in range(9))
    home = replace(settings, data_dir=str(tmp_path / "home"))
    with Router.open(home) as agent:
        agent.ask(Task(pairs, name="grew"), ["in 99"], arm="icl")
        agent.ask(Task(pairs[:8], name="grew"), ["in 99"], arm="icl")
        agent.ask(Task(pairs[2:], "Other words.", name="grew"), ["in 99"], arm="icl")
        again = tuple(Demonstration(f"at {i // 2}", f"{i}") for i in range(14))
        agent.ask(Task(again, name="grew"), ["at 99"], arm="icl")
    asked = replace(options, stored=True, seeds=2, arms=("icl", "ttt"), demonstrations=99, queries=99)
    assert collect([], asked, home) == Collected(4, 0, 0, ()), "two families of one name"
    (one, other), twice = (
        [r for r in rows_of(options) if (r.n_demonstrations == 7) is k] for k in (False, True)
    )
    digits = Task(pairs).fingerprint.partition(":")[2][:8]
    assert (one.family, one.collection, one.seed, other.seed) == (f"grew-{digits}", "stored", 0, 1)
    assert {one.n_demonstrations, other.n_demonstrations} == {4, 5}
    assert all(0 < row.arms["icl"].n_queries < 7 for row in twice), "no query is shown with another output"
    assert one.arms["icl"].n_queries == 9 - one.n_demonstrations and "train:quick" in one.arms
    assert collect([], asked, home) == Collected(0, 0, 4, ()), "gone on with"
    parts = folds(clean_task(Task(pairs))[0], 0)
    assert [row.task for row in (one, other)] == [part.task.fingerprint for part in parts]


def test_no_stored_task_that_is_large_enough_is_told(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    home = replace(settings, data_dir=str(tmp_path / "home"))
    with pytest.raises(RouterError, match="No stored task has 8 demonstrations"):
        collect([], replace(options, stored=True), home)
    with pytest.raises(RouterError, match="nothing to collect on"):
        collect([], options, home)


def test_a_sample_is_timed_beside_all_queries_and_the_row_has_its_signals(
    settings: Settings, options: CollectOptions, tmp_path: Path
) -> None:
    paths = [write_family(tmp_path, "aa", ("ok",) * 80)]
    options = replace(options, queries=24, arms=("ttt",))
    assert collect(paths, options, settings).rows == 1
    (row,) = rows_of(options)
    parts = row.arms["icl"].seconds_parts
    assert parts["sample"] > 0 and row.arms["icl"].seconds == parts["icl"]
    assert row.arms["icl"].n_queries == row.arms["train:quick"].n_queries == 24
    assert row.signals["n_queries"] == 24 and row.signals["query_logprob"] is not None
    assert json.loads(command_file(options.out).read_text())["sample"] == 8
