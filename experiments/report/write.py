"""One folder of rows and side files in, report.md, report.html and tables out."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from markupsafe import Markup

from experiments.records import Row, read_rows, write_whole
from experiments.report import pages, plots, tables

HOW_TO_READ = (
    "Every configuration trains from scratch under the same budget, on the same batches for a given seed, and is "
    "evaluated once, with the moving average of its weights at the end of the budget. No checkpoint is selected, so "
    "val and test are both held-out scores: choose by val, report test. "
    "IoU is computed from one confusion matrix over all pixels that are not ignored; a class that is neither in the "
    "truth nor predicted is left out of the means. "
    "GFLOPs count two per multiply-add of matrix products and convolutions, for one image. Latency is for one image, "
    "bytes in and logits out; the range is from the 20th to the 80th percentile."
)


def write_report(output: Path) -> None:
    """Write report.md, report.html, summary.csv and class_iou.csv from the rows in output/results.jsonl.

    Reads nothing else but panel/ and cells/ as written by experiments.evaluation.panel and compare_decoders. Each file
    is replaced whole. Where no cell has finished, the report says so.
    """
    rows = [row for row in read_rows(output / "results.jsonl") if row["kind"] == "segmentation"]
    data = json.loads((output / "panel" / "data.json").read_text())
    table = tables.summary(rows)
    classes = tables.class_table(rows, table)
    write_whole(output / "summary.csv", table.to_csv(index=False))
    write_whole(output / "class_iou.csv", classes.to_csv())
    write_whole(output / "report.md", _markdown(rows, data, table, classes))
    write_whole(output / "report.html", _html(output, rows, data, table, classes))


def _facts(rows: Sequence[Row], data: dict[str, Any], table: pandas.DataFrame) -> list[tuple[str, str]]:
    """What holds for the whole report, as (name, value). Values that differ between rows are all listed."""

    def every(key: str) -> str:
        values = dict.fromkeys(str(row[key]) for row in rows if row[key] is not None)
        return ", ".join(values) or "unknown"

    counts = ", ".join(f"{count} {split}" for split, count in data["images"].items())
    budget = ", ".join(
        dict.fromkeys(f"{row['steps']} steps" if row["steps"] else f"{row['minutes']:g} minutes" for row in rows)
    )
    commits = dict.fromkeys(
        f"{row['commit'][:12]}{' with uncommitted changes' if row['dirty'] else ''}" for row in rows if row["commit"]
    )
    return [
        ("data", f"{data['name']}, {data['height']}x{data['width']}, images: {counts}"),
        ("budget per cell", f"{budget}, batch size {every('batch_size')}, precision {every('precision')}"),
        *(tables.constants(table) if len(table) else []),
        ("hardware", f"{every('host')}; {every('threads')} threads"),
        ("peak memory", every("peak_memory_scope")),
        ("versions", f"swinx {every('swinx')}, torch {every('torch')}, Python {every('python')}"),
        ("commit", ", ".join(commits) or "not a git checkout"),
        (
            "finished",
            f"{min(row['time'] for row in rows)} to {max(row['time'] for row in rows)}" if rows else tables.MISSING,
        ),
    ]


def _commands(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["command"]) for row in rows))


def _failures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(str(row["cell"]), str(row["error"])) for row in rows if row["status"] != "ok"]


def _body(table: pandas.DataFrame, columns: Sequence[tables.Column]) -> list[list[str]]:
    """The printed cells of the ranking; latency carries its range."""
    lines = []
    for _, line in table.iterrows():
        cells = []
        for column in columns:
            text = tables.cell_text(column, line[column.key], line.get(f"{column.key}_sd"))
            if column.key == "latency_ms_p50":
                text += f" ({line['latency_ms_p20']:.1f}{tables.MISSING}{line['latency_ms_p80']:.1f})"
            cells.append(text)
        lines.append(cells)
    return lines


def _class_lines(data: dict[str, Any], classes: pandas.DataFrame) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Per class: its name, and for each configuration the IoU as printed and whether it is the best."""
    thin = {data["class_names"][i] for i in data["thin_classes"]}
    lines = []
    for name, values in classes.iterrows():
        cells = [
            (tables.MISSING if pandas.isna(v) else f"{v:.1f}", bool(len(values) > 1 and v == values.max() > 0))
            for v in values
        ]
        lines.append((f"{name} (thin)" if name in thin else str(name), cells))
    return lines


def _markdown(rows: Sequence[Row], data: dict[str, Any], table: pandas.DataFrame, classes: pandas.DataFrame) -> str:
    parts = [f"# Decoder comparison on {data['name']}", tables.finding(table)]
    if data["note"]:
        parts.append(data["note"])
    if len(table):
        columns = tables.shown_columns(table)
        text_columns = 2
        headings = [column.heading for column in columns]
        parts += ["## Ranking by test mIoU", tables.markdown_table(headings, _body(table, columns), text_columns)]
        lines = [
            [name, *(f"**{text}**" if best else text for text, best in cells)]
            for name, cells in _class_lines(data, classes)
        ]
        parts += ["## Test IoU by class, percent", tables.markdown_table(["class", *classes.columns], lines)]
    if failures := _failures(rows):
        parts += ["## Cells without a result", "\n".join(f"- `{cell}`: {error}" for cell, error in failures)]
    parts += ["## How to read this", HOW_TO_READ]
    facts = "\n".join(f"- {name}: {value}" for name, value in _facts(rows, data, table))
    commands = "\n".join(_commands(rows))
    parts += ["## Where it comes from", facts, f"```\n{commands}\n```"]
    parts += ["Raw rows, one per cell: `results.jsonl`."]
    return "\n\n".join(parts) + "\n"


def _html(
    output: Path, rows: Sequence[Row], data: dict[str, Any], table: pandas.DataFrame, classes: pandas.DataFrame
) -> str:
    columns = tables.shown_columns(table) if len(table) else []
    keys = [column.key for column in columns]
    thin = [data["class_names"][i] for i in data["thin_classes"]]
    figures: list[tuple[str, str, bool]] = []
    if len(table):
        crowded = len(table) > plots.CROWDED
        latency = plots.trade_off(table, "latency_ms_p50", "latency of one image, ms (median)")
        size = plots.trade_off(table, "params_m", "parameters, millions")
        figures = [
            ("Accuracy against latency", latency, crowded),
            ("Accuracy against size", size, crowded),
            ("Classes" + _only_first(classes), plots.class_bars(classes, thin), True),
            ("Training loss", plots.loss_curves(_curves(output, rows, table)), True),
        ]
    values = table[keys].astype(object).where(table[keys].notna(), "").values.tolist() if len(table) else []
    return pages.load("template.html").render(
        title=f"Decoder comparison on {data['name']}",
        finding=tables.finding(table),
        note=data["note"],
        columns=columns,
        lines=[list(zip(texts, raw, strict=True)) for texts, raw in zip(_body(table, columns), values, strict=True)],
        figures=[(title, Markup(svg), wide) for title, svg, wide in figures],
        labels=list(classes.columns),
        class_lines=_class_lines(data, classes),
        legend=list(zip(data["class_names"], map(_css_color, data["colors"]), strict=False)),
        ignored=_css_color(data["colors"][-1]),
        panel_headings=["image", "truth", *table["label"]],
        panel=_panel(output, rows, data, table),
        failures=_failures(rows),
        how_to_read=HOW_TO_READ,
        facts=_facts(rows, data, table),
        commands=_commands(rows),
    )


def _only_first(classes: pandas.DataFrame) -> str:
    shown = plots.CLASS_BARS
    return f" (the first {shown} of {len(classes.columns)} configurations)" if len(classes.columns) > shown else ""


def _curves(output: Path, rows: Sequence[Row], table: pandas.DataFrame) -> list[tuple[str, list[Any], list[Any]]]:
    """Loss curves per configuration, as plots.loss_curves takes them."""
    curves = []
    for _, line in table.iterrows():
        paths = [output / "cells" / f"{row['cell']}.json" for row in tables.finished(rows, line)]
        sides = [json.loads(path.read_text()) for path in paths]
        curves.append((line["label"], [side["step"] for side in sides], [side["loss"] for side in sides]))
    return curves


def _panel(
    output: Path, rows: Sequence[Row], data: dict[str, Any], table: pandas.DataFrame
) -> list[tuple[str, list[str]]]:
    """Per panel image: its name and data URIs of image, truth and the first seed of each configuration."""
    cells = [tables.finished(rows, line)[0]["cell"] for _, line in table.iterrows()]
    lines = []
    for number, name in enumerate(data["panel"]):
        paths = [output / "panel" / f"{number:02}_{kind}.png" for kind in ("image", "truth")]
        paths += [output / "cells" / cell / f"{number:02}.png" for cell in cells]
        lines.append((name, [_data_uri(path) for path in paths]))
    return lines


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _css_color(color: Sequence[int]) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
