"""Plots as SVG: at most WIDTH inches wide with letters of 10 points and more, so that a narrow page still shows them.

Texts are names from data and rows: nothing in them is read as mathematics.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

WIDTH = 5.4
# An axis of mIoU in percent never shows less than this: small differences shall look small.
LEAST_SPAN = 5.0
# Curves of more configurations than this cannot be told apart.
MOST_CURVES = 8
# More points of a curve hide the others behind their noise: these are means of neighbours.
MOST_POINTS = 30
COLORS = ("#2563c9", "#c2570c", "#14804a", "#b62a6f", "#6b46c1", "#0b7285", "#856404", "#56606f")
MARKERS = "osD^vPXh"
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "swinx", "text.parse_math": False, "legend.frameon": False},
    **{"axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.edgecolor": "#dfe3ea", "grid.color": "#dfe3ea", "lines.markersize": 4, "legend.fontsize": 10},
    "savefig.transparent": True,  # the page, light or dark, shows through
}


def forest(bars: DataFrame, label: str, lowest: float = 0) -> bytes:
    """Values with their intervals, one line each, first on top.

    bars: columns name, value, low, high (NaN without an interval) and filled, of the marker. lowest: end of the axis,
    -inf for differences.
    """
    names = [textwrap.fill(name, 30) for name in bars["name"]]

    def draw(axes: Axes) -> None:
        lines = range(len(bars))
        axes.plot(bars[["low", "high"]].astype(float).T, [lines, lines], color=COLORS[0], marker="|", markersize=7)
        fill = bars["filled"].map({True: COLORS[0], False: "white"})
        axes.scatter(bars["value"], lines, c=fill, edgecolors=COLORS[0], s=45, zorder=3)
        axes.set_yticks(lines, names)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(False, axis="y")
        widen(axes, "x", lowest)
        if lowest < 0:
            axes.axvline(0, color="black", linewidth=0.9)
        axes.set_xlabel(label, loc="right")  # centred it would be cut off, as names take much of the width

    return render(draw, len(bars) * (0.14 + 0.17 * max(1 + name.count("\n") for name in names)) + 0.8)


def trade_off(points: DataFrame, cost: str, label: str) -> bytes:
    """test_miou against a cost: numbers are ranks, and a line goes through the points that none surpasses."""
    points = points.sort_values([cost, "test_miou"], ascending=[True, False])
    front = points[points["test_miou"] > points["test_miou"].cummax().shift(fill_value=-math.inf)]

    def draw(axes: Axes) -> None:
        axes.step(front[cost], front["test_miou"], where="post", color=COLORS[1], label="best for the cost")
        for rank, x, y in points[["rank", cost, "test_miou"]].iloc[::-1].itertuples(index=False):
            axes.plot(x, y, "o", color=COLORS[0], markersize=15, markeredgecolor="white")
            axes.annotate(str(rank), (x, y), color="white", ha="center", va="center")
        axes.margins(0.1, 0.12)
        widen(axes, "y")
        axes.set(xlabel=label, ylabel="test mIoU %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))

    return render(draw, 3.6)


def curves(subplots: Mapping[str, Sequence[tuple[str, DataFrame]]]) -> bytes:
    """One subplot for each heading, of named curves: columns step, value, and low and high of intervals, if known."""
    names = list(dict.fromkeys(name for drawn in subplots.values() for name, _ in drawn))
    lines = {}

    def draw(*subplot: Axes) -> None:
        for axes, (heading, drawn) in zip(subplot, subplots.items(), strict=True):
            for name, curve in drawn:
                color, marker = COLORS[names.index(name)], MARKERS[names.index(name)]
                if len(curve) > MOST_POINTS:
                    curve = curve.groupby([MOST_POINTS * i // len(curve) for i in range(len(curve))]).mean()
                every = 0.2 if len(curve) > 5 else 1  # a share of no length marks nothing
                (line,) = axes.plot(curve["step"], curve["value"], color=color, marker=marker, markevery=every)
                lines.setdefault(name, line)
                if "low" in curve:
                    axes.vlines(curve["step"], curve["low"], curve["high"], color=color)
            axes.set_ylabel(heading)
            if "mIoU" in heading:
                widen(axes, "y")
            else:
                axes.set_ylim(bottom=0)
        subplot[-1].set_xlabel("training step")
        short = [textwrap.shorten(name, 60) for name in lines]
        subplot[0].legend(lines.values(), short, loc="lower left", bbox_to_anchor=(0, 1))

    return render(draw, 2.2 * len(subplots) + 0.6 + 0.2 * len(names), len(subplots))


def widen(axes: Axes, axis: str, lowest: float = 0) -> None:
    """Let an axis of mIoU show LEAST_SPAN at least, around what it shows, and nothing below lowest."""
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    lack = max(0, LEAST_SPAN - (high - low))
    low = max(low - lack / 2, lowest)
    axes.set(**{f"{axis}lim": (low, max(high + lack / 2, low + LEAST_SPAN))})


def render(draw: Callable[..., None], height: float, rows: int = 1) -> bytes:
    """The SVG file of what draw puts on its axes, height inches high; the same bytes for the same content."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(*figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()
