"""A self-contained page of tables with plots, for reports that need no more."""

from collections.abc import Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from experiments.records import Row

# Heading, column headings, lines, and a plot as SVG or "".
Section = tuple[str, list[str], list[list[str]], str]


def load(name: str) -> jinja2.Template:
    """A page of this package: what base.html holds for all of them, styled."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup((files("experiments.report") / "style.css").read_text())
    return environment.get_template(name)


def facts(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[str, str]]:
    """(key, its values in the rows) of each key; values that differ are all listed."""
    lines = []
    for key in keys:
        values = dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None)
        lines.append((key, ", ".join(values) or "unknown"))
    if any(row.get("dirty") for row in rows):
        lines.append(("checkout", "with uncommitted changes"))
    return lines


def render(
    title: str,
    how_to_read: str,
    sections: Sequence[Section],
    lists: Sequence[tuple[str, list[str]]],
    facts: Sequence[tuple[str, str]],
    commands: Sequence[str],
) -> str:
    """The page as HTML. lists: headings with lines, left out where there are none."""
    return load("page.html").render(
        title=title,
        how_to_read=how_to_read,
        sections=[(heading, headings, lines, Markup(plot)) for heading, headings, lines, plot in sections],
        lists=lists,
        facts=facts,
        commands=commands,
    )
