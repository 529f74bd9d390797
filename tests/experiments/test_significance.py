"""Significance: against scipy, statsmodels, closed forms and cases worked by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from experiments.records.counts import ImageCounts, miou
from experiments.statistics import significance
from experiments.statistics.contrasts import Contrast, pairs
from experiments.statistics.significance import Configured, Effect, compare
from tests.benchmarks import simulate_significance

Floats = NDArray[numpy.float64]
PIXELS = 10**8


def plain(values: Floats, groups: Sequence[str] | None = None) -> ImageCounts:
    """One class that fills PIXELS in every image, so that mIoU in percent is the mean of values (N,)."""
    names = tuple(f"{i:05}" for i in range(len(values)))
    hits = numpy.rint(values[:, None] * PIXELS / 100).astype(numpy.int64)
    return ImageCounts(names, tuple(groups or names), ("all",), hits, numpy.full_like(hits, PIXELS), hits)


def scored(label: str, models: Mapping[str, float], images: Floats) -> Configured:
    """Models that differ by so many points in every image, on top of images (N,)."""
    return Configured(label, {name: plain(images + score) for name, score in models.items()})


def random_counts(seed: int, images: int = 41, classes: int = 5) -> ImageCounts:
    """Counts as a model gives them; the last class is in one image in five."""
    shared, own = numpy.random.default_rng(0), numpy.random.default_rng(seed)
    truth = shared.integers(0, 3000, (images, classes))
    truth[:, -1] *= shared.random(images) < 0.2
    hits = (truth * own.beta(6, 3, truth.shape)).astype(numpy.int64)
    predicted = hits + own.integers(0, 500, truth.shape)
    names = tuple(f"{i:03}" for i in range(images))
    return ImageCounts(names, names, tuple(f"c{i}" for i in range(classes)), hits, truth, predicted)


def test_configurations_of_the_same_models_are_the_paired_t_test() -> None:
    """The same difference in every image: images add nothing."""
    generator = numpy.random.default_rng(41)
    level = generator.normal(0, 5, 4)
    a, b = level + generator.normal(1, 0.5, 4), level + generator.normal(0, 0.5, 4)
    images = generator.normal(50, 5, 37)
    # Ids, not their order, say which models are the same.
    first = scored("a", {f"m{i}": a[i] for i in range(4)}, images)
    second = scored("b", {f"m{i}": b[i] for i in (2, 0, 3, 1)}, images)
    effect = compare([first, second], pairs("ab")).effects[0]
    expected = stats.ttest_rel(a, b)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-4)
    assert (effect.low, effect.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-4)
    assert effect.df == 3
    others = scored("b", {f"n{i}": b[i] for i in range(4)}, images)
    apart = compare([first, others], pairs("ab")).effects[0]
    assert apart.points == pytest.approx(effect.points)
    assert apart.p is not None
    assert apart.p > 3 * expected.pvalue, "the level of the models hides the difference"


def test_configurations_of_other_models_are_welchs_test() -> None:
    generator = numpy.random.default_rng(43)
    a, b = generator.normal(2, 3, 5), generator.normal(0, 0.5, 3)
    images = generator.normal(50, 5, 29)
    result = compare(
        [scored(name, {f"{name}{i}": s for i, s in enumerate(line)}, images) for name, line in (("a", a), ("b", b))],
        pairs("ab"),
    )
    expected = stats.ttest_ind(a, b, equal_var=False)
    effect = result.effects[0]
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-4)
    assert effect.df == pytest.approx(expected.df, rel=1e-4)
    assert (effect.low, effect.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-4)


def test_a_contrast_of_sets_of_models_adds_their_variances_and_satterthwaites_degrees_of_freedom() -> None:
    """a and b are the same three models, c and d the same two others."""
    generator = numpy.random.default_rng(47)
    held = {"a": "123", "b": "123", "c": "78", "d": "78"}
    lines = {label: generator.normal(0, 2, len(models)) for label, models in held.items()}
    images = generator.normal(50, 5, 29)
    result = compare(
        [scored(label, dict(zip(models, lines[label], strict=True)), images) for label, models in held.items()],
        [Contrast("mean", {"a": 0.5, "b": -0.5, "c": 0.5, "d": -0.5})],
    )
    one, other = (lines["a"] - lines["b"]) / 2, (lines["c"] - lines["d"]) / 2
    parts = numpy.var(one, ddof=1) / 3, numpy.var(other, ddof=1) / 2
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    effect = result.effects[0]
    assert effect.points == pytest.approx(one.mean() + other.mean())
    assert effect.df == pytest.approx(df, rel=1e-4)
    assert effect.high == pytest.approx(effect.points + stats.t.ppf(0.975, df) * sum(parts) ** 0.5, rel=1e-4)


def test_models_that_agree_leave_the_paired_t_test_over_images_or_their_groups() -> None:
    generator = numpy.random.default_rng(3)
    a, b = generator.normal(51, 9, 48), generator.normal(48, 9, 48)
    drives = [f"drive {i % 12}" for i in range(48)]
    for groups, values in ((None, (a, b)), (drives, tuple(v.reshape(4, 12).mean(0) for v in (a, b)))):
        made = [
            Configured(label, {"m1": plain(v, groups), "m2": plain(v + 3, groups)}) for label, v in (("a", a), ("b", b))
        ]
        result = compare(made, pairs("ab"), resamples=20_000)
        expected = stats.ttest_rel(*values)
        interval = expected.confidence_interval()
        effect = result.effects[0]
        assert (result.images, result.groups) == (48, len(values[0]))
        # The standard error of a bootstrap variance of 20 000 draws is 1 %, of a half-width 0.5 %.
        assert (effect.low, effect.high) == pytest.approx(tuple(interval), abs=0.02 * (interval[1] - interval[0]))
        assert effect.p == pytest.approx(expected.pvalue, rel=0.15)


def test_variance_over_images_is_scipys_bootstrap() -> None:
    a, b = random_counts(1), random_counts(2)

    def difference(index: NDArray[numpy.int64], axis: int = -1) -> Floats:
        one, other = (miou(c.hits[index].sum(axis - 1), c.union[index].sum(axis - 1)) for c in (a, b))
        return one - other

    theirs = stats.bootstrap(
        (numpy.arange(41),), lambda i, axis: difference(i.astype(int), axis), n_resamples=10_000, batch=1000,
        method="basic", random_state=numpy.random.default_rng(7),  # the name that scipy 1.13 knows too
    )  # fmt: skip
    arrays = [numpy.stack([getattr(c, name) for c in (a, b)], axis=1).astype(float) for name in ("hits", "union")]
    variance = significance._over_images(*arrays, numpy.array([[1.0], [-1.0]]), 41.0, 10_000, 0)
    assert variance[0] == pytest.approx(theirs.standard_error**2 * 41 / 40, rel=0.08)


def test_uneven_groups_are_made_up_for() -> None:
    """Groups whose differences vary alike: the variance is right on average, and t with fewer degrees of freedom."""
    generator = numpy.random.default_rng(61)
    sizes = numpy.array([40, 10, 5, 5])
    names = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    effective = 60**2 / (sizes**2).sum()
    found = []
    for _ in range(300):
        difference = generator.normal(0, 3, 4).repeat(sizes)
        made = [
            Configured(x, {"0": plain(v, names), "1": plain(v + 1, names)})
            for x, v in (("a", 50 + difference), ("b", numpy.full(60, 50.0)))
        ]
        hits, union, counted = significance._sums(made)
        assert counted.tolist() == sizes.tolist()
        by_model = numpy.array([[0.5], [0.5], [-0.5], [-0.5]])
        found.append(significance._over_images(hits, union, by_model, effective, 200, 0)[0])
    # The variance of a mean of groups with these shares; the standard error of its estimate is 6 %.
    assert numpy.mean(found) == pytest.approx(9 * (sizes**2).sum() / 60**2, rel=0.2)
    effect = compare(made, pairs("ab"), resamples=200).effects[0]
    assert effect.low is not None
    assert effect.points - effect.low == pytest.approx(stats.t.ppf(0.975, effective - 1) * found[-1] ** 0.5, rel=1e-4)


def test_resamples_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Configured(x, {f"{x}{i}": random_counts(9 * i + j) for i in range(2)}) for j, x in enumerate("ab")]
    whole = compare(made, pairs("ab"), resamples=500)
    monkeypatch.setattr(significance, "BLOCK", 41 * 13)
    assert compare(made, pairs("ab"), resamples=500) == whole
    assert compare(made, pairs("ab"), resamples=500, seed=1) != whole


def test_half_widths_of_images_and_models_add_as_squares() -> None:
    generator = numpy.random.default_rng(11)
    values = {label: generator.normal(50, 8, (3, 40)) + generator.normal(0, 2, (3, 1)) for label in "ab"}
    made = [Configured(label, {f"{label}{i}": plain(v) for i, v in enumerate(v)}) for label, v in values.items()]
    effect = compare(made, pairs("ab"), resamples=40_000).effects[0]
    per_image = values["a"].mean(0) - values["b"].mean(0)
    over_images = numpy.var(per_image, ddof=1) / 40
    parts = [numpy.var(v.mean(1), ddof=1) / 3 for v in values.values()]
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 2)

    def reach(level: float) -> float:
        two = stats.t.isf(level / 2, 39) ** 2 * over_images, stats.t.isf(level / 2, df) ** 2 * sum(parts)
        return float(sum(two) ** 0.5)

    assert None not in (effect.low, effect.high, effect.p, effect.smallest)
    assert (effect.high - effect.low) / 2 == pytest.approx(reach(0.05), rel=0.01)
    assert reach(effect.p) == pytest.approx(abs(effect.points), rel=0.01)
    assert effect.smallest == pytest.approx(reach(0.05) + reach(0.4), rel=0.01)


def test_score_has_the_interval_of_its_own_models_and_images() -> None:
    generator = numpy.random.default_rng(13)
    values = generator.normal(50, 8, (4, 60)) + generator.normal(0, 2, (4, 1))
    score = compare([Configured("a", {str(i): plain(v) for i, v in enumerate(values)})], []).scores[0]
    over_images, over_models = numpy.var(values.mean(0), ddof=1) / 60, numpy.var(values.mean(1), ddof=1) / 4
    reach = (stats.t.ppf(0.975, 59) ** 2 * over_images + stats.t.ppf(0.975, 3) ** 2 * over_models) ** 0.5
    assert (score.label, score.models) == ("a", 4)
    assert score.miou == pytest.approx(values.mean())
    assert score.interval == pytest.approx((values.mean() - reach, values.mean() + reach), rel=0.01)


def test_p_values_are_corrected_by_holm_among_what_was_tested() -> None:
    generator = numpy.random.default_rng(29)
    images = generator.normal(50, 8, 30)
    made = [
        scored(label, {f"{label}{i}": shift + generator.normal(0, 0.4) for i in range(4)}, images)
        for label, shift in (("a", 0.0), ("b", 0.9), ("c", 0.3), ("d", 2.0))
    ]
    made.append(scored("one", {"one0": 9.0}, images))
    result = compare(made, pairs([one.label for one in made]))
    tested = [effect for effect in result.effects if effect.significant is not None]
    assert [effect.name for effect in tested] == ["a - b", "a - c", "a - d", "b - c", "b - d", "c - d"]
    rejected, corrected, _, _ = multipletests([effect.p for effect in tested], 0.05, "holm")
    assert [effect.p_corrected for effect in tested] == pytest.approx(corrected)
    assert [effect.significant for effect in tested] == rejected.tolist()
    assert 0 < sum(rejected) < sum(effect.p < 0.05 for effect in tested if effect.p is not None)
    single = compare(made, pairs("ab")).effects[0]
    assert single.p == single.p_corrected == pytest.approx(tested[0].p)
    assert None not in (single.low, single.high)
    # All images differ alike, so that models alone count; four of the ten pairs, those with "one", are not tested.
    error = (single.high - single.low) / 2 / stats.t.isf(0.05 / 2, single.df)
    for effect, level in ((single, 0.05), (tested[0], 0.05 / 6)):
        reach = stats.t.isf(level / 2, single.df) + stats.t.isf(0.4 / 2, single.df)
        assert effect.smallest == pytest.approx(error * reach, rel=1e-4)


def test_holm_on_a_case_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, then never below an earlier one."""
    monkeypatch.setattr(significance.Spread, "p", lambda self, points: round(points, 3))
    images = numpy.linspace(30, 60, 25)
    made = [scored("zero", {"z0": 0.0, "z1": 0.1}, images - 0.05)]
    made += [scored(f"{p}", {f"{p}-0": 0.0, f"{p}-1": 0.1}, images + p - 0.05) for p in (0.01, 0.04, 0.03, 0.005)]
    result = compare(made, [Contrast(one.label, {one.label: 1, "zero": -1}) for one in made[1:]], resamples=50)
    assert [effect.p_corrected for effect in result.effects] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [effect.significant for effect in result.effects] == [True, False, False, True]


HUGE = 30.0  # points


@pytest.mark.parametrize(
    ("held", "images", "groups", "reason"),
    [
        (("0", "1"), 200, 200, "1 model of a, at least 2 are needed"),
        (("01", "2"), 200, 200, "1 model of b, at least 2 are needed"),
        (("0", "0"), 200, 200, "1 model of a, at least 2 are needed"),
        (("012", "345"), 19, 19, "19 test images, at least 20 are needed"),
        (("012", "345"), 201, 2, "test images of 2 groups, as good as 2.0 of equal size; at least 2 are needed"),
        (("012", "345"), 200, 1, "test images of 1 group; at least 2 are needed"),
        (("012", "123"), 200, 200, "a and b share some of their models but not all"),
        (("01", "012"), 200, 200, "a and b share some of their models but not all"),
    ],
)
def test_what_cannot_be_known_is_not_tested(held: tuple[str, str], images: int, groups: int, reason: str) -> None:
    generator = numpy.random.default_rng(5)
    base, names = generator.normal(50, 5, images), [f"{i % groups}" for i in range(images)]
    made = [
        Configured(label, {f"m{i}": plain(base + shift + generator.normal(0, 0.1), names) for i in models})
        for label, models, shift in zip("ab", held, (HUGE, 0.0), strict=True)
    ]
    result = compare(made, pairs("ab"), resamples=200)
    effect = result.effects[0]
    assert effect.points == pytest.approx(HUGE, abs=0.5)
    assert effect == Effect(effect.contrast, effect.points, reason=reason)
    assert effect.significant is None
    if "share" not in reason:
        assert result.scores[0].interval is None or "of b" in reason


@pytest.mark.parametrize(("images", "groups"), [(20, 20), (20, 2), (200, 2)])
def test_as_few_images_and_groups_as_are_needed_are_tested(images: int, groups: int) -> None:
    base, names = numpy.linspace(40, 60, images), [f"{i % groups}" for i in range(images)]
    made = [
        Configured(label, {f"{label}{i}": plain(base + shift + 0.1 * i, names) for i in range(3)})
        for label, shift in (("a", HUGE), ("b", 0.0))
    ]
    effect = compare(made, pairs("ab"), resamples=200).effects[0]
    assert (effect.reason, effect.significant) == ("", True)


def test_resamples_of_groups_without_labels_are_left_out() -> None:
    """Of four groups two have no pixel of any class: one resample in sixteen draws only these."""
    hits, union = numpy.array([30.0, 60.0, 0.0, 0.0]), numpy.array([100.0, 100.0, 0.0, 0.0])
    drawn = numpy.array(list(product(range(4), repeat=4)))
    scores = miou(hits[drawn].sum(1)[:, None], union[drawn].sum(1)[:, None])
    assert numpy.isnan(scores).mean() == 1 / 16
    expected = numpy.nanvar(scores) * 4 / 3
    shaped = (array.reshape(4, 1, 1) for array in (hits, union))
    found = significance._over_images(*shaped, numpy.ones((1, 1)), 4.0, 20_000, 0)
    assert found == pytest.approx(expected, rel=0.05)


def test_a_copy_of_a_model_under_another_seed_is_no_second_model() -> None:
    one, other = random_counts(1), random_counts(2)
    made = [Configured("a", {"a0": one, "a1": other}), Configured("b", {"b0": other, "b1": other})]
    effect = compare(made, pairs("ab"), resamples=100).effects[0]
    assert effect.reason == "b0 and b1 of b agree in every pixel count: a copy is no second model"
    assert effect.significant is None


def test_shared_hard_images_cancel_in_a_difference() -> None:
    generator = numpy.random.default_rng(5)
    difficulty = generator.normal(50, 15, 97)
    made = [
        Configured(x, {f"{x}{i}": plain(difficulty + shift + generator.normal(0, 0.5, 97)) for i in range(3)})
        for x, shift in (("a", 1.0), ("b", 0.0))
    ]
    result = compare(made, pairs("ab"))
    effect = result.effects[0]
    assert effect.significant
    assert effect.low is not None
    assert effect.high is not None
    assert effect.high - effect.low < 1
    for score in result.scores:
        assert score.interval is not None
        assert score.interval[1] - score.interval[0] > 5, "their own intervals overlap widely"


def test_equal_counts_never_differ() -> None:
    counts = {i: random_counts(i) for i in range(3)}
    made = [Configured(x, {f"{x}{i}": one for i, one in counts.items()}) for x in "ab"]
    made.append(Configured("c", {f"a{i}": one for i, one in counts.items()}))
    for effect in compare(made, pairs("abc"), resamples=200).effects:
        assert (effect.points, effect.p, effect.significant) == (pytest.approx(0, abs=1e-12), 1.0, False)


def test_order_of_images_and_of_sides_changes_nothing() -> None:
    order = numpy.random.default_rng(0).permutation(41)

    def shuffled(one: ImageCounts) -> ImageCounts:
        names = tuple(one.names[i] for i in order)
        return ImageCounts(names, names, one.class_names, one.hits[order], one.truth[order], one.predicted[order])

    a = Configured("a", {"a0": random_counts(1), "a1": random_counts(2)})
    b = Configured("b", {"b0": random_counts(3), "b1": random_counts(4)})
    mixed = Configured("b", {name: shuffled(one) for name, one in b.models.items()})
    effect = compare([a, b], pairs("ab"), resamples=300).effects[0]
    assert compare([a, mixed], pairs("ab"), resamples=300).effects[0] == effect
    other = compare([b, a], pairs("ba"), resamples=300).effects[0]
    assert (other.points, other.low, other.high) == pytest.approx((-effect.points, -effect.high, -effect.low))
    assert other.p == pytest.approx(effect.p)


def test_intervals_of_scores_end_where_scores_do() -> None:
    """Two models far apart: the interval of the score would be 50 ± 600 points; a difference may lie anywhere."""
    images = numpy.random.default_rng(5).uniform(0.1, 0.2, 31)
    result = compare([scored(a, {f"{a}0": 0.5, f"{a}1": 99.0}, images) for a in "ab"], pairs("ab"))
    assert [score.interval for score in result.scores] == [(0.0, 100.0)] * 2
    assert (result.effects[0].low or 0) < -100


def test_models_that_were_scored_against_other_masks_are_refused() -> None:
    first, other = (plain(numpy.linspace(40, 60, 23) + shift) for shift in (0, 3))
    truth = other.truth + numpy.isin(numpy.arange(23), (4, 7))[:, None]
    with pytest.raises(ValueError, match=r"b0 of b must be .* the same masks, they differ in 00004, 00007$"):
        compare([Configured("a", {"a0": first}), Configured("b", {"b0": replace(other, truth=truth)})], [])
    ramp = replace(first, truth=first.truth + numpy.arange(23)[:, None])  # of images in another order
    turned = {name: getattr(ramp, name)[::-1] for name in ("names", "groups", "hits", "truth", "predicted")}
    compare([Configured("a", {"a0": ramp}), Configured("b", {"b0": replace(ramp, **turned)})], [])


def test_counts_of_other_images_groups_or_classes_are_refused_by_name() -> None:
    def counts(names: str, groups: str = "xyz", classes: str = "k") -> ImageCounts:
        one = numpy.ones((3, len(classes)), dtype=numpy.int64)
        return ImageCounts(tuple(names), tuple(groups), tuple(classes), one, one, one)

    a = Configured("a", {"a0": counts("123")})
    for other, message in (
        (counts("125"), "b0 of b lacks 3; a0 of a lacks 5"),
        (counts("123", "xzz"), "a0 of a and b0 of b must have the same groups, they differ in that of 2"),
        (counts("123", classes="kl"), "a0 of a and b0 of b must have the same classes, they differ in l"),
    ):
        with pytest.raises(ValueError, match=message):
            compare([a, Configured("b", {"b0": other})], [])
    with pytest.raises(ValueError, match="same classes, they differ in their order"):
        compare([Configured("a", {"a0": counts("123", classes="lk"), "a1": counts("123", classes="kl")})], [])
    nothing = numpy.zeros((3, 1), dtype=numpy.int64)
    empty = ImageCounts(tuple("123"), tuple("xyz"), ("k",), nothing, nothing, nothing)
    with pytest.raises(ValueError, match="no class is present in the test images of c0"):
        compare([Configured("c", {"c0": empty})], [])


def test_what_repeats_is_refused() -> None:
    a = Configured("a", {"a0": random_counts(1)})
    b = Configured("b", {"b0": random_counts(2)})
    for made, contrasts, message in (
        ([], [], "at least one configuration is needed"),
        ([a, b, a], [], "labels must differ, got a, b, a"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(made, contrasts)


def test_simulated_experiments_err_as_seldom_as_they_should() -> None:
    """A glance at docs/benchmarks/significance-simulation.md, which has the rates."""
    by_name = {scenario.name: scenario for scenario in simulate_significance.SCENARIOS}
    one = simulate_significance.measure(by_name["one model, 2 configurations"], 5, 50, 0)
    assert (one["tested"], one["family_error"], one["coverage"]) == (0, 0, None)
    three = simulate_significance.measure(by_name["nothing differs, 3 models"], 20, 100, 0)
    assert three["tested"] == 1
    assert three["family_error"] <= 0.1
    assert three["coverage"] > 0.9
    assert simulate_significance.table([one, three]).count("\n") == 4
