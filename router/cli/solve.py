"""`ttt-router solve`: a task from files or options, its answers on stdout, all else on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from router.cli.options import (
    DataDir,
    Device,
    Dtype,
    Model,
    Prefer,
    Prompt,
    RecipeOption,
    Reuse,
    Votes,
    Worth,
    check_arm,
    check_worth,
    settings_of,
)
from router.cli.progress import Reporter, ctrl_c
from router.cli.render import answer_line, counted, field, percent, receipt_lines
from router.receipt import Receipt
from ttt.errors import Cancelled, FormatError, TaskError
from ttt.formats import TaskFile, read_demonstrations, read_queries, read_task
from ttt.task import Query, Task

STOPPING = (
    "Ctrl-C: training stops at its next step, and in-context learning's answers are taken. "
    "Once more ends the program."
)


def solve(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]", help="Task file (native JSON or ARC), or - for stdin.", show_default=False
        ),
    ] = None,
    demos: Annotated[
        Path | None,
        typer.Option("--demos", metavar="F", help="Demonstrations: CSV, TSV, JSONL or JSON list."),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="F", help="Queries: CSV, TSV, JSONL or JSON list.")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", metavar="TEXT", help="A query; may be given several times."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="What to do, in words.")
    ] = None,
    arm: Annotated[
        str,
        typer.Option(
            "--arm", metavar="ARM", help="auto (decides whether to train), icl, ttt, zero-shot, icl:4, …"
        ),
    ] = "auto",
    prefer: Prefer = None,
    worth: Worth = None,
    repeats: Annotated[
        float | None,
        typer.Option("--repeats", metavar="N", min=0, help="Queries of this task that will come later."),
    ] = None,
    recipe: RecipeOption = None,
    votes: Votes = None,
    reuse: Reuse = None,
    prompt: Prompt = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    data_dir: DataDir = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of training.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole receipt as JSON on stdout in place of answers.")
    ] = False,
) -> int:
    """Answer the queries of a few-shot task.

    Answers go to stdout, one per line in the order of the queries; an answer of several lines, with
    control characters or with a leading double quote is printed as a JSON string. Progress and the
    receipt go to stderr. Gold answers in the files are used only to print the accuracy.

    Queries given with --queries or --query replace those of TASK.

    \b
    Examples:
      ttt-router solve task.json
      ttt-router solve --demos pairs.csv --queries new.csv --prefer accurate
      ttt-router solve --demos pairs.csv --query "3 1 2" --query "5 4"
      cat task.json | ttt-router solve - --json
    """
    check_worth(prefer, worth)
    check_arm(arm, "--arm")
    asked = _read(task, demos, queries, query or [], instruction)
    settings = settings_of(
        model=model,
        device=device,
        dtype=dtype,
        data_dir=data_dir,
        seed=seed,
        recipe=recipe,
        votes=votes,
        reuse=reuse,
        prompt=prompt,
    )

    stop = threading.Event()
    with Reporter() as reporter:
        for note in asked.notes:
            reporter.keep(note)
        reporter.say(f"Loading {settings.model}")
        from router.agent import Router

        try:
            with Router.open(settings, progress=reporter.say) as router, ctrl_c(STOPPING, stop.set):
                for note in router.parts.notes:
                    reporter.keep(note)
                reporter.say("Answering")
                receipt: Receipt | None = None
                for event in router.stream(
                    asked.task,
                    asked.queries,
                    arm=arm,
                    prefer=prefer,
                    worth_s=worth,
                    expected_repeats=repeats,
                    should_stop=stop.is_set,
                ):
                    reporter.event(event)
                    receipt = getattr(event, "receipt", None)
        except Cancelled:
            if not stop.is_set():
                raise
            print("error: Stopped by Ctrl-C before there were answers; nothing was kept.", file=sys.stderr)
            return 130
    assert receipt is not None  # the last event is always Done
    _show(receipt, asked, as_json)
    return 0


def _read(
    task: str | None, demos: Path | None, queries: Path | None, texts: list[str], instruction: str | None
) -> TaskFile:
    """The task and its queries from wherever they were given.

    Raises:
        typer.BadParameter: nothing, or two things at once, were given.
        TaskError: a file can't be used, or there is no query.
    """
    if task is not None and demos is not None:
        raise typer.BadParameter(
            f"both the task {task} and --demos {demos} were given; give one of them.", param_hint="TASK"
        )
    if task is None and demos is None and queries is None and not texts:
        raise typer.BadParameter("give a task file, or --demos and --queries.", param_hint="TASK")
    read = _task_file(task) if task is not None else TaskFile(Task(), (), ())
    if demos is not None:
        read = replace(read, task=Task(read_demonstrations(demos), name=demos.stem))
    if instruction is not None:
        read = replace(read, task=replace(read.task, instruction=instruction))
    if queries is not None or texts:
        found, answers = read_queries(queries) if queries is not None else ((), ())
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise TaskError(f"--query number {number} is empty; give it a text or leave it out.")
        given = tuple(Query(text) for text in texts)
        read = replace(read, queries=(*found, *given), answers=(*answers, *(None for _ in given)))
    if not read.queries:
        raise TaskError(
            f"{task or demos} asks nothing: add queries to it, or give --queries FILE or --query TEXT."
        )
    return read


def _task_file(task: str) -> TaskFile:
    if task != "-":
        return read_task(Path(task))
    if sys.stdin.isatty():
        print("Reading the task from the terminal; end it with Ctrl-D.", file=sys.stderr)
    data = sys.stdin.buffer.read()
    try:
        return read_task(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FormatError(
            f"Standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; send it as UTF-8."
        ) from error


def _show(receipt: Receipt, asked: TaskFile, as_json: bool) -> None:
    if as_json:
        print(json.dumps(receipt.as_dict(), ensure_ascii=False, indent=2))
    else:
        for text in receipt.texts:
            print(answer_line(text))
    sys.stdout.flush()
    width = shutil.get_terminal_size().columns
    lines = ["", *receipt_lines(receipt, width), *field("accuracy", _accuracy(receipt, asked), width)]
    print("\n".join(lines), file=sys.stderr)


def _accuracy(receipt: Receipt, asked: TaskFile) -> str:
    """How many answers equal the file's gold ones; empty where it has none."""
    from router.metrics import exact

    judged = [
        exact(text, gold) for text, gold in zip(receipt.texts, asked.answers, strict=True) if gold is not None
    ]
    if not judged:
        return ""
    share = percent(sum(judged) / len(judged))
    return f"{share}: {sum(judged)} of {counted(len(judged), 'known answer')} matched"
