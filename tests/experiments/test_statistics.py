"""Intervals and p values: against closed forms, scipy, hand-worked cases and simulated data with known truth."""

import json
import time
from pathlib import Path

import numpy
import pytest
from numpy.typing import NDArray
from plain_counts import plain
from scipy import stats

from experiments.statistics import (
    Counts,
    compare,
    holm,
    percentile_interval,
    read_counts,
    resampled_miou,
)
from experiments.statistics.bootstrap import RESAMPLES, weights
from experiments.statistics.counts import counts, miou

Floats = NDArray[numpy.float64]


def random_counts(seed: int, images: int = 41, classes: int = 5) -> Counts:
    """Whole numbers as a model gives them; the last class is in one image in ten."""
    generator = numpy.random.default_rng(seed)
    shared = numpy.random.default_rng(0)
    truth = shared.integers(0, 3000, (images, classes))
    truth[:, -1] *= shared.random(images) < 0.1
    hits = (truth * generator.beta(6, 3, truth.shape)).astype(int)
    predicted = hits + generator.integers(0, 500, truth.shape)
    return counts([f"{i:03}" for i in range(images)], [f"c{k}" for k in range(classes)], hits, truth, predicted)


def test_miou_is_the_definition_over_summed_counts() -> None:
    case = counts(["b", "a"], ["x", "y", "z"], [[3, 0, 0], [1, 2, 0]], [[4, 1, 0], [2, 2, 0]], [[5, 0, 0], [1, 4, 0]])
    assert case.names == ("a", "b")
    # x: 4 right, truth 6, predicted 6; y: 2 right, truth 3, predicted 4; z is absent.
    assert case.miou() == pytest.approx(100 * (4 / 8 + 2 / 5) / 2)
    assert numpy.isnan(miou(numpy.zeros(2), numpy.zeros(2)))


def test_resamples_draw_as_many_images_as_there_are_and_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numpy.concatenate(list(weights(7, 1000)))
    assert whole.shape == (1000, 7)
    assert (whole.sum(1) == 7).all()
    # How often one image is drawn is binomial (7, 1/7).
    expected = stats.binom.pmf(range(4), 7, 1 / 7)
    assert numpy.bincount(whole[:, 3].astype(int))[:4] / 1000 == pytest.approx(expected, abs=0.05)
    monkeypatch.setattr("experiments.statistics.bootstrap.BLOCK", 7 * 13)
    blocks = list(weights(7, 1000))
    assert len(blocks) == 77
    assert numpy.concatenate(blocks).shape == (1000, 7)


def test_bootstrap_of_a_plain_mean_has_the_variance_of_the_closed_form() -> None:
    values = numpy.random.default_rng(3).gamma(2, 12, 53)
    draws = resampled_miou({"a": plain(values)})["a"]
    exact = ((values - values.mean()) ** 2).sum() / len(values) ** 2
    assert draws.mean() == pytest.approx(values.mean(), abs=5 * (exact / RESAMPLES) ** 0.5)
    assert draws.var() == pytest.approx(exact, rel=0.06)  # standard error of a variance: sqrt(2 / 10 000) = 1.4 %


def test_paired_interval_of_miou_agrees_with_scipy() -> None:
    a, b = random_counts(1), random_counts(2)

    def difference(index: NDArray[numpy.int64], axis: int = -1) -> Floats:
        scores = [miou(c.hits[index].sum(axis - 1), c.union[index].sum(axis - 1)) for c in (a, b)]
        result: Floats = scores[0] - scores[1]
        return result

    index = numpy.arange(len(a.names))
    theirs = stats.bootstrap(
        (index,), lambda i, axis: difference(i.astype(int), axis), n_resamples=10_000, batch=1000, method="percentile",
        vectorized=True, rng=numpy.random.default_rng(7),
    )  # fmt: skip
    draws = resampled_miou({"a": a, "b": b})
    low, high = percentile_interval(draws["a"] - draws["b"])
    width = high - low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)
    assert (draws["a"] - draws["b"]).std() == pytest.approx(theirs.standard_error, rel=0.04)
    result = compare({"A": {"a": a}, "B": {"b": b}})
    assert result.between("A", "B").over_images == (low, high)
    assert result.between("A", "B").points == pytest.approx(float(difference(index)))


def test_shared_hard_images_cancel_in_a_difference() -> None:
    generator = numpy.random.default_rng(5)
    difficulty = generator.normal(50, 15, 97)
    a, b = difficulty + generator.normal(1, 0.5, 97), difficulty + generator.normal(0, 0.5, 97)
    result = compare({"a": {"a0": plain(a)}, "b": {"b0": plain(b)}})
    difference = result.between("a", "b")
    assert difference.resolved
    assert difference.over_images[1] - difference.over_images[0] < 1
    own = [score.over_images[1] - score.over_images[0] for score in result.scores]
    assert min(own) > 5, "their own intervals overlap widely"


def test_interval_with_seeds_is_students_t_on_both_variances() -> None:
    generator = numpy.random.default_rng(11)
    base = generator.normal(50, 10, 43)
    groups = {
        name: [base + shift + generator.normal(0, 1, 43) + generator.normal(0, 2) for _ in range(seeds)]
        for name, shift, seeds in (("a", 3.0, 3), ("b", 0.0, 2), ("c", -1.0, 1))
    }
    result = compare(
        {name: {f"{name}{i}": plain(values) for i, values in enumerate(group)} for name, group in groups.items()}
    )
    means = {name: [values.mean() for values in group] for name, group in groups.items()}
    pooled = (2 * numpy.var(means["a"], ddof=1) + numpy.var(means["b"], ddof=1)) / 3
    assert result.seed_sd == pytest.approx(pooled**0.5)
    assert result.seed_freedom == 3
    assert not result.these_models_only
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        per_image = numpy.mean(groups[first], axis=0) - numpy.mean(groups[second], axis=0)
        images = ((per_image - per_image.mean()) ** 2).sum() / 43**2
        spread = (images + pooled * (1 / len(groups[first]) + 1 / len(groups[second]))) ** 0.5
        difference = result.between(first, second)
        expected = stats.t.interval(0.95, 3, loc=per_image.mean(), scale=spread)
        assert difference.points == pytest.approx(per_image.mean())
        assert difference.overall == pytest.approx(expected, rel=0.02)
        assert difference.p == pytest.approx(2 * stats.t.cdf(-abs(per_image.mean()) / spread, 3), rel=0.02)
    alone = result.scores[2]
    assert (alone.configuration, alone.seeds) == ("c", 1)
    images = ((groups["c"][0] - means["c"][0]) ** 2).sum() / 43**2
    assert alone.overall == pytest.approx(stats.t.interval(0.95, 3, means["c"][0], (images + pooled) ** 0.5), rel=0.02)


def test_one_seed_everywhere_speaks_of_these_models_only() -> None:
    generator = numpy.random.default_rng(2)
    a, b = generator.normal(50, 5, 67), generator.normal(48, 5, 67)
    result = compare({"a": {"a0": plain(a)}, "b": {"b0": plain(b)}})
    assert result.these_models_only
    assert (result.seed_sd, result.seed_freedom) == (None, 0)
    assert [score.overall for score in result.scores] == [None, None]
    difference = result.between("a", "b")
    assert difference.overall is None
    spread = numpy.var(a - b) ** 0.5 / 67**0.5
    assert difference.p == pytest.approx(2 * stats.norm.sf((a - b).mean() / spread), rel=0.1)


def test_holm_on_a_case_worked_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, then never below an earlier one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    generator = numpy.random.default_rng(4)
    for size in range(1, 30):
        p = generator.random(size) ** 4
        rejected = set()
        for rank, index in enumerate(numpy.argsort(p)):
            if p[index] >= 0.05 / (size - rank):
                break
            rejected.add(int(index))
        assert set(numpy.flatnonzero(holm(p) < 0.05)) == rejected


def test_resolved_means_resolved_among_all_pairs() -> None:
    generator = numpy.random.default_rng(29)
    base, noise = generator.normal(50, 8, 61), generator.normal(0, 4, 61)
    noise -= noise.mean()
    # 2.4 standard errors: p = 0.016, below 0.05 alone but not among fifteen pairs.
    shifted = base + noise + 2.4 * noise.std() / 61**0.5
    pair = {"a": {"a0": plain(shifted)}, "b": {"b0": plain(base)}}
    alone = compare(pair).between("a", "b")
    assert alone.p == alone.p_corrected == pytest.approx(0.0164, abs=0.004)
    assert alone.resolved
    others = {name: {name: plain(base + generator.normal(0, 4, 61))} for name in "cdef"}
    result = compare(pair | others)
    among = result.between("a", "b")
    assert among.p == alone.p
    assert among.p_corrected > 0.05
    assert not among.resolved
    assert [d.p_corrected for d in result.differences] == pytest.approx(holm([d.p for d in result.differences]))


def test_identical_models_never_differ() -> None:
    case = random_counts(1)
    result = compare({"a": {"a0": case, "a1": random_counts(3)}, "b": {"b0": case, "b1": random_counts(3)}})
    difference = result.between("a", "b")
    assert (difference.points, difference.over_images, difference.p) == (0.0, (0.0, 0.0), 1.0)
    assert not difference.resolved
    one = compare({"a": {"a0": case}, "b": {"b0": case}}).between("a", "b")
    assert (one.points, one.p, one.resolved) == (0.0, 1.0, False)


def test_swapping_two_configurations_flips_every_sign() -> None:
    a = {"a0": random_counts(1), "a1": random_counts(2)}
    b = {"b0": random_counts(3), "b1": random_counts(4)}
    one, other = compare({"a": a, "b": b}).between("a", "b"), compare({"b": b, "a": a}).between("b", "a")
    assert one.overall is not None
    assert other.overall is not None
    assert one.points == -other.points
    assert one.over_images == pytest.approx((-other.over_images[1], -other.over_images[0]))
    assert one.overall == pytest.approx((-other.overall[1], -other.overall[0]))
    assert one.p == pytest.approx(other.p)


def test_the_order_of_images_in_the_files_changes_nothing(tmp_path: Path) -> None:
    case = random_counts(1)
    truth = case.union  # any count that is not below hits
    order = numpy.random.default_rng(0).permutation(len(case.names))
    for name, index in (("sorted", numpy.arange(len(order))), ("shuffled", order)):
        content = {"names": [case.names[i] for i in index], "class_names": case.class_names}
        content |= {"hits": case.hits[index].tolist(), "truth": truth[index].tolist()}
        content["predicted"] = case.hits[index].tolist()
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    one, other = read_counts(tmp_path / "sorted.json"), read_counts(tmp_path / "shuffled.json")
    rival = random_counts(2)
    assert compare({"a": {"x": one}, "b": {"y": rival}}) == compare({"a": {"x": other}, "b": {"y": rival}})


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two seeds in each of five configurations, 50 images; image noise and seed noise of about equal weight."""
    generator = numpy.random.default_rng(17)
    shifts = numpy.array([0.0, 0.0, 2.0, 0.0, -1.0])
    covered, images_alone, together, runs = 0, 0, 0, 200
    for _ in range(runs):
        base = generator.normal(50, 10, 50)
        cells = {
            str(i): {
                f"{i}-{seed}": plain(base + shift + generator.normal(0, 1) + generator.normal(0, 6, 50))
                for seed in range(2)
            }
            for i, shift in enumerate(shifts)
        }
        result = compare(cells, resamples=300)
        for first, second in (("0", "1"), ("2", "4")):
            difference, truth = result.between(first, second), shifts[int(first)] - shifts[int(second)]
            assert difference.overall is not None
            covered += difference.overall[0] <= truth <= difference.overall[1]
            images_alone += difference.over_images[0] <= truth <= difference.over_images[1]
        equal = ("0", "1", "3")
        together += any(d.resolved for d in result.differences if d.first in equal and d.second in equal)
    assert 0.93 <= covered / (2 * runs) <= 1
    assert images_alone / (2 * runs) < 0.87, "images alone must fall short where seeds matter"
    assert together / runs <= 0.08, "some false difference in more than 5 % of all comparisons"


def test_interval_over_images_covers_the_models_own_truth() -> None:
    generator = numpy.random.default_rng(23)
    covered, runs = 0, 300
    for _ in range(runs):
        base = generator.normal(50, 10, 60)
        a, b = base + 1 + generator.normal(0, 4, 60), base + generator.normal(0, 4, 60)
        low, high = compare({"a": {"x": plain(a)}, "b": {"y": plain(b)}}, resamples=400).between("a", "b").over_images
        covered += low <= 1 <= high
    assert 0.90 <= covered / runs <= 0.98


def test_other_images_are_refused_by_name() -> None:
    values = numpy.arange(4.0)
    names = ["a", "b", "c", "d"]
    cells = {"x": {"x0": plain(values, names)}, "y": {"y0": plain(values, ["a", "b", "c", "other"])}}
    with pytest.raises(ValueError, match="y0 lacks d; x0 lacks other"):
        compare(cells)
    few = {"x": {"x0": plain(values[:1])}, "y": {"y0": plain(values[:1])}}
    with pytest.raises(ValueError, match="at least 2 test images, got 1"):
        compare(few)
    nothing = plain(values, names)
    nothing.union[:] = nothing.hits[:] = 0
    with pytest.raises(ValueError, match="no class is present in the test images of x0"):
        compare({"x": {"x0": nothing}})
    with pytest.raises(ValueError, match="each of them once"):
        compare({"x": {"x0": nothing}, "y": {"x0": nothing}})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    good = {"names": ["a", "b"], "class_names": ["k"], "hits": [[1], [2]], "truth": [[2], [2]], "predicted": [[1], [3]]}
    for changes, message in (
        ({"names": ["a", "a"]}, "a stands more than once"),
        ({"hits": [[1]]}, r"hits must have one row per name and one column per class, \(2, 1\), got \(1, 1\)"),
        ({"hits": [[1], [3]]}, "hits must lie between 0 and both truth and predicted"),
    ):
        path.write_text(json.dumps(good | changes))
        with pytest.raises(ValueError, match=message) as caught:
            read_counts(path)
        assert str(path) in str(caught.value)
    path.write_text(json.dumps({key: good[key] for key in ("names", "class_names", "hits", "truth")}))
    with pytest.raises(ValueError, match="'predicted' is missing"):
        read_counts(path)


def test_a_grid_of_camvids_size_takes_seconds() -> None:
    cells = {f"{i}": {f"{i}-{s}": random_counts(9 * i + s, 233, 11) for s in range(2)} for i in range(11)}
    start = time.process_time()
    result = compare(cells)
    assert len(result.differences) == 55
    assert time.process_time() - start < 10
