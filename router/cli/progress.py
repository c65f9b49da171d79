"""What is going on, on stderr: a live line on a terminal, plain lines elsewhere. And Ctrl-C, made visible.

Knows nothing of what the messages mean.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from router.cli.render import event_line
from router.events import Event, TrainingStep

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL_S = 5.0
"""Least time between two plain lines about training steps."""


class Reporter:
    """Use as a context manager; what was said stays above the live line."""

    def __init__(self, *, live: bool | None = None) -> None:
        """
        Args:
            live: whether stderr shows a live line; found out when None.
        """
        self._live = sys.stderr.isatty() if live is None else live
        self._progress: Progress | None = None
        self._last_line_s = -PLAIN_INTERVAL_S
        self._prefix = ""

    def __enter__(self) -> Reporter:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
            )
            # Nothing is redirected: what is printed meanwhile goes where it was printed to, at once.
            self._progress = Progress(
                *columns,
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def prefix(self, text: str) -> None:
        """Put `text` before all further messages."""
        self._prefix = text

    def say(self, text: str) -> None:
        """Something has begun: the live line, or a plain line."""
        self._status(text, None, 0)
        if not self._live:
            self._print(text)

    def keep(self, text: str) -> None:
        """Something to be read later too: a line that stays."""
        if self._progress is not None:
            self._progress.console.print(self._prefix + text, markup=False, highlight=False)
        else:
            self._print(text)

    def rest(self) -> None:
        """Nothing goes on: no live line until something begins again. The cursor is the caller's meanwhile."""
        if self._progress is not None:
            for task in self._progress.tasks:
                self._progress.remove_task(task.id)
            self._progress.stop()

    def event(self, event: Event) -> None:
        """Show one event of an answer; all but training steps stay."""
        if isinstance(event, TrainingStep):
            self.step(event)
        elif text := event_line(event):
            self.keep(text)
            self._status("Working", None, 0)

    def step(self, event: Event) -> None:
        """Show one event of an answer as passing."""
        text = event_line(event)
        if not isinstance(event, TrainingStep):
            if text:
                self._status(text, None, 0)
            return
        self._status(text, event.of, event.step)
        now = time.monotonic()
        due = now - self._last_line_s >= PLAIN_INTERVAL_S or event.step in (1, event.of)
        if not self._live and due:
            self._print(text)
            self._last_line_s = now

    def _status(self, text: str, total: int | None, done: int) -> None:
        """Show `text` on the live line, with a bar where there is a `total`; each kind of work has its clock."""
        if self._progress is None:
            return
        shown = self._progress.tasks[0] if self._progress.tasks else None
        if shown is not None and total is not None and shown.total == total and shown.completed < done:
            self._progress.update(shown.id, description=self._prefix + text, completed=done)
            return
        if shown is not None:
            self._progress.remove_task(shown.id)
        self._progress.start()
        self._progress.add_task(self._prefix + text, total=total, completed=done)

    def _print(self, text: str) -> None:
        print(self._prefix + text, file=sys.stderr, flush=True)


@contextmanager
def ctrl_c(message: str, first: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block the first Ctrl-C prints `message` and calls `first`; the next one ends the program.

    Without `first`, the first one ends it. The exit code is 130 in both cases.
    """
    presses = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses == 1:  # written past the buffers, which this may have interrupted
            os.write(2, f"\n{message}\n".encode())
            if first is not None:
                first()
                return
        raise SystemExit(130)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
