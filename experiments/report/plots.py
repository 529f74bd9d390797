"""Plots as inline SVG whose colours follow the page: every colour is a CSS variable with its light value."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

INK, MUTED, GRID = "#1d2433", "#5b6475", "#e1e5ec"
SERIES = ("#2563c9", "#c2570c", "#14804a", "#b62a6f", "#6b46c1", "#0b7285", "#856404", "#56606f")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {c: f"series-{i + 1}" for i, c in enumerate(SERIES)}
MARKERS = "osD^vP"
# More points than this get a plot of the full width.
CROWDED = 6
CLASS_BARS = 6

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def trade_off(table: pandas.DataFrame, key: str, heading: str) -> str:
    """Test mIoU against a cost (a column of the summary): one labelled point per configuration, bars for ± sd."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(*((11.6, 5.2) if len(table) > CROWDED else (5.6, 3.9)))
        points = table.dropna(subset=[key, "test_miou"])
        for _, line in points.iterrows():
            number = int(line["rank"]) - 1
            color, marker = SERIES[number % len(SERIES)], MARKERS[number // len(SERIES) % len(MARKERS)]
            spread = None if pandas.isna(line["test_miou_sd"]) else line["test_miou_sd"]
            axes.errorbar(
                line[key],
                line["test_miou"],
                yerr=spread,
                fmt=marker,
                color=color,
                markersize=8,
                capsize=3,
                elinewidth=1.4,
            )
        low, high = points[key].min(), points[key].max()
        if high > 8 * low > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(0.14, 0.18)
        axes.set_xlabel(heading)
        axes.set_ylabel("test mIoU %")
        figure.draw_without_rendering()
        spreads = points["test_miou_sd"].fillna(0).tolist()
        _label_points(axes, points[key].tolist(), points["test_miou"].tolist(), points["label"].tolist(), spreads)
        return svg(figure, key)


def class_bars(classes: pandas.DataFrame, thin: Sequence[str]) -> str:
    """Test IoU by class for the first configurations (columns), at most CLASS_BARS; thin classes are marked."""
    shown = classes.iloc[:, :CLASS_BARS]
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(11.6, 3.9)
        positions = numpy.arange(len(shown))
        width = 0.8 / len(shown.columns)
        for number, label in enumerate(shown.columns):
            offset = (number - (len(shown.columns) - 1) / 2) * width
            axes.bar(positions + offset, shown[label], width * 0.88, color=SERIES[number % len(SERIES)], label=label)
        names = [f"{name}\n(thin)" if name in thin else str(name) for name in shown.index]
        axes.set_xticks(positions, names, rotation=0 if len(names) <= 12 else 30)
        axes.tick_params(axis="x", labelcolor=INK, length=0)
        axes.grid(False, axis="x")
        axes.set_ylabel("test IoU %")
        axes.set_xlim(-0.6, len(shown) - 0.4)
        legend(axes)
        return svg(figure, "classes")


# Per configuration: its label, and by seed steps and values.
Curves = Sequence[tuple[str, Sequence[Sequence[float]], Sequence[Sequence[float]]]]


def loss_curves(curves: Curves) -> str:
    """Smoothed training loss by step."""
    smoothed = [(label, steps, [smooth(losses) for losses in by_seed]) for label, steps, by_seed in curves]
    return _by_step(smoothed, "loss, smoothed", "losses", from_zero=True, linewidth=1.6)


def validation_curves(curves: Curves) -> str:
    """Validation mIoU in percent by step."""
    return _by_step(curves, "validation mIoU %", "validation", from_zero=False, linewidth=1.4, marker="o", markersize=3)


def _by_step(curves: Curves, heading: str, plot: str, *, from_zero: bool, **style: Any) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(11.6, 3.9)
        for number, (label, steps_by_seed, values_by_seed) in enumerate(curves):
            for seed, (steps, values) in enumerate(zip(steps_by_seed, values_by_seed, strict=True)):
                axes.plot(steps, values, label=label if seed == 0 else None, **line_style(number), **style)
        axes.set_xlabel("training step")
        axes.set_ylabel(heading)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        legend(axes)
        return svg(figure, plot)


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the line with this number, from 0: colours come again with other dashes."""
    return {
        "color": SERIES[number % len(SERIES)],
        "linestyle": ("-", "--", ":", "-.")[number // len(SERIES) % 4],
    }


def smooth(losses: Sequence[float]) -> list[float]:
    """Mean of each value with its neighbours, over about a twentieth of the curve."""
    window = max(1, len(losses) // 20)
    return pandas.Series(losses).rolling(window, min_periods=1, center=True).mean().tolist()


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def legend(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    most = max(1, 145 // (max(map(len, labels)) + 6))
    columns = -(-len(labels) // -(-len(labels) // most))  # rows filled evenly
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handlelength=2, borderaxespad=0.2)


def _label_points(axes: Axes, xs: list[float], ys: list[float], names: list[str], spreads: list[float]) -> None:
    """Write each name beside its point, at the first of several places where it covers no point, bar or name."""
    centres = axes.transData.transform(list(zip(xs, ys, strict=True)))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    for x, y, spread in zip(xs, ys, spreads, strict=True):
        (left, low), (_, high) = axes.transData.transform([(x, y - spread), (x, y + spread)])
        taken.append(Bbox.from_extents(left - 1, low, left + 1, high))
    inside = axes.get_window_extent()
    places = [(9, 0, "left", "center"), (-9, 0, "right", "center")]
    places += [(0, 10, "center", "bottom"), (0, -10, "center", "top")]
    places += [(x, y, "left" if x > 0 else "right", "center") for y in (14, -14, 26, -26) for x in (9, -9)]
    for x, y, name in zip(xs, ys, names, strict=True):
        best = None
        for dx, dy, horizontal, vertical in places:
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=horizontal, va=vertical, fontsize=9.5
            )
            box = text.get_window_extent()
            clash = sum(box.overlaps(other) for other in taken) + (box.x0 < inside.x0) + (box.x1 > inside.x1)
            if best is None or clash < best[0]:
                if best:
                    best[1].remove()
                best = (clash, text, box)
            else:
                text.remove()
            if clash == 0:
                break
        assert best is not None
        taken.append(best[2])


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for an HTML page: scalable, colours as CSS variables, no outside reference."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Ids of clip paths must differ between the plots of one page, and not between two renderings of one plot.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    # Groups are named axes_1, text_3 and so on in every plot; a page must not repeat an id.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return svg
