"""`ttt-router store`, and the bounds that a router keeps by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from router.bootstrap import open_store
from router.cli.main import main
from router.settings import Settings
from router.upkeep import check, keep_within
from router.versions import save_fitted
from store import AdapterKey, AdapterRow, Store
from store.tables import adapters, policy_versions
from tests.policies.simulated import simulate
from tests.router.conftest import QUERIES, TASK, OpenRouter, ok_task

HOUR_S = 3600.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> tuple[int, str]:
    code = main(["store", *arguments, "--data-dir", str(data)])
    return code, capsys.readouterr().out


def publish(opened: Store, seed: int, weights: bytes) -> AdapterRow:
    """As if an hour ago."""
    key = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", seed)
    with opened.adapters.stage() as staged:
        (staged / "adapter_model.safetensors").write_bytes(weights)
        row = opened.adapters.publish(key, staged, {"seconds": 1.0 + seed}, ("d",), True)
    with opened.db.write() as connection:
        at = row.created_at - HOUR_S
        own = adapters.c.key_hash == key.hash
        connection.execute(sa.update(adapters).where(own).values(created_at=at, last_used_at=at))
    return row


def test_a_sound_store_is_said_to_be_and_its_contents_counted(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    assert run(capsys, data, "verify")[0] == 0
    opened = open_store(Settings(data_dir=str(data)))
    publish(opened, 0, b"w" * 2_000_000)
    opened.close()
    code, out = run(capsys, data, "verify")
    assert code == 0 and "1 adapter (2.0 MB)" in out
    code, out = run(capsys, data, "stats", "--json")
    assert code == 0 and json.loads(out)["adapter_bytes"] == 2_000_000
    code, out = run(capsys, data, "stats")
    assert "2.0 MB" in out and "10000.0 MB" in out


def test_a_damaged_adapter_is_exit_code_5_until_it_is_repaired(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    opened = open_store(Settings(data_dir=str(data)))
    folder = opened.adapters.path(publish(opened, 0, b"weights"))
    opened.close()
    (folder / "adapter_model.safetensors").write_bytes(b"weightz")
    code, out = run(capsys, data, "verify")
    assert code == 5 and str(folder) in out and "store repair" in out
    code, out = run(capsys, data, "verify", "--json")
    assert code == 5 and json.loads(out)["sound"] is False
    code, out = run(capsys, data, "repair")
    assert code == 0 and "trained again" in out and "All is sound." in out
    assert run(capsys, data, "verify")[0] == 0


def test_gc_obeys_the_options_and_else_the_settings(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_store(Settings(data_dir=str(data)))
    for seed in range(4):
        publish(opened, seed, bytes([seed]) * 1_000_000)
    assert run(capsys, data, "gc")[1].startswith("0 adapters evicted")
    code, out = run(capsys, data, "gc", "--quota", "3000000")
    assert code == 0 and out.startswith("1 adapter evicted (1.0 MB)") and "3.0 MB of adapters kept" in out
    monkeypatch.setenv("TTT_ROUTER_QUOTA_BYTES", "2000000")
    assert run(capsys, data, "gc")[1].startswith("1 adapter evicted")
    assert run(capsys, data, "gc", "--max-age", "0.01")[1].startswith("2 adapters evicted")
    assert opened.adapters.list() == [] and check(opened).sound
    opened.close()


def test_a_negative_quota_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTT_ROUTER_QUOTA_BYTES", "-1")
    assert main(["store", "gc"]) == 2
    assert "quota_bytes" in capsys.readouterr().err


def test_a_policy_in_force_that_was_changed_is_a_problem(data: Path) -> None:
    opened = open_store(Settings(data_dir=str(data)))
    policy, _ = save_fitted(opened, simulate(60, 2, seed=1).rows)
    opened.policy_versions.activate(policy.version)
    assert check(opened).sound
    with opened.db.write() as connection:
        payload: dict[str, Any] = {"policy": {"format": "ttt-router-learned-1"}}
        connection.execute(sa.update(policy_versions).values(payload=payload))
    (finding,) = check(opened).findings
    assert finding.kind == "policy" and "policy revert" in finding.sentence
    opened.close()


def test_a_router_keeps_its_adapters_within_the_quota_and_says_so(open_router: OpenRouter) -> None:
    agent = open_router(quota_bytes=1)
    first = agent.ask(TASK, QUERIES, arm="ttt")
    assert not any("evicted" in note for note in first.notes), "it was trained a moment ago"
    opened = agent.parts.store
    (row,) = opened.adapters.list()
    with opened.db.write() as connection:
        at = row.created_at - HOUR_S
        connection.execute(sa.update(adapters).values(created_at=at, last_used_at=at))
    second = agent.ask(ok_task(5), QUERIES, arm="ttt")
    assert any("1 adapter(s) of" in note and "evicted" in note for note in second.notes)
    assert opened.adapters.find(row.key) is None and len(opened.adapters.list()) == 1
    assert [e.arm[:5] for e in opened.episodes.recent(9)] == ["train", "train"]
    again = agent.ask(TASK, QUERIES, arm="ttt")
    assert again.texts == first.texts, "trained again, to the same answers"


def test_bounds_that_can_not_be_kept_fail_no_answer(data: Path) -> None:
    opened = open_store(Settings(data_dir=str(data)))
    publish(opened, 0, b"weights")
    with opened.db.write() as connection:
        connection.execute(sa.text("ALTER TABLE episodes RENAME TO elsewhere"))
    (note,) = keep_within(opened, Settings(quota_bytes=1))
    assert note.startswith("Old adapters could not be cleared away")
    opened.close()
