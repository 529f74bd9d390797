"""report.md, for repositories."""

from experiments.report import facts, tables, words
from experiments.report.content import Content
from experiments.report.ranking import body, class_lines


def markdown(content: Content) -> str:
    """The report as Markdown, without pictures."""
    table, data = content.table, content.data
    parts = [f"# Decoder comparison on {data['name']}", words.finding(table, content.comparison)]
    if data["note"]:
        parts.append(data["note"])
    if len(table):
        columns = tables.shown_columns(table)
        text = 1 + max(number for number, column in enumerate(columns) if column.digits is None)
        headings = [column.heading for column in columns]
        parts += ["## Ranking by test mIoU", tables.markdown_table(headings, body(table, columns), text)]
        parts += ["## Which differences are resolved", *words.resolved(content)]
        lines = [
            [name, *(f"**{value}**" if best else value for value, best in cells)]
            for name, cells in class_lines(content)
        ]
        parts += ["## Test IoU by class, percent", tables.markdown_table(["class", *content.classes.columns], lines)]
    for heading, cells in (
        ("Cells without a result", content.failures),
        ("Cells that are not applicable", content.not_applicable),
    ):
        if cells:
            parts += [f"## {heading}", "\n".join(f"- `{cell}`: {reason}" for cell, reason in cells)]
    parts += ["## How to read this", words.how_to_read(content.ran)]
    origin = "\n".join(f"- {name}: {value}" for name, value in facts.facts(content))
    commands = "\n".join(facts.commands(content.rows))
    parts += ["## Where it comes from", origin, f"```\n{commands}\n```"]
    parts += ["Raw rows: `results.jsonl`."]
    return "\n\n".join(parts) + "\n"
