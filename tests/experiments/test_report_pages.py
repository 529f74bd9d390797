"""The files of a report: readable anywhere, whatever names there are, and nothing taken from outside the folder."""

import base64
import html
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pandas
import pytest
from matplotlib.figure import Figure
from report_folder import folder, image_counts, row

from experiments.records.counts import pack, unpack
from experiments.records.results import Row
from experiments.reporting import markup, pages, plots, tables, text
from experiments.reporting.content import gather
from experiments.reporting.load import read, write_merged
from experiments.reporting.pages import FILES, _learning, write_report

NASTY = ("$<b>|&%", "=1+1", "_x_ `#` ~^\\{}", "名 <script>alert(1)</script>", "a\n| b | c\n")


class Page(HTMLParser):
    """Collects tags, ids, and what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose classes, note, command and example names are markup everywhere."""
    output = tmp_path_factory.mktemp("nasty")
    iou = dict.fromkeys(NASTY, 40.0)
    rows = [
        row(d, s, 40.0 + s, class_iou=iou, command="</pre>```\n" + NASTY[3], params_m=c, latency_ms_p50=c)
        for d, c in (("Unet", 4.0), ("FPN", 5.0))
        for s in range(2)
    ]
    folder(output, rows)
    data = json.loads((output / "data.json").read_text(encoding="utf-8"))
    data |= {"note": NASTY[3], "name": NASTY[0], "examples": list(NASTY[:2]), "left_out": [NASTY[2]]}
    (output / "data.json").write_text(json.dumps(data), encoding="utf-8-sig")
    write_report(output)
    return output


def test_page_needs_nothing_else_and_names_are_no_markup(nasty: Path) -> None:
    text = (nasty / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("img") == 5 + 4 + 2 * (2 + 2)  # plots, worst and best, two examples
    assert "prefers-color-scheme: dark" in text
    for link in page.links:
        if "svg" in link:
            svg = base64.b64decode(link.partition(",")[2]).decode()
            assert "<script" not in svg
            assert "<b>" not in svg
            assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) <= 5.4 * 72, "legible on a narrow page"
            assert min(float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", svg)) >= 10


def test_markdown_of_names_keeps_its_tables(nasty: Path) -> None:
    text = (nasty / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<[a-z/]", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    header = next(line for line in text.splitlines() if line.startswith("| configuration"))
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", header)][2:5] == [
        r"\$&lt;b&gt;\|&amp;%",
        "=1+1",
        r"\_x\_ \`#\` \~^\\{}",
    ]
    table = pandas.DataFrame({"run": ["x"], "n": ["1"]})
    assert markup.to_markdown(table).splitlines()[1] == "|:------|----:|", "numbers on the right"
    assert markup.markdown_text("swinx_n *a* [b]") == r"swinx_n \*a\* \[b\]"


def test_pages_hold_the_numbers_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_figures", lambda _: [])
    scores = {"Unet": 70.0, "FPN": 50.0, "PAN": 50.0}
    write_report(folder(tmp_path, [row(d, seed, test + 0.1 * seed) for d, test in scores.items() for seed in range(3)]))
    content = gather(read([tmp_path]))
    ranking, differences = tables.ranking(content.table), tables.differences(content)
    ends = content.table[["low", "high"]].values.tolist()
    assert ranking["95 % interval"].tolist() == [f"{low:.1f} to {high:.1f}" for low, high in ends]
    ends = [f"{effect.low:+.1f} to {effect.high:+.1f}" for effect in content.effects]
    assert differences["95 % interval"].tolist() == [end.replace("-", "\N{MINUS SIGN}") for end in ends]
    p = [effect.p_corrected for effect in content.effects]
    assert max(p[:2]) < 0.0005 < p[2]
    assert differences["p, corrected"].tolist() == ["< 0.001", "< 0.001", f"{p[2]:.3f}"]
    page, markdown, latex = (
        (tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "tex")
    )
    in_page = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    in_page = [[html.unescape(cell) for cell in line] for line in in_page]
    in_markdown = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in markdown.splitlines()]
    in_latex = [re.split(r" & | \\\\", line)[:-1] for line in latex.replace("$-$", "\N{MINUS SIGN}").splitlines()]
    for table in (ranking, differences, text.facts(content)):
        for line in table.values.tolist():
            assert line in in_page
            assert [markup.markdown_text(cell) for cell in line] in in_markdown
    for table in (ranking, differences, tables.classes(content.table).map(tables.number).reset_index()):
        assert all(line in in_latex for line in table.values.tolist())


def test_latex_of_names_is_plain_text(nasty: Path) -> None:
    text = (nasty / "report.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert r"\$<b>|\&\%" in text
    assert r"\_x\_ `\#` \textasciitilde " in text
    body = text.split("\n", 1)[1].replace("$-$", "")
    assert not re.search(r"(?<!\\)[%$#_^]|\N{MINUS SIGN}", body)
    plain = re.sub(r">\{\\raggedright\\arraybackslash\}p\{[\d.]+\\linewidth\}", "p", text)  # columns that break lines
    parts = plain.split(r"\begin{tabular}{")[1:]
    assert [part[:2] for part in parts] == ["rp", "pr", "pr"]
    for part in parts:
        columns, lines = part.split("}", 1)[0], re.findall(r"^(?!\\).* \\\\$", part, flags=re.MULTILINE)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}


def test_classes_may_be_called_like_columns(tmp_path: Path) -> None:
    names = ("configuration", "rank", "label", "seeds", "test_miou", "index")
    iou = {name: 10.0 + number for number, name in enumerate(names)}
    folder(tmp_path, [row("Unet", class_iou=iou), row("FPN", class_iou=iou)])
    write_report(tmp_path)
    lines = [re.split(r" *[|] *", line)[1:-1] for line in (tmp_path / "report.md").read_text().splitlines()]
    assert ["configuration", *names] in lines
    assert [f"{10.0 + number}" for number in range(len(names))] in [line[1:] for line in lines]


def test_curves_of_long_names_have_their_own_places_in_the_legend() -> None:
    curve = pandas.DataFrame({"step": [1, 2], "value": [0.5, 0.4]})
    names = ["Unet · start /" + folder + "x" * 90 for folder in ("first", "second")]
    drawn = plots.curves({"loss": [(name, curve) for name in names]}).decode()
    assert drawn.count("Unet · start [...]") == 2


def test_csv_holds_no_formulas_and_numbers_stay_numbers(nasty: Path) -> None:
    assert pandas.read_csv(nasty / "summary.csv")["class_iou =1+1"].tolist() == [40.0, 40.0]
    frame = pandas.DataFrame({"-x": ["@a", " +b", "c"], "n": [-1.5, 2.0, None]})
    assert markup.to_csv(frame).splitlines() == ["'-x,n", "'@a,-1.5", "' +b,2.0", "c,"]


def test_axes_do_not_blow_small_differences_up() -> None:
    axes = Figure().subplots()
    axes.plot([1.0, 2.0], [40.1, 40.4])
    plots.widen(axes, "y")
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(plots.LEAST_SPAN)
    assert (low + high) / 2 == pytest.approx(40.25)
    axes.set_ylim(0.2, 1.0)
    plots.widen(axes, "y")
    assert axes.get_ylim() == (0, plots.LEAST_SPAN), "no score is below 0"
    axes.set_ylim(-0.2, 1.0)
    plots.widen(axes, "y", -9)
    assert axes.get_ylim() == pytest.approx((-2.1, 2.9)), "differences may be"
    axes.set_ylim(10.0, 60.0)
    before = axes.get_ylim()
    plots.widen(axes, "y")
    assert axes.get_ylim() == before


def test_a_plot_is_the_same_every_time() -> None:
    lines = [("a - $b$", 1.0, 0.5, 1.5, True), ("c", 0.2, None, None, False)]
    bars = pandas.DataFrame(lines, columns=["name", "value", "low", "high", "filled"])
    first = plots.forest(bars, "points", -9)
    assert first == plots.forest(bars, "points", -9)
    assert b"a - $b$" in first


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet"), row("FPN")])
    shutil.rmtree(output / "examples")
    (output / "runs" / row("Unet")["run"] / "extreme_best1.png").unlink()
    (output / "data.json").unlink()
    (output / "runs" / row("FPN")["run"] / "step20.npz").unlink()
    write_report(output)
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 2 + 3  # no differences
    assert "Comparison on toy" in (output / "report.md").read_text(encoding="utf-8")
    for path in (output / "runs" / row("Unet")["run"]).glob("*.png"):
        path.unlink()
    write_report(output)
    assert "Pictures" not in (output / "report.html").read_text(encoding="utf-8")


def test_links_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    output, secret = folder(tmp_path / "run", [row("Unet")]), tmp_path / "secret.png"
    shutil.copy(output / "examples" / "00_image.png", secret)
    with secret.open("ab") as file:
        file.write(b"SECRET")
    own = output / "runs" / row("Unet")["run"]
    for path in (output / "examples" / "00_image.png", own / "extreme_worst1.png"):
        path.unlink()
        os.symlink(secret, path)
    (own / "01.png").write_bytes(b"SECRET")
    os.rename(output / "data.json", tmp_path / "data.json")
    os.symlink(tmp_path / "data.json", output / "data.json")
    results = read([output])
    assert results.data.examples == ()
    write_merged(results, tmp_path / "out")
    write_report(tmp_path / "out")
    copied = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in copied if b"SECRET" in path.read_bytes()]
    assert {path.name for path in (tmp_path / "out" / "examples").iterdir()} == {
        *("00_truth.png", "01_image.png", "01_truth.png"),
    }
    os.rename(own, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", own)
    (item,) = read([output]).items
    assert item.counts is None
    assert item.pictures == {}
    os.rename(output / "results.jsonl", tmp_path / "rows.jsonl")
    os.symlink(tmp_path / "rows.jsonl", output / "results.jsonl")
    with pytest.raises(ValueError, match="holds no results"):
        read([output])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"colors": ["red;"] * 4}, "colors must be of the form"),
        (lambda d: d | {"colors": [[1, 2, 3]] * 4}, "colors must be text, or a list"),
        (lambda d: d | {"class_names": "abc"}, "class_names must be text, or a list"),
        (lambda d: d | {"examples": [["x"]]}, "examples must be text, or a list"),
        (lambda d: d | {"images": 5}, "images must be text"),
        (lambda d: [d], "expected a JSON object"),
    ],
)
def test_data_of_other_types_is_refused(change: Callable[[Row], object], message: str, tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet")])
    data = json.loads((output / "data.json").read_text(encoding="utf-8"))
    (output / "data.json").write_text(json.dumps(change(data)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read([output])


def test_damaged_counts_are_refused(tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet")])
    path = output / "runs" / row("Unet")["run"] / "step20.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step20\.npz: is not an \.npz file"):
        read([output])
    numpy.savez(path, names=numpy.array(["a"]), hits=numpy.ones((1, 1)))
    with pytest.raises(ValueError, match=f"arrays of {row('Unet')['run']} at step 20: lacks"):
        read([output])


def test_curves_of_other_shapes_are_refused(tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet")])
    for curves in ({"loss": numpy.ones(3)}, {"val_step": numpy.array(["a"]), "val_miou": numpy.ones(1)}):
        arrays = image_counts(row("Unet")).arrays() | curves
        (output / "runs" / row("Unet")["run"] / "step20.npz").write_bytes(pack(arrays))
        with pytest.raises(ValueError, match=r"must be numbers, as many|has the type"):
            read([output])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("loss", numpy.inf), ("loss", numpy.nan), ("loss", 1e308), ("loss_step", numpy.nan)),
        *(("val_miou", numpy.inf), ("val_miou", 101.0), ("val_miou", -1.0), ("val_step", numpy.nan)),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(name: str, value: float, tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet")])
    path = output / "runs" / row("Unet")["run"] / "step20.npz"
    arrays = unpack(path.read_bytes())
    arrays[name][1] = value
    path.write_bytes(pack(arrays))
    with pytest.raises(ValueError, match=rf"line 1: arrays of {row('Unet')['run']} at step 20: {name} must be from "):
        write_report(output)
    assert not (output / "report.html").exists()


@pytest.mark.parametrize("which", [slice(1, 3), slice(None)])
def test_validations_without_any_class_are_no_points_of_the_curve(which: slice, tmp_path: Path) -> None:
    output = folder(tmp_path, [row("Unet", step=60), row("FPN", step=60)])
    path = output / "runs" / row("Unet")["run"] / "step60.npz"
    arrays = unpack(path.read_bytes())
    arrays["val_miou"][which] = numpy.nan
    path.write_bytes(pack(arrays))
    write_report(output)
    assert "Learning curves" in (output / "report.html").read_text(encoding="utf-8")
    curves = _learning(gather(read([output])))["validation mIoU %"]
    assert [len(curve) for _, curve in curves] == ([10, 12] if which.start else [12])


def test_texts_beside_counts_are_one_line_each(tmp_path: Path) -> None:
    """Names, groups and classes of a stranger's arrays; half of a pair of surrogates is no character."""
    rows = [row("Unet"), row("FPN", test=40.0)]
    found = []
    for one in rows:
        counts = image_counts(one)
        names = ("n\n\n# Heading\n", *counts.names[1:])
        groups = tuple(f"drive\n\n# Heading {i % 2}\ud800" for i in range(24))
        classes = ("road\r\n\r\n# Heading", *counts.class_names[1:])
        found.append(replace(counts, names=names, groups=groups, class_names=classes))
    output = folder(tmp_path, rows, found)
    write_report(output)
    text = (output / "report.md").read_text(encoding="utf-8")
    assert "drive # Heading 0? (12 images)" in text
    (first, _) = read([output]).items
    assert first.counts is not None
    assert (first.counts.names[0], first.counts.class_names[0]) == ("n # Heading ", "road # Heading")
    for name in ("report.md", "report.tex"):
        assert not re.search(r"^\s*\\?# Heading", (output / name).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_texts_that_are_no_characters_and_values_nested_deeply(depth: int, tmp_path: Path) -> None:
    """A report, or a refusal that names the line, before anything is written."""
    output = folder(tmp_path, [row("Unet", command="--root caf\udce9", host="\ud800")])
    text = (output / "results.jsonl").read_text(encoding="utf-8")
    (output / "results.jsonl").write_text(text.replace('"tile": null', f'"tile": {"[" * depth}{"]" * depth}'))
    refusals = []
    try:
        write_report(output)
    except ValueError as error:
        refusals.append(str(error))
    assert (output / "report.md").exists() == (not refusals)
    assert all("results.jsonl, line 1: " in refusal for refusal in refusals)
    assert refusals or "--root caf?" in (output / "report.md").read_text(encoding="utf-8")


def test_values_of_any_type_make_a_report(tmp_path: Path) -> None:
    """Settings and provenance are shown, not used: a stranger may have written anything there."""
    odd = {"tile": "x", "scales": {"a": 1}, "crop": 3, "time": None, "host": ["\u2028"], "commit": 5, "command": None}
    rows = [
        row("Unet", **odd, latency_sitting=[1]),
        row("FPN", losses={"a": [None]}, steps=sys.maxsize, step=20, images_seen=40),
    ]
    folder(tmp_path, rows)
    write_report(tmp_path)
    assert all((tmp_path / name).exists() for name in FILES)
