"""Draws dilated_training_*.svg from the rows of the study of dilated fine-tuning: curves of each set, all contrasts.

python docs/figures/dilated_training.py
"""

from functools import partial
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from scipy import stats

from experiments.reporting import load, plots
from experiments.reporting.content import gather

FOLDER = Path(__file__).parent
BENCHMARKS = FOLDER.parent / "benchmarks"
STUDIES = {
    "CamVid": BENCHMARKS / "dilation-branches-camvid-swinx_n-h100-2026-11-26.jsonl",
    "scenes": BENCHMARKS / "dilation-branches-scenes-swinx_n-cpu-2026-11-27.jsonl",
}
DECODERS = ("Segformer", "DeepLabV3PlusScaled")
# Stride and rule of each branch, its name, colour, marker and line.
BRANCHES = {
    (32, "exact"): ("stride 32, continued", "#56606f", "o", "-"),
    (16, "exact"): ("stride 16, exact", "#2563c9", "s", "-"),
    (16, "dense"): ("stride 16, ordinary windows", "#2563c9", "s", ":"),
    (8, "exact"): ("stride 8, exact", "#c2570c", "D", "-"),
    (8, "dense"): ("stride 8, ordinary windows", "#c2570c", "D", ":"),
}
# The primary contrasts of the plan, and what they ask.
CONTRASTS = {
    "exact-dense@os8,step0": "Exact − ordinary windows, stride 8, before training",
    "exact-dense@os8,step300": "Exact − ordinary windows, stride 8, after 300 steps",
    "exact+os8+centred-os32+alignment=none@step300": "Exact stride 8 − stride 32 continued, after 300 steps",
    "exact+os16+centred-os32+alignment=none@step300": "Exact stride 16 − stride 32 continued, after 300 steps",
}


def points(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Test mIoU of every branch and step, minus that of its source: mean over sources, and half of a 95 % interval."""
    start = rows[(rows["output_stride"] == 32) & (rows["step"] == 0)].set_index(["decoder", "seed"])["test_miou"]
    rows["points"] = rows["test_miou"] - rows.set_index(["decoder", "seed"]).index.map(start)
    found = rows.groupby(["decoder", "output_stride", "dilation", "step"])["points"].agg(["mean", "sem", "size"])
    found["half"] = found["sem"] * stats.t.ppf(0.975, found["size"] - 1)
    return found.reset_index()


def draw(study: str, *subplots: Axes) -> None:
    """One subplot for each decoder."""
    every = points(pandas.read_json(STUDIES[study], lines=True))
    for axes, decoder in zip(subplots, DECODERS, strict=True):
        for number, ((stride, rule), (name, color, marker, line)) in enumerate(BRANCHES.items()):
            one = every[
                (every["decoder"] == decoder) & (every["output_stride"] == stride) & (every["dilation"] == rule)
            ]
            places = [x + 0.06 * (number - 2) for x in range(len(one))]
            axes.errorbar(
                places, one["mean"], one["half"], color=color, marker=marker, linestyle=line, label=name, capsize=2
            )
        axes.axhline(0, color="black", linewidth=0.9)
        axes.set_xticks(range(5), sorted(every["step"].unique()))
        axes.set_ylabel("points above the source")
        axes.set_title(f"{study}: {decoder}", fontsize=10, loc="left")
    subplots[-1].set_xlabel("steps of training after the change of stride")
    handles, names = subplots[0].get_legend_handles_labels()
    subplots[0].figure.legend(handles, names, loc="outside upper left")


def main() -> None:
    named = {f"{key},{decoder}": (key, decoder) for key in CONTRASTS for decoder in DECODERS}
    bars = []
    for study, file in STUDIES.items():
        (FOLDER / f"dilated_training_{study.lower()}.svg").write_bytes(plots.render(partial(draw, study), 7.0, 2))
        for effect in gather(load.read([file]), list(named), strict=True).effects:
            key, decoder = named[effect.name]
            bars.append((key, decoder, study, effect.points, effect.low, effect.high, bool(effect.significant)))
    bars.sort(key=lambda bar: (list(CONTRASTS).index(bar[0]), DECODERS.index(bar[1])))  # the sets beside each other
    frame = pandas.DataFrame(bars, columns=["key", "decoder", "study", "value", "low", "high", "filled"])
    frame["name"] = [f"{CONTRASTS[bar[0]]}: {bar[1]}, {bar[2]}" for bar in bars]
    label = "points of test mIoU, with 95 % intervals;\nfilled: significant after Holm's correction"
    (FOLDER / "dilated_training_contrasts.svg").write_bytes(plots.forest(frame, label, lowest=float("-inf")))


if __name__ == "__main__":
    main()
