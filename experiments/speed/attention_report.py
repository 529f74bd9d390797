"""Report of the attention benchmark: a table and bars for each direction, from rows alone."""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import Row, write_whole
from experiments.report import bars, pages
from experiments.report.tables import MISSING, markdown_table

TITLES = {"forward": "Forward", "both": "Forward and backward"}
HOW_TO_READ = (
    "Milliseconds are medians of one call, from (B, H, W, 3, h, D) to (B, H, W, C), with the level-2 cache emptied "
    "before each call on a GPU; in parentheses how many times as long as the Triton kernels took, in the same process. "
    "copy is the share of the speed of a device copy that the least possible traffic makes up: forward 4C values a "
    "token, backward 7C more. saved is what autograd keeps for the backward pass, inputs included. Every provider was "
    "held against the reference in float32 first."
)


def line(row: Row) -> str:
    """One measurement as it goes by."""
    text = f"{row['case']:48} {TITLES[row['direction']]:21} {row['provider']:20}"
    if row["status"] != "ok":
        return f"{text} {row['status']}: {row['reason']}"
    return f"{text} {row['ms_p50']:9.3f} ms  {100 * row['copy_share']:5.1f} % of copy"


def write(output: Path, rows: Sequence[Row]) -> None:
    """Write report.md and report.html beside the rows."""
    facts = pages.facts(rows, ("host", "torch", "triton", "swinx", "python", "threads", "commit"))
    speeds = dict.fromkeys(f"{row['copy_bytes_per_second'] / 1e9:.0f} GB/s" for row in rows if row["status"] == "ok")
    facts.append(("device copy", ", ".join(speeds)))
    commands = list(dict.fromkeys(row["command"] for row in rows))
    sections = [(TITLES[d], *_table(rows, d), _bars(rows, d)) for d in TITLES if _measured(rows, d)]
    excluded = [f"{row['case']}, {TITLES[row['direction']]}, {row['provider']}: {row['status']}, {row['reason']}"
                for row in rows if row["status"] in ("failed", "wrong")]  # fmt: skip
    absent = list(
        dict.fromkeys(f"{row['provider']}: {row['reason']}" for row in rows if row["status"] == "not applicable")
    )
    title = "Window attention"
    parts = [f"# {title}", HOW_TO_READ]
    for heading, headings, lines, _ in sections:
        parts += [f"## {heading}", markdown_table(headings, lines)]
    for heading, entries in (("Failed or wrong", excluded), ("Not applicable", absent)):
        if entries:
            parts += [f"## {heading}", "\n".join(f"- {entry}" for entry in entries)]
    parts += ["## Where it comes from", "\n".join(f"- {name}: {value}" for name, value in facts)]
    parts += ["```\n" + "\n".join(commands) + "\n```", "Raw rows: `results.jsonl`."]
    write_whole(output / "report.md", "\n\n".join(parts) + "\n")
    html = pages.render(title, HOW_TO_READ, sections, [("Failed or wrong", excluded), ("Not applicable", absent)],
                        facts, commands)  # fmt: skip
    write_whole(output / "report.html", html)


def _measured(rows: Sequence[Row], direction: str) -> list[Row]:
    return [row for row in rows if row["direction"] == direction and row["status"] == "ok"]


def _table(rows: Sequence[Row], direction: str) -> tuple[list[str], list[list[str]]]:
    """One line a case: milliseconds by provider, with the ratio to the kernels, then the kernels' own figures."""
    measured = _measured(rows, direction)
    names = list(dict.fromkeys(row["provider"] for row in measured))
    by_case: dict[str, dict[str, Row]] = {}
    for row in measured:
        by_case.setdefault(row["case"], {})[row["provider"]] = row
    lines = []
    for case, found in by_case.items():
        ours = found.get("triton")
        cells = [case]
        for name in names:
            if name not in found:
                cells.append(MISSING)
                continue
            ms = found[name]["ms_p50"]
            cells.append(f"{ms:.3f}" + (f" ({ms / ours['ms_p50']:.2f}×)" if ours and name != "triton" else ""))
        best = ours or next(iter(found.values()))
        cells.append(f"{100 * best['copy_share']:.0f} %")
        eager = found.get("reference")
        if direction == "both":
            saved = best["saved_bytes"] / 1e6
            less = f" ({eager['saved_bytes'] / best['saved_bytes']:.1f}× less than reference)" if ours and eager else ""
            cells.append(f"{saved:.0f} MB{less}")
        lines.append(cells)
    first = "triton" if "triton" in names else names[0]
    headings = ["case", *(f"{name}, ms" for name in names), f"copy, {first}"]
    return headings + ([f"saved, {first}"] if direction == "both" else []), lines


def _bars(rows: Sequence[Row], direction: str) -> str:
    """Time of each provider over that of the fastest, case by case."""
    measured = _measured(rows, direction)
    cases = list(dict.fromkeys(row["case"] for row in measured))
    names = list(dict.fromkeys(row["provider"] for row in measured))
    time = {(row["case"], row["provider"]): row["ms_p50"] for row in measured}
    fastest = {case: min(time[case, name] for name in names if (case, name) in time) for case in cases}
    values = [[time[case, name] / fastest[case] if (case, name) in time else None for case in cases] for name in names]
    return bars.horizontal(cases, names, values, "time over that of the fastest", f"attention {direction}")
