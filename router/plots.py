"""Pictures of what arms cost and win. Needs matplotlib, the extra `plot`.

Knows only points: a label, an accuracy with its interval, seconds. Draws to a file, never to a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLOURS = ("#6b7280", "#b45309", "#0f766e")
"""Of the points, in their order; the last one is the router's."""
INK, FAINT = "#1f2937", "#9ca3af"


@dataclass(frozen=True, slots=True)
class Point:
    """One way to answer all families."""

    label: str
    accuracy: float
    """Mean over the families, 0 to 1."""
    low: float
    high: float
    """95 % interval of it."""
    seconds: float
    """Of compute for everything, wall seconds on this machine."""


def cost_accuracy_png(
    points: Sequence[Point],
    path: Path,
    *,
    model: str = "",
    asked: str = "",
    n_queries: int = 0,
    worth_s: float = 0.0,
) -> None:
    """Draw accuracy against seconds to the PNG file `path`.

    Args:
        points: one a way to answer; the first is the reference.
        model: named in the title.
        asked: what was asked, for the title's second line.
        n_queries: of all families together. With `worth_s`, draws where more accuracy just pays for its
            seconds, starting from the first point.
        worth_s: seconds that one more correct answer is worth.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no points.
    """
    if not points:
        raise ValueError("There are 0 points to draw; give at least one.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    right = max(p.seconds for p in points) * 1.28 or 1.0
    axes.set_xlim(0, right)
    axes.set_ylim(0, 102)

    if n_queries and worth_s:
        first = points[0]
        slope = 100 / (worth_s * n_queries)  # points of accuracy per second
        start = 100 * first.accuracy
        end_s = min(right, first.seconds + (102 - start) / slope)
        axes.plot(
            [first.seconds, end_s],
            [start, start + (end_s - first.seconds) * slope],
            color=FAINT,
            linestyle=(0, (4, 3)),
            linewidth=1.1,
            zorder=1,
            label=f"break-even: {worth_s:g} s for one more correct answer (above pays)",
        )
        axes.legend(loc="upper left", frameon=False, fontsize=9.5, labelcolor=INK)

    for p, colour in zip(points, _colours(points), strict=True):
        y = 100 * p.accuracy
        whiskers = [[max(0.0, y - 100 * p.low)], [max(0.0, 100 * p.high - y)]]
        axes.errorbar(
            p.seconds,
            y,
            yerr=whiskers,
            fmt="o",
            markersize=10,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=1.2,
            elinewidth=1.8,
            capsize=5,
            zorder=3,
        )
    for p, colour, place in zip(points, _colours(points), _places(points, right), strict=True):
        anchor, dx, dy, ha, va = {
            "above": (p.high, 0, 6, "center", "bottom"),
            "below": (p.low, 0, -6, "center", "top"),
            "beside": (p.accuracy, 14, 0, "left", "center"),
        }[place]
        if ha == "center" and p.seconds < 0.12 * right:
            ha, dx = "left", -8
        axes.annotate(
            f"{p.label}\n{100 * p.accuracy:.0f} %, {p.seconds:,.0f} s",
            (p.seconds, 100 * anchor),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=10.5,
            color=colour,
            fontweight="bold",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            zorder=2,
        )

    axes.set_xlabel("total compute (wall seconds on this machine)", fontsize=11, color=INK)
    axes.set_ylabel("accuracy (% exact answers, mean over families)", fontsize=11, color=INK)
    title = "Accuracy against cost" + (f": {model}" if model else "")
    axes.set_title(title, fontsize=13, fontweight="bold", color=INK, loc="left", pad=28 if asked else 10)
    if asked:
        axes.text(0, 1.025, asked, transform=axes.transAxes, fontsize=9.5, color=INK, va="bottom")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10)
    figure.savefig(path, format="png")


def _colours(points: Sequence[Point]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(points))]


def _places(points: Sequence[Point], right: float) -> list[str]:
    """Where each label goes: above its whisker, or elsewhere when a neighbour's label is there already."""
    places: dict[int, str] = {}
    for i in sorted(range(len(points)), key=lambda i: points[i].seconds):
        here = points[i]
        taken = {places[j] for j in places if here.seconds - points[j].seconds < 0.3 * right}
        free = ["above"] * (here.high < 0.85) + ["below"] * (here.low > 0.15) + ["beside"]
        places[i] = next((place for place in free if place not in taken), "beside")
    return [places[i] for i in range(len(points))]
