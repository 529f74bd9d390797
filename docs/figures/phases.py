"""Draws phases.svg: phases of a dilated grid, a window on one lattice, and the taps of a dense merge.

python docs/figures/phases.py
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

matplotlib.rcParams["svg.hashsalt"] = "phases"  # the same file at every run
matplotlib.rcParams["font.size"] = 9

PHASE_COLORS = {(0, 0): "#1f77b4", (0, 1): "#ff7f0e", (1, 0): "#2ca02c", (1, 1): "#9467bd"}
SIZE, WINDOW = 8, 2


def grid(axes: Axes, size: int, title: str) -> None:
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def token(axes: Axes, y: int, x: int, color: str, strong: bool, text: str = "") -> None:
    box = Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, facecolor=color, alpha=0.95 if strong else 0.25)
    axes.add_patch(box)
    if text:
        axes.text(x, y, text, ha="center", va="center", color="white" if strong else "black", fontsize=8)


def main() -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 4.1), layout="constrained")

    grid(left, SIZE // 2, "output stride 32: period 1\none window of 2 × 2 tokens (dark)")
    for y in range(SIZE // 2):
        for x in range(SIZE // 2):
            token(left, y, x, PHASE_COLORS[0, 0], y < WINDOW and x < WINDOW)

    grid(middle, SIZE, "output stride 16: period 2, four phases (p, q)\nthe same window on lattice (0, 0) (dark)")
    for y in range(SIZE):
        for x in range(SIZE):
            p, q = y % 2, x % 2
            token(middle, y, x, PHASE_COLORS[p, q], (p, q) == (0, 0) and y < 4 and x < 4, f"{p},{q}")

    grid(right, SIZE, "dense merge, incoming period e = 2\ntaps of the result at row 2, column 3, in order")
    for y in range(SIZE):
        for x in range(SIZE):
            token(right, y, x, "#7f7f7f", False)
    for number, (dy, dx) in enumerate(((0, 0), (2, 0), (0, 2), (2, 2)), start=1):
        token(right, 2 + dy, 3 + dx, "#d62728", True, str(number))

    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
