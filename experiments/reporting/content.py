"""What a report is about: configurations with their results over seeds, and the statistics between them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas

from experiments.records.results import SCORES, SETTINGS, TABLES, settings_of
from experiments.reporting.load import Result, Results
from experiments.reporting.rows import AXES, axes_of, once, source_of, spelled
from experiments.statistics.contrasts import Contrast, pairs, planned, read_contrasts
from experiments.statistics.significance import Comparison, Configured, Effect, Score, compare, letters

Frame = pandas.DataFrame
STEP = " \N{MIDDLE DOT} step "  # in labels, between a configuration and how far it was trained


@dataclass(frozen=True, eq=False)
class Configuration:
    """What is compared: a run without its seed. fields: AXES and settings that differ; results: by seed, all "ok"."""

    label: str
    fields: Mapping[str, Any]
    results: tuple[Result, ...]


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that a report is rendered from.

    configurations: best test mIoU first; table: a line for each (see summary). comparison: of those that have counts of
    each test image, None without any; its effects are planned, or else of all pairs. steps: configurations after each
    of several steps of training, with their scores. gaps: what could not be compared, and why.
    """

    results: Results
    configurations: list[Configuration]
    table: Frame
    comparison: Comparison | None
    effects: Sequence[Effect]
    planned: bool
    steps: list[tuple[Configuration, Score]]
    gaps: list[str]


def gather(results: Results, contrasts: Sequence[str] = (), *, strict: bool = False) -> Content:
    """Make configurations of results and compare them: by planned contrasts, or by all pairs.

    Raises:
        ValueError: a run comes twice (rows.once); a contrast that names what is not there, where strict. Otherwise,
            as in a grid that has not finished, gaps has the message.
    """
    results = replace(results, items=once(results.items))
    configurations, by_step = configure(results.items)
    counted, steps = _counted(configurations), _counted(by_step)
    gaps = []
    if without := [c.label for c in configurations if c not in counted]:
        gaps.append(f"counts of each test image, or scores, are missing for {', '.join(without)}")
    chosen: list[Contrast] = [] if contrasts else pairs([c.label for c in counted])
    known, over_steps = ([(c.label, c.fields) for c in there] for there in (counted, steps))
    for text in read_contrasts(contrasts):
        try:
            chosen.append(planned(text, known, over_steps))
        except ValueError as error:
            if strict:
                raise
            gaps.append(str(error))
    comparison, scores = None, {}
    try:
        if counted:
            models = [{source_of(i.row): i.counts for i in c.results if i.counts} for c in (*counted, *steps)]
            labelled = zip((c.label for c in (*counted, *steps)), models, strict=True)
            comparison = compare([Configured(*one) for one in labelled], chosen)
            scores = {score.label: score for score in comparison.scores}
            comparison = replace(comparison, scores=comparison.scores[: len(counted)])
    except ValueError as error:
        gaps.append(str(error))
    groups = letters(comparison) if comparison and not contrasts else {}
    table = summary(configurations, scores, groups)
    over = [(c, scores[c.label]) for c in steps if c.label in scores]
    effects = comparison.effects if comparison else ()
    return Content(results, configurations, table, comparison, effects, bool(contrasts), over, gaps)


def _counted(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Those with counts of each test image, and classes in these."""
    return [c for c in configurations if all(i.counts and i.row["test_miou"] is not None for i in c.results)]


def configure(items: Iterable[Result]) -> tuple[list[Configuration], list[Configuration]]:
    """Configurations at the end of training, best mean test mIoU first; and after each of several steps.

    A setting that a row lacks, as an earlier version wrote it, is no difference.
    """
    ran = [item for item in items if item.row["status"] != "not applicable"]
    lines = [axes_of(i.row) | {name: spelled(value) for name, value in settings_of(i.row).items()} for i in ran]
    frame = Frame(lines, columns=[*AXES, *SETTINGS], dtype=object)
    names = [*AXES, *(name for name in SETTINGS if frame[name].nunique() > 1)]
    seeds, steps = [item.row["seed"] for item in ran], [item.row["step"] for item in ran]
    frame = frame[names].fillna("").assign(seed=seeds, step=steps, item=ran)
    found = []
    for values, part in frame.sort_values("step").groupby(names, sort=False):  # no step, of a run that diverged: last
        ends = part.groupby("seed")["item"].last()
        ends = ends[[item.row["status"] == "ok" for item in ends]]
        fields = {name: None if value == "" else value for name, value in zip(names, values, strict=True)}
        if len(ends):
            score = sum(item.row["test_miou"] or 0 for item in ends) / len(ends)
            found.append((score, fields, tuple(ends), part[part["seed"].isin(ends.index)]))
    found.sort(key=lambda one: -one[0])
    last, over = [], []
    for label, (_, fields, ends, part) in zip(labels([one[1] for one in found]), found, strict=True):
        last.append(Configuration(label, fields, ends))
        by_step = [tuple(items) for _, items in part.groupby("step")["item"] if len(items) == len(ends)]
        for items in by_step if len(by_step) > 1 else ():
            step = items[0].row["step"]
            over.append(Configuration(f"{label}{STEP}{step}", {**fields, "step": step}, items))
    return last, over


def labels(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Short names that tell configurations, given by their fields, apart.

    The decoder; the encoder where there are several; those of AXES that these do not determine; and all other fields.
    """
    if not configurations:
        return []
    frame = Frame(configurations, dtype=object).fillna("")
    base = ["decoder", "encoder"] if frame["encoder"].nunique() > 1 else ["decoder"]
    varied = frame.groupby(base).nunique().max() > 1
    shown = [name for name in frame if name in base or name not in AXES or varied[name]]
    prefix = {"decoder": "", "encoder": "", "dilation": "", "output_stride": "OS "}
    prefix = {name: prefix.get(name, f"{name.replace('_', ' ')} ") for name in shown}
    lines = frame[shown].to_dict("records")
    return [" \N{MIDDLE DOT} ".join(prefix[n] + str(v) for n, v in line.items() if v != "") for line in lines]


def summary(configurations: Sequence[Configuration], scores: Mapping[str, Score], groups: Mapping[str, str]) -> Frame:
    """One line for each configuration, best first.

    rank, label, fields, seeds, low and high of the 95 % interval of test mIoU, letters of groups; and means over seeds
    of all numbers of the rows, with "sd of KEY" (sample). Latencies are left out unless one process measured them.
    """
    if not configurations:
        columns = ["rank", "label", "seeds", "low", "high", "letters", *SCORES, *(f"sd of {name}" for name in SCORES)]
        return Frame(columns=columns)
    lines, rows = [], []
    for rank, one in enumerate(configurations, start=1):
        score = scores.get(one.label)
        low, high = score.interval or (None, None) if score else (None, None)
        line = {"rank": rank, "label": one.label, **one.fields, "seeds": len(one.results), "low": low, "high": high}
        lines.append({**line, "letters": groups.get(one.label, "")})
        rows += [{"rank": rank, **item.row} for item in one.results]
    numbers = pandas.json_normalize(
        [{n: row.get(n) for n in ("rank", *SCORES)} | {n: row.get(n) or {} for n in TABLES} for row in rows], sep=" "
    ).astype(float)
    sittings = pandas.Series([str(row.get("latency_sitting")) for row in rows])
    together = numbers["rank"].groupby(sittings[sittings != "None"]).nunique()
    # A latency tells little beside one of another process.
    shared = together.idxmax() if together.max() >= min(2, len(lines)) else None
    numbers.loc[sittings != shared, [name for name in SCORES if name.startswith("latency")]] = math.nan
    by = numbers.groupby("rank")
    means = pandas.concat([by.mean(), by.std().add_prefix("sd of ")], axis=1)
    return Frame(lines).join(means, on="rank")
