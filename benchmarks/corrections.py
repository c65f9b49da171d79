"""A chat that is corrected until it trains: is it better afterwards than the same demonstrations in context?

    python benchmarks/corrections.py FAMILY [FAMILY …] [--modes wait,background] [--model M] [--prefer P]
        [--corrections 10] [--queries 16] [--out FILE.json] [--transcripts FOLDER]

For each family and mode one conversation, as a person would have it: ask, and say "right" or "no, it should be …",
until `--corrections` answers were corrected or approved. Then `--queries` new queries, without a word on the answers.

- `wait`: corrections are given in mode `never`, so that nobody waits for a training on half of what is to come; then
  the mode is `wait`, and the first query is answered after training where that pays.
- `wait-always`: mode `wait` from the first message on: what is learned on the way counts, too.
- `background`: that mode from the first message on. The last queries are asked once the training behind the last
  correction's next query is done.

Beside the accuracy stands that of in-context learning on the same queries with the same demonstrations, one by one.
The goal: a receipt says `train` after at most ten corrections, and the accuracy is at least 25 points higher.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ttt.process import prepare

prepare()

from router.agent import Router  # noqa: E402
from router.chat import Chat  # noqa: E402
from router.metrics import exact  # noqa: E402
from ttt.formats import read_families  # noqa: E402
from ttt.pools import sample, split  # noqa: E402
from ttt.task import Task  # noqa: E402

GOAL_POINTS = 25
MODES = ("wait", "wait-always", "background")


class Talk:
    """One conversation, and its transcript."""

    def __init__(self, router: Router, name: str, prefer: str) -> None:
        self.chat = Chat(router, name)
        self.chat.change(prefer=prefer)
        self.lines: list[str] = []

    def say(self, text: str) -> str:
        started = time.perf_counter()
        reply = self.chat.say(text)
        seconds = time.perf_counter() - started
        receipt = self.chat.receipt
        arm = "" if reply.startswith("Noted:") or receipt is None else f"   [{receipt.arm}, {seconds:.1f} s]"
        self.lines += [f"> {text}", f"{reply}{arm}"]
        return reply

    def mode(self, when: str) -> None:
        self.chat.change(when=when)
        self.lines.append(f"> /mode {when}")


def converse(
    router: Router, talk: Talk, mode: str, taught: list[tuple[str, str]], asked: list[tuple[str, str]]
) -> dict[str, Any]:
    known = {row.episode_id for row in router.history(100_000)}
    corrections = 0
    talk.mode({"wait": "never", "wait-always": "wait"}.get(mode, mode))
    for query, gold in taught:
        if exact(talk.say(query), gold):
            talk.say("right")
        else:
            talk.say(f"no, it should be {gold}")
            corrections += 1
    task = talk.chat.task
    if mode == "wait":
        talk.mode("wait")
    first, *rest = asked
    given = [talk.say(first[0])]
    arms = [talk.chat.receipt.arm if talk.chat.receipt else ""]
    if mode == "background":
        router.settle()
    for query, _ in rest:
        given.append(talk.say(query))
        arms.append(talk.chat.receipt.arm if talk.chat.receipt else "")
    talk.lines.append(f"({router.explain(last_episode(talk)).reason})")
    episodes = [row for row in router.history(100_000) if row.episode_id not in known]
    trained = [row for row in episodes if row.arm.startswith("train:")]
    return {
        "corrections": corrections,
        "demonstrations": len(task.demonstrations),
        "receipts_that_say_train": len(trained),
        "reasons": [router.explain(row.episode_id).reason for row in trained],
        "arms": Counter(arm.partition(":")[0] for arm in arms),
        "accuracy": share(given, asked),
        "icl_accuracy": share(in_context(router, task, asked), asked),
        "seconds": sum(router.explain(row.episode_id).seconds for row in episodes),
    }


def last_episode(talk: Talk) -> str:
    assert talk.chat.receipt is not None
    return talk.chat.receipt.episode_id


def in_context(router: Router, task: Task, asked: list[tuple[str, str]]) -> list[str]:
    return [router.ask(task, [query], arm="icl").texts[0] for query, _ in asked]


def share(given: list[str], asked: list[tuple[str, str]]) -> float:
    return sum(exact(text, gold) for text, (_, gold) in zip(given, asked, strict=True)) / len(asked)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", type=Path, nargs="+")
    parser.add_argument("--modes", default="wait,background")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prefer", default="balanced")
    parser.add_argument("--recipe", default="standard")
    parser.add_argument("--corrections", type=int, default=10)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--transcripts", type=Path)
    options = parser.parse_args(arguments)
    modes = options.modes.split(",")
    if set(modes) - set(MODES):
        parser.error(f"modes are {', '.join(MODES)}")
    found: list[dict[str, Any]] = []
    for family in read_families(options.families):
        drew = sample(split(family), options.corrections, options.queries, options.seed)
        taught = [(d.input, d.output) for d in drew.task.demonstrations]
        asked = list(zip([q.input for q in drew.queries], drew.gold, strict=True))
        for mode in modes:
            # A folder each: what one conversation trained must not help the next.
            with (
                tempfile.TemporaryDirectory() as folder,
                Router.open(model=options.model, data_dir=folder, recipe=options.recipe) as router,
            ):
                talk = Talk(router, f"{family.name}-{mode}", options.prefer)
                try:
                    told = converse(router, talk, mode, taught, asked)
                finally:
                    talk.chat.close()
                    if options.transcripts:
                        options.transcripts.mkdir(parents=True, exist_ok=True)
                        file = options.transcripts / f"{family.name}-{mode}.txt"
                        file.write_text("\n".join(talk.lines) + "\n")
            points = 100 * (told["accuracy"] - told["icl_accuracy"])
            shown = bool(told["receipts_that_say_train"]) and points >= GOAL_POINTS
            found.append({"family": family.name, "mode": mode, "points": points, "shown": shown, **told})
            print(
                f"{family.name:20} {mode:12} {told['corrections']:2} corrections, {told['demonstrations']} "
                f"demonstrations: {told['receipts_that_say_train']} receipt(s) say train; then "
                f"{told['accuracy']:.0%} against {told['icl_accuracy']:.0%} in context ({points:+.0f} points), "
                f"{dict(told['arms'])}, {told['seconds']:.0f} s: {'shown' if shown else 'NOT shown'}",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(f["shown"] for f in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
