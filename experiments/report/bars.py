"""Bars of several series side by side, as inline SVG."""

from collections.abc import Sequence

import matplotlib

from experiments.report.plots import INK, SERIES, STYLE, canvas, legend, svg

HEIGHT = 0.2  # inches for each bar


def horizontal(
    groups: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float | None]], label: str, plot: str
) -> str:
    """One group of bars for each of groups, one bar in it for each of names; values[name][group], None for no bar.

    plot: a name that no other plot of the page has.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(11.6, 1.2 + HEIGHT * len(names) * len(groups) * 1.25)
        height = 0.8 / len(names)
        for number, (name, row) in enumerate(zip(names, values, strict=True)):
            places = [index + (number - (len(names) - 1) / 2) * height for index in range(len(groups))]
            color = SERIES[number % len(SERIES)]
            axes.barh(places, [value or 0 for value in row], height * 0.88, color=color, label=name)
            for place, value in zip(places, row, strict=True):
                if value is not None:
                    axes.annotate(
                        f"{value:.2f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8
                    )
        axes.set_yticks(range(len(groups)), groups)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.grid(False, axis="y")
        axes.invert_yaxis()
        axes.margins(x=0.06, y=0.02)
        axes.set_xlabel(label)
        legend(axes)
        return svg(figure, plot)
