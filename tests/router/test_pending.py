"""What trains behind answers, on disk: taken up by the next process, and left alone where it kills or is new."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router import behind
from router.agent import Router
from router.pending import MOST_TRIES, NEW_S, Pending
from store.errors import DatabaseLocked
from tests.router.conftest import LONG, QUERIES, QUICK, TASK, OpenRouter, ok_task
from tests.router.test_when import wait_for
from ttt.errors import TrainingFailed
from ttt.task import Query

OPTIONS: dict[str, Any] = {"arm": "auto", "recipe": (QUICK, QUICK), "seed": 0}


def left(folder: Path, n: int) -> None:
    """As a process that was killed leaves `n` tasks that it has not begun."""
    dead = Pending(folder, "this")
    for size in range(1, n + 1):
        assert dead.add(ok_task(size), [Query("x")], OPTIONS)
    dead.close()


def test_a_task_over_which_processes_die_is_left_alone_and_so_is_another_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_another = Pending(tmp_path, "other")
    of_another.add(ok_task(4), [Query("x")], OPTIONS)
    of_another.close()
    left(tmp_path, 1)
    for tries in range(MOST_TRIES):
        dead = Pending(tmp_path, "this")
        (work,) = dead.take(9)
        assert work.tries == tries
        dead.add(work.task, work.queries, work.options, work.tries + 1)  # it has begun it
        dead.close()
    assert Pending(tmp_path, "this").take(9) == []
    assert f"{MOST_TRIES} processes ended in the middle of it" in caplog.text
    damaged = Pending(tmp_path, "this")
    damaged.add(TASK, [Query("x")], OPTIONS)
    (file,) = [f for f in tmp_path.glob("*/*.json") if json.loads(f.read_text())["revision"] == "this"]
    file.write_text(file.read_text()[:50])
    damaged.close()
    assert Pending(tmp_path, "this").take(9) == []
    assert "can't be read" in caplog.text
    assert [work.task for work in Pending(tmp_path, "other").take(9)] == [ok_task(4)]


def test_work_that_was_not_begun_counts_no_try_however_often_a_process_dies(tmp_path: Path) -> None:
    left(tmp_path, 2)
    for _ in range(MOST_TRIES + 1):
        dead = Pending(tmp_path, "this")
        assert [work.tries for work in dead.take(9)] == [0, 0]
        dead.close()


def test_no_more_work_is_taken_than_there_is_room_for(tmp_path: Path) -> None:
    left(tmp_path, 3)
    first, second = Pending(tmp_path, "this"), Pending(tmp_path, "this")
    assert len(first.take(2)) == 2 and len(second.take(9)) == 1


def test_work_that_can_not_be_copied_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    left(tmp_path, 1)
    later = Pending(tmp_path, "this")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert later.take(9) == []
    assert "No space left" in caplog.text
    assert [work.task for work in later.take(9)] == [ok_task(1)]


def test_the_folder_of_a_process_that_is_only_starting_is_left_alone(tmp_path: Path) -> None:
    starting, abandoned = tmp_path / "starting", tmp_path / "abandoned"
    for folder in (starting, abandoned):
        folder.mkdir()
    long_ago = time.time() - NEW_S - 1
    os.utime(abandoned, (long_ago, long_ago))
    assert Pending(tmp_path, "this").take(9) == []
    assert starting.exists() and not abandoned.exists()


def test_a_folder_that_can_not_be_removed_keeps_nobody_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Pending(tmp_path, "this")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", lambda _: (_ for _ in ()).throw(OSError(39, "Directory not empty")))
        kept.close()
    assert not kept._lock.is_locked


def kept_tries(agent: Router) -> list[int]:
    files = (agent.settings.data_path / "behind").glob("*/*.json")
    return sorted(json.loads(file.read_text())["tries"] for file in files)


def test_a_task_that_waits_for_its_turn_counts_as_begun_only_then(
    open_router: OpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "AT_ONCE", 1)
    agent = open_router(recipe=LONG.name)
    agent.outlive()
    for size in (5, 6):
        agent.ask(ok_task(size, f"word {size}"), QUERIES[:1], when="background", arm="ttt")
    assert wait_for(lambda: kept_tries(agent) == [0, 1])
    agent.close()
    assert kept_tries(agent) == [0, 0]


@pytest.mark.parametrize(
    ("error", "again"), [(DatabaseLocked("It is locked."), True), (TrainingFailed("It diverged."), False)]
)
def test_what_failed_in_passing_is_tried_again_at_the_next_query(
    open_router: OpenRouter, error: Exception, again: bool
) -> None:
    agent = open_router()
    asked: list[Any] = []

    async def failing(*given: Any, **options: Any) -> AsyncIterator[Any]:
        asked.append(given)
        if asked:
            raise error
        yield

    agent._behind._ask = failing
    for _ in range(2):
        agent.ask(TASK, QUERIES[:1], when="background", arm="ttt")
        assert agent.settle(60)
    assert len(asked) == (2 if again else 1)
