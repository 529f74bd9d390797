"""One folder of rows and side files in, pages and tables out."""

from dataclasses import asdict
from pathlib import Path

import pandas

from experiments.records import write_whole
from experiments.report.content import Content, gather
from experiments.report.html import html
from experiments.report.latex import latex
from experiments.report.markdown import markdown

FILES = ("report.html", "report.md", "report.tex", "summary.csv", "class_iou.csv", "differences.csv")


def write_report(output: Path) -> None:
    """Write report.html, .md and .tex, summary.csv, class_iou.csv and differences.csv from output/results.jsonl.

    Reads nothing else but panel/ and cells/ as written by comparison.run; what a cell lacks there is left out. Each
    file is replaced whole. Where no cell has finished, the report says so.
    """
    content = gather(output)
    write_whole(output / "summary.csv", content.table.to_csv(index=False))
    write_whole(output / "class_iou.csv", content.classes.to_csv())
    write_whole(output / "differences.csv", _differences(content))
    write_whole(output / "report.md", markdown(content))
    write_whole(output / "report.tex", latex(content))
    write_whole(output / "report.html", html(content))


def _differences(content: Content) -> str:
    """One line for each pair of configurations; headings alone where differences cannot be told."""
    columns = ["first", "second", "points", "over_images_low", "over_images_high", "overall_low", "overall_high"]
    lines = []
    for difference in content.comparison.differences if content.comparison else ():
        line = asdict(difference)
        for key in ("over_images", "overall"):
            line[f"{key}_low"], line[f"{key}_high"] = line.pop(key) or (None, None)
        lines.append(line)
    return pandas.DataFrame(lines, columns=[*columns, "p", "p_corrected", "resolved"]).to_csv(index=False)
