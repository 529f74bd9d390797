"""The ranking and the classes as printed cells, shared by the pages of a report."""

from collections.abc import Sequence

import pandas

from experiments.report import tables
from experiments.report.content import Content


def body(table: pandas.DataFrame, columns: Sequence[tables.Column]) -> list[list[str]]:
    """The printed cells of the ranking; latency carries its range, an interval both its ends."""
    lines = []
    for _, line in table.iterrows():
        cells = []
        for column in columns:
            text = tables.cell_text(column, line[column.key], line.get(f"{column.key}_sd"))
            if column.key == "interval_low" and text != tables.MISSING:
                text += f"{tables.MISSING}{line['interval_high']:.1f}"
            if column.key == "latency_ms_p50":
                text += f" ({line['latency_ms_p20']:.1f}{tables.MISSING}{line['latency_ms_p80']:.1f})"
            cells.append(text)
        lines.append(cells)
    return lines


def class_lines(content: Content) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Per class: its name, and for each configuration the IoU as printed and whether it is the best."""
    thin = {content.data["class_names"][i] for i in content.data["thin_classes"]}
    lines = []
    for name, values in content.classes.iterrows():
        cells = [
            (tables.MISSING if pandas.isna(v) else f"{v:.1f}", bool(len(values) > 1 and v == values.max() > 0))
            for v in values
        ]
        lines.append((f"{name} (thin)" if name in thin else str(name), cells))
    return lines
