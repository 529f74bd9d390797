"""Where a report comes from: data, settings, machines and commands, as the rows have them."""

from collections.abc import Sequence

from experiments.records import Row
from experiments.report import tables
from experiments.report.content import Content

# Fields of experiments.settings.Settings that say how cells were trained and evaluated, flat as rows have them.
RECIPE = (
    *("losses", "class_weighting", "learning_rate", "weight_decay", "warmup", "ema_decay", "gradient_clip"),
    *("accumulate", "crop", "zoom", "color", "weights", "layer_decay", "validate_every", "patience", "select"),
)
BUDGET = ("steps", "minutes", "batch_size", "precision", "device")


def facts(content: Content) -> list[tuple[str, str]]:
    """What holds for the whole report, as (name, value). Values that differ between rows are all listed."""
    rows, data = content.ran or content.rows, content.data

    def every(key: str) -> str:
        values = dict.fromkeys(spelled(row.get(key)) for row in rows if row.get(key) is not None)
        return ", ".join(values) or "unknown"

    def listed(keys: Sequence[str]) -> str:
        return ", ".join(f"{spelled_key(key)} {every(key)}" for key in keys)

    counts = ", ".join(f"{count} {split}" for split, count in data["images"].items())
    budget = ", ".join(
        dict.fromkeys(f"{row['steps']} steps" if row["steps"] else f"{row['minutes']:g} minutes" for row in rows)
    )
    commits = _commits(rows)
    sources = [row["weights_of"] for row in rows if "weights_of" in row]
    told: list[tuple[str, str]] = []
    if recipe := [key for key in RECIPE if any(row.get(key) is not None for row in rows)]:
        told.append(("recipe", listed(recipe)))
    if others := differing(rows):
        told.append(("settings that differ", "; ".join(f"{spelled_key(k)} {', '.join(v)}" for k, v in others.items())))
    worlds = every("world_size")
    times = [str(row["time"]) for row in rows]
    return [
        ("data", f"{data['name']}, {data['height']}x{data['width']}, images: {counts}"),
        ("budget per cell", f"{budget}, batch size {every('batch_size')}, precision {every('precision')}"),
        *told,
        *(tables.constants(content.table) if len(content.table) else []),
        ("hardware", f"{every('host')}; {every('threads')} threads"),
        *([("processes per cell", worlds)] if worlds not in ("1", "unknown") else []),
        ("peak memory", every("peak_memory_scope")),
        ("versions", f"swinx {every('swinx')}, torch {every('torch')}, Python {every('python')}"),
        ("commit", commits),
        *([("trained", _trained(sources))] if sources else []),
        ("finished", f"{min(times)} to {max(times)}" if times else tables.MISSING),
    ]


def _trained(sources: Sequence[Row]) -> str:
    """Where weights come from that were evaluated without training."""
    precisions = ", ".join(dict.fromkeys(str(source["precision"]) for source in sources))
    return f"commit {_commits(sources)}, precision {precisions}"


def _commits(rows: Sequence[Row]) -> str:
    """The commits that rows name, each once."""
    named = (
        f"{row['commit'][:12]}{' with uncommitted changes' if row['dirty'] else ''}" for row in rows if row["commit"]
    )
    return ", ".join(dict.fromkeys(named)) or "not a git checkout"


def commands(rows: Sequence[Row]) -> list[str]:
    """The commands behind the rows, each once; those that trained come before those that evaluated."""
    trained = [row["weights_of"]["command"] for row in rows if "weights_of" in row]
    return list(dict.fromkeys(map(str, [*trained, *(row["command"] for row in rows)])))


def differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Settings that are not the same in all rows that have them, with their values in order of appearance.

    Rows of one folder agree; those of a report made from several folders may not.
    """
    values = {key: list(dict.fromkeys(spelled(row[key]) for row in rows if key in row)) for key in (*BUDGET, *RECIPE)}
    return {key: found for key, found in values.items() if len(found) > 1}


def differing_seeds(rows: Sequence[Row]) -> list[str]:
    """Settings that differ between the seeds of one configuration."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        full = tables.normal(row)
        groups.setdefault(tuple(full[key] for key in tables.CONFIGURATION), []).append(row)
    return list(dict.fromkeys(key for group in groups.values() for key in differing(group)))


def spelled(value: object) -> str:
    """A value of a row as it is printed."""
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def spelled_key(key: str) -> str:
    """The name of a field as it is printed."""
    return key.replace("_", " ")
