"""What a report says about differences, boundaries, validation and cells that cannot exist."""

import re
from pathlib import Path

import pandas
import pytest
from report_folder import add_counts, folder, row

from experiments.cell_rows import RESULT_FIELDS
from experiments.records import Row
from experiments.report import write_report
from experiments.report.content import gather
from experiments.report.facts import BUDGET, RECIPE
from experiments.report.latex import escape
from experiments.report.tables import PREDICTION, summary
from experiments.report.words import how_to_read, resolved
from experiments.settings import Settings

BANDS = {"1": 20.0, "2": 30.0, "3": 35.5, "4": 40.0, "5": None}


def judged(path: Path, seeds: int) -> Path:
    """Unet is far above FPN on each of 9 images; PAN has FPN's mean with other images right. Seeds hardly differ."""
    rows: list[Row] = []
    for seed in range(seeds):
        for decoder, hits in (
            ("Unet", [[80, 80]] * 9),
            ("FPN", [[30, 50 + i] for i in range(9)]),
            ("PAN", [[30, 58 - i] for i in range(9)]),
        ):
            moved = [[a + seed, b] for a, b in hits]
            item = row(decoder, seed, 0.0, boundary_f1=BANDS, best_val_miou=44.0, ece=3.25)
            add_counts(path, item["cell"], moved)
            # By hand: IoU of sums is hits / (200 - hits), the same truth and prediction everywhere.
            ious = [100 * sum(h[k] for h in moved) / (1800 - sum(h[k] for h in moved)) for k in range(2)]
            item["test_miou"] = sum(ious) / 2
            rows.append(item)
    return folder(path, rows)


def test_two_seeds_resolve_what_is_far_apart_and_say_what_is_not(tmp_path: Path) -> None:
    write_report(judged(tmp_path, 2))
    text = (tmp_path / "report.md").read_text()
    basis, yes, no = resolved(gather(tmp_path))
    assert "9 test images and the spread between seeds, a standard deviation of" in basis
    assert "with 3 degrees of freedom" in basis
    assert "corrected for 3 pairs (Holm). Images count as independent" in basis
    assert re.fullmatch(r"Resolved, 2 of 3: Unet over (FPN|PAN) \(\+\d+\.\d\), (FPN|PAN) \(\+\d+\.\d\)\.", yes)
    assert re.fullmatch(r"Not resolved, 1 of 3: (FPN over PAN|PAN over FPN) \(\+0\.0\)\.", no)
    assert basis in text
    assert no in text
    table = pandas.read_csv(tmp_path / "differences.csv")
    assert table["resolved"].tolist() == [True, True, False]
    assert (table["overall_low"] <= table["points"]).all()
    assert (table["overall_high"] >= table["points"]).all()
    assert (table["p_corrected"] >= table["p"]).all()
    unet = pandas.read_csv(tmp_path / "summary.csv").iloc[0]
    assert unet["interval_low"] < unet["test_miou"] < unet["interval_high"]
    interval = f"{unet['interval_low']:.1f}\N{EN DASH}{unet['interval_high']:.1f}"
    assert f"| {unet['test_miou']:.1f} ± {unet['test_miou_sd']:.1f} | {interval} |" in text
    lead = r"Unet reaches \d+\.\d % test mIoU, \d+\.\d points above \w+ \(resolved\) and \d+\.\d above \w+ \(resolved\)"
    assert re.search(lead + r", the last of 3\. 2 of 3 differences are resolved\.\n", text)
    html = (tmp_path / "report.html").read_text()
    matrix = html.split('class="matrix"')[1].split("</figure>")[0]
    assert matrix.count("opacity: 0.25") == 4  # two resolved pairs, from both sides
    points = sorted(float(number) for number in re.findall(r">([+-]?\d+\.\d)</text>", matrix.replace("−", "-")))
    assert len(points) == 6
    assert matrix.count(">0.0</text>") == 2
    assert points == pytest.approx([-point for point in reversed(points)])


def test_one_seed_speaks_of_these_models_only(tmp_path: Path) -> None:
    write_report(judged(tmp_path, 1))
    text = (tmp_path / "report.md").read_text()
    assert "holds for these trained models only" in text
    assert "2 of 3 differences are resolved, for these trained models only: each ran with one seed.\n" in text
    assert pandas.read_csv(tmp_path / "differences.csv")["overall_low"].isna().all()


def test_without_counts_of_each_image_the_report_says_so(tmp_path: Path) -> None:
    output = judged(tmp_path, 1)
    (output / "cells" / row("FPN")["cell"] / "images.json").unlink()
    write_report(output)
    gap = f"the counts of each test image (images.json) are missing for {row('FPN')['cell']}"
    text = (output / "report.md").read_text()
    assert f"Some configurations are not judged: {gap}.\n" in text
    assert pandas.read_csv(output / "differences.csv")[["first", "second"]].values.tolist() == [["Unet", "PAN"]]
    table = pandas.read_csv(output / "summary.csv").set_index("label")
    assert table["interval_low"].isna().to_dict() == {"Unet": False, "FPN": True, "PAN": False}
    matrix = (output / "report.html").read_text().split('class="matrix"')[1].split("</figure>")[0]
    for name in ("Unet", "PAN"):
        assert f">#{table['rank'][name]} {name}</text>" in matrix
    for decoder in ("Unet", "PAN"):
        (output / "cells" / row(decoder)["cell"] / "images.json").unlink()
    write_report(output)
    text = (output / "report.md").read_text()
    assert "Differences cannot be judged: the counts of each test image (images.json) are missing for" in text
    assert "95 % interval" not in text
    assert 'class="matrix"' not in (output / "report.html").read_text()
    assert pandas.read_csv(output / "differences.csv").empty


def test_boundaries_validation_and_new_columns(tmp_path: Path) -> None:
    output = judged(tmp_path, 1)
    curve = '{"step": [1.0], "loss": [2.0], "val_step": [1, 2], "val_miou": [10.0, null]}'
    (output / "cells" / f"{row('FPN')['cell']}.json").write_text(curve)
    write_report(output)
    html = (output / "report.html").read_text()
    assert html.count("<h3>Boundaries</h3>") == html.count("<h3>Validation</h3>") == 1
    header = next(line for line in (output / "report.md").read_text().splitlines() if line.startswith("| # |"))
    for heading in ("95 % interval", "best val %", "boundary F %", "ECE %"):
        assert heading in header
    assert "thin bound. F %" not in header  # nothing in it
    assert pandas.read_csv(output / "summary.csv")["boundary_f"].tolist() == [30.0] * 3


def test_missing_side_files_and_pictures_are_left_out(tmp_path: Path) -> None:
    output = judged(tmp_path, 1)
    (output / "cells" / row("FPN")["cell"] / "01.png").unlink()
    (output / "cells" / f"{row('PAN')['cell']}.json").unlink()
    write_report(output)
    html = (output / "report.html").read_text()
    assert html.count("<img") == 2 * (2 + 2)
    losses = html.split("<h3>Training loss</h3>")[1].split("</figure>")[0]
    assert ">PAN<" not in losses
    assert ">FPN<" in losses
    (output / "panel" / "00_truth.png").unlink()
    write_report(output)
    assert (output / "report.html").read_text().count("<img") == 2 + 2
    (output / "panel" / "01_image.png").unlink()
    write_report(output)
    assert "Predictions on test images" not in (output / "report.html").read_text()


def test_cells_that_cannot_exist_stand_apart(tmp_path: Path) -> None:
    rule = "FPN takes output stride 32, got 16"
    absent = row("FPN", output_stride=16) | {
        **dict.fromkeys(RESULT_FIELDS),
        "status": "not applicable",
        "error": rule,
        "threads": None,
    }
    write_report(folder(tmp_path, [row("Unet"), absent]))
    text = (tmp_path / "report.md").read_text()
    assert "## Cells that are not applicable" in text
    assert f"- `{absent['cell']}`: {rule}" in text
    assert "Cells without a result" not in text
    assert rule in (tmp_path / "report.html").read_text()
    tiled = absent | {"tile": [32, 32], "overlap": 0.5, "status": "diverged", "error": "not finite"}
    write_report(folder(tmp_path / "ways", [row("Unet"), absent, absent, tiled]))
    text = (tmp_path / "ways" / "report.md").read_text()
    assert text.count(rule) == 1
    assert f"- `{absent['cell']} (tiles 32x32)`: not finite" in text
    assert "Predictions are" not in text, "what was scored was predicted in one way"


def test_labels_and_columns_of_new_axes(tmp_path: Path) -> None:
    rows = [
        row("Unet", 0, 44.0, output_stride=16, dilation="exact", window=None, alignment="none", cell="a"),
        row("Unet", 0, 43.0, output_stride=16, dilation="dense", window=None, alignment="none", cell="b"),
        row("Unet", 0, 42.0, output_stride=16, dilation="exact", window=7, alignment="none", cell="c"),
        row("Unet", 0, 41.0, output_stride=16, dilation="exact", window=None, alignment="centred", cell="d"),
        row("Unet", 0, 40.0, output_stride=16, cell="e", encoder="resnet50", stem=None, dilation=None, alignment=None),
    ]
    write_report(folder(tmp_path, rows))
    assert gather(tmp_path).table["label"].tolist() == [
        "Unet · swinx_n · exact · window 8",  # its own
        "Unet · swinx_n · dense · window 8",
        "Unet · swinx_n · exact · window 7",
        "Unet · swinx_n · exact · window 8 · centred",
        "Unet · resnet50",
    ]


def test_labels_tell_what_differs_of_the_inference(tmp_path: Path) -> None:
    common = {"overlap": 0.5, "scales": [0.75, 1.0]}
    rows = [
        row("Unet", 0, 44.0, cell="a", flip=True, tile=[48, 32], **common),
        row("Unet", 0, 43.0, cell="b", flip=True, tile=None, **common),
        row("Unet", 0, 42.0, cell="c", flip=False, tile=[48, 32], **common),
        row("Unet", 0, 41.0, cell="d", flip=False, tile=None, **common),
    ]
    write_report(folder(tmp_path, rows))
    table = gather(tmp_path).table
    assert table["label"].tolist() == ["Unet · tiles 48x32 · mirrored", "Unet · mirrored", "Unet · tiles 48x32", "Unet"]
    assert table["inference"].tolist()[::3] == ["tiles 48x32 + mirrored + scales 0.75 1.0", "scales 0.75 1.0"]
    overlaps = [
        row("PAN", 0, 44.0 - n, cell=f"{n}", flip=True, tile=[48, 32], overlap=n / 4, scales=[0.75, 1.0])
        for n in (1, 2)
    ]
    assert summary([*rows, *overlaps])["label"].tolist()[2:4] == [
        "PAN · tiles 48x32 overlap 0.25 · mirrored",
        "Unet · tiles 48x32",
    ]
    assert "| # | decoder | OS | inference | test mIoU % |" in (tmp_path / "report.md").read_text()
    write_report(folder(tmp_path / "one", rows[:1]))
    text = (tmp_path / "one" / "report.md").read_text()
    assert "- inference: tiles 48x32 + mirrored + scales 0.75 1.0\n" in text
    assert "settings that differ" not in text


def test_how_to_read_follows_the_rows() -> None:
    for rows, said in (
        ([row("Unet")], "trains from scratch under the same budget,"),
        ([row("Unet")], "evaluated once, with the moving average of its weights at the end. No checkpoint is selected"),
        ([row("Unet", ema_decay=0)], "evaluated once, with its weights at the end."),
        (
            [row("Unet", select="best")],
            "its weights at the best validation. By val mIoU weights were chosen",
        ),
        ([row("Unet", patience=3)], "at the end. By val mIoU training was ended, so it is no held-out score"),
        ([row("Unet", weights="imagenet")], "trains from pretrained encoders (imagenet) under"),
        ([row("Unet", weights="imagenet"), row("Unet", weights=None)], "from scratch or from pretrained encoders"),
        (
            [row("Unet", flip=True, tile=[64, 96], overlap=0.5, scales=[0.75, 1.0])],
            "Predictions are averaged with those of the mirrored image, averaged over scales 0.75 1.0, made by "
            "overlapping tiles of 64x96 pixels where images are larger.",
        ),
        ([row("Unet", steps=20), row("FPN", steps=30)], "under budgets that differ, on the same batches"),
        (
            [row("Unet", learning_rate=0.1), row("FPN", learning_rate=0.2)],
            "Settings differ between rows (learning rate 0.1, 0.2), and differences may come from them. Scores are",
        ),
        (
            [row("Unet", 0, learning_rate=0.1), row("Unet", 1, learning_rate=0.2)],
            "Seeds of one configuration differ in learning rate, so ± is not chance alone.",
        ),
        ([row("Unet", weights_of={"cell": "c"})], "Every model trains from scratch under the same budget"),
        ([row("Unet", weights_of={"cell": "c"})], "What was trained is c: configurations take these weights as they"),
        (
            [row("FPN"), row("Unet", cell="u", weights_of={"cell": "c"})],
            "Not trained, but evaluated with the weights of c as they are: u.",
        ),
        (
            [row("FPN"), row("FPN", flip=True, weights_of={"cell": row("FPN")["cell"]})],
            "1 of the 2 rows evaluate a trained cell once more, without more training. No",
        ),
        ([row("FPN"), row("FPN", flip=True)], "and is evaluated with the moving average of its weights at the end"),
        ([row("FPN"), row("FPN", flip=True)], "are as the column inference says: averaged with those of the mirrored"),
        (
            [row("PAN", crop=[48, 32], height=64, width=64, tile=None)],
            "trained on crops and evaluated on whole images (48x32 of 64x64 pixels), where decoders that pool",
        ),
    ):
        assert said in how_to_read(rows)
    for tiled in ({"tile": [48, 32], "overlap": 0.5}, {"tile": None, "height": 48, "width": 32}, {"crop": None}):
        assert "whole images" not in how_to_read(
            [row("PAN", **({"crop": [48, 32], "height": 64, "width": 64} | tiled))]
        )
    plain = how_to_read([row("Unet", flip=False, tile=None, scales=[1.0], patience=None), row("FPN")])
    assert "Predictions are" not in plain
    assert "Settings differ" not in plain, "a field that an earlier row lacks is no difference"


def test_every_setting_is_looked_at() -> None:
    settings = Settings("toy", "x", 8, 8, 20, None, 2, "32", "cpu").as_row()
    assert {*BUDGET, *RECIPE, *PREDICTION} == settings.keys() - {"data", "data_id", "height", "width"}


def test_latex_tables_are_escaped(tmp_path: Path) -> None:
    assert escape("a_b & 50 % #1 ~^\\{}") == (
        r"a\_b \& 50 \% \#1 \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}"
    )
    write_report(judged(tmp_path, 2))
    text = (tmp_path / "report.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"pole \textless{}thin\textgreater{} (thin) &" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert {line.count(" & ") + 1 for line in body} == {len(columns)}
    assert r"\(\pm\)" in text
    assert not re.search(r"(?<!\\)[%#_](?!\s*Needs)", text.split("\n", 1)[1])
    assert r"\shortstack[r]{test\\mIoU}" in text
    assert "mean over 2 seeds" in text
    assert "class & Unet & " in text


def test_latex_of_many_configurations_has_ranks_for_headings(tmp_path: Path) -> None:
    rows = [row("DeepLabV3Plus", test=50.0 - stride, output_stride=stride) for stride in (8, 16, 32)]
    write_report(folder(tmp_path, rows))
    text = (tmp_path / "report.tex").read_text()
    assert r"class & \#1 & \#2 & \#3 \\" in text
    assert "by rank in the table before" in text
    assert r"\begin{tabular}{rp{26mm}" in text, "long names are broken into lines"
    assert r"1 & DeepLabV3Plus \textperiodcentered{} OS 8 & 42.0 &" in text
