"""report.html: one file with everything in it."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.report import facts, judged, pages, plots, tables, words
from experiments.report.content import Content
from experiments.report.ranking import body, class_lines

Figure = tuple[str, str, bool]  # heading, SVG, whether it needs the whole width


def html(content: Content) -> str:
    """The report as a page that needs no other file and no network."""
    table, data, classes = content.table, content.data, content.classes
    columns = tables.shown_columns(table) if len(table) else []
    keys = [column.key for column in columns]
    values = table[keys].astype(object).where(table[keys].notna(), "").values.tolist() if len(table) else []
    comparison = content.comparison
    ranks = dict(zip(table["label"], table["rank"], strict=True))
    return pages.load("template.html").render(
        title=f"Decoder comparison on {data['name']}",
        finding=words.finding(table, comparison),
        note=data["note"],
        columns=columns,
        lines=[list(zip(texts, raw, strict=True)) for texts, raw in zip(body(table, columns), values, strict=True)],
        resolved=words.resolved(content),
        wins=Markup(judged.win_matrix(comparison, ranks)) if comparison and len(comparison.scores) > 1 else "",
        wins_width=judged.matrix_width(comparison) if comparison else 0,
        figures=[(title, Markup(svg), wide) for title, svg, wide in _figures(content)],
        labels=list(classes.columns),
        class_lines=class_lines(content),
        legend=list(zip(data["class_names"], map(_css_color, data["colors"]), strict=False)),
        ignored=_css_color(data["colors"][-1]),
        panel_headings=["image", "truth", *(label for label, _ in _pictured(content))],
        panel=_panel(content),
        failures=content.failures,
        not_applicable=content.not_applicable,
        how_to_read=words.how_to_read(content.ran),
        facts=facts.facts(content),
        commands=facts.commands(content.rows),
    )


def _figures(content: Content) -> list[Figure]:
    table, classes = content.table, content.classes
    if table.empty:
        return []
    thin = [content.data["class_names"][i] for i in content.data["thin_classes"]]
    crowded = len(table) > plots.CROWDED
    shown = plots.CLASS_BARS
    some = f" (the first {shown} of {len(classes.columns)} configurations)" if len(classes.columns) > shown else ""
    figures: list[Figure] = [
        (
            "Accuracy against latency",
            plots.trade_off(table, "latency_ms_p50", "latency of one call on one image, ms (median)"),
            crowded,
        ),
        ("Accuracy against size", plots.trade_off(table, "params_m", "parameters, millions"), crowded),
        ("Classes" + some, plots.class_bars(classes, thin), True),
    ]
    bands = _bands(content)
    if bands:
        figures.append(("Boundaries", judged.boundary_bands(bands), True))
    losses, validations = _curves(content, "step", "loss"), _curves(content, "val_step", "val_miou")
    if losses:
        figures.append(("Training loss", plots.loss_curves(losses), True))
    if validations:
        figures.append(("Validation", plots.validation_curves(validations), True))
    return figures


def _bands(content: Content) -> list[tuple[str, list[tuple[int, float]]]]:
    """Per configuration: its label, and band width with the boundary F-score, mean over seeds."""
    curves = []
    for _, line in content.table.iterrows():
        found = [row.get("boundary_f1") or {} for row in tables.finished(content.rows, line)]
        widths = sorted({int(width) for bands in found for width, value in bands.items() if value is not None})
        points = []
        for width in widths:
            values = [bands[str(width)] for bands in found if bands.get(str(width)) is not None]
            points.append((width, sum(values) / len(values)))
        if points:
            curves.append((str(line["label"]), points))
    return curves


def _curves(content: Content, x: str, y: str) -> list[tuple[str, list[Any], list[Any]]]:
    """Curves of y by x per configuration and seed, of the cells that have them; values that are None drop out."""
    curves = []
    for _, line in content.table.iterrows():
        paths = [content.curves(row) for row in tables.finished(content.rows, line)]
        sides = [json.loads(path.read_text()) for path in paths if path.exists()]
        points = [
            [(a, b) for a, b in zip(side.get(x, []), side.get(y, []), strict=True) if b is not None] for side in sides
        ]
        seeds = [seed for seed in points if seed]
        if seeds:
            curves.append(
                (line["label"], [[a for a, _ in seed] for seed in seeds], [[b for _, b in seed] for seed in seeds])
            )
    return curves


def _pictured(content: Content) -> list[tuple[str, Path]]:
    """Label of each configuration whose first seed has all its pictures, and the folder that holds them."""
    found = []
    for _, line in content.table.iterrows():
        folder = content.side(tables.finished(content.rows, line)[0], "")
        if all((folder / f"{number:02}.png").exists() for number in range(len(content.data["panel"]))):
            found.append((str(line["label"]), folder))
    return found


def _panel(content: Content) -> list[tuple[str, list[str]]]:
    """Per panel image: its name and data URIs of image, truth and the first seed of each configuration."""
    lines, pictured = [], _pictured(content)
    for number, name in enumerate(content.data["panel"]):
        paths = [content.output / "panel" / f"{number:02}_{kind}.png" for kind in ("image", "truth")]
        paths += [folder / f"{number:02}.png" for _, folder in pictured]
        if all(path.exists() for path in paths):
            lines.append((name, [_data_uri(path) for path in paths]))
    return lines


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _css_color(color: Sequence[int]) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
