"""What a report is about: configurations with their results over seeds, and the statistics between them."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.records.counts import ImageCounts
from experiments.records.results import Row
from experiments.reporting.load import Data, Result, Results
from experiments.reporting.rows import AND, MISSING, SETTINGS, fields_of, once, spelled
from experiments.statistics.contrasts import Contrast, pairs, planned, read_contrasts
from experiments.statistics.significance import Comparison, Configured, Effect, Score, compare


@dataclass(frozen=True, eq=False)
class Configuration:
    """What is compared: a run without its seed.

    fields: AXES, inference and the settings that differ. results: the last one of each run, by seed; earlier: those
    after fewer steps of the same training. All are of status "ok".
    """

    label: str
    fields: dict[str, str]
    results: tuple[Result, ...]
    earlier: tuple[Result, ...] = ()

    def values(self, key: str, part: str | None = None) -> list[float]:
        """A number of each row, or the part of an object of numbers; those that are missing drop out."""
        found = (item.row.get(key) if part is None else (item.row.get(key) or {}).get(part) for item in self.results)
        return [value for value in found if value is not None]

    def mean(self, key: str, part: str | None = None) -> float:
        """Mean over seeds, NaN without any."""
        values = self.values(key, part)
        return statistics.fmean(values) if values else math.nan


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that a report is rendered from.

    configurations: best test mIoU first. comparison: of those that have counts of each test image, None without any;
    its effects are those of contrasts, in order, which are planned or else all pairs. over_steps: configurations after
    each of several steps, with their scores. gaps: what could not be compared, and why. sitting: where latencies that
    may be compared were measured, None for nowhere.
    """

    results: Results
    configurations: list[Configuration]
    comparison: Comparison | None
    contrasts: list[Contrast]
    planned: bool
    over_steps: list[tuple[Configuration, Score]]
    gaps: list[str]
    sitting: str | None

    @property
    def data(self) -> Data:
        return self.results.data

    @property
    def rows(self) -> list[Row]:
        """All rows but those of runs that cannot exist; these, where there are no others."""
        rows = [item.row for item in self.results.items]
        return [row for row in rows if row["status"] != "not applicable"] or rows

    @property
    def scores(self) -> dict[str, Score]:
        """Score and interval by label."""
        return {score.label: score for score in self.comparison.scores} if self.comparison else {}

    @property
    def effects(self) -> list[Effect]:
        """All effects: those planned, or all pairs."""
        return list(self.comparison.effects) if self.comparison else []

    def effect(self, first: str, second: str) -> Effect | None:
        """The effect that is the difference of two configurations, None where it is not among the contrasts."""
        pair = {first, second}
        for contrast, effect in zip(self.contrasts, self.effects, strict=self.comparison is not None):
            if {label for label, weight in contrast.weights.items() if weight} == pair:
                return effect
        return None


def gather(results: Results, contrasts: Sequence[str] = (), *, strict: bool = False) -> Content:
    """Make configurations of results and compare them: by planned contrasts, or by all pairs.

    Raises:
        ValueError: a run comes twice (rows.once); a contrast that names what is not there, where strict. Otherwise,
            as in a grid that has not finished, gaps tells that.
    """
    results, _ = once(results)
    configurations = configure(results.items)
    gaps = []
    scored = [c for c in configurations if all(item.row["test_miou"] is not None for item in c.results)]
    counted = [c for c in scored if all(item.counts is not None for item in c.results)]
    if without := [c.label for c in scored if c not in counted]:
        gaps.append(f"counts of each test image are missing for {', '.join(without)}")
    over_steps = _over_steps(counted)
    chosen: list[Contrast] = []
    for text in read_contrasts(contrasts):
        # Earlier steps are compared where a contrast asks for them, and are no partners elsewhere.
        there = [*counted, *over_steps] if "step" in text else counted
        known = [(c.label, {k: None if v == MISSING else v for k, v in c.fields.items()}) for c in there]
        try:
            chosen += planned([text], known)
        except ValueError as error:
            if strict:
                raise
            gaps.append(str(error))
    chosen = chosen if contrasts else pairs([c.label for c in counted])
    named = {label for contrast in chosen for label in contrast.weights}
    comparison, over = None, []
    try:
        if counted:
            there = [*counted, *(c for c in over_steps if c.label in named)]
            comparison = compare([Configured.of(c.label, _models(c.results)) for c in there], chosen)
        if over_steps:
            steps = compare([Configured.of(c.label, _models(c.results)) for c in over_steps], []).scores
            over = list(zip(over_steps, steps, strict=True))
    except ValueError as error:
        gaps.append(str(error))
    return Content(results, configurations, comparison, chosen, bool(contrasts), over, gaps, _sitting(configurations))


def configure(items: Sequence[Result]) -> list[Configuration]:
    """The configurations of results, best mean test mIoU first."""
    ran = [item for item in items if item.row["status"] != "not applicable"]
    known = {name: {json.dumps(item.row[name]) for item in ran if name in item.row} for name in SETTINGS}
    differing = [name for name, values in known.items() if len(values) > 1]
    groups: dict[str, dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for item in ran:
        settings = {name: spelled(item.row.get(name, "unknown")) for name in differing}
        groups[json.dumps({**fields_of(item.row), **settings})][item.row["seed"]].append(item)
    found = []
    for key, by_seed in groups.items():
        runs = [sorted(by_seed[seed], key=_step) for seed in sorted(by_seed)]
        finished = [run for run in runs if run[-1].row["status"] == "ok"]
        last, earlier = [run[-1] for run in finished], [item for run in finished for item in run[:-1]]
        found.append(Configuration("", json.loads(key), tuple(last), tuple(earlier)))
    found = [configuration for configuration in found if configuration.results]
    found.sort(key=lambda c: -c.mean("test_miou") if c.values("test_miou") else math.inf)
    names = labels([configuration.fields for configuration in found])
    return [Configuration(name, c.fields, c.results, c.earlier) for name, c in zip(names, found, strict=True)]


def _step(item: Result) -> float:
    """The end of a run that diverged has no step, and comes last."""
    return math.inf if item.row["step"] is None else item.row["step"]


def labels(configurations: Sequence[dict[str, str]]) -> list[str]:
    """Shortest names that tell configurations, given by their fields, apart: the decoder, and whatever else varies."""

    def varies(name: str, within: str | None = None) -> bool:
        found = defaultdict(set)
        for fields in configurations:
            found[within and fields[within]].add(fields[name])
        return any(len(values) > 1 for values in found.values())

    shown = [name for name in ("encoder",) if varies(name)]
    shown += [name for name in ("stem",) if varies(name, "encoder")]
    shown += [name for name in ("output_stride",) if varies(name, "decoder")]
    shown += [name for name in ("dilation", "window", "alignment") if varies(name, "encoder")]
    words = {"output_stride": "OS {}", "window": "window {}"}
    names = []
    for fields, way in zip(configurations, _ways([fields["inference"] for fields in configurations]), strict=True):
        parts = [fields["decoder"]]
        for name in shown:
            # "none" of the alignment would read like the stem of that name.
            if fields[name] != MISSING and (name, fields[name]) != ("alignment", "none"):
                parts.append(words.get(name, "{}").format(fields[name]))
        parts += way
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if name in SETTINGS]
        names.append(" · ".join(parts))
    return names


def _ways(inferences: Sequence[str]) -> list[list[str]]:
    """What tells each inference from the others: the parts that not all have."""
    ways = [[] if text == MISSING else text.split(AND) for text in inferences]
    common = set.intersection(*map(set, ways)) if ways else set()
    return [[part for part in way if part not in common] for way in ways]


def _models(items: Sequence[Result]) -> list[tuple[str, ImageCounts]]:
    """Counts of each row, by run and time of the training that it is of or that it began with.

    So rows of the same weights, and of trainings that continued from the same weights, are compared source by source.
    """
    sources = [item.row.get("source") or item.row for item in items]
    return [(f"{s['run']} {s.get('time')}", item.counts) for s, item in zip(sources, items, strict=True) if item.counts]


def _over_steps(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Configurations that were evaluated after several steps, once for each that all of their seeds have."""
    found = []
    for configuration in configurations:
        by_step = defaultdict(list)
        for item in (*configuration.earlier, *configuration.results):
            if item.counts is not None:
                by_step[item.row["step"]].append(item)
        steps = {s: items for s, items in sorted(by_step.items()) if len(items) == len(configuration.results)}
        for step, items in steps.items() if len(steps) > 1 else ():
            fields = {**configuration.fields, "step": str(step)}
            found.append(Configuration(f"{configuration.label} \N{MIDDLE DOT} step {step}", fields, tuple(items)))
    return found


def _sitting(configurations: Sequence[Configuration]) -> str | None:
    """The sitting of most configurations; None where no two of several were measured in one."""
    of = [{str(s) for s in (i.row.get("latency_sitting") for i in c.results) if s} for c in configurations]
    counted = [(sum(sitting in there for there in of), sitting) for sitting in sorted(set().union(*of))]
    most, sitting = max(counted, default=(0, None))
    return sitting if most >= min(2, len(configurations)) else None
