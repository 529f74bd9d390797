"""A report from any subset of rows of several folders."""

import json
from base64 import b64encode
from pathlib import Path

import pandas
import pytest
from PIL import Image
from report_folder import add_counts, folder, row

from experiments.records import read_rows
from experiments.report.__main__ import main
from experiments.report.content import gather


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    for name, decoders in (("a", ["Unet", "FPN"]), ("b", ["PAN"])):
        rows = [row(decoder, seed, 40.0 + seed, data_id="x") for decoder in decoders for seed in range(2)]
        for item in rows:
            add_counts(tmp_path / name, item["cell"], [[50, 40], [60, 10]])
        folder(tmp_path / name, rows)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_chosen_rows_make_a_report_of_their_own(two: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    for where, decoders, seeds in (
        (["decoder=Unet,PAN"], {"Unet", "PAN"}, {0, 1}),
        (["decoder=PAN", "seed=1"], {"PAN"}, {1}),
        ([], {"Unet", "FPN", "PAN"}, {0, 1}),
    ):
        arguments = [*two, "--output", str(output), *(["--where", *where] if where else [])]
        assert main(arguments) == 0
        rows = read_rows(output / "results.jsonl")
        assert {item["decoder"] for item in rows} == decoders
        assert {item["seed"] for item in rows} == seeds
        assert set(pandas.read_csv(output / "summary.csv")["decoder"]) == decoders
        assert "95 % interval" in (output / "report.md").read_text()
        assert {path.name for path in (output / "cells").iterdir() if path.is_dir()} == {item["cell"] for item in rows}
    text = (output / "report.html").read_text()
    for source in two:  # nothing of the old folders is needed
        Path(source).rename(f"{source}-gone")
    assert main([str(output), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == text


def ways(path: Path) -> list[str]:
    """Two models, whole in one folder and by mirrored tiles in the other, three points better there."""
    for name, gain, how in (
        ("whole", 0, {"tile": None, "flip": True}),
        ("tiles", 3, {"tile": [48, 32], "flip": True, "weights_of": {}}),
    ):
        rows = []
        for seed in range(2):
            item = row("PAN", seed, 40.0 + 9 * seed + gain, data_id="x", overlap=0.25, scales=[1.0], **how)
            if "weights_of" in item:
                trained = row("PAN", seed)
                item["weights_of"] = {
                    key: trained[key] for key in ("cell", "time", "command", "commit", "dirty", "precision")
                }
            # IoU of an image is hits / (200 - hits).
            add_counts(path / name, item["cell"], [[40 + 9 * seed + gain + image] for image in range(7)])
            rows.append(item)
        folder(path / name, rows)
    return [str(path / "whole"), str(path / "tiles")]


def test_one_cell_with_several_ways_of_inference_is_compared_model_by_model(tmp_path: Path) -> None:
    both, output = ways(tmp_path), tmp_path / "out"
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(tmp_path / "tiles" / "cells" / row("PAN")["cell"] / "00.png")
    assert main([*both, "--output", str(output)]) == 0
    table = pandas.read_csv(output / "summary.csv")
    assert table["label"].tolist() == ["PAN · tiles 48x32", "PAN"]
    assert table["inference"].tolist() == ["tiles 48x32 overlap 0.25 + mirrored", "mirrored"]
    assert table["test_miou"].tolist() == [47.5, 44.5]
    comparison = gather(output).comparison
    assert comparison is not None
    assert (comparison.seed_freedom, comparison.paired_freedom) == (1, 1)
    scores = [score.miou for score in comparison.scores]
    assert scores == pytest.approx(
        [sum(100 * (280 + 63 * s + 21 + 7 * g) / (1120 - 63 * s - 21 - 7 * g) for s in (0, 1)) / 2 for g in (3, 0)]
    )
    cells = output / "cells"
    name = row("PAN")["cell"]
    assert {path.name for path in cells.iterdir() if path.is_dir()} == {
        f"{cell}-{way}"
        for cell in (name, row("PAN", 1)["cell"])
        for way in ("mirrored", "tiles-48x32-overlap-0.25-mirrored")
    }
    for way, source in (("mirrored", "whole"), ("tiles-48x32-overlap-0.25-mirrored", "tiles")):
        original = tmp_path / source / "cells" / name / "00.png"
        assert (cells / f"{name}-{way}" / "00.png").read_bytes() == original.read_bytes()
    text = (output / "report.html").read_text()
    assert text.count("<img") == 2 * (2 + 2), "two images: image, truth and what both ways predict"
    assert b64encode((tmp_path / "tiles" / "cells" / name / "00.png").read_bytes()).decode() in text
    assert text.count("<h3>Training loss</h3>") == 1
    assert "2 of the 4 rows evaluate a trained cell once more" in text
    # What was made can be taken apart again, and then needs no names of its own.
    kept = "tiles 48x32 overlap 0.25 + mirrored"
    assert main([str(output), "--where", f"inference={kept}", "--output", str(tmp_path / "one")]) == 0
    assert {path.name for path in (tmp_path / "one" / "cells").iterdir() if path.is_dir()} == {
        name,
        row("PAN", 1)["cell"],
    }
    assert all("side" not in item for item in read_rows(tmp_path / "one" / "results.jsonl"))
    assert main([str(output), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == text


def test_an_evaluation_that_repeats_the_one_after_training_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [row("PAN", seed, 40.0 + seed, data_id="x", device="cpu") for seed in range(2)]
    told = {key: trained[0][key] for key in ("cell", "time", "command", "commit", "dirty", "precision")}
    again = [
        trained[0] | {"weights_of": told},
        trained[0] | {"weights_of": told, "cell": "finer", "output_stride": 16},
    ]
    one, other = folder(tmp_path / "trained", trained), folder(tmp_path / "again", again)
    for order in ((one, other), (other, one)):
        assert main([*map(str, order), "--output", str(tmp_path / "out")]) == 0
        assert f"{trained[0]['cell']} of {other}: left out, it repeats" in " ".join(capsys.readouterr().out.split())
        rows = read_rows(tmp_path / "out" / "results.jsonl")
        assert sorted(item["cell"] for item in rows) == sorted(["finer", *(item["cell"] for item in trained)])
        assert [item["cell"] for item in rows if "weights_of" in item] == ["finer"]
    for changes in ({"precision": "bf16"}, {"weights_of": told | {"time": "2026-01-03T00:00:00+00:00"}}):
        changed = folder(tmp_path / f"changed-{next(iter(changes))}", [again[0] | changes])
        assert main([str(one), str(changed), "--output", str(tmp_path / "none")]) == 2
        assert "may come once with one inference" in capsys.readouterr().err
        # Which of them is wanted can be said.
        assert main([str(one), str(changed), "--where", "seed=1", "--output", str(tmp_path / "out")]) == 0


def test_another_training_of_the_same_cell_is_another_model(tmp_path: Path) -> None:
    both = ways(tmp_path)
    rows = [item | {"time": "2026-01-02T00:00:00+00:00"} for item in read_rows(tmp_path / "whole" / "results.jsonl")]
    (tmp_path / "whole" / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    assert main([*both, "--output", str(tmp_path / "out")]) == 0
    comparison = gather(tmp_path / "out").comparison
    assert comparison is not None
    assert (comparison.seed_freedom, comparison.paired_freedom) == (2, 0)


def test_bad_input_is_refused(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    assert main([two[1], "--output", str(tmp_path / "mixed")]) == 0
    (tmp_path / "mixed" / "thesis.tex").touch()
    other = folder(tmp_path / "other", [row("MAnet", data_id="y")])
    for arguments, message in (
        ([*two, "--output", str(tmp_path / "notes")], "--output must be a new folder or one of an earlier call"),
        ([*two, "--output", two[0]], "--output must be"),
        ([*two, "--output", str(tmp_path / "mixed")], "holds other files too (thesis.tex), choose another folder"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "seed=0", "seed=1"], "each field may be given once"),
        ([two[0], two[0], "--output", str(tmp_path / "o")], "each cell may come once with one inference, got"),
        ([*two, str(other), "--output", str(tmp_path / "o")], "must be of the same data, got data_id x in"),
        ([str(tmp_path / "notes"), "--output", str(tmp_path / "o")], "holds no comparison"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "colour=red"], "with a field of decoder, encoder, stem"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "decoder=MAnet"], "MAnet is not one of FPN, PAN, Unet"),
        (
            [*two, "--output", str(tmp_path / "o"), "--where", "decoder=PAN", "cell=" + row("FPN")["cell"]],
            "no row meets decoder=PAN cell=",
        ),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    assert (tmp_path / "notes" / "thesis.tex").exists()
    assert (tmp_path / "mixed" / "thesis.tex").exists()
    assert (Path(two[0]) / "results.jsonl").exists()


def test_rows_of_other_settings_and_without_data_id_go_together(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", [row("Unet", test=40.0, data_id="x", learning_rate=0.1)])
    earlier = row("FPN", test=41.0, learning_rate=0.2)  # has no data_id
    second = folder(tmp_path / "b", [earlier])
    assert main([str(first), str(second), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- settings that differ: learning rate 0.1, 0.2\n" in text
    assert "FPN reaches 41.0 % test mIoU, 1.0 points above Unet." in text
