"""Plots of what is resolved, and of accuracy at the edges of things, as inline SVG."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.patches import Rectangle

from experiments.report.plots import INK, MUTED, SERIES, STYLE, canvas, legend, line_style, svg
from experiments.statistics import Comparison

BETTER, WORSE = SERIES[0], SERIES[1]
CELL = 0.5  # inches; a cell is half as wide again
NAME = 0.085  # inches for each character of a configuration's name


def matrix_size(comparison: Comparison) -> tuple[float, float]:
    """Width and height of win_matrix in inches."""
    count = len(comparison.scores)
    longest = max(len(score.configuration) for score in comparison.scores)
    return min(11.6, 1.5 * CELL * count + NAME * longest + 1), CELL * count + 0.7


def matrix_width(comparison: Comparison) -> int:
    """Width in pixels at which the text of win_matrix is as large as that of the page."""
    return round(96 * matrix_size(comparison)[0])


def win_matrix(comparison: Comparison, ranks: Mapping[str, int]) -> str:
    """Line minus column in points of test mIoU; shaded where the difference is resolved, blue up, orange down.

    ranks: by label of a configuration, as the ranking has them.
    """
    names = [score.configuration for score in comparison.scores]
    count = len(names)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(*matrix_size(comparison))
        for i, first in enumerate(names):
            for j, second in enumerate(names):
                if i == j:
                    axes.text(j, i, "·", ha="center", va="center", color=MUTED)
                    continue
                difference = comparison.between(first, second) if i < j else comparison.between(second, first)
                points = difference.points if i < j else -difference.points
                if difference.resolved:
                    color = BETTER if points > 0 else WORSE
                    axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, facecolor=color, alpha=0.25, linewidth=0))
                axes.text(
                    j,
                    i,
                    signed(points),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=INK if difference.resolved else MUTED,
                    fontweight="bold" if difference.resolved else "normal",
                )
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xticks(range(count), [f"#{ranks[name]}" for name in names])
        axes.set_yticks(range(count), [f"#{ranks[name]} {name}" for name in names])
        axes.tick_params(axis="both", labelcolor=INK, length=0)
        axes.xaxis.tick_top()
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        return svg(figure, "wins")


def signed(points: float) -> str:
    """One digit with its sign; none where it is rounded to zero."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def boundary_bands(curves: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> str:
    """Boundary F-score against the width of the band in pixels. curves: (label, (width, percent) rising)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(11.6, 3.9)
        for number, (label, points) in enumerate(curves):
            axes.plot(
                [width for width, _ in points],
                [percent for _, percent in points],
                **line_style(number),
                marker="o",
                markersize=4,
                linewidth=1.6,
                label=label,
            )
        axes.set_xticks(sorted({width for _, points in curves for width, _ in points}))
        axes.set_xlabel("band, pixels")
        axes.set_ylabel("boundary F-score %")
        legend(axes)
        return svg(figure, "bands")
