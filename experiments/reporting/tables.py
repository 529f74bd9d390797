"""The tables of a report as texts."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy

from experiments.records.counts import ImageCounts, miou
from experiments.reporting.content import Content, Frame
from experiments.statistics.significance import Effect

MISSING = "\N{EN DASH}"
# Of more pairs than this, those with the best configuration are shown; differences.csv has all.
MOST_PAIRS = 10
# More groups of test images than this are not shown one by one.
MOST_GROUPS = 8
# Heading, key in the summary, digits: means, and of percentages the standard deviation.
COLUMNS = (
    *(("test mIoU %", "test_miou", 1), ("val mIoU %", "val_miou", 1), ("boundary F %", "boundary_f1 2", 1)),
    *(("params M", "params_m", 2), ("GFLOPs", "gflops", 2), ("latency ms", "latency_ms_p50", 1)),
)


def number(value: float | None, digits: int = 1, sign: str = "") -> str:
    """A number with so many digits; sign "+": of differences, where a rounded zero has none."""
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:{sign}.{digits}f}"
    return (text if float(text) else text.lstrip("+-")).replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """An interval of one digit."""
    ends = [number(low, 1, sign), number(high, 1, sign)]
    return MISSING if MISSING in ends else " to ".join(ends)


def ranking(table: Frame) -> Frame:
    """The columns of the summary that matter most, without those that are empty."""
    frame = table[["rank", "label", "seeds"]].astype(str).set_axis(["#", "configuration", "seeds"], axis=1)
    kinds = [key for key in table if key.startswith("corruption_miou ")]
    for heading, key, digits in (*COLUMNS, *((f"under {key.partition(' ')[2]} %", key, 1) for key in kinds)):
        if key in table:
            pairs = table[[key, f"sd of {key}"]].itertuples(index=False)
            spread = [f" ± {number(sd, digits)}" if "%" in heading and not math.isnan(sd) else "" for _, sd in pairs]
            frame[heading] = table[key].map(lambda mean, digits=digits: number(mean, digits)) + spread
    frame.insert(4, "95 % interval", [interval(*ends) for ends in table[["low", "high"]].itertuples(index=False)])
    frame.insert(5, "groups", table["letters"].replace("", MISSING))
    return frame.loc[:, (frame != MISSING).any()]


def classes(table: Frame) -> Frame:
    """Test IoU in percent, mean over seeds: a line for each configuration, a column for each class; NaN if absent."""
    found = table.filter(regex="^class_iou ").rename(columns=lambda name: name.partition(" ")[2])
    return found.set_axis(table["rank"].astype(str) + " " + table["label"]).rename_axis("configuration")


def groups(content: Content) -> Frame:
    """Test mIoU in percent over the images of each group alone, mean over seeds: a column for each group.

    Of a group such as drive/stretch the part before the first "/" counts. Without columns where each image stands for
    itself, and where there is one group or more than MOST_GROUPS.
    """
    lines: dict[str, dict[str, float]] = {}
    for rank, one in enumerate(content.configurations, start=1):
        parts = [_by_group(item.counts) for item in one.results if item.counts]
        if parts and all(part.keys() == parts[0].keys() for part in parts):
            lines[f"{rank} {one.label}"] = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    frame = Frame.from_dict(lines, orient="index").rename_axis("configuration")
    return frame if 2 <= frame.shape[1] <= MOST_GROUPS else Frame()


def _by_group(counts: ImageCounts) -> dict[str, float]:
    """Test mIoU by group and number of its images."""
    if counts.groups == counts.names:
        return {}
    outer = numpy.array([group.partition("/")[0] for group in counts.groups])
    chosen = {f"{name} ({(outer == name).sum()} images)": outer == name for name in dict.fromkeys(outer.tolist())}
    return {name: float(miou(counts.hits[which].sum(0), counts.union[which].sum(0))) for name, which in chosen.items()}


def effects(content: Content) -> Frame:
    """The content of differences.csv."""
    lines = [asdict(e) | {"contrast": e.name, "made of": e.contrast.note} for e in content.effects]
    names = ("points", "low", "high", "p", "p_corrected", "significant", "reason", "smallest")
    return Frame(lines, columns=["contrast", "made of", *names])


def shown_effects(content: Content) -> Sequence[Effect]:
    """The planned effects; or all pairs, of many those with the best configuration."""
    if content.planned or len(content.effects) <= MOST_PAIRS:
        return content.effects
    best = next(c.label for c in content.configurations if any(c.label in e.contrast.weights for e in content.effects))
    return [effect for effect in content.effects if best in effect.contrast.weights]


def differences(content: Content) -> Frame:
    """The shown effects."""
    shown = shown_effects(content)
    frame = Frame({"contrast": [effect.name for effect in shown]})
    frame["points"] = [number(effect.points, 1, "+") for effect in shown]
    frame["95 % interval"] = [interval(effect.low, effect.high, "+") for effect in shown]
    corrected = [number(effect.p_corrected, 3) for effect in shown]
    frame["p, corrected"] = ["< 0.001" if p == "0.000" else p for p in corrected]
    frame["result"] = [verdict(effect).partition(" (")[0] for effect in shown]
    # Points of mIoU end at 100: no difference could have been found then.
    frame["smallest to be found"] = ["none" if (e.smallest or 0) > 100 else number(e.smallest) for e in shown]
    frame["made of"] = [effect.contrast.note or MISSING for effect in shown]
    return frame.loc[:, (frame != MISSING).any()]


def verdict(effect: Effect) -> str:
    """What may be said of an effect."""
    if effect.significant is None:
        return f"not tested ({effect.reason})"
    return "significant" if effect.significant else "not significant"


def unfinished(content: Content) -> Frame:
    """Run, status and error of each row without a result."""
    rows = [item.row for item in content.results.items if item.row["status"] != "ok"]
    return Frame(rows, columns=["run", "status", "error"]).astype(str).drop_duplicates()
