"""What a report says in sentences: what was found, which differences are resolved, how to read the numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas

from experiments.records import Row
from experiments.report import tables
from experiments.report.content import Content
from experiments.report.facts import differing, differing_seeds, spelled, spelled_key
from experiments.statistics import Comparison, Difference


def finding(table: pandas.DataFrame, comparison: Comparison | None = None) -> str:
    """The ranking in a sentence or two, with what images and seeds allow to be said."""
    if table.empty:
        return "No configuration has finished."
    best = table.iloc[0]
    if pandas.isna(best["test_miou"]):
        return "No class occurs in the test images, so there is nothing to rank."
    text = f"{best['label']} reaches {best['test_miou']:.1f} % test mIoU"
    scored = table.dropna(subset=["test_miou"])
    if len(scored) == 1:
        return text + "."
    last, second = scored.iloc[-1], scored.iloc[1]
    text += f", {_lead(best, second, ' points', comparison)}"
    if len(scored) > 2:
        text += f" and {_lead(best, last, '', comparison)}, the last of {len(scored)}"
    if comparison is not None and comparison.differences:
        pairs, some = len(comparison.differences), sum(d.resolved for d in comparison.differences)
        text += f". {some} of {pairs} differences {'is' if some == 1 else 'are'} resolved"
        only = ", for these trained models only: each ran with one seed" if comparison.these_models_only else ""
        return f"{text}{only}."
    spread = table["test_miou_sd"].max()
    if pandas.isna(spread):
        return text + ". Each ran with one seed, so the spread between seeds is unknown and small gaps decide nothing."
    text += f". Between seeds the standard deviation is up to {spread:.1f} points"
    return text + ": read smaller gaps as undecided."


def _lead(first: "pandas.Series[Any]", second: "pandas.Series[Any]", unit: str, comparison: Comparison | None) -> str:
    """How far first is above second, and whether that is resolved where both were judged."""
    names = {score.configuration for score in comparison.scores} if comparison is not None else set()
    text = f"{first['test_miou'] - second['test_miou']:.1f}{unit} above {second['label']}"
    if comparison is None or not {first["label"], second["label"]} <= names:
        return text
    resolved = comparison.between(str(first["label"]), str(second["label"])).resolved
    return f"{text} ({'resolved' if resolved else 'not resolved'})"


def how_to_read(rows: Sequence[Row]) -> str:
    """How the numbers came about, as the rows tell it."""
    weights = {row.get("weights") for row in rows}
    if weights <= {None}:
        start = "trains from scratch"
    elif None in weights:
        start = "trains, from scratch or from pretrained encoders as told below,"
    else:
        start = f"trains from pretrained encoders ({', '.join(sorted(map(str, weights)))})"
    others = differing(rows)
    scored = [row for row in rows if row["status"] == "ok"] or rows
    again = any("weights_of" in row for row in rows)
    budget = "budgets that differ" if {"steps", "minutes", "batch_size"} & others.keys() else "the same budget"
    sentences = [
        f"{'Every model' if again else 'Every configuration'} {start} under {budget}, on the same batches for a given "
        f"seed, and is evaluated {'' if again or _differ(scored) else 'once, '}with {_evaluated(rows)}.",
        *_without_training(rows),
        _held_out(rows),
    ]
    if others:
        listing = "; ".join(f"{spelled_key(key)} {', '.join(values)}" for key, values in others.items())
        sentences.append(f"Settings differ between rows ({listing}), and differences may come from them.")
    if mixed := differing_seeds(rows):
        listing = ", ".join(spelled_key(key) for key in mixed)
        sentences.append(f"Seeds of one configuration differ in {listing}, so ± is not chance alone.")
    sentences += _predicted(scored)
    sentences.append(
        "Scores are means over seeds ± their standard deviation, costs are medians. IoU is computed from one confusion "
        "matrix over all pixels that are not ignored; a class that is neither in the truth nor predicted is left out "
        "of the means. Boundary F-score counts boundary pixels that lie within a band of the other map's, per image "
        "and class. GFLOPs count two per multiply-add of matrix products and convolutions. They and latency are for "
        "one call of the model on one whole image, bytes in and logits out, however images are predicted; the range "
        "is from the 20th to the 80th percentile."
    )
    return " ".join(sentences)


def _without_training(rows: Sequence[Row]) -> list[str]:
    """Whose weights were evaluated, where rows are not all of cells as they were trained."""
    taken = [row for row in rows if "weights_of" in row]
    if not taken:
        return []
    cells = ", ".join(dict.fromkeys(str(row["weights_of"]["cell"]) for row in taken))
    if len(taken) == len(rows):
        return [f"What was trained is {cells}: configurations take these weights as they are, without more training."]
    others = [row for row in taken if row["cell"] != row["weights_of"]["cell"]]
    sentences = []
    if others:
        cells = ", ".join(dict.fromkeys(str(row["weights_of"]["cell"]) for row in others))
        also = ", ".join(dict.fromkeys(str(row["cell"]) for row in others))
        sentences.append(f"Not trained, but evaluated with the weights of {cells} as they are: {also}.")
    if again := len(taken) - len(others):
        sentences.append(f"{again} of the {len(rows)} rows evaluate a trained cell once more, without more training.")
    return sentences


def _evaluated(rows: Sequence[Row]) -> str:
    """Which weights were evaluated. Rows from before ema_decay was a field have a moving average."""
    plain = {row.get("ema_decay") == 0 for row in rows}
    average = "the moving average of its weights"
    if plain == {True}:
        average = "its weights"
    elif True in plain:
        average += " (the weights themselves where ema decay is 0)"
    chosen = {row.get("select", "last") for row in rows}
    if chosen <= {"last"}:
        return f"{average} at the end"
    return f"{average} at the best validation{' where select is best, else at the end' if 'last' in chosen else ''}"


def _held_out(rows: Sequence[Row]) -> str:
    selected = any(row.get("select", "last") == "best" for row in rows)
    stopped = any(row.get("patience") is not None for row in rows)
    if not selected and not stopped:
        return "No checkpoint is selected, so val and test are both held-out scores: choose by val, report test."
    uses = ["weights were chosen"] * selected + ["training was ended"] * stopped
    return f"By val mIoU {' and '.join(uses)}, so it is no held-out score: report test."


def _predicted(rows: Sequence[Row]) -> list[str]:
    """How images were predicted, where that was not one plain call of the model."""
    means = []
    if any(row.get("flip") for row in rows):
        means.append("averaged with those of the mirrored image")
    scales = dict.fromkeys(spelled(row["scales"]) for row in rows if row.get("scales") not in (None, [1.0]))
    if scales:
        means.append(f"averaged over scales {' or '.join(scales)}")
    tiles = dict.fromkeys("x".join(map(str, row["tile"])) for row in rows if row.get("tile"))
    if tiles:
        means.append(f"made by overlapping tiles of {' or '.join(tiles)} pixels where images are larger")
    where = "as the column inference says: " if _differ(rows) else ""
    sentences = [f"Predictions are {where}{', '.join(means)}."] if means else []
    if whole := [sizes for sizes in dict.fromkeys(map(_larger_than_crop, rows)) if sizes]:
        sentences.append(
            f"Models were trained on crops and evaluated on whole images ({', '.join(whole)}), where decoders that "
            "pool over all they see meet a size that they were not trained for."
        )
    return sentences


def _differ(rows: Sequence[Row]) -> bool:
    """Whether rows were predicted in several ways."""
    return len({tables.inference(row) for row in rows}) > 1


def _larger_than_crop(row: Row) -> str:
    """The sizes, where a row is of evaluation on larger images than were trained on; "" elsewhere."""
    crop, image = row.get("crop"), [row.get("height"), row.get("width")]
    if crop in (None, image) or row.get("tile"):
        return ""
    return f"{crop[0]}x{crop[1]} of {image[0]}x{image[1]} pixels"


def resolved(content: Content) -> list[str]:
    """Which differences are resolved and which are not: one sentence for each, and what the judgement rests on."""
    comparison = content.comparison
    if comparison is None:
        return [f"Differences cannot be judged: {content.gap}."]
    if len(comparison.scores) == 1:
        return [f"There is one configuration to judge, and so nothing to compare{_gap(content)}."]
    if comparison.these_models_only:
        basis = (
            f"Judged over {comparison.images} test images alone: each configuration ran with one seed, the spread "
            "between seeds is unknown, and what follows holds for these trained models only."
        )
    else:
        basis = (
            f"Judged over {comparison.images} test images and the spread between seeds, a standard deviation of "
            f"{comparison.seed_sd:.2f} points pooled with {_freedom(comparison.seed_freedom)}."
        )
    if comparison.paired_sd is not None:
        basis += (
            " Configurations that are the same trained models are compared model by model: beside the level of each "
            f"model the standard deviation, taken to be alike for all, is {comparison.paired_sd:.2f} points with "
            f"{_freedom(comparison.paired_freedom)}."
        )
    if comparison.unpaired:
        basis += (
            f" {comparison.unpaired} of the pairs have trained models in common but not all, or one alone, and are "
            "judged as if they had none, which is careful."
        )
    pairs = len(comparison.differences)
    basis += f" Paired bootstrap; 95 %, corrected for {pairs} {'pair' if pairs == 1 else 'pairs'} (Holm). Images count "
    basis += "as independent: where they are frames of few films, intervals are too narrow."
    yes = [difference for difference in comparison.differences if difference.resolved]
    no = [difference for difference in comparison.differences if not difference.resolved]
    lines = [basis]
    lines.append(f"Resolved, {len(yes)} of {pairs}: {_list(yes)}." if yes else f"None of {pairs} is resolved.")
    if no:
        lines.append(f"Not resolved, {len(no)} of {pairs}: {_list(no)}.")
    if content.gap:
        lines.append(f"Some configurations are not judged{_gap(content)}.")
    return lines


def _freedom(number: int) -> str:
    return f"{number} degree{'s' if number != 1 else ''} of freedom"


def _gap(content: Content) -> str:
    return f": {content.gap}" if content.gap else ""


def _list(differences: Iterable[Difference]) -> str:
    """Grouped by the better configuration: A over B (+1.2), C (+3.4); B over ..."""
    groups: dict[str, list[str]] = {}
    for difference in differences:
        first, second, points = difference.first, difference.second, difference.points
        if points < 0:
            first, second, points = second, first, -points
        groups.setdefault(first, []).append(f"{second} (+{points:.1f})")
    return "; ".join(f"{first} over {', '.join(others)}" for first, others in groups.items())
