"""What a report is about: rows, what belongs to them, and the tables made from both."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from experiments.records import Row, read_rows
from experiments.report import tables
from experiments.report.subset import side_name
from experiments.statistics import Comparison, compare, read_counts


@dataclass(frozen=True)
class Content:
    """Everything that the pages of a report are rendered from.

    data: what panel/data.json says of the set. table and classes: see tables. comparison: intervals and differences of
    those configurations in table that have counts of each test image, by label, or None; gap says what is missing, ""
    where nothing is.
    """

    output: Path
    rows: list[Row]
    data: dict[str, Any]
    table: pandas.DataFrame
    classes: pandas.DataFrame
    comparison: Comparison | None
    gap: str

    @property
    def not_applicable(self) -> list[tuple[str, str]]:
        """Cells that cannot exist, each with the rule."""
        return _reasons([row for row in self.rows if row["status"] == "not applicable"])

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Cells that ended without a result, each with the reason."""
        return _reasons([row for row in self.rows if row["status"] not in ("ok", "not applicable")])

    @property
    def ran(self) -> list[Row]:
        """The rows of cells that can exist."""
        return [row for row in self.rows if row["status"] != "not applicable"]

    def side(self, row: Row, name: str) -> Path:
        """The path of a file that belongs to a row."""
        return self.output / "cells" / side_name(row) / name

    def curves(self, row: Row) -> Path:
        """The path of the curves of a row's training."""
        return self.output / "cells" / f"{side_name(row)}.json"


def gather(output: Path) -> Content:
    """Read a folder of rows and side files, as comparison.run or experiments.report leaves it."""
    rows = [row for row in read_rows(output / "results.jsonl") if row["kind"] == "segmentation"]
    data = json.loads((output / "panel" / "data.json").read_text())
    table = tables.summary(rows)
    comparison, gap = _compare(output, rows, table)
    if comparison is not None:
        spans = {score.configuration: score.overall or score.over_images for score in comparison.scores}
        low, high = zip(*(spans.get(label, (math.nan, math.nan)) for label in table["label"]), strict=True)
        # Student's t knows nothing of the ends of the scale.
        table["interval_low"], table["interval_high"] = numpy.maximum(low, 0), numpy.minimum(high, 100)
    return Content(output, rows, data, table, tables.class_table(rows, table), comparison, gap)


def _compare(output: Path, rows: list[Row], table: pandas.DataFrame) -> tuple[Comparison | None, str]:
    """The comparison of what has counts of each test image, or None; and the reason for what is not in it, or ""."""
    if table.empty:
        return None, "no configuration has finished"
    configurations, without = {}, []
    for _, line in table.iterrows():
        names = [side_name(row) for row in tables.finished(rows, line)]
        paths = {name: output / "cells" / name / "images.json" for name in names}
        missing = [name for name, path in paths.items() if not path.exists()]
        without += missing
        if not missing:
            configurations[line["label"]] = {name: read_counts(path) for name, path in paths.items()}
    gap = f"the counts of each test image (images.json) are missing for {_few(without)}" if without else ""
    if not configurations:
        return None, gap
    models = {side_name(row): _model(row) for row in rows}
    try:
        return compare(configurations, models=models), gap
    except ValueError as error:  # such as one test image, of which nothing can be drawn
        return None, str(error)


def _reasons(rows: list[Row]) -> list[tuple[str, str]]:
    """Cell, with its inference where that is more than one call of the model, and error of each row; each once."""
    return list(dict.fromkeys((_called(row), str(row["error"])) for row in rows))


def _called(row: Row) -> str:
    way = tables.inference(row)
    return f"{row['cell']} ({way})" if way else str(row["cell"])


def _model(row: Row) -> str:
    """What tells the trained model of a row from all others: its cell, and when it was finished."""
    trained = row.get("weights_of", row)
    return f"{trained['cell']} of {trained['time']}"


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more cells"
