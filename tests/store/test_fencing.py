"""Leases between processes that are killed and stopped: one training, a takeover, and no publishing by who lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from store import AdapterKey, Store

KEY = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)
TRAINER = """
import os, sys, time
from pathlib import Path
from store import AdapterKey, Store
from store.errors import LeaseLost
url, folder, seconds, ttl_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
opened = Store.open(url, folder, busy_timeout_s=60)
key = AdapterKey("task1:aa", "tiny@1", "plain-1", "default", 0)
owner = f"process-{os.getpid()}"
print("ready", flush=True)
sys.stdin.readline()
while True:
    lease = opened.leases.acquire("train", owner, ttl_s)
    if opened.adapters.find(key) is not None:
        print("found", flush=True)
        break
    if lease is None:
        time.sleep(0.02)
        continue
    print("training", flush=True)
    with opened.adapters.stage() as staged:
        (staged / "adapter_model.safetensors").write_text(owner)
        time.sleep(seconds)
        try:
            opened.adapters.publish(key, staged, {"owner": owner}, ("d",), True, lease=lease)
        except LeaseLost:
            print("lost", flush=True)
            break
    opened.leases.release(lease)
    print("published", flush=True)
    break
"""


@contextmanager
def trainer(opened: Store, url: str, seconds: float, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line before it begins."""
    command = [sys.executable, "-c", TRAINER, url, str(opened.adapters.folder), str(seconds), str(ttl_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert said(process) == "ready"
        yield process
    finally:
        process.kill()
        process.wait(30)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def owner(process: subprocess.Popen[str]) -> str:
    return f"process-{process.pid}"


def published_by(opened: Store) -> str:
    row = opened.adapters.find(KEY)
    assert row is not None
    weights = (opened.adapters.path(row) / "adapter_model.safetensors").read_text()
    assert weights == row.report["owner"]
    return weights


def test_of_many_processes_one_trains_and_the_others_find_it(opened: Store, url: str) -> None:
    with (
        trainer(opened, url, 0.5, 60) as a,
        trainer(opened, url, 0.5, 60) as b,
        trainer(opened, url, 0.5, 60) as c,
        trainer(opened, url, 0.5, 60) as d,
    ):
        for process in (a, b, c, d):
            go(process)
        told = {process: process.communicate(timeout=60)[0].split() for process in (a, b, c, d)}
    assert sorted(told.values()) == [["found"]] * 3 + [["training", "published"]]
    assert [owner(p) for p, words in told.items() if "published" in words] == [published_by(opened)]


def test_a_killed_owner_is_taken_over_when_its_lease_ends(opened: Store, url: str) -> None:
    with trainer(opened, url, 60, 1.0) as dead, trainer(opened, url, 0, 60) as heir:
        go(dead)
        assert said(dead) == "training"
        dead.send_signal(signal.SIGKILL)
        died = time.monotonic()
        go(heir)
        assert [said(heir), said(heir)] == ["training", "published"]
        assert time.monotonic() - died < 30
        assert published_by(opened) == owner(heir)
    assert opened.verify().sound


def test_an_owner_that_was_stopped_over_its_time_can_not_publish(opened: Store, url: str) -> None:
    with trainer(opened, url, 0.3, 0.5) as stopped, trainer(opened, url, 0, 60) as heir:
        go(stopped)
        assert said(stopped) == "training"
        os.kill(stopped.pid, signal.SIGSTOP)
        go(heir)
        assert [said(heir), said(heir)] == ["training", "published"]
        os.kill(stopped.pid, signal.SIGCONT)
        assert said(stopped) == "lost"
        stopped.wait(30)  # it takes away what it had staged
        assert published_by(opened) == owner(heir)
    assert opened.verify().sound
    assert len(list(opened.adapters.folder.iterdir())) == 1
