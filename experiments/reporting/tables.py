"""The tables of a report, as numbers for CSV files and as texts for pages; and their HTML, Markdown and LaTeX.

Names come from data and rows, and may hold what is markup there: every renderer escapes all texts.
"""

import html
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from matplotlib.colors import LinearSegmentedColormap
from pandas.io.formats.style import Styler

from experiments.reporting.content import Configuration, Content
from experiments.reporting.rows import AXES, MISSING
from experiments.statistics.significance import Effect, letters

# More pairs than this are left to differences.csv, but for those with the best configuration.
MOST_PAIRS = 10
SCORES = ("test_miou", "val_miou", "best_val_miou", "thin_miou", "test_f1", "pixel_accuracy", "ece")
COSTS = ("params_m", "gflops", "latency_ms_p50", "peak_memory_mb", "train_minutes", "images_seen")
# Bands at which tables have the boundary F-score: pixels, and share of the image diagonal.
BANDS = ("2", "0.75%")
INCOMPARABLE = "\N{DAGGER}"


@dataclass(frozen=True)
class Column:
    """A column: key in the summary, heading, digits (None: text), and what it means."""

    key: str
    heading: str
    digits: int | None
    meaning: str


COLUMNS = (
    Column("rank", "#", 0, "rank by test mIoU"),
    Column("decoder", "decoder", None, "decoder of segmentation_models_pytorch"),
    Column("encoder", "encoder", None, "encoder"),
    Column("stem", "stem", None, "what makes the stride-2 level"),
    Column("output_stride", "OS", None, "output stride of the encoder"),
    Column("dilation", "dilation", None, "how stages beyond the output stride attend"),
    Column("window", "window", None, "side of an attention window in tokens"),
    Column("alignment", "alignment", None, "where tokens of dilated levels stand"),
    Column("inference", "inference", None, "how images are predicted, where that is more than one call of the model"),
    Column("seeds", "seeds", 0, "runs behind the means"),
    Column("test_miou", "test mIoU %", 1, "mean IoU over classes that occur, ± standard deviation between seeds"),
    Column("low", "95 % interval", 1, "of test mIoU"),
    Column("letters", "groups", None, "configurations that share a letter are not significantly different"),
    Column("val_miou", "val mIoU %", 1, "mean IoU on the validation split"),
    Column("best_val_miou", "best val %", 1, "highest validation mIoU in training"),
    Column("thin_miou", "thin IoU %", 1, "mean IoU of thin classes"),
    Column("test_f1", "F1 %", 1, "mean F1 over classes that occur"),
    Column("boundary_f1 2", "boundary F %", 1, "boundary F-score within 2 pixels"),
    Column("boundary_f1 0.75%", "boundary F % at 0.75 %", 1, "within 0.75 % of the image diagonal"),
    Column("thin_boundary_f1 2", "thin boundary F %", 1, "of thin classes, within 2 pixels"),
    Column("pixel_accuracy", "pixel acc. %", 1, "share of pixels that are right"),
    Column("ece", "ECE %", 1, "expected calibration error, 15 bins"),
    Column("params_m", "params M", 2, "millions of parameters"),
    Column("gflops", "GFLOPs", 2, "of one call of the model on one image; two for each multiply-add"),
    Column("latency_ms_p50", "latency ms", 1, "one call of the model on one image, median (20th to 80th percentile)"),
    Column("peak_memory_mb", "memory MB", 0, "peak over training and evaluation"),
    Column("train_minutes", "train min", 1, "wall time of training"),
    Column("images_seen", "images seen", 0, "training images, repeats counted"),
)
# Not a column but a fact where all configurations agree.
CONSTANT = (*(name for name in AXES if name not in ("decoder", "output_stride")), "inference", "seeds", "images_seen")


def columns(content: Content, table: pandas.DataFrame) -> tuple[list[Column], list[tuple[str, str]]]:
    """The columns of the summary that are worth showing, and (heading, value) of those that are the same everywhere."""
    settings = [Column(k, k.replace("_", " "), None, "setting") for k in _settings(content)]
    kinds = [key for key in table if key.startswith("corruption_miou ")]
    corrupted = [Column(k, f"mIoU % under {k.partition(' ')[2]}", 1, "on corrupted test images") for k in kinds]
    position = [column.key for column in COLUMNS].index("seeds")
    shown, constant = [], []
    for column in (*COLUMNS[:position], *settings, *COLUMNS[position:], *corrupted):
        values = table[column.key].replace({MISSING: None, "": None}).dropna()
        if column.key in CONSTANT and values.nunique() == 1 and len(values) == len(table):
            constant.append((column.heading, _text(values.iloc[0], column.digits)))
        elif len(values):
            shown.append(column)
    return shown, constant


def _settings(content: Content) -> list[str]:
    fields = content.configurations[0].fields if content.configurations else {}
    return [name for name in fields if name not in (*AXES, "inference")]


def summary(content: Content) -> pandas.DataFrame:
    """One line for each configuration, best first: fields, means over seeds with KEY sd (sample), medians of costs."""
    groups = letters(content.comparison) if content.comparison and not content.planned else {}
    kinds = sorted({k for c in content.configurations for i in c.results for k in i.row.get("corruption_miou") or ()})
    parts = [(key, None) for key in SCORES] + [(k, band) for k in ("boundary_f1", "thin_boundary_f1") for band in BANDS]
    parts += [("corruption_miou", kind) for kind in kinds]
    lines = []
    for rank, configuration in enumerate(content.configurations, start=1):
        score = content.scores.get(configuration.label)
        line: dict[str, object] = {"rank": rank, "label": configuration.label, **configuration.fields}
        line["seeds"] = len(configuration.results)
        for key, part in parts:
            values, name = configuration.values(key, part), key if part is None else f"{key} {part}"
            line[name] = configuration.mean(key, part)
            line[f"{name} sd"] = statistics.stdev(values) if len(values) > 1 else math.nan
        line["low"], line["high"] = score.interval or (None, None) if score else (None, None)
        line["letters"] = groups.get(configuration.label, "")
        line |= {key: _median(configuration.values(key)) for key in COSTS}
        line |= latency(configuration, content.sitting)
        lines.append(line)
    names = [column.key for column in COLUMNS]
    return pandas.DataFrame(lines, columns=None if lines else ["label", *names, "high"])


def latency(configuration: Configuration, sitting: str | None) -> dict[str, object]:
    """Medians of the latencies of the sitting, and whether they may be compared; of all where it has none there."""
    rows = [item.row for item in configuration.results]
    there = [row for row in rows if sitting is not None and row.get("latency_sitting") == sitting]
    told: dict[str, object] = {"latency_comparable": bool(there)}
    for key in ("latency_ms_p20", "latency_ms_p50", "latency_ms_p80"):
        told[key] = _median([row[key] for row in there or rows if row.get(key) is not None])
    return told


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def ranking(content: Content, table: pandas.DataFrame, shown: Sequence[Column]) -> pandas.DataFrame:
    """The summary as texts under headings."""
    lines = []
    for _, line in table.iterrows():
        cells = {}
        for column in shown:
            text = _text(line[column.key], column.digits)
            if column.key == "low" and text != MISSING:
                text += f" to {_text(line['high'], 1)}"
            elif column.key == "latency_ms_p50" and text != MISSING:
                text += f" ({_text(line['latency_ms_p20'], 1)} to {_text(line['latency_ms_p80'], 1)})"
                text += "" if line["latency_comparable"] or len(table) == 1 else f" {INCOMPARABLE}"
            elif column.digits is not None and pandas.notna(line.get(f"{column.key} sd")):
                text += f" ± {_text(line[f'{column.key} sd'], column.digits)}"
            cells[column.heading] = text
        lines.append(cells)
    return pandas.DataFrame(lines, columns=[column.heading for column in shown])


def _text(value: object, digits: int | None) -> str:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return str(value) if digits is None else f"{value:.{digits}f}"


def classes(content: Content) -> pandas.DataFrame:
    """Test IoU in percent, mean over seeds: a line for each configuration, a column for each class; NaN if absent."""
    tables = {c.label: [item.row.get("class_iou") or {} for item in c.results] for c in content.configurations}
    means = {label: pandas.DataFrame(lines).astype(float).mean() for label, lines in tables.items()}
    return pandas.DataFrame(means).T.rename_axis("configuration")


def effects(content: Content) -> pandas.DataFrame:
    """The content of differences.csv."""
    names = ("points", "low", "high", "p", "p_corrected", "significant", "reason", "smallest")
    lines = [{"contrast": e.name, **{name: getattr(e, name) for name in names}} for e in content.effects]
    frame = pandas.DataFrame(lines, columns=["contrast", *names])
    return frame.assign(significant=frame["significant"].map({True: "true", False: "false"}))


def shown_effects(content: Content) -> list[Effect]:
    """The planned effects; or all pairs, of many those with the best configuration."""
    if content.planned or len(content.effects) <= MOST_PAIRS:
        return content.effects
    best, *others = [label for label in (c.label for c in content.configurations) if label in content.scores]
    return [effect for other in others if (effect := content.effect(best, other)) is not None]


def differences(content: Content) -> pandas.DataFrame:
    """The shown effects as texts."""
    lines = []
    for effect in shown_effects(content):
        interval = MISSING if effect.low is None else f"{signed(effect.low)} to {signed(effect.high)}"
        corrected = MISSING if effect.p_corrected is None else f"{effect.p_corrected:.3f}".replace("0.000", "< 0.001")
        line = {"contrast": effect.name, "points": signed(effect.points), "95 % interval": interval}
        line |= {"p, corrected": corrected, "result": verdict(effect)}
        # Points of mIoU end at 100: no difference could have been found then.
        hopeless = effect.smallest is not None and effect.smallest > 100
        line["smallest that could be found"] = "none" if hopeless else _text(effect.smallest, 1)
        lines.append(line | {"made of": effect.contrast.note} if content.planned else line)
    return pandas.DataFrame(lines)


def verdict(effect: Effect | None) -> str:
    """What may be said of an effect."""
    if effect is None or effect.significant is None:
        return f"not tested ({effect.reason if effect else 'no planned contrast'})"
    return "significant" if effect.significant else "not significant"


def class_texts(content: Content) -> pandas.DataFrame:
    """classes() as texts, the configuration in the first column."""
    return classes(content).map(lambda value: _text(value, 1)).reset_index()


def signed(points: float | None) -> str:
    """One digit with its sign; none where it is rounded to zero."""
    text = MISSING if points is None else f"{points:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text.replace("-", "\N{MINUS SIGN}")


def names(frame: pandas.DataFrame) -> list[str]:
    """The columns of a table of texts that are to be set left: those that hold more than numbers."""
    number = re.compile(rf"(< |[+\N{{MINUS SIGN}}])?\d|{MISSING}$")
    return [column for column in frame if not frame[column].map(lambda text: bool(number.match(text))).all()]


def to_html(frame: pandas.DataFrame, name: str) -> str:
    """A table of texts; name: its id, which no other of the page has."""
    styler = Styler(frame, uuid=name, cell_ids=False).hide(axis="index").format(escape="html")
    left: Any = {column: [{"selector": "", "props": "text-align: left"}] for column in names(frame)}
    return styler.set_table_styles(left).format_index(escape="html", axis=1).to_html() if len(frame) else ""


def heat_map(frame: pandas.DataFrame, name: str) -> str:
    """Percentages as a table whose cells are darker the more they are; both axes carry names."""
    light = LinearSegmentedColormap.from_list("light", ["#ffffff", "#74a9e0"])  # dark letters are legible on all of it
    styler = Styler(frame, uuid=name).format("{:.0f}", na_rep=MISSING).highlight_null(color="#dddddd")
    styler = styler.background_gradient(light, vmin=0, vmax=100, axis=None).set_properties(color="#1d2433")
    return styler.format_index(escape="html", axis=0).format_index(escape="html", axis=1).to_html()


def to_markdown(frame: pandas.DataFrame) -> str:
    """A table of texts as GitHub's Markdown has it, "" without lines."""
    left = names(frame)
    aligned = ["left" if column in left else "right" for column in frame]
    plain = frame.rename(columns=markdown_text).map(markdown_text)
    return plain.to_markdown(index=False, disable_numparse=True, colalign=aligned) if len(frame) else ""


def markdown_text(text: object) -> str:
    """A text in which nothing is markup, for Markdown and the HTML in it."""
    return re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(str(text), quote=False))


def to_csv(frame: pandas.DataFrame) -> str:
    """CSV whose texts no spreadsheet takes for formulas: one that begins like a formula gets an apostrophe before."""

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(tuple("=+-@")) else value

    return frame.map(plain).rename(columns=plain).to_csv(index=False)


LATEX = {
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"\(\pm\)", "·": r"\textperiodcentered{}",
    MISSING: "--", INCOMPARABLE: r"\(\dagger\)", "\N{MINUS SIGN}": r"\(-\)",
}  # fmt: skip


def to_latex(frame: pandas.DataFrame, caption: str) -> str:
    """A floating table of texts for documents that load booktabs, "" without lines."""
    styler = Styler(frame).hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    left = names(frame)
    aligned = "".join("l" if column in left else "r" for column in frame)
    text: str = styler.to_latex(hrules=True, column_format=aligned, caption=caption, position_float="centering")
    text = text.replace("\\centering", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}")
    return text.translate(str.maketrans(LATEX)) if len(frame) else ""
