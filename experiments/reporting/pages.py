"""The files of a report: one HTML page that needs no other file, Markdown, LaTeX tables, and CSV files."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas
from markupsafe import Markup

from experiments.records.files import write_whole
from experiments.reporting import tables, text
from experiments.reporting.content import Configuration, Content, gather
from experiments.reporting.load import extremes, read, read_picture
from experiments.reporting.plots import MOST_CURVES, Bar, Curve, curves, forest, trade_off

FILES = ("report.html", "report.md", "report.tex", "summary.csv", "class_iou.csv", "differences.csv")
Frame = pandas.DataFrame


def write_report(output: Path, contrasts: Sequence[str] = (), *, strict: bool = False) -> None:
    """Write FILES into a runs folder or a folder with a merged set, from its rows and what belongs to them.

    contrasts: planned ones, or files of them (statistics.contrasts); all pairs by default. What is missing is left
    out, and told. Each file is replaced whole.

    Raises:
        ValueError: files there that are not what they should be; where strict, a contrast that cannot be made.
    """
    content = gather(read([output]), contrasts, strict=strict)
    summary = tables.summary(content)
    shown, constant = tables.columns(content, summary)
    framed = {
        "ranking": tables.ranking(content, summary, shown),
        "columns": Frame([(column.heading, column.meaning) for column in shown], columns=["column", "meaning"]),
        "differences": tables.differences(content),
        "classes": tables.class_texts(content),
        "unfinished": text.unfinished(content),
        "facts": Frame(text.facts(content, constant), columns=["name", "value"]),
    }
    write_whole(output / "summary.csv", tables.to_csv(summary))
    write_whole(output / "class_iou.csv", tables.to_csv(tables.classes(content).reset_index()))
    write_whole(output / "differences.csv", tables.to_csv(tables.effects(content)))
    write_whole(output / "report.md", _markdown(content, framed))
    write_whole(output / "report.tex", _latex(framed))
    write_whole(output / "report.html", _html(content, summary, framed))


def _markdown(content: Content, framed: Mapping[str, Frame]) -> str:
    def listed(lines: Sequence[str]) -> str:
        return "\n".join(f"- {tables.markdown_text(line)}" for line in lines)

    def code(lines: Sequence[str]) -> str:
        return "\n".join(f"    {line}" for line in lines)  # indented, so that no line ends it

    table = {name: tables.to_markdown(frame) for name, frame in framed.items()}
    advice = text.advice(content)
    parts = [
        f"# Comparison on {tables.markdown_text(content.data.name)}",
        tables.markdown_text(text.headline(content)),
        listed(text.notes(content)),
        *(("## Ranking by test mIoU", table["ranking"]) if table["ranking"] else ()),
        *(("## Differences", listed(text.on_differences(content))) if table["differences"] else ()),
        *(("More seeds, into the same folder:", code(advice)) if advice else ()),
        table["differences"],
        *(("## Test IoU by class, percent", table["classes"]) if table["classes"] else ()),
        *(("## Runs without a result", table["unfinished"]) if table["unfinished"] else ()),
        *(("## Columns", table["columns"]) if table["columns"] else ()),
        *("## Where it comes from", table["facts"], code(text.commands(content.rows))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _latex(framed: Mapping[str, Frame]) -> str:
    classes, of = framed["classes"], "configuration"
    if len(classes) < len(classes.columns):  # as narrow as can be
        turned = classes.drop(columns=of).T.set_axis([f"#{n + 1}" for n in range(len(classes))], axis=1)
        classes, of = turned.rename_axis("class").reset_index(), "rank"
    parts = [
        "% Needs \\usepackage{booktabs}, and \\usepackage[T1]{fontenc} for names beyond ASCII.\n",
        tables.to_latex(framed["ranking"], "Ranking by test mIoU, mean over seeds."),
        tables.to_latex(framed["differences"], "Differences of test mIoU, corrected by Holm's method."),
        tables.to_latex(classes, f"Test IoU by class and {of}, percent."),
    ]
    return "\n".join(parts)


def _html(content: Content, summary: Frame, framed: Mapping[str, Frame]) -> str:
    loader = jinja2.PackageLoader("experiments.reporting", "")
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    data = content.data
    return page.get_template("template.html").render(
        style=Markup((files("experiments.reporting") / "style.css").read_text(encoding="utf-8")),
        title=f"Comparison on {data.name}",
        headline=text.headline(content),
        notes=text.notes(content),
        on_differences=text.on_differences(content),
        advice=text.advice(content),
        tables={name: Markup(tables.to_html(frame, name)) for name, frame in framed.items() if name != "classes"},
        heat_map=Markup(tables.heat_map(tables.classes(content), "classes")) if content.configurations else "",
        figures=[(heading, _uri("svg+xml", svg)) for heading, svg in _figures(content, summary)],
        legend=[(name, _css(color)) for name, color in zip((*data.class_names, "ignored"), data.colors, strict=False)],
        extremes=_extremes(content),
        examples=_examples(content),
        commands=text.commands(content.rows),
    )


def _figures(content: Content, table: Frame) -> list[tuple[str, bytes]]:
    """Heading and SVG of each plot that there are numbers for."""
    scored = [c for c in content.configurations if c.values("test_miou")]
    if not scored:
        return []
    spans = {label: score.interval or (None, None) for label, score in content.scores.items()}
    ranked = [(f"{rank} {c.label}", c) for rank, c in enumerate(scored, start=1)]
    bars = [Bar(name, c.mean("test_miou"), *spans.get(c.label, (None, None))) for name, c in ranked]
    known = any(bar.low is not None for bar in bars)
    whiskers = "whiskers: 95 % interval over images and seeds" if known else "no intervals: too few seeds or images"
    plots = [("Scores", forest(bars, f"test mIoU %\n{whiskers}"))]
    if effects := tables.shown_effects(content):
        kinds = [Bar(e.name, e.points, e.low, e.high, tables.verdict(e).partition(" (")[0]) for e in effects]
        label = "points of test mIoU\nwhiskers: 95 % interval of each alone"
        plots.append(("Differences", forest(kinds, label, zero=True)))
    comparable = table[table["latency_comparable"].astype(bool)]
    costs = {"latency_ms_p50": "latency, ms, of one call on one image", "params_m": "parameters, millions"}
    for key, label in costs.items():
        lines = (comparable if key.startswith("latency") else table).dropna(subset=[key, "test_miou"])
        points = [(str(line["rank"]), float(line[key]), float(line["test_miou"])) for _, line in lines.iterrows()]
        if len({cost for _, cost, _ in points}) > 1:
            plots.append((f"Accuracy and {label.split(',')[0]} (numbers: ranks)", trade_off(points, label)))
    few = scored[:MOST_CURVES]
    some = f", the first {len(few)} of {len(scored)}" if len(few) < len(scored) else ""
    bands = list(dict.fromkeys(b for c in few for i in c.results for b in i.row.get("boundary_f1") or {}))
    if bands:
        lines = [[c.mean("boundary_f1", band) for band in bands] for c in few]
        drawn = [Curve(c.label, n, range(len(bands)), line) for n, (c, line) in enumerate(zip(few, lines, strict=True))]
        panel = curves([("boundary F %", drawn)], "pixels, or share of the image diagonal", bands)
        plots.append((f"Boundary F-score by band{some}", panel))
    if panels := [(heading, drawn) for heading, drawn in _learning(content, few) if drawn]:
        plots.append((f"Learning curves{some}", curves(panels, "training step")))
    return plots


def _learning(content: Content, configurations: Sequence[Configuration]) -> list[tuple[str, list[Curve]]]:
    """Curves by heading: loss and validation of each seed, test score of each configuration."""
    panels: list[tuple[str, list[Curve]]] = []
    for heading, x, y in (("loss", "loss_step", "loss"), ("validation mIoU %", "val_step", "val_miou")):
        drawn = []
        for number, configuration in enumerate(configurations):
            for item in configuration.results:
                if len(item.arrays.get(y, ())):
                    drawn.append(Curve(configuration.label, number, item.arrays[x], item.arrays[y]))
        panels.append((heading, drawn))
    drawn = []
    for number, configuration in enumerate(configurations):
        label = f"{configuration.label} \N{MIDDLE DOT} step "
        found = [(int(c.fields["step"]), score) for c, score in content.over_steps if c.label.startswith(label)]
        if found:
            spans = [score.interval for _, score in found]
            low, high = zip(*spans, strict=True) if all(spans) else (None, None)
            drawn.append(
                Curve(configuration.label, number, [s for s, _ in found], [v.miou for _, v in found], low, high)
            )
    return [*panels, ("test mIoU %", drawn)]


def _extremes(content: Content) -> list[tuple[str, str]]:
    """Caption and data URI of the worst and best test images of the best configuration's first seed."""
    if not content.configurations or (counts := content.configurations[0].results[0].counts) is None:
        return []
    item, found = content.configurations[0].results[0], []
    for name, index, miou in extremes(counts):
        if (picture := item.picture(f"{name}.png")) is not None:
            kind = name.removeprefix("extreme_")[:-1]
            found.append((f"{kind}: {counts.names[index]}, mIoU {miou:.1f} %", _uri("png", picture)))
    return found


def _examples(content: Content) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each example image its name, and captions with data URIs: image, truth and what configurations predict."""
    results, found = content.results, []
    for number, name in enumerate(results.data.examples):
        shown = [(k, read_picture(results.examples / f"{number:02}_{k}.png", results.root)) for k in ("image", "truth")]
        if all(picture is not None for _, picture in shown):
            shown += [(c.label, c.results[0].picture(f"{number:02}.png")) for c in content.configurations[:MOST_CURVES]]
            found.append((name, [(caption, _uri("png", picture)) for caption, picture in shown if picture is not None]))
    return found


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _css(color: Sequence[int]) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
