"""Written once, read back whole, found by prefix; outcomes only ever added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from store import EpisodeRow, OutcomeRow, Store, TaskRow
from store import episodes as episodes_module
from store.errors import NotFound, StoreError


def test_an_episode_and_its_task_come_back_as_written(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    assert opened.episodes.record(episode, task)
    assert opened.episodes.get(episode.episode_id) == episode
    assert opened.episodes.task(task.fingerprint) == task


def test_nothing_measured_comes_back_as_none(opened: Store, episode: EpisodeRow, task: TaskRow) -> None:
    opened.episodes.record(replace(episode, signals=None), task)
    assert opened.episodes.get(episode.episode_id).signals is None


def test_a_step_that_runs_again_does_not_write_twice(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    assert opened.episodes.record(episode, task)
    assert not opened.episodes.record(replace(episode, arm="train:default"), replace(task, name="other"))
    assert opened.episodes.recent(10) == [episode]
    assert opened.episodes.task(task.fingerprint) == task


def test_one_task_has_many_episodes_newest_first(
    opened: Store, episodes_of: Callable[[int], list[EpisodeRow]], task: TaskRow
) -> None:
    rows = episodes_of(5)
    for row in rows:
        opened.episodes.record(row, task)
    assert opened.episodes.recent(3) == rows[:1:-1]


def test_a_unique_prefix_of_six_characters_is_enough(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    opened.episodes.record(episode, task)
    opened.episodes.record(replace(episode, episode_id="0123459999999999"), task)
    assert opened.episodes.get("0123456") == episode
    with pytest.raises(NotFound, match="Several episodes begin with '012345'; give more"):
        opened.episodes.get("012345")
    with pytest.raises(NotFound, match="at least 6"):
        opened.episodes.get("01234")
    with pytest.raises(NotFound, match="'ffffff'.*history"):
        opened.episodes.get("ffffff")
    with pytest.raises(NotFound):
        opened.episodes.get("%%%%%%%")


def test_an_unknown_task_is_not_found(opened: Store) -> None:
    with pytest.raises(NotFound, match="task1:00"):
        opened.episodes.task("task1:00")


def test_an_outcome_is_added_once_per_key(opened: Store, episode: EpisodeRow, task: TaskRow) -> None:
    opened.episodes.record(episode, task)
    wrong = OutcomeRow(episode.episode_id, "user", 0.0, "k1", query_index=0, answer="ab", created_at=1.0)
    right = OutcomeRow(episode.episode_id, "gold", 1.0, "k2", created_at=0.5)
    assert opened.episodes.add_outcome(wrong)
    assert opened.episodes.add_outcome(right)
    assert not opened.episodes.add_outcome(replace(wrong, value=1.0))
    assert opened.episodes.outcomes(episode.episode_id) == (wrong, right)


def test_an_outcome_of_no_episode_is_refused(opened: Store) -> None:
    with pytest.raises(NotFound, match="'nowhere'"):
        opened.episodes.add_outcome(OutcomeRow("nowhere", "user", 1.0, "k"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_an_outcome_beyond_zero_to_one_is_refused(value: float) -> None:
    with pytest.raises(StoreError, match="from 0 .wrong. to 1"):
        OutcomeRow("e", "user", value, "k")


def test_an_outcome_from_an_unknown_source_is_refused() -> None:
    source: Any = "hearsay"
    with pytest.raises(StoreError, match="'hearsay'.*gold, held-out, user, judge"):
        OutcomeRow("e", source, 1.0, "k")


def test_fitting_sees_each_judged_episode_once_oldest_first_over_pages(
    opened: Store,
    episodes_of: Callable[[int], list[EpisodeRow]],
    task: TaskRow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(episodes_module, "PAGE", 3)
    rows = [replace(row, created_at=row.created_at // 2) for row in episodes_of(8)]  # pairs share a time
    for row in rows:
        opened.episodes.record(row, task)
    judged = [row for row in rows if not row.episode_id.startswith("0003")]
    for row in judged:
        for n in range(2):
            opened.episodes.add_outcome(
                OutcomeRow(row.episode_id, "gold", n, f"{row.episode_id}/{n}", query_index=n)
            )
    fit = list(opened.episodes.for_fit())
    assert [episode for episode, _ in fit] == judged
    assert all(
        [o.idempotency_key for o in found] == [f"{e.episode_id}/{n}" for n in (0, 1)] for e, found in fit
    )


def test_fitting_holds_no_transaction_while_the_caller_works(
    opened: Store, episode: EpisodeRow, task: TaskRow
) -> None:
    opened.episodes.record(episode, task)
    opened.episodes.add_outcome(OutcomeRow(episode.episode_id, "gold", 1, "k"))
    for _ in opened.episodes.for_fit():
        assert opened.db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
