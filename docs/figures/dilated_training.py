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
SETS = {
    "CamVid": BENCHMARKS / "dilation-branches-camvid-swinx_n-h100-2026-11-26.jsonl",
    "scenes": BENCHMARKS / "dilation-branches-scenes-swinx_n-cpu-2026-11-27.jsonl",
    "scenes, Swin V2": BENCHMARKS / "dilation-branches-scenes-swinx_v2_n-cpu-2026-11-27.jsonl",
    "CamVid, control": BENCHMARKS / "dilation-branches-camvid-unet-swinx_n-cpu-2026-11-27.jsonl",
}
DECODERS = ("Segformer", "DeepLabV3PlusScaled")
# Set and decoder of each subplot.
FIGURES = {
    "camvid": [("CamVid", decoder) for decoder in DECODERS],
    "scenes": [("scenes", decoder) for decoder in DECODERS],
    "more": [("scenes, Swin V2", "Segformer"), ("CamVid, control", "Unet")],
}
# Stride and rule of each branch, its name, colour, marker and line.
BRANCHES = {
    (32, "exact"): ("stride 32, continued", "#56606f", "o", "-"),
    (16, "exact"): ("stride 16, exact", "#2563c9", "s", "-"),
    (16, "dense"): ("stride 16, ordinary windows", "#2563c9", "s", ":"),
    (16, "enlarged"): ("stride 16, enlarged windows", "#2563c9", "s", "--"),
    (8, "exact"): ("stride 8, exact", "#c2570c", "D", "-"),
    (8, "dense"): ("stride 8, ordinary windows", "#c2570c", "D", ":"),
    (8, "enlarged"): ("stride 8, enlarged windows", "#c2570c", "D", "--"),
}
# The primary contrasts of the plan, and what they ask.
CONTRASTS = {
    "exact-dense@os8,step0": "Exact − ordinary windows, stride 8, before training",
    "exact-dense@os8,step300": "Exact − ordinary windows, stride 8, after 300 steps",
    "enlarged-exact@os8,step0": "Enlarged windows − exact, stride 8, before training",
    "enlarged-exact@os8,step300": "Enlarged windows − exact, stride 8, after 300 steps",
    "exact+os8+centred-os32+alignment=none@step300": "Exact stride 8 − stride 32 continued, after 300 steps",
    "exact+os16+centred-os32+alignment=none@step300": "Exact stride 16 − stride 32 continued, after 300 steps",
}
# Which of them each set was planned for; the control has none of its own.
EXACT, ENLARGED, STRIDE = list(CONTRASTS)[:2], list(CONTRASTS)[2:4], list(CONTRASTS)[4:]
PLANNED = {
    **{name: [(key, decoder) for key in (*EXACT, *STRIDE) for decoder in DECODERS] for name in ("CamVid", "scenes")},
    "scenes, Swin V2": [(key, "Segformer") for key in (*EXACT, *ENLARGED)],
}


def points(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Test mIoU of every branch and step, minus that of its source: mean over sources, and half of a 95 % interval."""
    start = rows[(rows["output_stride"] == 32) & (rows["step"] == 0)].set_index(["decoder", "seed"])["test_miou"]
    rows["points"] = rows["test_miou"] - rows.set_index(["decoder", "seed"]).index.map(start)
    found = rows.groupby(["decoder", "output_stride", "dilation", "step"])["points"].agg(["mean", "sem", "size"])
    found["half"] = found["sem"] * stats.t.ppf(0.975, found["size"] - 1)
    return found.reset_index()


def draw(figure: str, *subplots: Axes) -> None:
    """One subplot for each set and decoder of a figure."""
    legend = {}
    for axes, (name, decoder) in zip(subplots, FIGURES[figure], strict=True):
        every = points(pandas.read_json(SETS[name], lines=True))
        every = every[every["decoder"] == decoder].set_index(["output_stride", "dilation"]).sort_index()
        for number, (branch, (label, color, marker, line)) in enumerate(BRANCHES.items()):
            if branch not in every.index:
                continue
            one = every.loc[[branch]].sort_values("step")
            places = [x + 0.05 * (number - 3) for x in range(len(one))]
            legend[label] = axes.errorbar(
                places, one["mean"], one["half"], color=color, marker=marker, linestyle=line, capsize=2
            )
        axes.axhline(0, color="black", linewidth=0.9)
        axes.set_xticks(range(5), sorted(every["step"].unique()))
        axes.set_ylabel("points above the source")
        axes.set_title(f"{name}: {decoder}", fontsize=10, loc="left")
    subplots[-1].set_xlabel("steps of training after the change of stride")
    subplots[0].figure.legend(legend.values(), legend, loc="outside upper left")


def main() -> None:
    for figure, subplots in FIGURES.items():
        content = plots.render(partial(draw, figure), 7.0, len(subplots))
        (FOLDER / f"dilated_training_{figure}.svg").write_bytes(content)
    bars = []
    for name, planned in PLANNED.items():
        named = {f"{key},{decoder}": (key, decoder) for key, decoder in planned}
        for effect in gather(load.read([SETS[name]]), list(named), strict=True).effects:
            key, decoder = named[effect.name]
            bars.append((key, decoder, name, effect.points, effect.low, effect.high, bool(effect.significant)))
    bars.sort(key=lambda bar: (list(CONTRASTS).index(bar[0]), DECODERS.index(bar[1])))  # the sets beside each other
    frame = pandas.DataFrame(bars, columns=["key", "decoder", "set", "value", "low", "high", "filled"])
    frame["name"] = [f"{CONTRASTS[bar[0]]}: {bar[1]}, {bar[2]}" for bar in bars]
    label = "points of test mIoU, with 95 % intervals;\nfilled: significant after Holm's correction of each set"
    (FOLDER / "dilated_training_contrasts.svg").write_bytes(plots.forest(frame, label, lowest=float("-inf")))


if __name__ == "__main__":
    main()
