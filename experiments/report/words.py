"""What a report says in sentences: findings, how to read it, where it comes from."""

from collections.abc import Iterable, Sequence

from experiments.records import Row
from experiments.report import tables
from experiments.report.content import Content
from experiments.statistics import Difference


def how_to_read(rows: Sequence[Row]) -> str:
    """How the numbers came about, as the rows tell it."""
    weights = {row.get("weights") for row in rows}
    start = "trains from scratch" if weights <= {None} else "trains, from pretrained encoders where told below,"
    chosen = {row.get("select", "last") for row in rows}
    if chosen <= {"last"}:
        choice = (
            "with the moving average of its weights at the end. No checkpoint is selected, so val and test are both "
            "held-out scores: choose by val, report test."
        )
    else:
        choice = (
            "with the moving average of its weights at the best validation (select best). Val mIoU is therefore no "
            "held-out score: report test."
        )
    means = []
    if any(row.get("flip") or (row.get("scales") or [1.0]) != [1.0] for row in rows):
        means.append("Predictions are averaged over mirrored or resized images where told below.")
    if any(row.get("tile") for row in rows):
        means.append("Large images are predicted by overlapping tiles.")
    return " ".join(
        [
            f"Every configuration {start} under the same budget, on the same batches for a given seed, and is "
            f"evaluated once, {choice}",
            *means,
            "IoU is computed from one confusion matrix over all pixels that are not ignored; a class that is neither "
            "in the truth nor predicted is left out of the means. Boundary F-score counts boundary pixels that lie "
            "within a band of the other map's, per image and class. GFLOPs count two per multiply-add of matrix "
            "products and convolutions, for one image. Latency is for one image, bytes in and logits out; the range "
            "is from the 20th to the 80th percentile.",
        ]
    )


def resolved(content: Content) -> list[str]:
    """Which differences are resolved and which are not: one sentence for each, and what the judgement rests on."""
    comparison = content.comparison
    if comparison is None:
        return [f"Differences cannot be judged: {content.gap}."]
    if len(comparison.scores) == 1:
        return ["There is one configuration, and so nothing to compare."]
    if comparison.seed_sd is None:
        basis = (
            f"Judged over {comparison.images} test images alone: each configuration ran with one seed, the spread "
            "between seeds is unknown, and what follows holds for these trained models only."
        )
    else:
        basis = (
            f"Judged over {comparison.images} test images and the spread between seeds, a standard deviation of "
            f"{comparison.seed_sd:.2f} points pooled with {comparison.seed_freedom} degrees of freedom."
        )
    pairs = len(comparison.differences)
    basis += f" Paired bootstrap; 95 %, corrected for {pairs} {'pair' if pairs == 1 else 'pairs'} (Holm)."
    yes = [difference for difference in comparison.differences if difference.resolved]
    no = [difference for difference in comparison.differences if not difference.resolved]
    lines = [basis]
    lines.append(f"Resolved, {len(yes)} of {pairs}: {_list(yes)}." if yes else f"None of {pairs} is resolved.")
    if no:
        lines.append(f"Not resolved, {len(no)} of {pairs}: {_list(no)}.")
    return lines


def _list(differences: Iterable[Difference]) -> str:
    """Grouped by the better configuration: A over B (+1.2), C (+3.4); B over ..."""
    groups: dict[str, list[str]] = {}
    for difference in differences:
        first, second, points = difference.first, difference.second, difference.points
        if points < 0:
            first, second, points = second, first, -points
        groups.setdefault(first, []).append(f"{second} (+{points:.1f})")
    return "; ".join(f"{first} over {', '.join(others)}" for first, others in groups.items())


def facts(content: Content) -> list[tuple[str, str]]:
    """What holds for the whole report, as (name, value). Values that differ between rows are all listed."""
    rows, data = content.ran or content.rows, content.data

    def every(key: str) -> str:
        values = dict.fromkeys(_spelled(row.get(key)) for row in rows if row.get(key) is not None)
        return ", ".join(values) or "unknown"

    counts = ", ".join(f"{count} {split}" for split, count in data["images"].items())
    budget = ", ".join(
        dict.fromkeys(f"{row['steps']} steps" if row["steps"] else f"{row['minutes']:g} minutes" for row in rows)
    )
    commits = dict.fromkeys(
        f"{row['commit'][:12]}{' with uncommitted changes' if row['dirty'] else ''}" for row in rows if row["commit"]
    )
    recipe = [
        f"{key.replace('_', ' ')} {every(key)}" for key in RECIPE if any(row.get(key) is not None for row in rows)
    ]
    told = [("recipe", ", ".join(recipe))] if recipe else []
    inference = [key for key in ("tile", "flip", "scales") if any(_used(row, key) for row in rows)]
    told += [("prediction", ", ".join(f"{key} {every(key)}" for key in inference))] if inference else []
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
        ("commit", ", ".join(commits) or "not a git checkout"),
        ("finished", f"{min(times)} to {max(times)}" if times else tables.MISSING),
    ]


def commands(rows: Sequence[Row]) -> list[str]:
    """The commands behind the rows, each once."""
    return list(dict.fromkeys(str(row["command"]) for row in rows))


RECIPE = (
    *(
        "losses",
        "class_weighting",
        "learning_rate",
        "weight_decay",
        "warmup",
        "ema_decay",
        "gradient_clip",
        "accumulate",
    ),
    *("crop", "zoom", "color", "weights", "layer_decay", "patience", "select"),
)


def _used(row: Row, key: str) -> bool:
    return bool(row.get(key)) and row[key] != [1.0]


def _spelled(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
