"""What a report says in words: a headline, short notes, and where it comes from."""

import re
import shlex
from collections.abc import Sequence

import pandas

from experiments.records.results import Row
from experiments.reporting import tables
from experiments.reporting.content import Content
from experiments.reporting.rows import SETTINGS, spelled

# Trainings of a configuration that are asked for, where there is one alone.
SEEDS = 3
BUDGET = ("steps", "minutes", "batch_size", "precision", "device")


def headline(content: Content) -> str:
    """The best configuration, its score, and what may be said of its lead."""
    if not content.configurations:
        return "No configuration has finished."
    best, *others = content.configurations
    if not best.values("test_miou"):
        return "No class occurs in the test images, so there is nothing to rank."
    text = f"{best.label} reaches {best.mean('test_miou'):.1f} % test mIoU"
    if not others or not others[0].values("test_miou"):
        return f"{text}."
    second = others[0]
    lead = best.mean("test_miou") - second.mean("test_miou")
    found = tables.verdict(content.effect(best.label, second.label))
    return f"{text}, {lead:.1f} points above {second.label}: {found}."


def notes(content: Content) -> list[str]:
    """What a reader must know beside the tables, one sentence each."""
    rows, data = [item.row for c in content.configurations for item in c.results] or content.rows, content.data
    said = [data.note] if data.note else []
    if data.left_out:
        said.append(f"Left out of the data: {data.left_out[0]}{_more(data.left_out)}.")
    for name, use in (("select", "weights were chosen"), ("patience", "training was ended")):
        if any(row.get(name, "last") not in (None, "last") for row in rows):
            said.append(f"By validation mIoU {use} (--{name}): it is no held-out score.")
    sizes = {(spelled(r["crop"], "x"), f"{r.get('height')}x{r.get('width')}") for r in rows if _beyond_crop(r)}
    for crop, image in sorted(sizes):
        said.append(
            f"Models of crops of {crop} were evaluated on whole images of {image} pixels (--tile evaluates as trained)."
        )
    taken = sum(not row.get("trained", True) for row in rows)
    if taken:
        said.append(f"{taken} of {len(rows)} rows evaluate weights that were trained elsewhere, without more training.")
    if native := {row.get("score_at") for row in rows} & {"native"}:
        said.append(f"Scores are against masks at their own resolution (--score-at {native.pop()}).")
    compared = [tables.latency(c, content.sitting)["latency_comparable"] for c in content.configurations]
    if len(compared) > 1 and not all(compared):
        said.append(f"{tables.INCOMPARABLE} Not measured in one sitting with the others: not to be compared.")
    said += [f"Not compared: {gap}." for gap in content.gaps]
    return said


def _more(texts: Sequence[str]) -> str:
    return f", and {len(texts) - 1} more" if len(texts) > 1 else ""


def _beyond_crop(row: Row) -> bool:
    return row.get("crop") not in (None, [row.get("height"), row.get("width")]) and not row.get("tile")


def on_differences(content: Content) -> list[str]:
    """What the differences rest on, what could have been found, and what is missing."""
    effects, comparison = content.effects, content.comparison
    if comparison is None or not effects:
        return []
    kind = "Planned contrasts" if content.planned else "All pairs, as an exploration (plan few with --contrasts)"
    shown = len(tables.shown_effects(content))
    some = f"; the table has {shown} of {len(effects)}, differences.csv all" if shown < len(effects) else ""
    grouped = f" in {comparison.groups} groups" if comparison.groups < comparison.images else ""
    said = [f"{kind}{some}. Corrected by Holm's method; {comparison.images} test images{grouped}."]
    if smallest := [min(effect.smallest, 100.0) for effect in effects if effect.smallest is not None]:
        said.append(f"Smallest difference that could be found (four times in five): {_span(smallest)} points.")
    if untested := [effect for effect in effects if effect.significant is None]:
        said.append(f"{len(untested)} of {len(effects)} not tested, such as {untested[0].name}: {untested[0].reason}.")
    return said


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def advice(content: Content) -> list[str]:
    """The commands that add seeds to the same folders, where a configuration has one alone."""
    rows = [item.row for c in content.configurations if len(c.results) == 1 for item in c.results]
    if len(content.configurations) < 2:
        return []
    seeds = {row["seed"] for row in rows} | set(range(SEEDS))
    return [told for command in commands(rows) if (told := more_seeds(command, seeds))]


def more_seeds(command: str, seeds: set[int]) -> str | None:
    """A command of this project with --seeds, quoted once more; None where it is no such command."""
    try:
        found = shlex.join(shlex.split(command))
    except ValueError:
        return None
    if not (module := re.match(r"python( -u)? -m experiments\.(\w+) ", f"{found} ")):
        return None
    if module[2] == "evaluate":  # finds the seeds itself
        return found
    without = re.sub(r" --seeds[ =]\d+( \d+)*", "", found)
    return f"{without} --seeds {' '.join(map(str, sorted(seeds)))}"


def commands(rows: Sequence[Row]) -> list[str]:
    """The commands behind the rows, each once; those that trained come before those that evaluated."""
    trained = [row["source"].get("command") for row in rows if row.get("source")]
    return [str(command) for command in dict.fromkeys([*trained, *(row.get("command") for row in rows)]) if command]


def facts(content: Content, constant: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What holds for the whole report, as (name, value). Values that differ between rows are all listed."""
    rows, data = content.rows, content.data

    def every(*names: str, of: Sequence[Row] = rows) -> str:
        found = {n: ", ".join(dict.fromkeys(spelled(r[n]) for r in of if r.get(n) is not None)) for n in names}
        told = [
            f"{n.replace('_', ' ')} {values}" if len(names) > 1 else values for n, values in found.items() if values
        ]
        return "; ".join(told)

    size = f"{data.height}x{data.width}, " if data.height else ""
    sources = [row["source"] for row in rows if row.get("source")]
    told = [
        ("data", f"{data.name}, {size}{', '.join(f'{count} {split}' for split, count in data.images.items())} images"),
        ("budget of a run", every(*BUDGET)),
        ("recipe", every(*(name for name in SETTINGS if name not in BUDGET))),
        *constant,
        ("hardware", every("host", "cpu_capability", "threads", "world_size")),
        ("peak memory", every("peak_memory_scope")),
        ("versions", every("swinx", "torch", "smp", "timm", "numpy", "python")),
        ("commit", every("commit")),
        ("uncommitted changes", every("dirty")),
        ("trained at commit", every("commit", of=sources)),
        ("finished", " to ".join(dict.fromkeys(f(str(row.get("time")) for row in rows) for f in (min, max)))),
    ]
    return [(name, value) for name, value in told if value]


def unfinished(content: Content) -> pandas.DataFrame:
    """Run, status and reason of each row without a result."""
    rows = [item.row for item in content.results.items if item.row["status"] != "ok"]
    lines = dict.fromkeys((row["run"], row["status"], str(row.get("error"))) for row in rows)
    return pandas.DataFrame(list(lines), columns=["run", "status", "reason"])
