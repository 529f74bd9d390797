"""Which differences of test mIoU are significant, and what could have been found; docs/statistics.md gives the sources.

The score of a configuration is the mean over its models (trainings that differ in the seed) of mIoU in percent over all
test images. A contrast is a weighted sum of scores. It is uncertain for two reasons:

- the test images are a sample: the variance over a bootstrap of groups of images, whose draws all models share;
- the models are a sample. Configurations that are the same models, read out in several ways or trained further from
  the same weights, are taken together model by model, as in the paired t test; the variances of others add up, as in
  Welch's test.

The half-widths of the two t intervals are added as squares. p is the level at which the interval reaches zero; Holm's
method corrects it for all contrasts that are tested together.

Shapes: M models of all configurations, C contrasts, G groups of images, K classes, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_letters
from typing import NamedTuple

import numpy
from scipy.optimize import brentq
from scipy.special import stdtrit
from statsmodels.stats.multitest import multipletests

from experiments.records.counts import Floats, ImageCounts, miou
from experiments.statistics.contrasts import Contrast

LEVEL = 0.05
POWER = 0.8
RESAMPLES = 5000
# With fewer of any nothing is tested. Groups are counted by their effective number.
FEWEST_MODELS = 2
FEWEST_IMAGES = 20
FEWEST_GROUPS = 2
# A smaller p is given as this; fewer points than TINY are rounding.
LEAST_P = 1e-12
TINY = 1e-9
# Numbers in one block of resamples, 32 MB.
BLOCK = 4_000_000

Interval = tuple[float, float]
Weights = Mapping[str, float]  # of configurations, by label
Scores = Mapping[str, Mapping[str, float]]  # mIoU of each model by label and id


@dataclass(frozen=True)
class Configured:
    """A configuration: its label, and the counts of each of its models by id. An equal id is the same
    trained model, or one continued from the same weights."""

    label: str
    models: Mapping[str, ImageCounts]


@dataclass(frozen=True)
class Score:
    """Mean test mIoU in percent of a configuration with so many models.

    interval: 95 %, for other seeds and other images of the kind, within 0 and 100; None where it cannot be known.
    """

    label: str
    models: int
    miou: float
    interval: Interval | None


@dataclass(frozen=True)
class Effect:
    """A contrast in points of mIoU.

    low, high: 95 % interval, for this contrast alone. p: for it alone; p_corrected: among all that were tested with it.
    df: degrees of freedom between models. significant: whether p_corrected < 0.05. smallest: the true difference, in
    points, that such an experiment finds with a probability of 0.8 if the variances are as estimated. All of these are
    None where nothing can be tested, and reason says why; else it is empty.
    """

    contrast: Contrast
    points: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    df: float | None = None
    significant: bool | None = None
    reason: str = ""
    smallest: float | None = None

    @property
    def name(self) -> str:
        return self.contrast.name


@dataclass(frozen=True)
class Comparison:
    """Scores and effects in the order given, and the numbers of test images and of their groups."""

    images: int
    groups: int
    scores: tuple[Score, ...]
    effects: tuple[Effect, ...]


class Variance(NamedTuple):
    """An estimate in squared points, and its degrees of freedom."""

    value: float
    df: float


class Spread(NamedTuple):
    """The two variances of a contrast."""

    images: Variance
    models: Variance

    def reach(self, p: float) -> float:
        """Half-width, in points, of the interval that misses with probability p."""
        return math.sqrt(sum(part.value * float(stdtrit(part.df, p / 2)) ** 2 for part in self))

    def p(self, points: float) -> float:
        """p at which the interval around points just reaches zero."""
        if abs(points) < TINY:
            return 1.0
        if self.reach(LEAST_P) <= abs(points):
            return LEAST_P
        return math.exp(brentq(lambda log: self.reach(math.exp(log)) - abs(points), math.log(LEAST_P), 0.0))

    def interval(self, points: float) -> Interval:
        """The 95 % interval around points."""
        reach = self.reach(LEVEL)
        return points - reach, points + reach


# Points of a contrast or score, and how sure they are, or the reason why that cannot be known.
Estimate = tuple[float, Spread | None, str]


def compare(
    configurations: Sequence[Configured], contrasts: Sequence[Contrast], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Scores of configurations, and contrasts of them, corrected for their number.

    resamples, seed: of the bootstrap over images.

    Raises:
        ValueError: nothing to compare, labels that repeat, models that were counted on other images, masks, groups or
            classes, or one without any class; the message names them.
    """
    if not configurations or len({one.label for one in configurations}) < len(configurations):
        labels = ", ".join(one.label for one in configurations)
        raise ValueError(f"at least one configuration is needed, and labels must differ, got {labels or 'none'}")
    hits, union, sizes = _sums(configurations)
    flat = iter(miou(hits.sum(0), union.sum(0)).tolist())
    scores = {one.label: {name: next(flat) for name in one.models} for one in configurations}
    if empty := [name for own in scores.values() for name, score in own.items() if math.isnan(score)]:
        raise ValueError(f"no class is present in the test images of {', '.join(empty)}")
    alone = [{label: 1.0} for label in scores]
    weights = alone + [{label: w for label, w in one.weights.items() if w} for one in contrasts]
    groups = _effective_number(sizes)
    too_few = _too_few(int(sizes.sum()), len(sizes), groups)
    reasons = {one.label: too_few or _unusable(one) for one in configurations}
    variances = _over_images(hits, union, _by_model(weights, scores), groups, resamples, seed)
    estimates: list[Estimate] = []
    for one, variance in zip(weights, variances, strict=True):
        points = sum(weight * float(numpy.mean(list(scores[label].values()))) for label, weight in one.items())
        reason = next(filter(None, map(reasons.get, one)), "") or _shared_in_part(one, scores)
        spread = None if reason else Spread(Variance(float(variance), groups - 1), _over_models(one, scores))
        estimates.append((points, spread, reason))
    described = tuple(
        Score(one.label, len(one.models), points, spread and _within(spread.interval(points)))
        for one, (points, spread, _) in zip(configurations, estimates, strict=False)
    )
    return Comparison(int(sizes.sum()), len(sizes), described, _effects(contrasts, estimates[len(alone) :]))


def _within(interval: Interval) -> Interval:
    """The part of an interval in which scores can be."""
    return max(interval[0], 0.0), min(interval[1], 100.0)


def _effects(contrasts: Sequence[Contrast], estimates: Sequence[Estimate]) -> tuple[Effect, ...]:
    p = [spread.p(points) for points, spread, _ in estimates if spread is not None]
    corrected = iter(zip(p, multipletests(p, method="holm")[1].tolist() if p else [], strict=True))
    effects = []
    for contrast, (points, spread, reason) in zip(contrasts, estimates, strict=True):
        if spread is None:
            effects.append(Effect(contrast, points, reason=reason))
            continue
        alone, together = next(corrected)
        smallest = spread.reach(LEVEL / len(p)) + spread.reach(2 * (1 - POWER))
        found = Effect(contrast, points, *spread.interval(points), alone, together, spread.models.df)
        effects.append(replace(found, significant=together < LEVEL, smallest=smallest))
    return tuple(effects)


def _over_images(hits: Floats, union: Floats, by_model: Floats, effective: float, resamples: int, seed: int) -> Floats:
    """Variance (C,) of contrasts over the test images. hits, union: (G, M, K); by_model: weights (M, C).

    A resample draws G of the G groups with replacement and scores their summed counts; one without any class is left
    out. A bootstrap of n gives (n - 1) / n of the variance, which is made up for with the effective number of groups.
    """
    groups, models, classes = hits.shape
    if groups == 1:
        return numpy.full(by_model.shape[1], numpy.nan)
    counts = numpy.concatenate([hits, union], axis=-1).reshape(groups, -1)
    generator = numpy.random.default_rng(seed)
    lines = max(1, BLOCK // max(counts.shape))
    drawn: list[Floats] = []
    for start in range(0, resamples, lines):
        times = generator.multinomial(groups, numpy.full(groups, 1 / groups), size=min(lines, resamples - start))
        sums = (times.astype(numpy.float64) @ counts).reshape(-1, models, 2 * classes)
        drawn.append(miou(sums[..., :classes], sums[..., classes:]) @ by_model)
    variance: Floats = numpy.nanvar(numpy.concatenate(drawn), axis=0, ddof=1) * effective / (effective - 1)
    return variance


def _effective_number(sizes: Floats) -> float:
    """As many groups of equal size tell as much as groups of these sizes (G,), if groups vary alike."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _over_models(weights: Weights, scores: Scores) -> Variance:
    """Variance of a contrast over its models: Satterthwaite's sum over sets of configurations of the same models."""
    sets: dict[frozenset[str], list[str]] = {}
    for label in weights:
        sets.setdefault(frozenset(scores[label]), []).append(label)
    parts = []
    for models, labels in sets.items():
        by_model = [sum(weights[label] * scores[label][name] for label in labels) for name in sorted(models)]
        parts.append(Variance(float(numpy.var(by_model, ddof=1)) / len(models), len(models) - 1))
    total, squares = sum(part.value for part in parts), sum(part.value**2 / part.df for part in parts)
    return Variance(total, total**2 / squares if squares > 0 else min(part.df for part in parts))


def _by_model(weights: Sequence[Weights], scores: Scores) -> Floats:
    """Weight (M, C) of each model's score in each contrast."""
    return numpy.array(
        [[one.get(label, 0.0) / len(own) for one in weights] for label, own in scores.items() for _ in own]
    )


def _too_few(images: int, groups: int, effective: float) -> str:
    if images < FEWEST_IMAGES:
        return f"{images} test images, at least {FEWEST_IMAGES} are needed"
    if effective < FEWEST_GROUPS - TINY:
        uneven = f", as good as {effective:.1f} of equal size" if groups > 1 else ""
        return f"test images of {groups} group{'s'[: groups > 1]}{uneven}; at least {FEWEST_GROUPS} are needed"
    return ""


def _unusable(one: Configured) -> str:
    """Why nothing is known of how a configuration's models vary; empty where it is."""
    if len(one.models) < FEWEST_MODELS:
        return f"{len(one.models)} model of {one.label}, at least {FEWEST_MODELS} are needed"
    for (a, first), (b, second) in combinations(one.models.items(), 2):
        if all(numpy.array_equal(getattr(first, n), getattr(second, n)) for n in ("hits", "truth", "predicted")):
            return f"{a} and {b} of {one.label} agree in every pixel count: a copy is no second model"
    return ""


def _shared_in_part(weights: Weights, scores: Scores) -> str:
    for a, b in combinations(weights, 2):
        if scores[a].keys() != scores[b].keys() and scores[a].keys() & scores[b].keys():
            return f"{a} and {b} share some of their models but not all"
    return ""


def _sums(configurations: Sequence[Configured]) -> tuple[Floats, Floats, Floats]:
    """Hits and union, each (G, M, K), summed over the images of each group; and their number (G,). In float64."""
    named = [(f"{name} of {one.label}", counts) for one in configurations for name, counts in one.models.items()]
    first, reference = named[0]
    groups, group_of, sizes = numpy.unique(numpy.array(reference.groups), return_inverse=True, return_counts=True)
    by_group = numpy.argsort(group_of, kind="stable")
    starts = numpy.searchsorted(group_of[by_group], numpy.arange(len(groups)))
    sums = numpy.empty((2, len(groups), len(named), len(reference.class_names)))
    for model, (name, counts) in enumerate(named):
        if counts.class_names != reference.class_names:
            differ = sorted(set(counts.class_names) ^ set(reference.class_names)) or ["their order"]
            raise ValueError(f"{first} and {name} must have the same classes, they differ in {_few(differ)}")
        line = {image: i for i, image in enumerate(counts.names)}
        if line.keys() != set(reference.names):
            lacking = [(name, set(reference.names) - line.keys()), (first, line.keys() - set(reference.names))]
            text = "; ".join(f"{who} lacks {_few(sorted(what))}" for who, what in lacking if what)
            raise ValueError(f"models must be scored on the same test images: {text}")
        own = [counts.groups[line[image]] for image in reference.names]
        if moved := [image for image, a, b in zip(reference.names, own, reference.groups, strict=True) if a != b]:
            raise ValueError(f"{first} and {name} must have the same groups, they differ in that of {_few(moved)}")
        order = numpy.array([line[image] for image in reference.names])
        if (other := (counts.truth[order] != reference.truth).any(axis=1)).any():
            differ = [reference.names[i] for i in other.nonzero()[0]]
            raise ValueError(f"{first} and {name} must be scored against the same masks, they differ in {_few(differ)}")
        lines = order[by_group]
        for part, array in zip(sums, (counts.hits, counts.union), strict=True):
            part[:, model] = numpy.add.reduceat(array[lines], starts)
    return sums[0], sums[1], sizes.astype(numpy.float64)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def letters(comparison: Comparison) -> dict[str, str]:
    """Letters by label, a for the best: configurations that share one do not differ significantly (Piepho 2004).

    comparison: of all pairs. A configuration of which no pair was tested has no letter; a pair that was not tested,
    of configurations that were tested otherwise, counts as one that does not differ.
    """
    labels = [one.label for one in sorted(comparison.scores, key=lambda one: -one.miou)]
    found = {frozenset(effect.contrast.weights): effect.significant for effect in comparison.effects}
    tested = [label for label in labels if any(label in pair and found[pair] is not None for pair in found)]
    columns = [frozenset(tested)] if tested else []
    for pair in (pair for pair, significant in found.items() if significant):
        split = [column - {label} for column in columns if pair <= column for label in pair]
        split = list(dict.fromkeys(split + [column for column in columns if not pair <= column]))
        columns = [column for column in split if not any(column < other for other in split)]
    rank = {label: i for i, label in enumerate(labels)}
    columns.sort(key=lambda column: sorted(rank[label] for label in column))
    signs = [*ascii_letters, *(f"({i})" for i in range(len(ascii_letters) + 1, len(columns) + 1))]
    given = {label: "".join(s for s, column in zip(signs, columns, strict=False) if label in column) for label in rank}
    return {one.label: given[one.label] for one in comparison.scores}
