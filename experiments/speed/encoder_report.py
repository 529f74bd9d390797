"""Report of the encoder benchmark: one table and one plot a kind of call, from rows alone."""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import Row, write_whole
from experiments.report import bars, pages
from experiments.report.tables import MISSING, markdown_table

HOW_TO_READ = (
    "Milliseconds are medians of one call. The ratio is the median over rounds of the baseline's time over the "
    "network's own in the same round: above 1 is faster. The baseline is timm's Swin, eager for eager and compiled for "
    "compiled; for DeepLabV3+, which timm's Swin cannot serve, the reference attention. Peak is what a call allocates "
    "on the GPU beyond weights and state."
)


def line(row: Row) -> str:
    """One measurement as it goes by."""
    how = "compiled" if row["compiled"] else "eager"
    return f"{row['task']:48} {row['attention']:10} {how:9} {row['ms_p50']:9.2f} ms  ratio {row['ratio']:.2f}"


def write(output: Path, rows: Sequence[Row]) -> None:
    """Write report.md and report.html beside the rows."""
    headings = ["network", "attention", "ms", "p20 to p80", "ratio", "images/s", "peak MB"]
    facts = pages.facts(rows, ("host", "torch", "swinx", "python", "threads", "commit"))
    commands = list(dict.fromkeys(row["command"] for row in rows))
    sections = []
    for compiled, title in ((False, "Eager"), (True, "Compiled")):
        chosen = [row for row in rows if row["compiled"] == compiled]
        if chosen:
            sections.append((title, headings, [_cells(row) for row in chosen], _bars(chosen, title)))
    title = "Encoder"
    parts = [f"# {title}", HOW_TO_READ]
    for heading, names, lines, _ in sections:
        parts += [f"## {heading}", markdown_table(names, lines, 2)]
    parts += ["## Where it comes from", "\n".join(f"- {name}: {value}" for name, value in facts)]
    parts += ["```\n" + "\n".join(commands) + "\n```", "Raw rows: `results.jsonl`."]
    write_whole(output / "report.md", "\n\n".join(parts) + "\n")
    write_whole(output / "report.html", pages.render(title, HOW_TO_READ, sections, [], facts, commands))


def _cells(row: Row) -> list[str]:
    peak = MISSING if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
    spread = f"{row['ms_p20']:.2f} to {row['ms_p80']:.2f}"
    numbers = [f"{row['ms_p50']:.2f}", spread, f"{row['ratio']:.2f}", f"{row['images_per_second']:.0f}", peak]
    return [row["task"], row["attention"], *numbers]


def _bars(rows: Sequence[Row], title: str) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = list(dict.fromkeys(row["attention"] for row in rows))
    ratio = {(row["task"], row["attention"]): row["ratio"] for row in rows}
    values = [[ratio.get((task, name)) for task in tasks] for name in names]
    return bars.horizontal(tasks, names, values, "speed over the baseline's", f"encoder {title}")
