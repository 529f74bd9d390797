"""The files of a report: one HTML page that needs no other file, Markdown, LaTeX tables, and CSV files."""

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from experiments.records.files import write_whole
from experiments.reporting import markup, plots, tables, text
from experiments.reporting.content import Content, gather
from experiments.reporting.examples import extremes
from experiments.reporting.load import read

FILES = ("report.html", "report.md", "report.tex", "summary.csv", "differences.csv")


class Section(NamedTuple):
    """A table with its heading, what to know of it, and commands."""

    heading: str
    about: str
    commands: Sequence[str]
    table: tables.Frame


def write_report(output: Path, contrasts: Sequence[str] = ()) -> None:
    """Write FILES into a runs folder or a folder with a merged set, from its rows and what belongs to them.

    contrasts: planned ones, or files of them (statistics.contrasts); all pairs by default. What is missing is left out,
    and the notes say so.

    Raises:
        ValueError: files there that are not what they should be.
    """
    render(gather(read([output]), contrasts), output)


def render(content: Content, output: Path) -> None:
    """Write FILES into output, each replaced whole."""
    rows, classes = [item.row for item in content.results.items], tables.classes(content.table)
    by_class = classes.map(tables.number).reset_index()
    every = {
        "ranking": Section("Ranking by test mIoU", text.on_ranking(content), (), tables.ranking(content.table)),
        "classes": Section("Test IoU by class, percent", "Means over seeds.", (), by_class),
        "differences": Section(
            "Differences", text.on_differences(content), text.advice(content), tables.differences(content)
        ),
        "unfinished": Section("Runs without a result", "", (), tables.unfinished(content)),
        "facts": Section("Where it comes from", "", text.commands(rows), text.facts(content)),
    }
    sections = {name: section for name, section in every.items() if len(section.table)}
    latex = [
        markup.to_latex(part.table, part.heading)
        for name, part in sections.items()
        if name in ("ranking", "differences", "classes")
    ]
    loader = jinja2.PackageLoader("experiments.reporting", "")
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page.filters |= {"html": lambda table, name: Markup(markup.to_html(table, name)), "uri": _uri}
    html = page.get_template("template.html").render(
        data=content.results.data,
        headline=text.headline(content),
        notes=text.notes(content),
        sections=sections,
        heat_map=Markup(markup.heat_map(classes)) if len(classes) else "",
        plots=_figures(content),
        extremes=_extremes(content),
        examples=_examples(content),
    )
    write_whole(output / "summary.csv", markup.to_csv(content.table))
    write_whole(output / "differences.csv", markup.to_csv(tables.effects(content)))
    write_whole(output / "report.md", _markdown(content, sections.values()))
    write_whole(output / "report.tex", markup.LATEX_HEAD + "".join(latex))
    write_whole(output / "report.html", html)


def _markdown(content: Content, sections: Iterable[Section]) -> str:
    escaped = markup.markdown_text
    parts = [f"# Comparison on {escaped(content.results.data.name)}", escaped(text.headline(content))]
    parts.append("\n".join(f"- {escaped(note)}" for note in text.notes(content)))
    for heading, about, commands, table in sections:
        code = "\n".join(f"    {line}" for line in commands)  # indented, so that no line ends it
        parts += [f"## {heading}", escaped(about), code, markup.to_markdown(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figures(content: Content) -> list[tuple[str, bytes]]:
    """Heading and SVG of each plot that there are numbers for."""
    table = content.table.dropna(subset="test_miou")
    if not len(table):
        return []
    names = table["rank"].astype(str) + " " + table["label"]
    bars = table.assign(name=names, value=table["test_miou"], filled=True)
    whiskers = "whiskers: 95 % interval over images and seeds"
    about = whiskers if table["low"].notna().any() else "no intervals: too few seeds or images"
    found = [("Scores", plots.forest(bars, f"test mIoU %\n{about}"))]
    if effects := tables.shown_effects(content):
        lines = [(e.name, e.points, e.low, e.high, e.significant is True) for e in effects]
        bars = tables.Frame(lines, columns=["name", "value", "low", "high", "filled"])
        about = "points of test mIoU; whiskers: 95 % interval\nof each alone; filled: significant"
        found.append(("Differences", plots.forest(bars, about, -math.inf)))
    for key, name in (("latency_ms_p50", "latency of one call on one image, ms"), ("params_m", "parameters, millions")):
        points = table.dropna(subset=key)
        if points[key].nunique() > 1:
            found.append((f"Test mIoU and {name}; numbers are ranks", plots.trade_off(points, key, name)))
    if curves := {heading: drawn for heading, drawn in _learning(content).items() if drawn}:
        some = f", the first {plots.MOST_CURVES} of {len(table)}" if len(table) > plots.MOST_CURVES else ""
        found.append((f"Learning curves{some}", plots.curves(curves)))
    return found


def _learning(content: Content) -> dict[str, list[plots.Curve]]:
    """Curves by heading: loss and validation of each seed, test score of each configuration."""
    found: dict[str, list[plots.Curve]] = {"loss": [], "validation mIoU %": [], "test mIoU %": []}
    for n, configuration in enumerate(content.configurations[: plots.MOST_CURVES]):
        label = configuration.label
        for arrays in (item.arrays for item in configuration.results):
            for heading, x, y in (("loss", "loss_step", "loss"), ("validation mIoU %", "val_step", "val_miou")):
                if len(arrays.get(y, ())):
                    found[heading].append(plots.Curve(label, n, arrays[x], arrays[y]))
        if points := [
            (c.fields["step"], score)
            for c, score in content.steps
            if c.label.startswith(f"{label} \N{MIDDLE DOT} step ")
        ]:
            steps, scores = zip(*points, strict=True)
            low, high = zip(*(score.interval or (math.nan, math.nan) for score in scores), strict=True)
            found["test mIoU %"].append(plots.Curve(label, n, steps, [score.miou for score in scores], low, high))
    return found


def _extremes(content: Content) -> list[tuple[str, bytes]]:
    """Caption and picture of the worst and best test images of the best configuration's first seed."""
    if not content.configurations or (counts := content.configurations[0].results[0].counts) is None:
        return []
    found = [(f"{n.split('_')[1][:-1]}: {counts.names[i]}, mIoU {miou:.1f} %", n) for n, i, miou in extremes(counts)]
    pictures = content.configurations[0].results[0].pictures
    return [(caption, pictures[f"{name}.png"]) for caption, name in found if f"{name}.png" in pictures]


def _examples(content: Content) -> list[tuple[str, list[tuple[str, bytes | None]]]]:
    """For each example image its name, and captions with pictures: image, truth and what configurations predict."""
    examples = content.results.examples
    best = content.configurations[: plots.MOST_CURVES]
    found = []
    for number, name in enumerate(content.results.data.examples):
        shown = [(kind, examples.get(f"{number:02}_{kind}.png")) for kind in ("image", "truth")]
        shown += [(c.label, c.results[0].pictures.get(f"{number:02}.png")) for c in best]
        found.append((name, shown))
    return found
