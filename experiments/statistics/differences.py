"""Differences of test mIoU between configurations, with what images and seeds leave open.

The score of a configuration is the mean over its n seeds of mIoU. A difference d = a - b of two scores is uncertain for
two reasons, which add up (Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, MLSys 2021):

- the test images are a sample: variance v of d over resamples of the images (bootstrap.py);
- so are the seeds: variance s² (1 / n_a + 1 / n_b), where s² is the variance of mIoU between seeds, pooled over all
  configurations with two seeds or more, s² = sum over those of (n - 1) s_i² / sum of (n - 1).

Interval: d ± t sqrt(v + s² (1 / n_a + 1 / n_b)), and p = P(|T| >= |d| / sqrt(...)), with Student's t of sum (n - 1)
degrees of freedom. Each choice errs on the careful side: v, which is known better, gets the same t; v of mean scores
holds some of the noise of seeds already; batches that are shared at equal seeds are not used to pair seeds. The pooling
takes the seed spread to be alike in all configurations: with two or three seeds each there is nothing better.

Configurations may be the same S trained models, such as at C output strides or with C ways to predict. A model that is
good is good in all of them, and s² would be far too large for a difference between them. Such differences are taken
model by model: s² is what is left of mIoU when the means of its configuration and of its model are taken out, the
residual variance of a two-way layout, with (C - 1) (S - 1) degrees of freedom (Scheffé, The Analysis of Variance, 1959,
chapter 4). For two configurations that is the paired t test. It is pooled over all groups of such configurations, as
if alike in all: two or three models of each allow no better, but where one group varies far more than another, its
intervals are too narrow and the other's too wide. In the pooling over seeds above, such a group counts as one
configuration: its models are no new ones. Two configurations that share some of their models only are judged as if
they shared none, and so are those of one model each where no group has two: both err on the careful side.

Where every configuration has one seed, s² is unknown: p then comes from the normal distribution with variance v, there
is no interval for images and seeds, and what is said holds for these trained models only.

All pairs are judged together: p values are corrected by Holm's step-down method (A Simple Sequentially Rejective
Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979), and a difference is resolved where the corrected p
is below 1 - LEVEL. The intervals are for one pair each, uncorrected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy
from numpy.typing import ArrayLike
from scipy import stats

from experiments.statistics.bootstrap import LEVEL, RESAMPLES, percentile_interval, resampled_miou
from experiments.statistics.counts import Counts, Floats
from experiments.statistics.variance import Variance, beside_models, between_models, groups_of

Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """Test mIoU of one configuration in percent: its mean over seeds, and 95 % intervals.

    over_images: for these trained models on other images. overall: for other seeds too, None where the spread between
    seeds is unknown.
    """

    configuration: str
    seeds: int
    miou: float
    over_images: Interval
    overall: Interval | None


@dataclass(frozen=True)
class Difference:
    """first minus second in points of test mIoU, with 95 % intervals as in Score.

    p is for this pair alone, p_corrected for all pairs together; resolved: p_corrected < 0.05.
    """

    first: str
    second: str
    points: float
    over_images: Interval
    overall: Interval | None
    p: float
    p_corrected: float
    resolved: bool


@dataclass(frozen=True)
class Comparison:
    """Scores and the differences of all pairs, both in the order given.

    images: size of the test split. seed_sd: pooled standard deviation of mIoU between seeds, in points, with
    seed_freedom degrees of freedom; None and 0 where every configuration has one seed. paired_sd, paired_freedom: what
    differences between configurations of the same trained models rest on instead; None and 0 where there are none.
    unpaired: pairs that have models in common and are judged as if they had none.
    """

    images: int
    seed_sd: float | None
    seed_freedom: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    paired_sd: float | None = None
    paired_freedom: int = 0
    unpaired: int = 0

    @property
    def these_models_only(self) -> bool:
        """Whether nothing can be said about other seeds."""
        return self.seed_sd is None

    def between(self, first: str, second: str) -> Difference:
        """The difference of two configurations, in the order of the scores; KeyError for any other pair."""
        for difference in self.differences:
            if (difference.first, difference.second) == (first, second):
                return difference
        raise KeyError((first, second))


def compare(
    configurations: Mapping[str, Mapping[str, Counts]],
    resamples: int = RESAMPLES,
    models: Mapping[str, str] | None = None,
) -> Comparison:
    """Scores and differences of configurations: name -> cell (one trained model, by seed) -> its counts.

    models: the trained model that each cell is, where several are the same one.

    Raises:
        ValueError: nothing to compare, cells on different or fewer than two images, a name of a cell that stands twice,
            or a cell with no class present.
    """
    cells = {cell: counts for group in configurations.values() for cell, counts in group.items()}
    if not cells or len(cells) != sum(map(len, configurations.values())) or not all(configurations.values()):
        sizes = {name: list(group) for name, group in configurations.items()}
        raise ValueError(f"every configuration needs cells, each of them once, got {sizes}")
    scores = {cell: counts.miou() for cell, counts in cells.items()}
    if empty := [cell for cell, score in scores.items() if numpy.isnan(score)]:
        raise ValueError(f"no class is present in the test images of {', '.join(empty)}")
    by_cell = resampled_miou(cells, resamples)
    means = {name: float(numpy.mean([scores[cell] for cell in group])) for name, group in configurations.items()}
    resampled = {name: numpy.mean([by_cell[cell] for cell in group], axis=0) for name, group in configurations.items()}
    seeds = {name: len(group) for name, group in configurations.items()}
    of = models or {}
    groups = groups_of(
        {name: [(of.get(cell, cell), scores[cell]) for cell in group] for name, group in configurations.items()}
    )
    group_of = {name: group for group in groups for name in group.configurations}
    variance, paired = between_models(groups), beside_models(groups)
    results, pairs, unpaired = [], [], 0
    for name, value in means.items():
        interval, _ = _overall(value, resampled[name], 1 / seeds[name], variance)
        results.append(Score(name, seeds[name], value, percentile_interval(resampled[name]), interval))
    for first, second in combinations(configurations, 2):
        points, draws = means[first] - means[second], resampled[first] - resampled[second]
        between = variance
        if group_of[first] is group_of[second] and paired is not None:
            between = paired
        elif variance is not None and group_of[first].models & group_of[second].models:
            unpaired += 1
        interval, p = _overall(points, draws, 1 / seeds[first] + 1 / seeds[second], between)
        pairs.append((first, second, points, percentile_interval(draws), interval, p))
    corrected = holm([pair[-1] for pair in pairs])
    differences = tuple(
        Difference(*pair, p_corrected=float(p), resolved=bool(p < 1 - LEVEL))
        for pair, p in zip(pairs, corrected, strict=True)
    )
    images = len(next(iter(cells.values())).names)
    seed_sd, seed_freedom = (variance.value**0.5, variance.freedom) if variance is not None else (None, 0)
    paired_sd, paired_freedom = (paired.value**0.5, paired.freedom) if paired is not None else (None, 0)
    return Comparison(images, seed_sd, seed_freedom, tuple(results), differences, paired_sd, paired_freedom, unpaired)


def _overall(value: float, draws: Floats, share: float, between: Variance | None) -> tuple[Interval | None, float]:
    """Interval over images and seeds, and p; share of the variance between models that value carries."""
    spread = float(numpy.nanvar(draws))
    if between is None:
        return None, _p_value(value, spread, None)
    spread += between.value * share
    reach = float(stats.t.ppf((1 + LEVEL) / 2, between.freedom)) * spread**0.5
    return (value - reach, value + reach), _p_value(value, spread, between.freedom)


def holm(p: ArrayLike) -> Floats:
    """Holm's corrected p values, in the order given: reject where one is below the level for all hypotheses together.

    The i-th smallest of m, counted from 0, becomes the largest of (m - j) p_(j) over j <= i, at most 1.
    """
    values = numpy.asarray(p, dtype=numpy.float64)
    order = numpy.argsort(values, kind="stable")
    steps = (len(values) - numpy.arange(len(values))) * values[order]
    corrected = numpy.empty_like(values)
    corrected[order] = numpy.minimum(1, numpy.maximum.accumulate(steps))
    return corrected


def _p_value(value: float, variance: float, freedom: int | None) -> float:
    """Two-sided p of a value whose variance is estimated with freedom degrees of freedom (None: known)."""
    if variance == 0:
        return float(value == 0)
    ratio = abs(value) / variance**0.5
    return float(2 * (stats.norm.sf(ratio) if freedom is None else stats.t.sf(ratio, freedom)))
