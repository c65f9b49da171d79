"""The demo: a few task families, three ways to answer each, what that costs, and what the cache saves.

For each family the router is asked once, with a store that starts empty. Always-ICL is read off its
receipt, unless only a sample was asked in context. Always-TTT is the adapter that the router trained or, where it answered otherwise, a training
asked for outright: one adapter a family, the receipts' steps summed. Right answers are used for judging
only and never reach the router.

Knows the router by its public events and receipts alone.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.cli.progress import Reporter, ctrl_c
from router.cli.render import counted, duration, event_line
from router.demo_report import ArmResult, DemoReport, FamilyResult, report_table, total_lines
from router.demo_tasks import DEFAULT_FAMILIES, DemoTask, demo_task
from router.errors import RouterError
from router.events import Event, GuardDone, ICLDone, Sampled, Started, TrainingStep
from router.metrics import exact
from router.plots import Point, cost_accuracy_png
from router.receipt import Receipt
from router.settings import Settings, in_one_process
from router.statistics import paired_difference
from ttt.errors import Cancelled

if TYPE_CHECKING:
    from policies.types import Policy
    from router.agent import Router
    from router.state import Arm

PLAIN_INTERVAL_S = 3.0
"""Least time between two lines about training steps, where nothing else shows them."""


def run_demo(
    settings: Settings,
    out: Path,
    on_line: Callable[[str], None],
    *,
    families: Sequence[str] | None = None,
    n_demonstrations: int = 8,
    n_queries: int = 16,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    policy: Policy | None = None,
) -> DemoReport:
    """Run the demo and write `out`/demo.json and, where matplotlib is installed, `out`/demo.png.

    Args:
        settings: model, worth and so on; the demo has a store of its own, in `out` while it runs.
        on_line: gets what happens, line by line.
        families: names from `router.demo_tasks`; `DEFAULT_FAMILIES` when None.
        seed: of tasks and training.
        on_event: gets the router's events; when None they become lines too, steps every few seconds.
        should_stop: asked between slices of work.
        policy: decides instead of the one that the settings name.

    Raises:
        RouterError: an unknown family, impossible numbers, or `out` can't be written.
        Cancelled: `should_stop` said so.
        ModelError, StoreError, TrainingFailed: as `Router.open` and `Router.ask`.
    """
    from router.agent import Router

    started = time.perf_counter()
    names = DEFAULT_FAMILIES if families is None else families
    tasks = [demo_task(name, n_demonstrations, n_queries, seed) for name in names]
    if not tasks:
        raise RouterError("There are 0 families to demonstrate; name at least one.")
    _make_writable(out)
    with (
        tempfile.TemporaryDirectory(prefix="store-", dir=out) as store_folder,
        Router.open(
            # Arms are compared as they are, without votes.
            replace(in_one_process(settings), data_dir=store_folder, database_url="", votes=1),
            progress=on_line,
            policy=policy,
        ) as agent,
    ):
        guide = _Guide(agent, seed, on_line, on_event or _plain(on_line), should_stop)
        results = []
        for number, asked in enumerate(tasks, start=1):
            on_line(f"[{number}/{len(tasks)}] {asked.family}: {asked.summary}")
            example = asked.task.demonstrations[0]
            on_line(f"  {example.input}  →  {example.output}")
            results.append(guide.measure(asked))
        trained = next((r for r in results if r.ttt_receipt is None), None)
        reuse = None
        if trained is not None:
            on_line(f"Again {trained.asked.family}, the first task that the router trained for:")
            reuse = guide.ask(trained.asked, "auto")
    report = DemoReport(
        model=Path(settings.model).name,
        worth_s=results[0].receipt.worth_s,
        n_demonstrations=n_demonstrations,
        n_queries=n_queries,
        seed=seed,
        families=tuple(results),
        points=(
            _point("always ICL", [r.icl for r in results], seed),
            _point("always TTT", [r.ttt for r in results], seed),
            _point("router", [r.router for r in results], seed),
        ),
        against_icl=paired_difference([(r.icl.correct, r.router.correct) for r in results], seed),
        against_ttt=paired_difference([(r.ttt.correct, r.router.correct) for r in results], seed),
        reuse=reuse,
        seconds=time.perf_counter() - started,
    )
    _write(report, out, on_line)
    return report


def show_demo(settings: Settings, out: Path, **options: Any) -> DemoReport:
    """`run_demo` for people: progress on stderr, live on a terminal; table and totals on stdout.

    The first Ctrl-C ends the demo after the step at hand (`Cancelled`), the second at once. Options as
    in `run_demo`.
    """
    from rich.console import Console

    stop = threading.Event()

    def on_event(event: Event) -> None:
        reporter.event(event)
        if doing := _next(event):
            reporter.say(doing)

    stopping = "Stopping after this step; Ctrl-C again stops at once."
    with Reporter() as reporter, ctrl_c(stopping, stop.set):
        reporter.say(f"Loading {settings.model}")
        report = run_demo(settings, out, reporter.keep, on_event=on_event, should_stop=stop.is_set, **options)
    console = Console()
    console.print()
    console.print(report_table(report))
    for line in total_lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return report


@dataclass(frozen=True)
class _Guide:
    """Asks the router and tells what happens."""

    agent: Router
    seed: int
    on_line: Callable[[str], None]
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]

    def ask(self, asked: DemoTask, arm: Arm) -> Receipt:
        receipt: Receipt | None = None
        stream = self.agent.stream(
            asked.task, asked.queries, arm=arm, seed=self.seed, should_stop=self.should_stop
        )
        for event in stream:
            self.on_event(event)
            receipt = getattr(event, "receipt", None)
            if self.should_stop():
                stream.close()
                raise Cancelled("The demo was stopped before its end and wrote no figures; run it again.")
        assert receipt is not None  # the last event is always Done
        n = counted(receipt.n_queries, "query")
        self.on_line(f"  {receipt.arm} answered {n}; {duration(receipt.seconds)} in all.")
        return receipt

    def measure(self, asked: DemoTask) -> FamilyResult:
        """Ask the router, then train outright where it did not answer with an adapter of its own."""
        auto = self.ask(asked, "auto")
        forced = None
        if not auto.arm.startswith("train:"):
            self.on_line("  For always-TTT the same task with training asked for outright:")
            forced = self.ask(asked, "ttt")
        plain = auto
        if not auto.icl_at_once:
            self.on_line("  For always-ICL the same task, all queries in context:")
            plain = self.ask(asked, "icl")
        result = FamilyResult(
            asked,
            ArmResult(_judged(asked, plain.icl_texts), _seconds("icl", plain)),
            ArmResult(_judged(asked, auto.texts), auto.seconds),
            ArmResult(_judged(asked, (forced or auto).texts), ttt_seconds(auto, forced)),
            auto,
            forced,
        )
        ways = {"ICL": result.icl, "router": result.router, "always TTT": result.ttt}
        told = ", ".join(f"{name} {sum(w.correct)} ({duration(w.seconds)})" for name, w in ways.items())
        self.on_line(f"  Right of {len(asked.gold)}: {told}.")
        return result


def ttt_seconds(auto: Receipt, forced: Receipt | None) -> float:
    """What training and answering alone cost, whichever of the two receipts has the steps.

    An adapter that the guard vetoed is there already when training is asked for outright: its training is
    in the router's receipt, its answers are in the other one. A training that went on from a probe has its first
    steps there; always-TTT pays for them, too, but not for judging them.
    """
    receipts = [auto] if forced is None else [auto, forced]
    return sum(r.training_s + _seconds("answer", r) for r in receipts)


def _seconds(name: str, receipt: Receipt) -> float:
    return sum(s.seconds for s in receipt.steps if s.name == name)


def _judged(asked: DemoTask, answers: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(exact(a, gold)) for a, gold in zip(answers, asked.gold, strict=True))


def _point(label: str, ways: Sequence[ArmResult], seed: int) -> Point:
    """Mean over families: all have equally many queries, so it is the mean over queries too."""
    against_nothing = [((0,) * len(w.correct), w.correct) for w in ways]
    return Point(label, *paired_difference(against_nothing, seed), seconds=sum(w.seconds for w in ways))


def _next(event: Event) -> str:
    """What takes the time from here on, where no further event tells it."""
    match event:
        case Started():
            return "Working on it"
        case ICLDone() | Sampled():
            return "Measuring signals"
        case GuardDone(accept=True):
            return "Answering with the adapter"
        case _:
            return ""


def _plain(on_line: Callable[[str], None]) -> Callable[[Event], None]:
    """Events as lines; of training steps the first, the last, and one every few seconds."""
    last_s = 0.0

    def tell(event: Event) -> None:
        nonlocal last_s
        if isinstance(event, TrainingStep):
            now = time.monotonic()
            if now - last_s < PLAIN_INTERVAL_S and event.step not in (1, event.of):
                return
            last_s = now
        if line := event_line(event):
            on_line(f"  {line}")

    return tell


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise RouterError(
            f"The folder {out} can't be written ({error.strerror}); name another one."
        ) from error


def _write(report: DemoReport, out: Path, on_line: Callable[[str], None]) -> None:
    """The figures, and the picture where matplotlib is there."""
    figures, picture = out / "demo.json", out / "demo.png"
    figures.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    on_line(f"Figures: {figures}")
    n = len(report.families)
    try:
        cost_accuracy_png(
            report.points,
            picture,
            model=report.model,
            asked=f"{n} families × {report.n_queries} queries, {report.n_demonstrations} demonstrations each; "
            "whiskers: 95 % interval over further queries of these families",
            n_queries=n * report.n_queries,
            worth_s=report.worth_s,
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        picture.unlink(missing_ok=True)  # one of an earlier run would show other figures
        on_line("No picture: matplotlib is not installed; install it with: pip install 'ttt-router[plot]'")
    else:
        on_line(f"Picture: {picture}")
