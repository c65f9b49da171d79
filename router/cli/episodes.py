"""`explain`, `history` and `feedback`: what was answered before. Opens the store alone, never a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.options import DataDir, Json, settings_of
from router.cli.render import (
    LABEL_WIDTH,
    SHOWN_DEMONSTRATIONS,
    SIGNALS,
    arm_sentence,
    columns,
    counted,
    decision_lines,
    detail_text,
    duration,
    field,
    moment,
    shortened,
    signal_value,
)
from router.receipt import Receipt

if TYPE_CHECKING:
    from store import OutcomeRow, TaskRow

Episode = Annotated[
    str, typer.Argument(metavar="EPISODE", help="Its id, or the first characters of it (at least 6).")
]


def explain(episode: Episode, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Tell all that is known of one answer.

    What was asked, each decision with its reason, the steps with their seconds, the signals with their
    units, the answers and what was later said of them.

    \b
    Examples:
      ttt-router explain 3f2a9c01b4d7
      ttt-router explain 3f2a9c --json
    """
    from router.bootstrap import open_store

    opened = open_store(settings_of(data_dir=data_dir))
    try:
        row = opened.episodes.get(episode)
        task = opened.episodes.task(row.fingerprint)
        outcomes = opened.episodes.outcomes(row.episode_id)
    finally:
        opened.close()
    receipt = Receipt.from_dict(row.receipt)
    if as_json:
        said = {
            "receipt": receipt.as_dict(),
            "task": asdict(task),
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        print(json.dumps(said, ensure_ascii=False, indent=2))
        return
    print("\n".join(explanation(receipt, task, outcomes, shutil.get_terminal_size().columns)))


def history(
    n: Annotated[int, typer.Option("-n", min=1, help="How many, newest first.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """List the latest answers, newest first.

    \b
    Examples:
      ttt-router history
      ttt-router history -n 100
    """
    from router.bootstrap import open_store

    opened = open_store(settings_of(data_dir=data_dir))
    try:
        rows = opened.episodes.recent(n)
    finally:
        opened.close()
    if not rows:
        typer.echo("Nothing was answered yet; ask something with `ttt-router solve`.", err=True)
        return
    table = [("EPISODE", "WHEN", "ARM", "QUERIES", "TIME", "TASK")]
    for row in rows:
        name = row.receipt["task_name"] or row.fingerprint[:18]
        n_queries = str(row.receipt["n_queries"])
        table.append(
            (row.episode_id[:12], moment(row.created_at), row.arm, n_queries, duration(row.seconds), name)
        )
    print("\n".join(columns(table)))


def feedback(
    episode: Episode,
    right: Annotated[bool, typer.Option("--right", help="The answer was right.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="The answer was wrong.")] = False,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="The right answer; it is compared.")
    ] = None,
    query: Annotated[
        int | None,
        typer.Option("--query", metavar="I", help="Which query, counted from 0; all of them if left out."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Say how an answer was.

    Later decisions are fitted on this. Saying the same twice changes nothing.

    \b
    Examples:
      ttt-router feedback 3f2a9c01b4d7 --right
      ttt-router feedback 3f2a9c01b4d7 --answer "2024-03-01" --query 2
    """
    if right + wrong + (answer is not None) != 1:
        raise typer.BadParameter("give one of these three.", param_hint="--right / --wrong / --answer")
    from router.bootstrap import open_store
    from router.feedback import attach_outcomes

    verdict = None if answer is not None else right
    opened = open_store(settings_of(data_dir=data_dir))
    try:
        rows, new = attach_outcomes(
            opened.episodes, episode, right=verdict, answer=answer, query=query, source="user"
        )
    finally:
        opened.close()
    told = f"{counted(new, 'outcome')} recorded"
    if answer is not None:
        told += f", {'right' if rows[0].value else 'wrong'} by comparison with the given answer"
    if known := len(rows) - new:
        told += f"; {counted(known, 'outcome')} known already"
    print(f"Episode {rows[0].episode_id[:12]}: {told}.")


def explanation(receipt: Receipt, task: TaskRow, outcomes: tuple[OutcomeRow, ...], width: int) -> list[str]:
    """The whole account as lines."""
    lines = [f"Episode {receipt.episode_id}, {moment(receipt.created_at)}", "", "Asked"]
    lines += field("task", f"{receipt.task_name} ({receipt.fingerprint})".strip(), width)
    lines += field("model", f"{receipt.base_model} ({receipt.base_revision})", width)
    lines += field("worth", f"{receipt.worth_s:g} s of compute for one more correct answer", width)
    lines += field("words", task.instruction, width)
    n, indent = len(task.demonstrations), " " * (LABEL_WIDTH + 2)
    lines += field("given", f"{counted(n, 'demonstration')}, {counted(receipt.n_queries, 'query')}", width)
    for given, output in task.demonstrations[:SHOWN_DEMONSTRATIONS]:
        lines.append(f"{indent}{shortened(given, 60)} → {shortened(output, 40)}")
    if n > SHOWN_DEMONSTRATIONS:
        lines.append(f"{indent}… and {n - SHOWN_DEMONSTRATIONS} more")

    lines += ["", "Decided"]
    for number, decision in enumerate(receipt.decisions, start=1):
        lines += decision_lines(number, decision, width)
    if not receipt.decisions:
        lines += field("", receipt.reason, width)
    lines += field("fallback", receipt.fallback, width)

    lines += ["", f"Done in {duration(receipt.seconds)}"]
    for step in receipt.steps:
        lines += field(step.name, f"{duration(step.seconds):>8}  {detail_text(step.detail)}".rstrip(), width)

    lines += ["", "Signals"] if receipt.signals else []
    told = [
        (
            f"  {name}",
            "not measured" if value is None else signal_value(name, value),
            SIGNALS.get(name, ("",))[0],
        )
        for name, value in receipt.signals.items()
    ]
    lines += columns(told)

    lines += ["", f"Answered: {arm_sentence(receipt)}"]
    lines += field("adapter", receipt.adapter, width)
    for i, answered in enumerate(receipt.answers):
        cut = "" if answered.finished else ", cut at the token limit"
        said = ""
        first = receipt.icl_answers[i] if i < len(receipt.icl_answers) else None
        if first is not None and first.text != answered.text:
            said = f"; in-context learning said {shortened(first.text, 40)}"
        text = f"{shortened(answered.text, 60)}  (log-probability {answered.logprob:.2f} nats{cut}){said}"
        lines.append(f"  query {i:<4}{text}")
    for note in receipt.notes:
        lines += field("note", note, width)

    lines += ["", "Known since"]
    for outcome in outcomes:
        verdict = {1.0: "right", 0.0: "wrong"}.get(outcome.value, f"{outcome.value:.2f} right")
        which = "all queries" if outcome.query_index is None else f"query {outcome.query_index}"
        known = f", the answer is {shortened(outcome.answer, 40)}" if outcome.answer is not None else ""
        lines.append(f"  {which}: {verdict}{known} ({outcome.source}, {moment(outcome.created_at)})")
    if not outcomes:
        lines += field("", "Nothing; say so with `ttt-router feedback`.", width)
    return lines
