"""What the demo measured, as values, as a table and as sentences.

Knows nothing of how it was measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from router.cli.render import duration, percent
from router.demo_tasks import DemoTask
from router.plots import Point
from router.receipt import Receipt
from router.statistics import Difference

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One way to answer one family."""

    correct: tuple[int, ...]
    """1 for right, 0 for wrong, by query."""
    seconds: float
    """Of the steps that this way would have run alone."""


@dataclass(frozen=True, slots=True)
class FamilyResult:
    """One family answered in three ways."""

    asked: DemoTask
    icl: ArmResult
    router: ArmResult
    ttt: ArmResult
    receipt: Receipt
    """The router's."""
    ttt_receipt: Receipt | None
    """Of the training asked for outright; None where the router's own adapter answered."""

    @property
    def arm(self) -> str:
        """What the router did, for people."""
        guard = self.receipt.step("guard")
        vetoed = guard is not None and not guard.detail["accepted"]
        if self.receipt.fallback:
            return f"{self.receipt.arm} ({'vetoed' if vetoed else 'fell back'})"
        return self.receipt.arm


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo measured; `router` − `icl` and `ttt` are paired by query."""

    model: str
    worth_s: float
    n_demonstrations: int
    n_queries: int
    """Of each family."""
    seed: int
    families: tuple[FamilyResult, ...]
    points: tuple[Point, ...]
    """Always ICL, always TTT, router."""
    against_icl: Difference
    against_ttt: Difference
    reuse: Receipt | None
    """Of the first trained task asked again; None where nothing was trained and accepted."""
    seconds: float
    """Wall seconds of the whole demo, loading the model included."""

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON, receipts included."""
        families = [
            {
                "family": f.asked.family,
                "summary": f.asked.summary,
                "demonstrations": [asdict(d) for d in f.asked.task.demonstrations],
                "queries": list(f.asked.queries),
                "gold": list(f.asked.gold),
                "arm": f.arm,
                "arms": {"icl": asdict(f.icl), "ttt": asdict(f.ttt), "router": asdict(f.router)},
                "receipts": {
                    "router": f.receipt.as_dict(),
                    "ttt": f.ttt_receipt.as_dict() if f.ttt_receipt else None,
                },
            }
            for f in self.families
        ]
        return {
            "model": self.model,
            "worth_s": self.worth_s,
            "n_demonstrations": self.n_demonstrations,
            "n_queries": self.n_queries,
            "seed": self.seed,
            "seconds": self.seconds,
            "points": [asdict(p) for p in self.points],
            "router_minus_icl": self.against_icl._asdict(),
            "router_minus_ttt": self.against_ttt._asdict(),
            "families": families,
            "reuse": self.reuse.as_dict() if self.reuse else None,
        }


def report_table(report: DemoReport) -> Table:
    """A row for each family; means and totals at the foot."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{report.model}: right answers to {report.n_queries} queries a family, and wall seconds",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    icl, ttt, routed = report.points
    arms = (("ICL", icl), ("router", routed), ("TTT", ttt))
    table.add_column("family", footer="mean, sum", no_wrap=True)
    for name, point in arms:
        table.add_column(name, footer=percent(point.accuracy), justify="right", no_wrap=True)
    table.add_column("arm taken", no_wrap=True)
    for name, point in arms:
        table.add_column(f"{name} s", footer=f"{point.seconds:.1f}", justify="right", no_wrap=True)
    for f in report.families:
        ways = (f.icl, f.router, f.ttt)
        right = (percent(sum(w.correct) / report.n_queries) for w in ways)
        table.add_row(f.asked.family, *right, f.arm, *(f"{w.seconds:.1f}" for w in ways))
    return table


def total_lines(report: DemoReport) -> list[str]:
    """Totals, differences and the reuse, in sentences."""
    n = report.n_queries * len(report.families)
    lines = [f"Over {n} queries (in brackets 95 % intervals, over further queries of these families):"]
    for p in report.points:
        right = p.accuracy * n
        utility = round(right - p.seconds / report.worth_s, 1) + 0.0  # + 0.0 makes −0.0 plain 0.0
        lines.append(
            f"  {p.label}: {right:.0f} right, {percent(p.accuracy)} ({percent(p.low)} to {percent(p.high)}), "
            f"in {duration(p.seconds)}; utility {utility:.1f}"
        )
    for label, d in (("always ICL", report.against_icl), ("always TTT", report.against_ttt)):
        lines.append(
            f"  router − {label}: {100 * d.mean:+.0f} points ({100 * d.low:+.0f} to {100 * d.high:+.0f})"
        )
    lines.append(
        f"  Utility is right answers less seconds ÷ {report.worth_s:g} s, what one of them is worth."
    )
    return [*lines, reuse_line(report), f"The whole demo took {duration(report.seconds)}."]


def reuse_line(report: DemoReport) -> str:
    """What asking again cost, against the first time."""
    again = report.reuse
    if again is None:
        return "The router kept no adapter, so there is nothing to show of reuse."
    first = next(f.receipt for f in report.families if f.receipt.fingerprint == again.fingerprint)
    training = "no training step" if again.step("train") is None else "it was trained for again"
    return (
        f"{again.task_name} asked again: {first.arm} took {duration(first.seconds)} the first time, "
        f"{again.arm} takes {duration(again.seconds)} now ({training}); "
        f"{'the same answers' if again.texts == first.texts else 'other answers'}."
    )
