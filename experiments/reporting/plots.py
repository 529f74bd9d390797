"""Plots as SVG: at most WIDTH inches wide with letters of 10 points and more, so that a narrow page still shows them.

Texts are names from data and rows: nothing in them is read as mathematics.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

WIDTH = 5.4
# An axis of mIoU in percent never shows less than this: small differences shall look small.
LEAST_SPAN = 5.0
# Curves of more configurations than this cannot be told apart.
MOST_CURVES = 8
COLORS = ("#2563c9", "#c2570c", "#14804a", "#b62a6f", "#6b46c1", "#0b7285", "#856404", "#56606f")
MARKERS = "osD^vPXh"
INK, MUTED, GRID = "#1d2433", "#5b6475", "#dfe3ea"
LETTERS = 24  # of a name, before its line is broken
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 10, "axes.labelsize": 10, "legend.fontsize": 10},
    **{"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID, "axes.axisbelow": True, "axes.grid": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "grid.color": GRID, "legend.frameon": False},
    **{"xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 10, "ytick.labelsize": 10},
}


class Bar(NamedTuple):
    """A line of a forest plot. low and high are None without an interval; marker: one of KINDS."""

    name: str
    value: float
    low: float | None
    high: float | None
    kind: str = "score"


# Marker and its filling, by what is said of a value.
KINDS = {
    "score": ("o", COLORS[0]),
    "significant": ("o", COLORS[0]),
    "not significant": ("o", "white"),
    "not tested": ("x", MUTED),
}


class Curve(NamedTuple):
    """Points of a configuration, low and high of their intervals or None; number: of its colour; dashed: by seed."""

    name: str
    number: int
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def forest(bars: Sequence[Bar], label: str, *, zero: bool = False) -> bytes:
    """Values with their intervals, one line each, first on top. zero: a line at 0, for differences."""
    names = ["\n".join(textwrap.wrap(bar.name, LETTERS)) for bar in bars]
    heights = [0.14 + 0.17 * (name.count("\n") + 1) for name in names]
    tops = numpy.cumsum(heights) - numpy.array(heights) / 2
    kinds = [kind for kind in KINDS if kind != "score" and any(bar.kind == kind for bar in bars)]

    def draw(axes: Axes) -> None:
        for y, bar in zip(tops, bars, strict=True):
            marker, filling = KINDS[bar.kind]
            color = MUTED if bar.kind == "not tested" else COLORS[0]
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [y, y], color=color, linewidth=1.6, marker="|", markersize=7)
            axes.plot([bar.value], [y], marker, color=color, markerfacecolor=filling, markersize=7)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(tops, names, color=INK)
        axes.set_ylim(sum(heights) + 0.1, -0.1)
        axes.grid(False, axis="y")
        widen(axes, "x", -math.inf if zero else 0)
        axes.set_xlabel(label)
        if kinds:
            handles = [
                axes.plot([], [], KINDS[k][0], color=COLORS[0] if k != "not tested" else MUTED, label=k,
                          markerfacecolor=KINDS[k][1])[0]
                for k in kinds
            ]  # fmt: skip
            axes.legend(handles=handles, **above(kinds))

    return render(draw, sum(heights) + 0.8 + 0.3 * bool(kinds))


def trade_off(points: Sequence[tuple[str, float, float]], label: str) -> bytes:
    """Test mIoU against a cost: (rank, cost, mIoU) as numbered points, and a line through those that none surpasses."""

    def draw(axes: Axes) -> None:
        front, best = [], -math.inf
        for _, cost, miou in sorted(points, key=lambda point: (point[1], -point[2])):
            if miou > best:
                front.append((cost, miou))
                best = miou
        axes.step(*zip(*front, strict=True), where="post", color=COLORS[1], linewidth=1.4, label="best for the cost")
        for rank, cost, miou in reversed(points):
            axes.plot([cost], [miou], "o", color=COLORS[0], markersize=15, markeredgecolor="white")
            axes.annotate(rank, (cost, miou), color="white", ha="center", va="center", fontsize=10)
        costs = [cost for _, cost, _ in points]
        if max(costs) > 8 * min(costs) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.margins(0.1, 0.12)
        widen(axes, "y")
        axes.set_xlabel(label)
        axes.set_ylabel("test mIoU %")
        axes.legend(**above(["best for the cost"]))

    return render(draw, 3.6)


def curves(panels: Sequence[tuple[str, Sequence[Curve]]], label: str, ticks: Sequence[str] = ()) -> bytes:
    """One panel below the other, (heading, curves) each, over the same x; ticks: names of x = 0, 1, ... instead."""

    def draw(*every: Axes) -> None:
        for axes, (heading, drawn) in zip(every, panels, strict=True):
            for curve in drawn:
                style: dict[str, Any] = {"color": COLORS[curve.number], "linewidth": 1.5}
                if curve.low is not None and curve.high is not None:
                    reach = numpy.abs(numpy.array([curve.low, curve.high]) - numpy.asarray(curve.y))
                    axes.errorbar(curve.x, curve.y, reach, capsize=3, marker=MARKERS[curve.number], **style)
                else:
                    few = len(curve.x) < 30
                    axes.plot(curve.x, curve.y, marker=MARKERS[curve.number] if few else "", markersize=4, **style)
            axes.set_ylabel(heading)
            if "mIoU" in heading:
                widen(axes, "y")
            else:
                axes.set_ylim(bottom=0)
        every[-1].set_xlabel(label)
        if ticks:
            every[-1].set_xticks(range(len(ticks)), ticks)
        numbers = {curve.name: curve.number for _, drawn in panels for curve in drawn}
        handles = [
            matplotlib.lines.Line2D([], [], color=COLORS[number], marker=MARKERS[number], label=name)
            for name, number in sorted(numbers.items(), key=lambda item: item[1])
        ]
        every[0].legend(handles=handles, **above(list(numbers)))

    names = {curve.name for _, drawn in panels for curve in drawn}
    return render(draw, 2.2 * len(panels) + 0.6 + 0.2 * len(names), len(panels))


def above(names: Sequence[str]) -> dict[str, Any]:
    """Where a legend of these names stands: above the axes, in as many columns as there is room for."""
    most = max(1, 56 // (max(map(len, names)) + 8))
    return {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": min(most, len(names)), "borderaxespad": 0.2}


def widen(axes: Axes, axis: str, lowest: float = 0) -> None:
    """Let an axis of mIoU show LEAST_SPAN at least, around what it shows, and nothing below lowest."""
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    lack = max(0, LEAST_SPAN - (high - low))
    low = max(low - lack / 2, lowest)
    limits = (low, max(high + lack / 2, low + LEAST_SPAN))
    axes.set_xlim(limits) if axis == "x" else axes.set_ylim(limits)


def render(draw: Callable[..., None], height: float, panels: int = 1) -> bytes:
    """The SVG file of what draw puts on its axes, height inches high; the same bytes for the same content."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "swinx"}), warnings.catch_warnings():
        # A browser has fonts for letters that matplotlib has none for.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(*figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()
