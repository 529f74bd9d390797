"""What plots show and which picture is under which caption: read off the axes, and off the page."""

import base64
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report_folder import folder, image_counts, picture, row

from experiments.records.counts import miou
from experiments.records.results import Row
from experiments.reporting import plots
from experiments.reporting.content import Content, gather
from experiments.reporting.load import read
from experiments.reporting.pages import _figures, write_report

# Test mIoU, latency and parameters: PAN costs more than FPN, and is no better.
SCORES = {"Unet": (70.0, 11.0, 5.0), "FPN": (50.0, 7.0, 3.0), "PAN": (50.0, 8.0, 4.0)}
STEPS = 60
# Points lacking after each of the steps that are scored.
LACK = {20: 9.0, STEPS: 0.0}


def seeds(name: str, step: int) -> list[Row]:
    test, latency, size = SCORES[name]
    common = {"steps": STEPS, "step": step, "latency_ms_p50": latency, "params_m": size}
    return [row(name, seed, test - LACK[step] + 0.1 * seed, **common) for seed in range(3)]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    rows = [item for name in SCORES for step in LACK for item in seeds(name, step)]
    return gather(read([folder(tmp_path_factory.mktemp("plots"), rows)]))


@pytest.fixture(scope="module")
def drawn(content: Content) -> dict[str, list[Axes]]:
    """The axes of each plot, by its heading."""
    kept: list[list[Axes]] = []

    def render(draw: Callable[..., None], height: float, rows: int = 1) -> bytes:
        kept.append(list(Figure().subplots(rows, 1, squeeze=False)[:, 0]))
        draw(*kept[-1])
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "render", render)
        headings = [heading for heading, _ in _figures(content)]
    return dict(zip(headings, kept, strict=True))


def bars(axes: Axes, count: int) -> list[tuple[str, float, float, float, bool]]:
    """Name, value, both ends and whether it is filled, of each line of a forest plot from the top."""
    (dots,) = axes.collections
    fills = [to_hex(color) != "#ffffff" for color in dots.get_facecolors()]
    values = [float(x) for x, y in sorted(dots.get_offsets().tolist(), key=lambda point: point[1])]
    whiskers = axes.lines[:count]
    assert [line.get_ydata().tolist() for line in whiskers] == [[number, number] for number in range(count)]
    names = [label.get_text() for label in axes.get_yticklabels()]
    ends = [line.get_xdata().tolist() for line in whiskers]
    return [(name, value, *end, fill) for name, value, end, fill in zip(names, values, ends, fills, strict=True)]


def test_forests_show_scores_and_differences_with_their_intervals(
    content: Content, drawn: dict[str, list[Axes]]
) -> None:
    table = content.table
    expected: list[Any] = [
        (f"{rank} {label}", pytest.approx(SCORES[label][0] + 0.1), low, high, True)
        for rank, label, low, high in table[["rank", "label", "low", "high"]].itertuples(index=False)
    ]
    assert bars(drawn["Scores"][0], 3) == expected
    assert (table["low"] < table["high"]).all()
    found = [(e.name, e.points, e.low, e.high, bool(e.significant)) for e in content.effects]
    assert sorted(significant for *_, significant in found) == [False, True, True]
    assert bars(drawn["Differences"][0], 3) == found
    assert all(e.low < e.points < e.high for e in content.effects)


@pytest.mark.parametrize(("cost", "axis"), [("latency of one call on one image, ms", 1), ("parameters, millions", 2)])
def test_the_front_joins_what_is_best_for_its_cost(
    content: Content, drawn: dict[str, list[Axes]], cost: str, axis: int
) -> None:
    (axes,) = drawn[f"Test mIoU and {cost}; numbers are ranks"]
    front, *_ = axes.lines
    ends = [(SCORES[name][axis], SCORES[name][0] + 0.1) for name in ("FPN", "Unet")]
    assert front.get_xydata().tolist() == [pytest.approx(end) for end in ends]
    found = {text.get_text(): text.xy for text in axes.texts}
    places = content.table[["rank", "label"]].itertuples(index=False)
    assert found == {str(rank): pytest.approx((SCORES[name][axis], SCORES[name][0] + 0.1)) for rank, name in places}


def test_curves_show_means_of_neighbours_and_scores_of_steps(content: Content, drawn: dict[str, list[Axes]]) -> None:
    loss, validation, tested = drawn["Learning curves"]
    steps = numpy.arange(1.0, STEPS + 1)
    assert [len(axes.lines) for axes in (loss, validation, tested)] == [9, 9, 3]
    for line in loss.lines:
        numpy.testing.assert_allclose(line.get_xdata(), steps.reshape(-1, 2).mean(1))
        numpy.testing.assert_allclose(line.get_ydata(), (2 / steps**0.5).reshape(-1, 2).mean(1))
    best = content.configurations[0]
    assert best.label == "Unet"
    for line, item in zip(validation.lines, best.results, strict=False):
        assert line.get_xdata().tolist() == steps[::5].tolist()
        numpy.testing.assert_allclose(line.get_ydata(), item.row["test_miou"] * (1 - 1 / (1 + steps[::5])))
    for line, ends, one in zip(tested.lines, tested.collections, content.configurations, strict=True):
        counts = [[image_counts(item) for item in seeds(one.label, step)] for step in LACK]
        means = [numpy.mean([miou(c.hits.sum(0), c.union.sum(0)) for c in there]) for there in counts]
        assert line.get_xdata().tolist() == list(LACK)
        numpy.testing.assert_allclose(line.get_ydata(), means)
        own = [score.interval for c, score in content.steps if c.label.startswith(f"{one.label} ")]
        assert [tuple(segment[:, 1]) for segment in ends.get_segments()] == own
        assert all(low < mean < high for (low, high), mean in zip(own, means, strict=True))


def test_each_picture_is_under_its_own_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first seed, and of the best configuration the worst and best images."""
    monkeypatch.setattr("experiments.reporting.pages._figures", lambda _: [])
    rows = [row(name, seed, 60.0 if name == "Unet" else 40.0) for name in ("FPN", "Unet") for seed in (0, 1)]
    output = folder(tmp_path, rows)
    for width, path in enumerate(sorted(output.rglob("*.png"))):
        picture(path, 3, width=20 + width)
    write_report(output)
    page = (output / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<figcaption>(.*?)</figcaption><img src="data:image/png;base64,(.*?)"', page)
    found = [(html.unescape(caption), base64.b64decode(content)) for caption, content in shown]
    best, other = (output / "runs" / row(name)["run"] for name in ("Unet", "FPN"))
    counts = image_counts(rows[2])
    scores = miou(counts.hits, counts.union)
    order = numpy.argsort(scores).tolist()
    expected = [
        (f"{kind}: image {index}, mIoU {scores[index]:.1f} %", best / f"extreme_{kind}{number}.png")
        for kind, indices in (("worst", order), ("best", order[::-1]))
        for number, index in enumerate(indices[:2], start=1)
    ]
    for number in ("00", "01"):
        examples = [(kind, output / "examples" / f"{number}_{kind}.png") for kind in ("image", "truth")]
        expected += [*examples, ("Unet", best / f"{number}.png"), ("FPN", other / f"{number}.png")]
    assert found == [(caption, path.read_bytes()) for caption, path in expected]
