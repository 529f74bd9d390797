"""Variance between models and beside them: against scipy, least squares, a mixed model and simulated data."""

import numpy
import pytest
from numpy.typing import NDArray
from plain_counts import plain
from scipy import stats

from experiments.statistics import Counts, compare
from experiments.statistics.variance import Group, beside_models, between_models, groups_of

Floats = NDArray[numpy.float64]


def same_models(scores: Floats, images: Floats) -> tuple[dict[str, dict[str, Counts]], dict[str, str]]:
    """Configurations a, b, ... of models 0, 1, ...: scores (C, S) on top of images (N,); and the model of each cell."""
    names = "abcdefgh"[: len(scores)]
    cells = {
        name: {f"{name}{model}": plain(images + score) for model, score in enumerate(line)}
        for name, line in zip(names, scores, strict=True)
    }
    return cells, {cell: cell[1:] for group in cells.values() for cell in group}


def test_two_configurations_of_the_same_models_are_the_paired_t_test() -> None:
    generator = numpy.random.default_rng(41)
    scores = generator.normal(0, 5, 4) + numpy.stack([generator.normal(1, 0.5, 4), generator.normal(0, 0.5, 4)])
    cells, models = same_models(scores, generator.normal(50, 5, 37))
    result = compare(cells, models=models)
    expected = stats.ttest_rel(scores[0], scores[1])
    difference = result.between("a", "b")
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert difference.overall == pytest.approx(tuple(expected.confidence_interval()), rel=1e-6)
    assert result.paired_freedom == 3
    apart = compare(cells)
    assert apart.between("a", "b").p > 3 * difference.p, "the level of models hides the difference"
    assert (apart.paired_sd, apart.paired_freedom) == (None, 0)
    for one, other in zip(result.scores, apart.scores, strict=True):
        assert one.overall is not None
        assert other.overall is not None
        assert one.over_images == other.over_images
        # A score says what another model might reach, and four models were seen, not eight.
        widths = [interval[1] - interval[0] for interval in (one.overall, other.overall)]
        assert widths[0] / widths[1] == pytest.approx(stats.t.ppf(0.975, 3) / stats.t.ppf(0.975, 6))


def test_variances_are_those_of_a_least_squares_fit_in_each_group() -> None:
    """Columns of the design: one per configuration and one per model of its own group."""
    generator = numpy.random.default_rng(43)
    groups = [
        Group(tuple("abc"[:c]), frozenset(f"{c}{s}{i}" for i in range(s)), generator.normal(0, 3, (c, s)))
        for c, s in ((3, 5), (2, 3), (1, 4), (2, 1))
    ]
    freedom, squares = 0, 0.0
    for _, _, scores in groups:
        c, s = scores.shape
        lines = [
            [float(i == k) for i in range(c)] + [float(j == m) for j in range(s)] for k in range(c) for m in range(s)
        ]
        fit, _, rank, _ = numpy.linalg.lstsq(numpy.array(lines), scores.ravel(), rcond=None)
        freedom += c * s - int(rank)
        squares += float(((numpy.array(lines) @ fit - scores.ravel()) ** 2).sum())
    beside = beside_models(groups)
    assert beside is not None
    assert beside.freedom == freedom == 8 + 2
    assert beside.value == pytest.approx(squares / freedom)
    own = [numpy.var(group.scores, axis=1, ddof=1).mean() if group.scores.shape[1] > 1 else 0 for group in groups]
    assert between_models(groups) == (pytest.approx((4 * own[0] + 2 * own[1] + 3 * own[2]) / 9), 9)
    assert beside_models(groups[2:]) is None
    assert between_models(groups[3:]) is None


def test_each_pair_rests_on_the_variance_that_is_its_own() -> None:
    """a and b are one set of models, c and d another, e stands alone; the spread of models is ten times the rest."""
    generator = numpy.random.default_rng(47)
    base = generator.normal(50, 10, 43)
    sets = {"ab": generator.normal(0, 5, 3), "cd": generator.normal(0, 5, 2), "e": generator.normal(0, 5, 2)}
    groups = {
        name: level + generator.normal(0, 0.5, len(level)) + shift
        for models, level in sets.items()
        for name, shift in zip(models, (1.0, 0.0), strict=False)
    }
    cells = {
        name: {f"{name}{i}": plain(base + score + generator.normal(0, 1, 43)) for i, score in enumerate(line)}
        for name, line in groups.items()
    }
    models = {f"{name}{i}": f"{letters}{i}" for letters in sets for name in letters for i in range(3)}
    result = compare(cells, models=models)
    assert (result.seed_freedom, result.paired_freedom) == (2 + 1 + 1, 2 + 1)
    scores = {name: [counts.miou() for counts in group.values()] for name, group in cells.items()}
    beside = (
        sum(
            numpy.var(numpy.subtract(scores[x], scores[y]), ddof=1) / 2 * k
            for x, y, k in (("a", "b", 2), ("c", "d", 1))
        )
        / 3
    )
    spread = {name: numpy.var(line, ddof=1) for name, line in scores.items()}
    between = (2 * (spread["a"] + spread["b"]) / 2 + (spread["c"] + spread["d"]) / 2 + spread["e"]) / 4
    for first, second, variance, freedom in (
        ("a", "b", beside, 3),
        ("c", "d", beside, 3),
        ("a", "c", between, 4),
        ("b", "e", between, 4),
    ):
        difference = result.between(first, second)
        per_image = [numpy.mean([c.hits[:, 0] / 10 for c in cells[name].values()], axis=0) for name in (first, second)]
        images = numpy.var(per_image[0] - per_image[1]) / 43
        total = images + variance * (1 / len(scores[first]) + 1 / len(scores[second]))
        expected = stats.t.interval(0.95, freedom, loc=difference.points, scale=total**0.5)
        assert difference.overall == pytest.approx(expected, rel=0.02)
    assert result.between("a", "b").p < compare(cells).between("a", "b").p / 3, "the level of models hid it"


def test_models_that_are_not_all_in_all_configurations_are_not_paired() -> None:
    cells, models = same_models(numpy.arange(6.0).reshape(2, 3), numpy.linspace(30, 70, 17))
    whole = compare(cells, models=models)
    assert whole.paired_sd is not None
    del cells["b"]["b2"]
    partly = compare(cells, models=models)
    assert (partly.paired_sd, partly.unpaired) == (None, 1)
    assert (whole.unpaired, compare(cells).unpaired) == (0, 0)
    cells["b"]["b9"] = plain(numpy.linspace(30, 70, 17))
    assert compare(cells, models=models | {"b9": "2"}).paired_sd is not None
    cells["a"].pop("a2")
    twice = compare(cells, models=models | {"b9": "1"})
    assert (twice.paired_sd, twice.seed_freedom, twice.unpaired) == (None, 2, 1), "b is models 0, 1 and 1 again"


def test_models_that_configurations_share_in_part_count_once() -> None:
    """a is models 0, 1, 2; b is 0, 1; c is 2, 3, which ties them together; d is 7, 8; e is 0 alone."""
    generator = numpy.random.default_rng(53)
    held = {"a": "012", "b": "01", "c": "23", "d": "78", "e": "0"}
    groups = groups_of({name: [(m, generator.normal()) for m in models] for name, models in held.items()})
    a, b, c, d, _ = (numpy.var(group.scores, ddof=1) if group.scores.size > 1 else None for group in groups)
    assert between_models(groups) == (pytest.approx((2 * (2 * a + b + c) / 4 + d) / 3), 3)
    assert between_models(groups[::-1]) == (pytest.approx((2 * (2 * a + b + c) / 4 + d) / 3), 3)
    assert between_models(groups[1:3]) == (pytest.approx((b + c) / 2), 2), "0, 1 and 2, 3 have nothing in common"
    assert beside_models(groups) is None


def test_interval_of_a_score_covers_as_often_as_it_says_where_models_come_again_in_part() -> None:
    generator = numpy.random.default_rng(59)
    covered, runs = 0, 400
    for _ in range(runs):
        level = generator.normal(0, 1, 3)
        held = {"a": (0, 1, 2), "b": (0, 1), "c": (1, 2)}
        scores = {n: [(str(i), level[i] + generator.normal(0, 0.1)) for i in models] for n, models in held.items()}
        variance = between_models(groups_of(scores))
        assert variance is not None
        reach = stats.t.ppf(0.975, variance.freedom) * (variance.value / 3) ** 0.5
        covered += abs(numpy.mean([score for _, score in scores["a"]])) <= reach
    assert 0.92 <= covered / runs <= 0.98


def test_interval_between_the_same_models_covers_the_truth_as_often_as_it_says() -> None:
    generator = numpy.random.default_rng(19)
    covered, apart, runs = 0, 0, 200
    for _ in range(runs):
        scores = generator.normal(0, 5, 2) + numpy.array([[1.0], [0.0], [0.0], [2.0]]) + generator.normal(0, 1, (4, 2))
        cells, models = same_models(scores, generator.normal(50, 5, 50))
        for chosen, interval in ((models, "paired"), (None, "apart")):
            overall = compare(cells, resamples=100, models=chosen).between("a", "d").overall
            assert overall is not None
            inside = overall[0] <= -1 <= overall[1]
            covered, apart = covered + (inside and interval == "paired"), apart + (inside and interval == "apart")
    assert 0.91 <= covered / runs <= 0.985
    assert apart > 0.985 * runs, "five times the spread would be reckoned with"
