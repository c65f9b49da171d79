"""The picture of tuning: accuracy against seconds per task, of every setting and baseline, with intervals.

Needs matplotlib, the extra `plot`. Draws to files, never to a screen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.tune import Aim, Tuned
from router.errors import RouterError
from router.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUTER, CHOSEN = "#0f766e", "#b91c1c"
BASELINES = ("#6b7280", "#b45309", "#7c3aed", "#2563eb", "#be185d", "#4d7c0f", "#0e7490", "#a16207")
MARKERS = "sD^vP*Xh"


def draw(tuned: Tuned, aim: Aim, folder: Path, *, model: str = "") -> list[Path]:
    """Draw `tune.png` and `tune.svg` into `folder`.

    Raises:
        RouterError: matplotlib is not installed, or the folder can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise RouterError("The picture needs matplotlib: pip install 'ttt-router[plot]'.") from error
    figure = Figure(figsize=(8.6, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _settings(axes, tuned, aim)
    _baselines(axes, tuned)
    _aim(axes, aim)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_xlim()
    digits = "23468" if high < 20 * low else "25"
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else "")
    axes.set_xlabel("seconds of compute per task (log scale)", fontsize=11, color=INK)
    axes.set_ylabel("accuracy (% of queries, mean over families)", fontsize=11, color=INK)
    title = "Accuracy against cost" + (f": {model}" if model else "")
    axes.set_title(title, fontsize=13, fontweight="bold", color=INK, loc="left", pad=24)
    axes.text(
        0,
        1.02,
        f"{tuned.n_families} families; band and bars are 95 % intervals over families",
        transform=axes.transAxes,
        fontsize=9.5,
        color=INK,
    )
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10, which="both", length=4)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5, labelcolor=INK)
    paths = [folder / "tune.png", folder / "tune.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figure.savefig(path)
    except OSError as error:
        raise RouterError(f"The picture can't be written to {folder}: {error.strerror}.") from error
    return paths


def _settings(axes: Axes, tuned: Tuned, aim: Aim) -> None:
    """The router's settings as a line; both ends and the chosen one are labelled."""
    ordered = sorted(tuned.settings, key=lambda s: s.seconds[0])
    x = [s.seconds[0] for s in ordered]
    y = [100 * s.accuracy[0] for s in ordered]
    axes.fill_between(
        x,
        [100 * s.accuracy[1] for s in ordered],
        [100 * s.accuracy[2] for s in ordered],
        color=ROUTER,
        alpha=0.12,
        linewidth=0,
    )
    knob = "confidence" if aim.goal == "harm" else "worth"
    axes.plot(
        x, y, color=ROUTER, marker="o", markersize=5, linewidth=1.6, label=f"the router, by {knob}", zorder=3
    )
    for s, dy in ((ordered[0], -16), (ordered[-1], 9)):
        if s != tuned.chosen:
            _label(axes, s.seconds[0], 100 * s.accuracy[0], _value(s, aim), ROUTER, dy)
    if tuned.chosen is None:
        return
    c = tuned.chosen
    axes.errorbar(
        c.seconds[0],
        100 * c.accuracy[0],
        xerr=_whiskers(c.seconds, 1),
        yerr=_whiskers(c.accuracy, 100),
        fmt="o",
        markersize=11,
        color=CHOSEN,
        markeredgecolor="white",
        elinewidth=1.6,
        capsize=4,
        zorder=5,
        label=f"chosen: {_value(c, aim)}",
    )


def _value(setting: Any, aim: Aim) -> str:
    return f"confidence {setting.confidence:g}" if aim.goal == "harm" else f"worth {setting.worth_s:g} s"


def _baselines(axes: Axes, tuned: Tuned) -> None:
    for i, (name, figures) in enumerate(tuned.baselines.items()):
        colour = BASELINES[i % len(BASELINES)]
        axes.errorbar(
            figures["seconds"][0],
            100 * figures["accuracy"][0],
            yerr=_whiskers(figures["accuracy"], 100),
            fmt=MARKERS[i % len(MARKERS)],
            markersize=12 if name == "oracle" else 8,
            color=colour,
            markeredgecolor="white",
            elinewidth=1.2,
            capsize=3,
            alpha=0.95,
            zorder=4,
            label=name,
        )


def _aim(axes: Axes, aim: Aim) -> None:
    if aim.goal == "accuracy":
        axes.axhline(
            100 * aim.value,
            color=CHOSEN,
            linestyle=(0, (4, 3)),
            linewidth=1.1,
            label=f"target {aim.value:.0%}",
        )
    elif aim.goal == "budget":
        axes.axvline(
            aim.value, color=CHOSEN, linestyle=(0, (4, 3)), linewidth=1.1, label=f"budget {aim.value:g} s"
        )


def _whiskers(values: tuple[float, float, float], factor: float) -> list[list[float]]:
    middle, low, high = values
    return [[max(0.0, factor * (middle - low))], [max(0.0, factor * (high - middle))]]


def _label(axes: Axes, x: float, y: float, text: str, colour: str, dy: float) -> None:
    axes.annotate(
        text, (x, y), xytext=(0, dy), textcoords="offset points", ha="center", fontsize=9, color=colour
    )
