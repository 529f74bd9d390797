"""Draws addressing.svg: where the tokens of a shifted window of a dilated, padded grid are, along one axis.

python docs/figures/addressing.py
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle

matplotlib.rcParams["svg.hashsalt"] = "addressing"  # the same file at every run
matplotlib.rcParams["font.size"] = 9

HEIGHT, DILATION, PHASE, WINDOW, SHIFT = 13, 2, 1, 4, 2
COUNT = (-(-HEIGHT // DILATION) + WINDOW - 1) // WINDOW  # windows of every lattice
WINDOW_COLORS = ("#1f77b4", "#ff7f0e")
OTHER, PADDING = "#c9ced8", "#ffffff"


def box(axes: Axes, x: float, y: float, text: str, color: str, dashed: bool = False, ink: str = "white") -> None:
    style = {"edgecolor": "#5b6475", "linestyle": "--"} if dashed else {"edgecolor": "none"}
    axes.add_patch(Rectangle((x - 0.44, y - 0.3), 0.88, 0.6, facecolor=color, linewidth=1, **style))
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8.5)


def link(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(ConnectionPatch(start, end, "data", color=color, linewidth=1, alpha=0.7))


def main() -> None:
    figure, axes = plt.subplots(figsize=(10.5, 4.2), layout="constrained")
    grid_y, lattice_y, window_y = 3.0, 1.6, 0.2
    rows = COUNT * WINDOW
    at = [1.6 * r + 1.2 for r in range(rows)]  # x of lattice rows and window places

    owner = {(place + SHIFT) % rows: place // WINDOW for place in range(rows)}
    for y in range(HEIGHT + DILATION * 2):
        row, own = divmod(y - PHASE, DILATION)
        real = y < HEIGHT
        on_lattice = own == 0 and 0 <= row < rows
        color = WINDOW_COLORS[owner[row]] if on_lattice and real else OTHER if real else PADDING
        box(axes, y, grid_y, str(y), color, dashed=not real, ink="white" if on_lattice and real else "#1d2433")
        if on_lattice:
            link(axes, (y, grid_y - 0.3), (at[row], lattice_y + 0.3), WINDOW_COLORS[owner[row]])
    for row in range(rows):
        real = PHASE + DILATION * row < HEIGHT
        color = WINDOW_COLORS[owner[row]]
        box(axes, at[row], lattice_y, str(row), color if real else PADDING, not real, "white" if real else "#1d2433")
    for place in range(rows):
        row = (place + SHIFT) % rows
        real, color = PHASE + DILATION * row < HEIGHT, WINDOW_COLORS[place // WINDOW]
        link(axes, (at[row], lattice_y - 0.3), (at[place], window_y + 0.3), color)
        box(axes, at[place], window_y, str(row), color if real else PADDING, not real, "white" if real else "#1d2433")
    for index in range(COUNT):
        middle = sum(at[index * WINDOW : (index + 1) * WINDOW]) / WINDOW
        axes.text(middle - 1.6 * (index == 1) * 0.9, window_y - 0.52, f"window i = {index}", ha="center", va="top",
                  color=WINDOW_COLORS[index], fontsize=9, fontweight="bold")  # fmt: skip
    wrapped = at[-SHIFT:]
    note = "brought by the roll:\nanother region"
    axes.text(sum(wrapped) / SHIFT, window_y - 0.48, note, ha="center", va="top", fontsize=8)
    for y, text in (
        (grid_y, f"rows y of the grid\nH = {HEIGHT}"),
        (lattice_y, f"rows of lattice p = {PHASE}\nof period d = {DILATION}"),
        (window_y, f"places in windows\nw = {WINDOW}, shift {SHIFT}"),
    ):
        axes.text(-1, y, text, ha="right", va="center", fontsize=9)
    axes.set_xlim(-4.2, HEIGHT + 4)
    axes.set_ylim(-1.0, 3.6)
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
