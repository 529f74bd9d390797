"""How often experiments.statistics.significance errs, on simulated counts of which the truth is known.

    python -m tests.benchmarks.simulate_significance --draws 2000 --output docs/benchmarks/significance-simulation

writes one row per scenario to OUTPUT.jsonl and a table of them to OUTPUT.md.

A draw is a whole experiment: test images with classes of uneven size, some of them rare; images, and drives of images,
that are hard for all; models that vary around their configuration. Pixels that a model misses are given to other
classes of the image. Effects are in points of mIoU: of a model (its seed), of a configuration on a drive, of a
configuration and of a model on an image.

Shapes: C configurations, S models of each, N images, K classes.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy
import torch
import tyro
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import stdtrit

from experiments.records.counts import ImageCounts
from experiments.records.files import write_whole
from experiments.records.results import Row, provenance
from experiments.statistics import significance
from experiments.statistics.contrasts import Contrast, pairs
from experiments.statistics.significance import Comparison, Configured, Spread, compare

Floats = NDArray[numpy.float64]
PIXELS = 192 * 256
# Shares of pixels, in how many images a class is, and how well it is found: as in street scenes, from road to cyclist.
SHARES = numpy.array([0.27, 0.23, 0.17, 0.09, 0.07, 0.06, 0.045, 0.03, 0.015, 0.012, 0.008])
PRESENT = numpy.array([1.0, 1.0, 1.0, 1.0, 0.95, 0.95, 0.9, 0.8, 0.8, 0.6, 0.4])
FOUND = numpy.array([0.95, 0.93, 0.93, 0.8, 0.75, 0.7, 0.65, 0.5, 0.45, 0.4, 0.35])
# Points of mIoU for one hundredth more of every class found.
SLOPE = 1.17
# Standard deviations in points: an image for all, of one class in an image for all, of a drive for all; of a
# configuration on an image, of a model on an image, of a model on a class of an image.
IMAGE, IMAGE_CLASS, DRIVE = 8.0, 10.0, 5.0
CONFIGURATION_IMAGE, MODEL_IMAGE, MODEL_IMAGE_CLASS = 2.0, 3.0, 6.0


@dataclass(frozen=True)
class Scenario:
    """spreads: standard deviation between the models of each configuration, in points.

    level: of models that all configurations share (readouts of the same ones); None where each has its own. drives: 0
    where each image is its own group. by_drive: of a configuration on a drive. shift: points by which the first
    configuration is better. planned: it is compared with the mean of the others, instead of all pairs. not_done: a
    procedure that is not ours, for comparison: a single t distribution with Satterthwaite's degrees of freedom; images
    as if independent; drives as if of one size.
    """

    name: str
    models: int = 3
    spreads: tuple[float, ...] = (0.9, 0.9, 0.9, 0.9)
    level: float | None = None
    images: int = 233
    drives: int = 0
    by_drive: float = 0.0
    shift: float = 0.0
    planned: bool = False
    not_done: Literal["", "one t", "no groups", "even"] = ""


EQUAL, SIX = (0.9, 0.9, 0.9, 0.9), (0.5, 0.5, 0.5, 3.0)
SCENARIOS = (
    *(Scenario(f"nothing differs, {s} models", s) for s in (2, 3, 5)),
    *(Scenario(f"nothing differs, 3 models, {n} images", 3, images=n) for n in (20, 50)),
    Scenario("one model, 2 configurations", 1, (0.9, 0.9)),
    Scenario("one model, 4 configurations", 1),
    *(Scenario(f"one of four spreads six times as much, {s} models", s, SIX) for s in (2, 3, 5)),
    *(Scenario(f"one of two spreads six times as much, {s} models", s, (0.5, 3.0)) for s in (2, 3, 5)),
    *(Scenario(f"unequal readouts of the same {s} models", s, (0.1, 0.1, 0.1, 1.0), 2.0) for s in (2, 3, 5)),
    *(Scenario(f"{d} drives, 3 models", 3, drives=d, by_drive=4.0) for d in (3, 5, 12)),
    *(Scenario(f"{d} drives, readouts of 3 models", 3, (0.1,) * 4, 2.0, 233, d, 4.0) for d in (3, 5, 8, 12, 24)),
    *(Scenario(f"2.2 points better, {s} models, all pairs", s, shift=2.2) for s in (2, 3, 5)),
    *(Scenario(f"2.2 points better, {s} models, planned", s, shift=2.2, planned=True) for s in (2, 3, 5)),
    Scenario("better by the smallest, 5 models, all pairs", 5, shift=2.7),
    *(
        Scenario(f"better by the smallest, {s} models, planned", s, shift=d, planned=True)
        for s, d in ((3, 2.4), (5, 1.6))
    ),
    *(Scenario(f"not done: one t, nothing differs, {s} models", s, not_done="one t") for s in (2, 3, 5)),
    *(
        Scenario(f"not done: one t, one of two six times, {s} models", s, (0.5, 3.0), not_done="one t")
        for s in (2, 3, 5)
    ),
    Scenario("not done: 12 drives, each image a group", 3, (0.1,) * 4, 2.0, 233, 12, 4.0, not_done="no groups"),
    *(
        Scenario(f"not done: {d} drives as if of one size", 3, (0.1,) * 4, 2.0, 233, d, 4.0, not_done="even")
        for d in (5, 12)
    ),
)


class OneT(Spread):
    """The sum of both variances as one, with Satterthwaite's degrees of freedom: what is usual, and not done here."""

    def reach(self, p: float) -> float:
        total = self.images.value + self.models.value
        df = total**2 / sum(part.value**2 / part.df for part in self)
        return float(-stdtrit(df, p / 2) * total**0.5)


def experiment(scenario: Scenario, generator: Generator) -> list[Configured]:
    """The counts of one draw."""
    s, n, k = scenario.models, scenario.images, len(SHARES)
    normal = generator.standard_normal
    truth = SHARES * generator.gamma(2.0, 0.5, (n, k)) * (generator.random((n, k)) < PRESENT)
    truth = numpy.rint(truth / truth.sum(1, keepdims=True) * PIXELS).astype(numpy.int64)
    points = IMAGE * normal((n, 1)) + IMAGE_CLASS * normal((n, k))
    drive = numpy.arange(n)
    if scenario.drives:
        # Drives differ much in length: their shares are uniform among all that sum to one. Each has a frame.
        drive = generator.choice(scenario.drives, n, p=generator.dirichlet(numpy.ones(scenario.drives)))
        drive[: scenario.drives] = numpy.arange(scenario.drives)
        points += DRIVE * normal((scenario.drives, 1))[drive]
    shared = normal(s) * (scenario.level or 0.0)
    names = tuple(f"{i:04}" for i in range(n))
    groups = tuple(f"{i:04}" for i in (numpy.arange(n) if scenario.not_done == "no groups" else drive))
    made = []
    for i, spread in enumerate(scenario.spreads):
        own = points + (scenario.shift if i == 0 else 0.0) + CONFIGURATION_IMAGE * normal((n, 1))
        if scenario.drives:
            own = own + scenario.by_drive * normal((scenario.drives, 1))[drive]
        models = {}
        for j in range(s):
            effects = own + shared[j] + spread * normal() + MODEL_IMAGE * normal((n, 1))
            found = FOUND + (effects + MODEL_IMAGE_CLASS * normal((n, k))) / 100 / SLOPE
            hits = numpy.rint(truth * found.clip(0.01, 0.99)).astype(numpy.int64)
            # What is missed goes to the classes of the image, and a little to any.
            missed = (truth - hits).sum(1, keepdims=True)
            predicted = hits + numpy.rint(missed * (0.97 * truth / PIXELS + 0.03 * SHARES)).astype(numpy.int64)
            model = f"{j}" if scenario.level is not None else f"{i}-{j}"
            models[model] = ImageCounts(names, groups, tuple(map(str, range(k))), hits, truth, predicted)
        made.append(Configured(str(i), models))
    return made


def contrasts(scenario: Scenario) -> list[Contrast]:
    labels = [str(i) for i in range(len(scenario.spreads))]
    if scenario.planned:
        others = {label: -1 / (len(labels) - 1) for label in labels[1:]}
        return [Contrast("first - mean of the others", {"0": 1.0} | others)]
    return pairs(labels)


def comparisons(scenario: Scenario, draws: int, resamples: int, seed: int) -> Iterator[Comparison]:
    changes = {"one t": ("Spread", OneT), "even": ("_effective_number", len)}
    with patch.object(significance, *changes.get(scenario.not_done, ("LEVEL", significance.LEVEL))):
        for draw in range(draws):
            generator = numpy.random.default_rng([seed, SCENARIOS.index(scenario), draw])
            yield compare(experiment(scenario, generator), contrasts(scenario), resamples=resamples, seed=draw)


def measure(scenario: Scenario, draws: int, resamples: int, seed: int) -> Row:
    """Rates over the draws in which something was tested, with Monte-Carlo standard errors; tested: the share of them.

    family_error: some contrast of configurations that do not differ is significant. coverage: the 95 % interval holds
    the truth, mean over contrasts; the truth of a shifted one is the mean of its points over the draws. least_coverage:
    that of the contrast where it is least. found: a contrast that differs is significant.
    """
    gc.freeze()  # statsmodels collects garbage in every call; what is loaded by now need not be searched
    done = list(comparisons(scenario, draws, resamples, seed))
    differs = numpy.array([bool(scenario.shift) and "0" in one.contrast.weights for one in done[0].effects])
    points, low, high, smallest = (
        numpy.array([[getattr(one, name) for one in result.effects] for result in done], dtype=float)
        for name in ("points", "low", "high", "smallest")
    )
    significant = numpy.array([[one.significant is True for one in result.effects] for result in done])
    tested = ~numpy.isnan(low).all(1)
    row: Row = {**asdict(scenario), "kind": "significance", "draws": draws, "resamples": resamples, "seed": seed}
    row |= {"tested": float(tested.mean()), "points": float(points[:, differs].mean()) if differs.any() else None}
    used = tested if tested.any() else ~tested
    row |= _rate("family_error", None if differs.all() else significant[used][:, ~differs].any(1))
    row |= _rate("found", significant[used][:, differs].mean(1) if differs.any() else None)
    truth = numpy.where(differs, points.mean(0), 0.0)
    covered = ((low <= truth) & (truth <= high))[tested]
    row |= _rate("coverage", covered.mean(1) if tested.any() else None)
    row["least_coverage"] = float(covered.mean(0).min()) if tested.any() else None
    row["half_width"] = float((high - low)[tested].mean() / 2) if tested.any() else None
    row["smallest"] = float(smallest[tested].mean()) if tested.any() else None
    return row


def _rate(name: str, values: NDArray[Any] | None) -> Row:
    if values is None:
        return {name: None, f"{name}_se": None}
    return {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}


HEAD = """# Simulation of the statistics

How often the [statistics of the experiments](../statistics.md) err, on simulated counts of which the truth is known.

- A draw is a whole experiment. Unless a line says otherwise: 233 images of {classes} classes, four configurations whose
  models vary by 0.9 points (standard deviation), all pairs.
- tested: share of draws in which something could be tested; the other columns are about those. false: share of draws
  with a false "significant", at most 0.05 if all is well. coverage: how often a 95 % interval holds the truth, over all
  contrasts and where it does so least. found: how often a true difference is significant. ±: its standard error.
- half-width (of the intervals) and smallest (difference that could have been found): means, in points.
- Drives: images belong to as many drives, of very uneven length, and a configuration varies by 4 points between them.
- "not done" shows other procedures: "one t" is one t distribution with Satterthwaite's degrees of freedom for both
  variances together.

`{command}`: {draws} draws for each line. {host}, Python {python}, numpy {numpy}.

"""


def table(rows: Sequence[Row]) -> str:
    head = ("scenario", "tested", "false", "coverage", "least covered", "found", "half-width", "smallest")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        rates = [_text(row, name) for name in ("family_error", "coverage", "least_coverage", "found")]
        sizes = ["–" if row[name] is None else f"{row[name]:.1f}" for name in ("half_width", "smallest")]
        lines.append(f"| {' | '.join([row['name'], format(row['tested'], '.2f'), *rates, *sizes])} |")
    return "\n".join(lines) + "\n"


def _text(row: Row, name: str) -> str:
    if row[name] is None:
        return "–"
    error = row.get(f"{name}_se")
    return f"{row[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def main(
    draws: int = 2000,
    resamples: int = 400,
    seed: int = 0,
    processes: int = 2,
    only: str | None = None,
    output: Path | None = None,
) -> None:
    """Simulate.

    Args:
        draws: experiments per scenario
        resamples: of the bootstrap in each
        seed: of the draws
        processes: scenarios at once
        only: part of the names of scenarios to do
        output: path without ending; .jsonl and .md are written
    """
    chosen = [scenario for scenario in SCENARIOS if only is None or only in scenario.name]
    work = partial(measure, draws=draws, resamples=resamples, seed=seed)
    with ProcessPoolExecutor(processes) as pool:
        rows = list(pool.map(work, chosen))
    print(table(rows))
    if output is not None:
        rows = [row | provenance(torch.device("cpu")) for row in rows]
        write_whole(output.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        write_whole(output.with_suffix(".md"), HEAD.format(classes=len(SHARES), **rows[0]) + table(rows))


if __name__ == "__main__":
    tyro.cli(main)
