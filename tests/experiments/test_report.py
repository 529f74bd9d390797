"""Reports: numbers as the rows have them, several seeds, missing values, and pages that need no network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas
import pytest
from report_folder import CLASSES, folder, row

from experiments.cell_rows import RESULT_FIELDS
from experiments.cell_run import curves
from experiments.report import write_report
from experiments.report.plots import VARIABLES
from experiments.report.tables import class_table, constants, markdown_table, shown_columns, summary
from experiments.report.words import finding
from experiments.training import Training


def test_summary_over_seeds_is_mean_and_sample_deviation_ranked() -> None:
    rows = [row("Unet", 0, 40.0), row("FPN", 0, 50.0), row("Unet", 1, 44.0), row("FPN", 1, 50.0)]
    table = summary(rows)
    assert table["label"].tolist() == ["FPN", "Unet"]
    assert table["rank"].tolist() == [1, 2]
    assert table["seeds"].tolist() == [2, 2]
    assert table["test_miou"].tolist() == [50.0, 42.0]
    assert table["test_miou_sd"].tolist() == pytest.approx([0.0, 8**0.5])
    assert class_table(rows, table).loc["road"].tolist() == [50.0, 42.0]
    assert class_table(rows, table).loc["rare"].isna().all()
    assert dict(constants(table))["seeds"] == "2"
    assert "up to 2.8 points" in finding(table)


def test_labels_name_only_what_varies() -> None:
    rows = [row("Unet", test=3.0), row("Unet", test=2.0, output_stride=16), row("FPN", test=1.0)]
    assert summary(rows)["label"].tolist() == ["Unet · OS 32", "Unet · OS 16", "FPN · OS 32"]
    rows = [
        row("Unet", test=3.0),
        row("Unet", test=2.0, stem="none"),
        row("Unet", test=1.0, encoder="resnet18", stem=None),
    ]
    table = summary(rows)
    assert table["label"].tolist() == [
        "Unet · swinx_n · inline",
        "Unet · swinx_n · none",
        "Unet · resnet18 · \N{EN DASH}",
    ]
    assert class_table(rows, table).loc["road"].tolist() == [3.0, 2.0, 1.0]


def test_one_seed_claims_no_spread() -> None:
    table = summary([row("Unet", test=40.0), row("FPN", test=41.0)])
    assert "one seed" in finding(table)
    assert "test_miou" in [column.key for column in shown_columns(table)]
    assert "thin_miou" not in [column.key for column in shown_columns(table)]  # nothing in it


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert markdown_table(["a", "b", "c"], [], 2) == "| a | b | c |\n| --- | --- | ---: |"
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_finding_word_for_word() -> None:
    assert finding(summary([])) == "No configuration has finished."
    assert finding(summary([row("Unet", test=40.0)])) == "Unet reaches 40.0 % test mIoU."
    table = summary([row("Unet", test=40.0), row("FPN", test=41.5), row("PAN", test=30.0)])
    assert finding(table) == (
        "FPN reaches 41.5 % test mIoU, 1.5 points above Unet and 11.5 above PAN, the last of 3. Each ran with one "
        "seed, so the spread between seeds is unknown and small gaps decide nothing."
    )
    nothing = summary([row("Unet", test_miou=None), row("FPN", test_miou=None)])
    assert finding(nothing) == "No class occurs in the test images, so there is nothing to rank."
    assert finding(summary([row("Unet", test=40.0), row("FPN", test_miou=None)])) == "Unet reaches 40.0 % test mIoU."


def test_earlier_rows_are_the_same_configuration() -> None:
    new = {"dilation": "exact", "window": None, "alignment": "none"}
    (line,) = summary([row("Unet", 0), row("Unet", 1, **new)]).to_dict("records")
    assert (line["seeds"], line["dilation"], line["window"], line["alignment"]) == (2, "exact", "8", "none")
    context = {"encoder": "resnet50", "stem": None}
    none = {"dilation": None, "window": None, "alignment": None}
    table = summary([row("Unet", 0, **context), row("Unet", 1, **context, **none)])
    assert table[["dilation", "window", "alignment", "seeds"]].values.tolist() == [["\N{EN DASH}"] * 3 + [2]]


def test_markdown_report_has_ranking_classes_and_origin(tmp_path: Path) -> None:
    write_report(
        folder(tmp_path, [row("Unet", 0, 40.0), row("Unet", 1, 44.0), row("FPN", 0, 50.0), row("FPN", 1, 50.0)])
    )
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| 2 \| Unet \| 32 \| 42\.0 ± 2\.8 \| 43\.0 ± 2\.8 \|", text)
    assert "| pole <thin> (thin) | **25.0** | 21.0 |" in text
    for fact in ("processor, 2 CPU cores", "0123456789ab", "--data 'a&b'", "20 steps", "a <note>", "report test"):
        assert fact in text
    summary_file = pandas.read_csv(tmp_path / "summary.csv")
    assert summary_file["test_miou"].tolist() == [50.0, 42.0]
    assert pandas.read_csv(tmp_path / "class_iou.csv")["class"].tolist() == list(CLASSES)


class _Page(HTMLParser):
    """Collects what a browser would fetch, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_page_is_self_contained_escaped_and_follows_the_color_scheme(tmp_path: Path) -> None:
    write_report(folder(tmp_path, [row("Unet", 0, 40.0), row("FPN", 0, 50.0), row("PAN", 0, 45.0)]))
    html = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 2 * (2 + 3)
    assert "pole &lt;thin&gt;" in html
    assert "a &lt;note&gt;" in html
    assert "<note>" not in html
    assert "prefers-color-scheme: dark" in html
    dark, light = html.split("prefers-color-scheme: dark")[1], html.split("prefers-color-scheme: dark")[0]
    for color, variable in VARIABLES.items():
        assert f"--{variable}: {color}" in light, "plots and page must agree on the light colours"
        assert f"--{variable}: #" in dark.split("</style>")[0]
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    bare = set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", svg)) - {f"#{item}" for item in page.ids}
    assert bare == set(), "a colour in a plot that does not follow the page"


def test_values_behind_cells_sort_as_numbers(tmp_path: Path) -> None:
    write_report(folder(tmp_path, [row("Unet", 0, 9.5), row("FPN", 0, 50.0)]))
    html = (tmp_path / "report.html").read_text()
    assert '<td data-value="9.5">9.5</td>' in html
    assert '<td data-value="1234.0">1\u202f234</td>' in html


def test_diverged_cells_are_listed_with_their_reason(tmp_path: Path) -> None:
    failed = row("PAN") | {
        **dict.fromkeys(RESULT_FIELDS),
        "status": "diverged",
        "error": "the loss became nan at step 3",
    }
    write_report(folder(tmp_path, [row("Unet"), failed]))
    for name in ("report.md", "report.html"):
        assert "the loss became nan at step 3" in (tmp_path / name).read_text()
    only = tmp_path / "only"
    write_report(folder(only, [failed]))
    assert "No configuration has finished." in (only / "report.md").read_text()


def test_curves_keep_the_mean() -> None:
    losses = [float(i % 7) for i in range(1234)]
    told = curves(Training(losses, 1234, 2468, 1.0, [(600, 41.23456), (1234, None)], (600, 41.23456)))
    assert len(told["loss"]) == len(told["step"]) <= 500
    assert told["step"][0] == 2.0
    assert told["loss"][0] == pytest.approx(1.0, abs=1e-5)
    assert told["step"][-1] <= 1234
    assert told["val_step"] == [600, 1234]
    assert told["val_miou"] == [41.235, None]
    short = curves(Training([1.0, 2.0], 2, 4, 1.0, [], None))
    assert short == {"step": [1.0, 2.0], "loss": [1.0, 2.0], "val_step": [], "val_miou": []}
