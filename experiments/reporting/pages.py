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
from experiments.reporting.content import STEP, Content, Frame, gather
from experiments.reporting.examples import extremes
from experiments.reporting.load import read

FILES = ("report.html", "report.md", "report.tex", "summary.csv", "differences.csv")


class Section(NamedTuple):
    """A table with its heading, what to know of it, and commands."""

    heading: str
    about: str
    commands: Sequence[str]
    table: Frame


def write_report(output: Path, contrasts: Sequence[str] = ()) -> None:
    """Write FILES into a runs folder or a folder with a merged set, from its rows and what belongs to them.

    contrasts: planned ones (statistics.contrasts); all pairs by default. What is missing is left out,
    and the notes say so.

    Raises:
        ValueError: files there that are not what they should be.
    """
    render(gather(read([output]), contrasts), output)


def render(content: Content, output: Path) -> None:
    """Write FILES into output, each replaced whole."""
    rows, classes = [item.row for item in content.results.items], tables.classes(content.table)
    by_group = tables.groups(content).map(tables.number).reset_index()
    by_class, contrasts = classes.map(tables.number).reset_index(allow_duplicates=True), tables.differences(content)
    ranking, seeds = tables.ranking(content.table), text.more_seeds(content)
    sections = {
        "ranking": Section("Ranking by test mIoU", text.on_ranking(content, ranking), (), ranking),
        "differences": Section("Differences", text.on_differences(content, contrasts, seeds), seeds, contrasts),
        "classes": Section("Test IoU by class, percent", "Means over seeds.", (), by_class),
        "groups": Section("Test mIoU by group of images, percent", "Means over seeds.", (), by_group),
        "unfinished": Section("Runs without a result", "", (), tables.unfinished(content)),
        "facts": Section("Where it comes from", "", text.commands(rows), text.facts(content)),
    }
    sections = {name: section for name, section in sections.items() if len(section.table)}
    latex = {part.heading: part.table for name, part in sections.items() if name not in ("unfinished", "facts")}
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
        strips=_strips(content),
        examples=_examples(content),
    )
    write_whole(output / "summary.csv", markup.to_csv(content.table))
    write_whole(output / "differences.csv", markup.to_csv(tables.effects(content)))
    write_whole(output / "report.md", _markdown(content, sections.values()))
    write_whole(output / "report.tex", markup.to_latex(latex))
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
    about = "test mIoU %; whiskers: 95 % interval over images\nand seeds, none with too few of them"
    found = [("Scores", plots.forest(bars, about))]
    if effects := tables.shown_effects(content):
        lines = [(e.name, e.points, e.low, e.high, e.significant is True) for e in effects]
        bars = Frame(lines, columns=["name", "value", "low", "high", "filled"])
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


def _learning(content: Content) -> dict[str, list[tuple[str, Frame]]]:
    """Curves by heading: loss and validation of each seed, test score of each configuration."""
    shown = content.configurations[: plots.MOST_CURVES]
    found: dict[str, list[tuple[str, Frame]]] = {}
    for heading, x, y in (("loss", "loss_step", "loss"), ("validation mIoU %", "val_step", "val_miou")):
        arrays = [(c.label, item.arrays) for c in shown for item in c.results if y in item.arrays]
        frames = [(label, Frame({"step": one[x], "value": one[y]}).dropna()) for label, one in arrays]
        found[heading] = [(label, frame) for label, frame in frames if len(frame)]
    none = (math.nan, math.nan)
    tested = [(c.label.rpartition(STEP)[0], c.fields["step"], s.miou, *(s.interval or none)) for c, s in content.steps]
    by = Frame(tested, columns=["label", "step", "value", "low", "high"]).groupby("label")
    found["test mIoU %\nand 95 % interval"] = [(c.label, by.get_group(c.label)) for c in shown if c.label in by.groups]
    return found


def _strips(content: Content) -> list[tuple[str, bytes]]:
    """Caption and picture of the worst and best test images of the best configuration's first seed."""
    best = [c.results[0] for c in content.configurations[:1]]
    return [
        (f"{name[8:-1]}: {item.counts.names[index]}, mIoU {miou:.1f} %", item.pictures[f"{name}.png"])
        for item in best if item.counts for name, index, miou in extremes(item.counts)
        if f"{name}.png" in item.pictures
    ]  # fmt: skip


def _examples(content: Content) -> list[tuple[str, list[tuple[str, bytes | None]]]]:
    """For each example image its name, and captions with pictures: image, truth and what configurations predict."""
    examples, best = content.results.examples, content.configurations[: plots.MOST_CURVES]
    found = []
    for number, name in enumerate(content.results.data.examples):
        shown = [(kind, examples.get(f"{number:02}_{kind}.png")) for kind in ("image", "truth")]
        found.append((name, [*shown, *((c.label, c.results[0].pictures.get(f"{number:02}.png")) for c in best)]))
    return found
