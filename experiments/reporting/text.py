"""What a report says in words: a headline, short notes, and where it comes from."""

import shlex
from collections.abc import Sequence
from itertools import pairwise

import pandas

from experiments.reporting import tables
from experiments.reporting.content import Content
from experiments.reporting.rows import SETTINGS, spelled
from experiments.results import Row

# As many trainings of a configuration as let a difference be found; its smallest says how large one.
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
    if smallest := [effect.smallest for effect in effects if effect.smallest is not None]:
        said.append(f"Smallest difference that could be found: {_span(smallest)} points.")
    if untested := [effect for effect in effects if effect.significant is None]:
        said.append(f"{len(untested)} of {len(effects)} not tested, such as {untested[0].name}: {untested[0].reason}.")
    return said


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def advice(content: Content) -> list[str]:
    """The commands that add seeds to the same folders, where a configuration has one alone."""
    rows = [item.row for c in content.configurations if len(c.results) == 1 for item in c.results]
    commands = []
    for row in rows if len(content.configurations) > 1 else ():
        commands += [row["command"]] if row.get("trained", True) else [row["source"].get("command"), row["command"]]
    found = (more_seeds(str(c), {r["seed"] for r in rows}) for c in dict.fromkeys(commands))
    return list(dict.fromkeys(command for command in found if command))


def more_seeds(command: str, seeds: set[int]) -> str | None:
    """A command of this project with --seeds of SEEDS runs, those there among them; None where it is another."""
    try:
        parts = shlex.split(command)
    except ValueError:
        return None
    module = next((part for flag, part in pairwise(parts) if flag == "-m"), "")
    if not module.startswith("experiments.") or parts[0] != "python":
        return None
    if module == "experiments.evaluate":
        return shlex.join(parts)
    kept, dropping = [], False
    for part in parts:
        dropping = part == "--seeds" or (dropping and part.isdecimal())
        kept += [] if dropping or part.startswith("--seeds=") else [part]
    chosen = sorted(seeds | set(range(SEEDS)))
    return shlex.join([*kept, "--seeds", *map(str, chosen)])


def facts(content: Content, constant: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What holds for the whole report, as (name, value). Values that differ between rows are all listed."""
    rows, data = content.rows, content.data

    def every(key: str) -> str:
        return ", ".join(dict.fromkeys(spelled(row[key]) for row in rows if row.get(key) is not None)) or "unknown"

    size = f", {data.height}x{data.width}" if data.height else ""
    counts = ", ".join(f"{count} {split}" for split, count in data.images.items())
    budget = [name for name in BUDGET if any(row.get(name) is not None for row in rows)]
    recipe = [name for name in SETTINGS if name not in BUDGET and any(row.get(name) is not None for row in rows)]
    times = [str(row["time"]) for row in rows if row.get("time")]
    versions = ("swinx", "torch", "smp", "timm", "numpy", "python")
    return [
        ("data", f"{data.name}{size}{f', images: {counts}' if counts else ''}"),
        ("budget of a run", ", ".join(f"{name.replace('_', ' ')} {every(name)}" for name in budget)),
        ("recipe", ", ".join(f"{name.replace('_', ' ')} {every(name)}" for name in recipe)),
        *constant,
        ("hardware", f"{every('host')}; {every('cpu_capability')}; {every('threads')} threads"),
        *([("processes of a run", every("world_size"))] if every("world_size") not in ("1", "unknown") else []),
        ("peak memory", every("peak_memory_scope")),
        ("versions", ", ".join(f"{name} {every(name)}" for name in versions)),
        ("commit", _commits(rows)),
        *(
            [("trained at", _commits([r["source"] for r in rows if r.get("source")]))]
            * any(r.get("source") for r in rows)
        ),
        ("finished", f"{min(times)} to {max(times)}" if times else "unknown"),
    ]


def _commits(rows: Sequence[Row]) -> str:
    named = (
        f"{str(r['commit'])[:12]}{' with uncommitted changes' * bool(r.get('dirty'))}" for r in rows if r.get("commit")
    )
    return ", ".join(dict.fromkeys(named)) or "not a git checkout"


def commands(rows: Sequence[Row]) -> list[str]:
    """The commands behind the rows, each once; those that trained come before those that evaluated."""
    trained = [row["source"].get("command") for row in rows if row.get("source")]
    return [str(command) for command in dict.fromkeys([*trained, *(row.get("command") for row in rows)]) if command]


def unfinished(content: Content) -> pandas.DataFrame:
    """Run, status and reason of each row without a result."""
    rows = [item.row for item in content.results.items if item.row["status"] != "ok"]
    lines = dict.fromkeys((row["run"], row["status"], str(row.get("error"))) for row in rows)
    return pandas.DataFrame(list(lines), columns=["run", "status", "reason"])
