"""Kill -9 at random moments over a run of tasks, and look at what is left each time.

    python benchmarks/crashes.py [--kills 200] [--database sqlite|postgresql|both] [--model M] [--seed 0] [--out FILE]

A parent has imported everything, but holds no model, thread or database connection. It forks children that open a
router on one data folder, ask tasks new and old (trained when asked, by the policy, or in context), and say what
became of them; each is killed. Every second one is killed at a moment drawn evenly over a run's seconds, the
others just after it passed a mark drawn evenly over all kinds of marks, since moments such as a commit are short.
After each kill the parent checks, with nothing mended before:

- every episode and outcome that a child was told to be recorded is there, once;
- `Store.verify` is sound, within five seconds;
- every folder under a final name is whole, whether a row names it or not;
- nothing was trained again that had been published before.

At the end a child that is not killed asks for every published adapter again, and the base model's files are
hashed. It prints moment against findings, writes all of it with `--out`, and exits with 1 if there were findings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # no pool of threads that a fork would break
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ttt.process import prepare

prepare()

import langgraph.graph  # noqa: E402,F401
import torch  # noqa: E402
import transformers  # noqa: E402
from overhead import tiny_model  # noqa: E402

import ttt.lora  # noqa: E402,F401
from policies.gain import GainModel  # noqa: E402
from policies.rule import Rule  # noqa: E402
from router import events, reuse, training  # noqa: E402
from router.agent import Router  # noqa: E402
from router.graph import build_graph  # noqa: E402
from store import Store, adapters, blobs  # noqa: E402
from ttt.recipes import Recipe  # noqa: E402
from ttt.task import Demonstration, Task  # noqa: E402

RECIPE = Recipe("crash", rank=4, alpha=8, learning_rate=5e-2, steps=5, sequence_tokens=128)
TRUSTING = Rule(GainModel(prior_share=0.9, prior_share_sd=0.0, model_sd=0.0))
ASKS = 10
"""Questions of one child, if it lived."""
LEASE_S = 0.7
"""After which a dead child's training is taken over; 30 s outside of this program."""
MOST_S = 5.0
"""For `Store.verify`."""
Say = Callable[..., None]


@dataclass
class Told:
    """What children said was done."""

    episodes: set[str] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    published: dict[str, int] = field(default_factory=dict)
    """Number of the task by fingerprint, of adapters that rows named after the last kill."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Number of each task that was ever begun, by fingerprint."""


@dataclass
class Kill:
    """One child's death."""

    number: int
    moment: str
    seconds: float
    verify_s: float
    findings: list[str]


def task_of(number: int) -> Task:
    rng = random.Random(number)
    inputs = ["".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 3)) for _ in range(5)]
    return Task(tuple(Demonstration(x, "ok") for x in inputs), f"Say the word, number {number}.")


def child(settings: dict[str, Any], seed: int, published: list[int], begun: list[int], say: Say) -> None:
    """Ask, and say what is done before and after each step; some of the tasks are not new."""
    for module in (reuse, training):
        setattr(module, "LEASE_S", LEASE_S)  # noqa: B010 – it is imported there
    _mark(blobs, "flush", say)
    _mark(blobs, "install", say)
    _mark(adapters, "index_demonstrations", say)
    rng = random.Random(seed)
    say("mark", "opening")
    with Router.open(policy=TRUSTING, worth_s=1e5, device="cpu", dtype="float32", **settings) as agent:
        _mark(agent.parts.store.episodes, "record", say)
        for i in range(ASKS):
            kind = rng.choices(["new", "published", "begun"], [0.6, 0.3, 0.1])[0]
            olds = {"new": [], "published": published, "begun": begun}[kind]
            old = bool(olds)
            number = rng.choice(olds) if olds else 1000 * seed + i
            arm = "ttt" if old else rng.choice(["ttt", "ttt", "auto", "icl"])
            say("mark", "asking")
            name, trains = "", False
            for event in agent.stream(
                task_of(number), ["xyz"], arm=arm, recipe=(RECIPE, RECIPE), max_tokens=3
            ):
                if isinstance(event, events.Started):
                    name = event.fingerprint
                    say("task", name, number)
                if isinstance(event, events.TrainingStep) and event.phase == "train" and not trains:
                    trains = True
                    say("trains", name)
                if isinstance(event, events.Done):
                    say("episode", event.receipt.episode_id)
                    done = event.receipt
                step = f" {event.phase}" if isinstance(event, events.TrainingStep) else ""
                say("mark", f"{type(event).__name__}{step}")
            agent.feedback(done.episode_id, right=bool(rng.random() < 0.5))
            say("outcome", done.episode_id)
        say("mark", "closing")
    say("mark", "closed")


def _mark(owner: Any, name: str, say: Say) -> None:
    """Have a function say that it begins and has ended."""
    real = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        say("mark", f"{name} begins")
        found = real(*args, **kwargs)
        say("mark", f"{name} ended")
        return found

    if isinstance(owner, type(os)):
        setattr(owner, name, told)
    else:
        object.__setattr__(owner, name, told)


class Child:
    """A forked child and the lines that it says."""

    def __init__(self, work: Callable[[Say], None], errors: Path) -> None:
        reading, writing = os.pipe()
        self.lines: list[list[Any]] = []
        self._rest = b""
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            code = 0
            try:
                work(lambda *words: _ignore(os.write(writing, json.dumps(words).encode() + b"\n")))
            except BaseException:
                errors.write_text(traceback.format_exc())
                code = 1
            finally:
                os._exit(code)
        os.close(writing)
        self._reading = reading
        self.started = time.monotonic()

    def read(self, timeout_s: float) -> bool:
        """Take in what was said; False when the child has ended."""
        ready, _, _ = select.select([self._reading], [], [], max(0.0, timeout_s))
        if not ready:
            return True
        data = os.read(self._reading, 1 << 16)
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += [json.loads(line) for line in whole]
        return bool(data)

    def end(self, kill: bool) -> int:
        """Kill, or wait for the end; all that was said is then in `lines`. The exit status as `waitpid` has it."""
        if kill:
            os.kill(self._pid, signal.SIGKILL)
        while self.read(60):
            pass
        os.close(self._reading)
        return os.waitpid(self._pid, 0)[1]

    @property
    def marks(self) -> list[str]:
        return [line[1] for line in self.lines if line[0] == "mark"]


def _ignore(_: object) -> None:
    """For a lambda that returns nothing."""


def check(opened: Store, told: Told, lines: list[list[Any]]) -> tuple[float, list[str]]:
    """Seconds of `verify`, and all that is not as it must be."""
    findings = []
    for kind, *words in lines:
        if kind == "episode":
            told.episodes.add(words[0])
        if kind == "outcome":
            told.outcomes.add(words[0])
        if kind == "task":
            told.tasks[words[0]] = words[1]
        if kind == "trains" and words[0] in told.published:
            findings.append(
                f"task {told.published[words[0]]} was trained again, though its adapter was published"
            )
    started = time.monotonic()
    report = opened.verify()
    seconds = time.monotonic() - started
    findings += [found.sentence for found in report.findings]
    if seconds > MOST_S:
        findings.append(f"verify took {seconds:.1f} s")
    recorded = Counter(row.episode_id for row in opened.episodes.recent(10**9))
    findings += [f"episode {name} is not there" for name in told.episodes - set(recorded)]
    findings += [f"episode {name} is there {n} times" for name, n in recorded.items() if n > 1]
    judged = {episode.episode_id for episode, _ in opened.episodes.for_fit()}
    findings += [f"the outcome of {name} is not there" for name in told.outcomes - judged]
    for folder in blobs.published(opened.adapters.folder):
        if blobs.content_hash(folder) != folder.name:
            findings.append(f"{folder} is not whole")
    rows = opened.adapters.list()
    now = {row.key.fingerprint: told.tasks.get(row.key.fingerprint, -1) for row in rows}
    findings += [f"the adapter of task {n} is gone" for name, n in told.published.items() if name not in now]
    told.published = now
    return seconds, findings


def again(settings: dict[str, Any], told: Told, say: Say) -> None:
    """Ask for every published adapter."""
    with Router.open(policy=TRUSTING, worth_s=1e5, device="cpu", dtype="float32", **settings) as agent:
        for number in told.published.values():
            receipt = agent.ask(task_of(number), ["xyz"], arm="ttt", recipe=(RECIPE, RECIPE), max_tokens=3)
            if not receipt.arm.startswith("reuse:"):
                say("finding", f"task {number} was answered by {receipt.arm}, its adapter was published")


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()
    }


def run(url: str | None, model: str, data: Path, kills: int, seed: int) -> dict[str, Any]:
    """All kills on one database."""
    settings = {"model": model, "data_dir": str(data), "executor": "thread"} | (
        {"database_url": url} if url else {}
    )
    rng, told, errors = random.Random(seed), Told(), data.parent / f"{data.name}-error.txt"
    before = hashes(Path(model)) if Path(model).is_dir() else {}

    def opened() -> Store:
        return Store.open(url or f"sqlite:///{data / 'router.db'}", data / "adapters")

    def checked(lines: list[list[Any]]) -> tuple[float, list[str]]:
        found = opened()
        try:
            return check(found, told, lines)
        finally:
            found.close()

    whole = Child(lambda say: child(settings, 0, [], [], say), errors)
    if whole.end(kill=False) != 0:
        raise SystemExit(f"The run before the first kill failed:\n{errors.read_text()}")
    whole_s = time.monotonic() - whole.started
    checked(whole.lines)
    often = Counter(mark for mark in whole.marks if mark != "closed")
    kinds = sorted(often)
    done: list[Kill] = []
    number = 0
    while len(done) < kills:
        number += 1
        published = sorted(told.published.values())
        begun = sorted(n for name, n in told.tasks.items() if name not in told.published)
        target = rng.choice(kinds) if number % 2 else None
        nth = rng.randint(1, max(1, min(4, often[target] // 2))) if target is not None else 0
        after_s = rng.uniform(0, 0.004)
        until = time.monotonic() + rng.uniform(0, whole_s)
        dying = Child(partial(child, settings, number, published, begun), errors)
        alive = True
        while alive and (target is not None or time.monotonic() < until):
            alive = dying.read(0.5 if target is not None else until - time.monotonic())
            if target is not None and dying.marks.count(target) >= nth:
                time.sleep(after_s)
                break
        died_s = time.monotonic() - dying.started
        status = dying.end(kill=True)
        verify_s, findings = checked(dying.lines)
        if status == 1 << 8:
            findings.append(f"the child failed: {errors.read_text().strip().splitlines()[-1]}")
        if status == 0:  # it came to its end before it was to be killed
            whole_s = min(whole_s, died_s)
            if not findings:
                continue
        moment = dying.marks[-1] if dying.marks else "before opening"
        for finding in findings:
            print(f"\nkill {number}, after {moment}: {finding}", file=sys.stderr)
        done.append(Kill(number, moment, died_s, verify_s, findings))
        print(
            f"\r{len(done)}/{kills} kills, {sum(bool(k.findings) for k in done)} with findings",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    last = Child(lambda say: again(settings, told, say), errors)
    status = last.end(kill=False)
    findings = [line[1] for line in last.lines if line[0] == "finding"]
    findings += [] if status == 0 else [f"the last run failed: {errors.read_text().strip().splitlines()[-1]}"]
    findings += checked(last.lines)[1]
    if before and hashes(Path(model)) != before:
        findings.append("the base model's files were changed")
    return {
        "database": "postgresql" if url else "sqlite",
        "kills": kills,
        "kills_with_findings": sum(bool(k.findings) for k in done),
        "findings": [finding for k in done for finding in k.findings] + findings,
        "episodes_recorded": len(told.episodes),
        "outcomes_recorded": len(told.outcomes),
        "adapters_published": len(told.published),
        "verify_s_max": max((k.verify_s for k in done), default=0.0),
        "moments": table(done),
    }


def table(done: list[Kill]) -> list[dict[str, Any]]:
    moments = sorted({k.moment for k in done})
    return [
        {
            "moment": moment,
            "kills": sum(k.moment == moment for k in done),
            "findings": sum(len(k.findings) for k in done if k.moment == moment),
        }
        for moment in moments
    ]


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['database']}: {found['kills']} kills, {found['kills_with_findings']} of them with findings"
    )
    print(f"  {'killed after':36} kills  findings")
    for row in found["moments"]:
        print(f"  {row['moment']:36} {row['kills']:5}  {row['findings']:8}")
    print(
        f"  recorded: {found['episodes_recorded']} episodes, {found['outcomes_recorded']} with outcomes, "
        f"{found['adapters_published']} adapters; verify took at most {found['verify_s_max']:.2f} s"
    )
    for finding in found["findings"]:
        print(f"  FINDING {finding}")


def main() -> int:
    global RECIPE
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--model", help="default: a tiny random one, made here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.model:
        RECIPE = replace(RECIPE, learning_rate=1e-3)  # a random model bears more
    transformers.AutoModelForCausalLM, build_graph()  # libraries are imported at the first use of a name
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = options.model or str(Path(folder) / "model")
        if not options.model and Child(
            lambda say: _ignore(tiny_model(Path(model))), Path(folder) / "error"
        ).end(False):
            raise SystemExit((Path(folder) / "error").read_text())
        if options.database in ("sqlite", "both"):
            results.append(run(None, model, Path(folder) / "sqlite", options.kills, options.seed))
        if options.database in ("postgresql", "both"):
            from tests.postgres import Server

            server = Server()
            stack.callback(server.remove)
            server.start()
            results.append(run(server.url, model, Path(folder) / "postgresql", options.kills, options.seed))
    for found in results:
        show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1))
    return int(any(found["findings"] for found in results))


if __name__ == "__main__":
    sys.exit(main())
