"""Episodes with right answers → rows; a promise against what came true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from policies.gain import GainModel
from policies.learned import BY_RULE
from policies.replay import replay, signals_seconds, situation_of
from policies.rule import Rule
from policies.types import SIGNALS_VERSION, Decision
from router.learning import Judged, judged, rows_of, trained_pairs
from router.receipt import SHADOW, Answered, Receipt, Step
from store import EpisodeRow, OutcomeRow, Store, TaskRow
from store.tables import episodes
from tests.policies.situations import probed

GOLD = ("yes", "no", "yes", "no")
EAGER = Rule(GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(f"sqlite:///{tmp_path / 'router.db'}", tmp_path / "adapters")
    yield made
    made.close()


def record(
    opened: Store,
    episode: str,
    arm: str,
    answers: tuple[str, ...],
    icl: tuple[str, ...],
    *,
    task: str = "words",
    version: int = SIGNALS_VERSION,
    measured: bool = True,
    gain: float | None = 0.4,
    repeats: float = 0.0,
    voted: bool = False,
    found: bool = False,
    name: str | None = None,
    shown: tuple[tuple[str, str], ...] = (("a", "b"),),
) -> None:
    """An episode as a router writes it."""
    said = Decision("answer", arm, 1.0, gain, gain, 9.0, "Because.", "learned-1-x")
    signals = probed(n_queries=len(answers), expected_repeats=repeats).as_dict() if measured else {}
    decision = asdict(said) | {"details": {}}
    steps = (
        Step("icl", 2.0),
        Step("signals", 1.5, {"leave_one_out_s": 1.0, "consistency_s": 0.5}),
        Step("probe", 3.0, {"steps": 8, "training_s": 2.5}),
        Step("train", 8.0, {"found": "an adapter"} if found else {"of_these_by_probe": 8}),
        Step("answer", 1.0),
        *([Step("vote", 4.0)] if voted else []),
    )
    receipt = Receipt(
        episode,
        f"task1:{task}",
        task if name is None else name,
        "tiny",
        "tiny@1",
        arm,
        tuple(Answered(text, -0.1, True) for text in answers),
        tuple(Answered(text, -0.2, True) for text in icl),
        steps if arm.startswith("train:") else steps[:3],
        (decision,),
        signals,
        "",
        "",
        (),
        30.0,
        len(answers),
        0.0,
    )
    row = EpisodeRow(
        episode,
        f"task1:{task}",
        "tiny@1",
        arm,
        receipt.seconds,
        decision,
        signals or None,
        version,
        said.policy,
        1.0,
        receipt.as_dict(),
    )
    opened.episodes.record(row, TaskRow(f"task1:{task}", "", shown, task if name is None else name))


def tell(
    opened: Store,
    episode: str,
    source: Any = "gold",
    answers: tuple[str, ...] = GOLD,
    right: tuple[str, ...] = (),
) -> None:
    """The right answers; `right` are the texts that were given, to say right or wrong of each."""
    for i, answer in enumerate(answers):
        value = float(not right or right[i] == answer)
        opened.episodes.add_outcome(OutcomeRow(episode, source, value, f"{episode}:{source}:{i}", i, answer))


TRAINED, ICL = ("yes", "no", "yes", "yes"), ("no", "no", "no", "no")


def test_an_episode_that_trained_judges_both_arms_on_the_same_queries(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    tell(opened, "e1", right=TRAINED)
    (row,), notes = rows_of(opened)
    assert notes == []
    assert row.arms["icl"].correct == 0.5 and row.arms["train:standard"].correct == 0.75
    assert row.arms["icl"].seconds == 2.0 and row.arms["train:standard"].seconds == 11.5
    assert row.probe is not None and row.probe.seconds == 3.0
    assert row.arms["train:standard"].seconds_parts["by_probe"] == 2.5
    taken = replay(EAGER, row, 1e5)
    assert taken.probed and taken.seconds == pytest.approx(2.0 + 1.0 + 3.0 + 8.0 + 1.0), (
        "what was really paid"
    )
    assert (row.family, row.collection, row.model, row.n_demonstrations) == (
        "words",
        "episodes",
        "tiny@1",
        10,
    )


def test_an_episode_that_stayed_makes_a_row_only_with_its_shadow(opened: Store) -> None:
    record(opened, "e1", "icl", ICL, ICL)
    tell(opened, "e1", right=ICL)
    rows, notes = rows_of(opened)
    assert rows == [] and "both ICL and training could be judged" in notes[0]
    record(opened, f"e1{SHADOW}", "train:standard", TRAINED, ())
    (row,), notes = rows_of(opened)
    assert row.arms["train:standard"].correct == 0.75 and row.arms["icl"].correct == 0.5 and notes == []


def test_approval_alone_says_what_the_right_answer_is(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    for i in range(4):
        opened.episodes.add_outcome(OutcomeRow("e1", "user", 1.0, f"k{i}", i))
    (row,), _ = rows_of(opened)
    assert row.arms["train:standard"].correct == 1.0
    assert row.arms["icl"].correct == 0.25, "it said the same only once"
    assert trained_pairs(opened, "learned-1-x") == ([0.4], [0.75], ["words"])


def test_where_no_right_answer_is_known_a_query_is_left_out_though_both_said_the_same(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    for i in range(4):
        opened.episodes.add_outcome(OutcomeRow("e1", "user", float(i == 0), f"k{i}", i))
    (row,), _ = rows_of(opened)
    assert row.arms["icl"].n_queries == 1
    assert (row.arms["icl"].correct, row.arms["train:standard"].correct) == (0.0, 1.0)


def test_what_can_not_be_learned_from_is_left_out_and_counted(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL, version=SIGNALS_VERSION + 1)
    record(opened, "e2", "reuse:abc", TRAINED, (), measured=False)
    for name in ("e1", "e2"):
        tell(opened, name)
    rows, notes = rows_of(opened)
    assert rows == []
    assert any(f"version {SIGNALS_VERSION + 1} of the signals" in note for note in notes)
    assert any("verified adapter" in note for note in notes)


def test_sources_that_contradict_one_another_are_noted_and_the_stronger_counts(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    tell(opened, "e1", right=TRAINED)
    opened.episodes.add_outcome(OutcomeRow("e1", "user", 0.0, "other", 0))
    (row,), notes = rows_of(opened)
    assert row.arms["train:standard"].correct == 0.75
    assert notes == ["1 episode with outcomes that contradict one another: the stronger source counts."]


def test_a_person_who_changes_their_mind_is_believed_the_last_time() -> None:
    said = [OutcomeRow("e", "user", value, f"k{value}", 0) for value in (1.0, 0.0)]
    assert judged(said)[0].value == 0.0 and not judged(said)[0].contradicted


def test_a_word_without_an_answer_does_not_take_back_the_answer_that_was_told() -> None:
    said = [OutcomeRow("e", "user", 0.0, "a", 0, "yes"), OutcomeRow("e", "user", 0.0, "b", 0, None)]
    assert judged(said)[0] == Judged(0.0, "yes", False)
    right = [*said, OutcomeRow("e", "user", 1.0, "c", 0, None)]
    assert judged(right)[0] == Judged(1.0, None, False), "that answer was wrong, then"


def test_sources_that_name_different_right_answers_contradict_one_another() -> None:
    said = [OutcomeRow("e", "gold", 0.0, "a", 0, "yes"), OutcomeRow("e", "user", 0.0, "b", 0, "maybe")]
    assert judged(said)[0] == Judged(0.0, "yes", True)
    assert not judged([said[0], replace(said[1], answer="yes ")])[0].contradicted


def test_the_built_in_rules_decisions_are_no_promise_of_the_policy(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    tell(opened, "e1", right=TRAINED)
    assert len(trained_pairs(opened, "learned-1-x")[0]) == 1
    decision = opened.episodes.get("e1").decision
    with opened.db.write() as connection:
        connection.execute(update(episodes).values(decision={**decision, "details": {BY_RULE: 1.0}}))
    assert trained_pairs(opened, "learned-1-x") == ([], [], [])


def test_two_episodes_of_a_task_make_two_rows(opened: Store) -> None:
    for name in ("e1", "e2"):
        record(opened, name, "train:standard", TRAINED, ICL)
        tell(opened, name, right=TRAINED)
    rows, _ = rows_of(opened)
    assert [row.seed for row in rows] == [0, 1] and len({row.key for row in rows}) == 2


def test_promises_stand_beside_what_came_true(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    tell(opened, "e1", right=TRAINED)
    assert trained_pairs(opened, "learned-1-x") == ([0.4], [0.25], ["words"])
    assert trained_pairs(opened, "other") == ([], [], [])


def test_few_judged_queries_make_the_gain_unsure_but_not_the_task_small(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL, repeats=100.0)
    tell(opened, "e1", answers=GOLD[:2], right=TRAINED[:2])
    (row,), _ = rows_of(opened)
    assert row.arms["icl"].n_queries == row.arms["train:standard"].n_queries == 2
    here = situation_of(row, 30.0).signals
    assert (here.n_queries, here.expected_repeats, row.n_expected) == (4, 100, 104), "as it was decided"
    assert situation_of(row, 30.0, repeats=0.0).signals.expected_repeats == 0


def test_measuring_signals_is_paid_for_by_who_reads_them(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL)
    tell(opened, "e1", right=TRAINED)
    (row,), _ = rows_of(opened)
    assert row.arms["icl"].seconds == 2.0, "beside the sum"
    assert signals_seconds(row, frozenset({"loo_accuracy"})) == 1.0
    assert signals_seconds(row, frozenset({"loo_accuracy", "agreement"})) == 1.5


def test_answers_that_views_have_voted_on_are_not_held_against_one_view(opened: Store) -> None:
    record(opened, "e1", "train:standard", TRAINED, ICL, voted=True)
    tell(opened, "e1", right=TRAINED)
    rows, (note,) = rows_of(opened)
    assert rows == [] and "was voted on" in note
    assert trained_pairs(opened, "learned-1-x") == ([], [], [])


def test_an_adapter_that_was_there_says_nothing_of_what_training_takes(opened: Store) -> None:
    record(opened, "e1", "train:auto-short", ("yes",) * 4, ("no",) * 4, found=True)
    record(opened, "e2", "train:auto-short", ("yes",) * 4, ("no",) * 4, task="others")
    for episode in ("e1", "e2"):
        tell(opened, episode)
    rows, notes = rows_of(opened)
    assert [set(row.arms) for row in rows] == [{"icl", "train:auto-short"}]
    assert notes == [
        "left out 1 episode: met an adapter that was there, so what training takes was not seen."
    ]


def test_a_chat_that_grows_by_corrections_is_one_family(opened: Store) -> None:
    pairs = tuple((f"q{i}", f"a{i}") for i in range(5))
    grown = {"one": pairs[:2], "two": pairs[:3], "three": pairs[:4], "other": pairs[4:]}
    for task, shown in grown.items():
        record(opened, f"e-{task}", "train:standard", TRAINED, ICL, task=task, name="", shown=shown)
        tell(opened, f"e-{task}", right=TRAINED)
    rows, _ = rows_of(opened)
    assert [row.task for row in rows] == [f"task1:{task}" for task in grown]
    assert [row.family for row in rows] == ["task1:one"] * 3 + ["task1:other"]
    assert trained_pairs(opened, "learned-1-x")[2] == ["task1:one"] * 3 + ["task1:other"]


def test_tasks_that_only_share_a_demonstration_are_families_of_their_own(opened: Store) -> None:
    for task, last in (("one", "x"), ("two", "y")):
        shown = (("q", "a"), (last, last))
        record(opened, f"e-{task}", "train:standard", TRAINED, ICL, task=task, name="", shown=shown)
        tell(opened, f"e-{task}", right=TRAINED)
    assert len({row.family for row in rows_of(opened)[0]}) == 2
