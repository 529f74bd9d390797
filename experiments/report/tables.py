"""Rows of kind "segmentation" as tables: a ranking over configurations, and classes by configuration.

A configuration is what a cell is without its seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from experiments.cells import own_window
from experiments.evaluation.inference import PLAIN
from experiments.records import Row

CONFIGURATION = ["decoder", "encoder", "stem", "output_stride", "dilation", "window", "alignment", "inference"]
# Rows of swinx's encoders from before these fields existed are of these values; others have None there.
EARLIER = {"dilation": "exact", "window": None, "alignment": "none"}
# Fields of a row that say how images are predicted; tables have them in words, as inference.
PREDICTION = ("tile", "overlap", "flip", "scales")
# The width in pixels at which the tables tell the boundary F-score.
BAND = "2"
SPREAD = [
    "test_miou",
    "val_miou",
    "best_val_miou",
    "thin_miou",
    "test_f1",
    "boundary_f",
    "thin_boundary_f",
    "pixel_accuracy",
    "ece",
]
INTERVAL = ["interval_low", "interval_high"]
COST = [
    "params_m",
    "gflops",
    "latency_ms_p20",
    "latency_ms_p50",
    "latency_ms_p80",
    "peak_memory_mb",
    "train_minutes",
    "images_seen",
]


@dataclass(frozen=True)
class Column:
    """A column of the ranking: key in the summary, heading, digits (None: text), and what the heading means."""

    key: str
    heading: str
    digits: int | None
    meaning: str


COLUMNS = [
    Column("rank", "#", 0, "rank by test mIoU"),
    Column("decoder", "decoder", None, "decoder of segmentation_models_pytorch"),
    Column("encoder", "encoder", None, "encoder"),
    Column("stem", "stem", None, "what makes the stride-2 level"),
    Column("output_stride", "OS", 0, "output stride of the encoder"),
    Column("dilation", "dilation", None, "how stages beyond the output stride attend"),
    Column("window", "window", None, "window side in tokens; a dash for encoders without windows or of your own"),
    Column("alignment", "alignment", None, "where tokens of dilated levels stand"),
    Column("inference", "inference", None, "how images are predicted; a dash for one call of the model"),
    Column("seeds", "seeds", 0, "number of seeds behind the means"),
    Column("test_miou", "test mIoU %", 1, "mean IoU on the test split, over classes that occur"),
    Column("interval_low", "95 % interval", 1, "of test mIoU, over test images and, where known, seeds"),
    Column("val_miou", "val mIoU %", 1, "mean IoU on the validation split"),
    Column("best_val_miou", "best val %", 1, "highest validation mIoU in training"),
    Column("thin_miou", "thin IoU %", 1, "mean IoU of thin classes on the test split"),
    Column("test_f1", "F1 %", 1, "mean F1 on the test split, over classes that occur"),
    Column("boundary_f", "boundary F %", 1, f"boundary F-score on the test split within {BAND} pixels"),
    Column("thin_boundary_f", "thin bound. F %", 1, f"boundary F-score of thin classes within {BAND} pixels"),
    Column("pixel_accuracy", "pixel acc. %", 1, "share of test pixels that are right"),
    Column("ece", "ECE %", 1, "expected calibration error on the test split, 15 bins"),
    Column("params_m", "params M", 2, "millions of parameters"),
    Column("gflops", "GFLOPs", 2, "two per multiply-add, one call of the model on one image"),
    Column("latency_ms_p50", "latency ms", 1, "one call of the model on one image, median"),
    Column("peak_memory_mb", "memory MB", 0, "peak over training and evaluation"),
    Column("train_minutes", "train min", 1, "wall time of training"),
    Column("images_seen", "images seen", 0, "training images, repeats counted"),
]
MISSING = "\N{EN DASH}"
# Left out of a table, and told once beside it, where all configurations agree.
CONSTANT = ["encoder", "stem", "dilation", "window", "alignment", "inference", "seeds", "images_seen"]
# Between the parts of an inference. A comma would part the values of --where.
AND = " + "
TILES, OVERLAP = "tiles ", " overlap "


def normal(row: Row) -> Row:
    """A row with every field that the tables use.

    Missing ones of earlier rows are filled in, and so is the window that an encoder comes with; None is a dash.
    """
    earlier = EARLIER if row["stem"] is not None else dict.fromkeys(EARLIER)
    full = {**dict.fromkeys([*SPREAD, *COST]), **earlier, **row}
    full["inference"] = inference(row) or MISSING
    if full["window"] is None:
        full["window"] = own_window(row["encoder"])
    full |= {key: MISSING if full[key] is None else full[key] for key in ("stem", "dilation", "window", "alignment")}
    full["window"] = str(full["window"])
    full["boundary_f"] = (row.get("boundary_f1") or {}).get(BAND)
    full["thin_boundary_f"] = (row.get("thin_boundary_f1") or {}).get(BAND)
    return full


def inference(row: Row) -> str:
    """How the images of a row are predicted, where that is more than one call of the model; "" elsewhere."""
    parts = []
    if row.get("tile"):
        overlap = "" if row["overlap"] == PLAIN.overlap else f"{OVERLAP}{row['overlap']}"
        parts.append(f"{TILES}{row['tile'][0]}x{row['tile'][1]}{overlap}")
    if row.get("flip"):
        parts.append("mirrored")
    if row.get("scales") not in (None, [1.0]):
        parts.append(f"scales {' '.join(map(str, row['scales']))}")
    return AND.join(parts)


def summary(rows: Sequence[Row]) -> pandas.DataFrame:
    """One line per configuration that finished, best test mIoU first.

    Columns: rank, label, CONFIGURATION, seeds, means of SPREAD with their sample standard deviation as KEY_sd (NaN for
    one seed), medians of COST, and the 95 % interval of test_miou as INTERVAL, NaN until something sets it.
    """
    frame = pandas.DataFrame([normal(row) for row in rows if row["status"] == "ok"])
    if frame.empty:
        return pandas.DataFrame(columns=["rank", "label", *CONFIGURATION, "seeds", *SPREAD, *COST, *INTERVAL])
    frame[SPREAD + COST] = frame[SPREAD + COST].astype(float)
    groups = frame.groupby(CONFIGURATION, sort=False)
    table = groups[SPREAD].mean().join(groups[SPREAD].std().add_suffix("_sd")).join(groups[COST].median())
    table = table.join(groups.size().rename("seeds")).reset_index()
    table = table.sort_values("test_miou", ascending=False, kind="stable", na_position="last", ignore_index=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    table.insert(1, "label", labels(table))
    table[INTERVAL] = math.nan
    return table


def labels(table: pandas.DataFrame) -> list[str]:
    """Shortest names that tell the configurations apart: the decoder, and whatever else varies."""
    encoders = table.groupby("encoder")
    varies = {key: bool((encoders[key].nunique() > 1).any()) for key in ("stem", "dilation", "window", "alignment")}
    varies["encoder"] = table["encoder"].nunique() > 1
    varies["output_stride"] = bool((table.groupby("decoder")["output_stride"].nunique() > 1).any())
    ways = _ways(table["inference"].tolist())
    names = []
    for way, (_, line) in zip(ways, table.iterrows(), strict=True):
        parts = [str(line["decoder"])]
        parts += [str(line[key]) for key in ("encoder", "stem") if varies[key]]
        parts += [f"OS {line['output_stride']}"] if varies["output_stride"] else []
        parts += [str(line["dilation"])] if varies["dilation"] and line["dilation"] != MISSING else []
        parts += [f"window {line['window']}"] if varies["window"] and line["window"] != MISSING else []
        # "none" would read like the stem of that name.
        parts += [str(line["alignment"])] if varies["alignment"] and line["alignment"] == "centred" else []
        parts += way
        names.append(" · ".join(parts))
    return names


def _ways(inferences: Sequence[str]) -> list[list[str]]:
    """What tells each inference from the others: parts that not all have; the overlap only where tiles differ in it."""
    ways = [[] if text == MISSING else text.split(AND) for text in inferences]
    common = set.intersection(*map(set, ways)) if ways else set()
    tiles = {part for way in ways for part in way if part.startswith(TILES)}
    short = {part: part.split(OVERLAP)[0] for part in tiles}
    if len(set(short.values())) < len(tiles):
        short = {}
    return [[short.get(part, part) for part in way if part not in common] for way in ways]


def class_table(rows: Sequence[Row], table: pandas.DataFrame) -> pandas.DataFrame:
    """Test IoU in percent, mean over seeds: one line per class, one column per label of summary(); NaN where absent."""
    columns = {}
    for _, line in table.iterrows():
        matching = [row["class_iou"] for row in finished(rows, line)]
        columns[line["label"]] = pandas.DataFrame(matching).astype(float).mean()
    return pandas.DataFrame(columns).rename_axis("class")


def finished(rows: Sequence[Row], line: "pandas.Series[Any]") -> list[Row]:
    """The finished rows behind one line of summary(), by seed."""
    wanted = [line[key] for key in CONFIGURATION]
    matching = [row for row in rows if row["status"] == "ok" and [normal(row)[key] for key in CONFIGURATION] == wanted]
    return sorted(matching, key=lambda row: int(row["seed"]))


def shown_columns(table: pandas.DataFrame) -> list[Column]:
    """The columns worth a place: not empty, and not the same everywhere where that can be told once."""
    return [
        column
        for column in COLUMNS
        if table[column.key].notna().any() and not (column.key in CONSTANT and table[column.key].nunique() == 1)
    ]


def constants(table: pandas.DataFrame) -> list[tuple[str, str]]:
    """Heading and value of what shown_columns() leaves out because all configurations agree."""
    facts = []
    for column in COLUMNS:
        values = table[column.key].dropna().unique()
        if column.key in CONSTANT and len(values) == 1 and values[0] != MISSING:
            facts.append((column.heading, cell_text(column, values[0])))
    return facts


def cell_text(column: Column, value: Any, spread: float | None = None) -> str:
    """A value as it is printed: its digits, ± the spread where there is one, – where it is missing."""
    if pandas.isna(value):
        return MISSING
    if column.digits is None:
        return str(value)
    text = f"{value:,.{column.digits}f}".replace(",", "\u202f")
    return text if spread is None or pandas.isna(spread) else f"{text} ± {spread:.{column.digits}f}"


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first text_columns columns are set left, the others right. A bar in a cell stays one."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(headings))]
    plain = [[cell.replace("|", "\\|") for cell in line] for line in [headings, rule, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in plain)
