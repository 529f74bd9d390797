"""report.md, for repositories."""

from experiments.report import tables, words
from experiments.report.content import Content
from experiments.report.ranking import body, class_lines


def markdown(content: Content) -> str:
    """The report as Markdown, without pictures."""
    table, data = content.table, content.data
    parts = [f"# Decoder comparison on {data['name']}", tables.finding(table)]
    if data["note"]:
        parts.append(data["note"])
    if len(table):
        columns = tables.shown_columns(table)
        text = [number for number, column in enumerate(columns) if column.digits is None or column.key == "rank"]
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
    facts = "\n".join(f"- {name}: {value}" for name, value in words.facts(content))
    commands = "\n".join(words.commands(content.rows))
    parts += ["## Where it comes from", facts, f"```\n{commands}\n```"]
    parts += ["Raw rows, one per cell: `results.jsonl`."]
    return "\n\n".join(parts) + "\n"
