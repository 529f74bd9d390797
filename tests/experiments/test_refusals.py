"""What the command refuses before any work, and runs that cannot exist."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import ONE, save_folder, toy_data

from experiments import data
from experiments.compare_decoders import main
from experiments.data import SegmentationData, Split
from experiments.execution import runs
from experiments.records.results import read_rows

pytestmark = pytest.mark.usefixtures("tiny_scenes")


def test_another_configuration_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy: SegmentationData
) -> None:
    output = tmp_path / "out"
    assert main([*ONE, "--output", str(output)]) == 0
    contents = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("must be refused before training"))
    assert main([*ONE, "--steps", "3", "--output", str(output)]) == 2
    assert "was begun with other settings (steps 1 there, 3 now)" in capsys.readouterr().err
    for change in ({"test": toy.val}, {"class_names": ("grey", "dark", "bright <&>")}, {"ignore_index": 254}):
        other = SegmentationData(**(vars(toy) | change))
        monkeypatch.setattr(data, "make_scenes", lambda other=other, **_: other)
        assert main([*ONE, "--output", str(output)]) == 2
        assert "data_id" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == contents


def test_other_groups_are_refused_and_a_folder_of_data_may_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups that came too late would be ignored, and intervals too narrow."""
    for name in ("data", "moved"):
        save_folder(toy_data(), tmp_path / name)

    def train(name: str, *more: str) -> int:
        root = tmp_path / name
        own = ["--data", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), *more]
        return main([*ONE, *own, "--output", str(tmp_path / "out")])

    assert train("data") == 0
    assert train("data", "--groups", "(.)") == 2
    assert "was begun with other settings (groups_id None there, " in capsys.readouterr().err
    assert train("moved") == 0
    assert "finished before, skipped" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 1


def test_a_checkpoint_does_not_go_on_under_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run that was cut off has no row yet."""
    output = tmp_path / "out"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", interrupt)
        assert main([*ONE, "--losses", "dice", "--output", str(output)]) == 130
    assert read_rows(output / "results.jsonl") == []
    assert main([*ONE, "--output", str(output)]) == 2
    assert "(losses ['dice'] there, ['ce'] now)" in capsys.readouterr().err
    assert main([*ONE, "--losses", "dice", "--output", str(output)]) == 0


def test_foreign_folders_and_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    assert main([*ONE, "--output", str(tmp_path / "notes")]) == 2
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
    assert main([*ONE, "--output", str(tmp_path / "notes" / "thesis.tex")]) == 2
    assert "--output must be a folder, got" in capsys.readouterr().err
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "results.jsonl").write_text('{"kind": "attention"}\n')
    assert main([*ONE, "--output", str(tmp_path / "rows")]) == 2
    assert "holds rows of kind 'attention'" in capsys.readouterr().err
    for content, said in (("{", "not JSON"), ("[]", "expected a JSON object of settings")):
        (tmp_path / "notes" / "settings.json").write_text(content)
        assert main([*ONE, "--output", str(tmp_path / "notes")]) == 2
        assert f"settings.json: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "8"], "must not exceed the number of training images, 7, got 8"),
        (
            ["--decoders", "Unet", "DPT"],
            "--decoders: DPT is not one of DeepLabV3, DeepLabV3Plus, DeepLab",
        ),
        (["--decoders", "FPN", "--output-strides", "16"], "FPN takes output stride 32, got 16"),
        (["--decoders", "PAN"], "needs image sides of at least 128 pixels, got 64x64"),
        (["--encoders", "swin"], "--encoders: swin is not one of"),
        (["--decoders", "DeepLabV3Plus", "--encoders", "vgg11"], "none of these runs can exist"),
        (["--seeds", "-1"], "seed must be a whole number of 0 to"),
        (["--root", "x"], "--root is only for --data folder, camvid, pet, got --data scenes"),
        (["--classes", "x"], "--classes is only for --data folder, got --data scenes"),
        (["--data", "camvid"], "--data camvid needs --root"),
        (
            ["--data", "camvid", "--root", "x", "--ignore-index", "3"],
            "--ignore-index is only for --data folder, got --data camvid",
        ),
        (["--data", "folder", "--root", "x"], "--data folder needs --classes"),
        (["--data", "pet", "--root", "x"], "--data pet needs --size H W"),
        (["--data", "folder", "--root", "x", "--classes", "missing.txt"], "missing.txt"),
        (["--size", "0", "5"], "--size must be height and width of at least 64, got 0 5"),
        (["--precision", "16", "--device", "cpu"], "--precision 16 needs --device cuda"),
        (["--crop", "65", "64"], "--crop must fit into the images, 64x64, got 65x64"),
        (
            ["--weights", "imagenet"],
            "--weights must be left out for swinx_n, which has no pretrained weights, got imagenet",
        ),
        (
            ["--encoders", "swinx_n", "resnet18", "--layer-decay", "0.9"],
            "--layer-decay must be 1 for resnet18, which is not swinx's, got 0.9",
        ),
        (
            ["--encoders", "tu-resnet18", "--weights", "banana"],
            "--weights must be imagenet for tu-resnet18, got banana",
        ),
        (["--decoders", "FPN", "--seeds"], "--seeds must be one or more, got none"),
        (["--windows", "0"], "window must be a whole number of 1 to 64"),
        (["--start", "nowhere"], "--start must be a folder of finished runs, got nowhere, which has none"),
        (["--contrasts", "exact-dense@os8"], "--contrasts exact-dense@os8: 'dense' is no value"),
        (["--contrasts", "FPN-Unet", "FPN-Unet"], "--contrasts: each may be given once, got FPN-Unet more than once"),
        (["--contrasts", "FPN-Unet@step200"], "'step200' is no value"),
    ],
)
def test_bad_input_is_refused_before_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["--decoders", "FPN", "Unet", "--batch-size", "2", *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "the same command continues" not in error
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "met"),
    [
        ([], None),
        (["--tile", "32", "64"], "32x64"),
        (["--crop", "64", "96"], "64x96"),
        (["--scales", "1", "0.5"], "64x64"),
        (["--scales", "0.5", "2", "--tile", "128", "128"], "64x64"),
    ],
)
def test_every_size_that_a_model_meets_must_suit_it(
    arguments: list[str],
    met: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PAN needs 128 pixels a side, which the images have: it is refused for crops, tiles and scales."""

    def accepted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "make_scenes", lambda **_: toy_data(128))
    monkeypatch.setattr(runs, "fit", accepted)
    assert main([*ONE, "--decoders", "PAN", *arguments, "--output", str(tmp_path / "out")]) == (2 if met else 130)
    if met:
        assert f"needs image sides of at least 128 pixels, got {met}" in capsys.readouterr().err


def test_runs_that_cannot_exist_have_rows_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    needs = "needs image sides of at least {} pixels, got 64x64"
    arguments = [*ONE[2:], "--decoders", "FPN", "PAN", "--output-strides", "16", "32"]
    for _ in range(2):
        assert main([*arguments, "--output", str(output)]) == 0
        told = capsys.readouterr().out
        rules = {row["run"]: row["error"] for row in read_rows(output / "results.jsonl")}
        assert rules == {
            "swinx_n-inline-FPN-os16-seed0": "FPN takes output stride 32, got 16",
            "swinx_n-inline-PAN-os16-seed0": f"PAN at output stride 16 {needs.format(128)}",
            "swinx_n-inline-PAN-os32-seed0": f"PAN at output stride 32 {needs.format(256)}",
            "swinx_n-inline-FPN-os32-seed0": None,
        }
        assert "swinx_n-inline-FPN-os16-seed0: not applicable, FPN takes output stride 32, got 16" in told
    assert "FPN takes output stride 32, got 16" in (output / "report.html").read_text()


def test_one_run_at_a_time_writes_into_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    original = runs.fit
    codes = []

    def again(*arguments: Any, **options: Any) -> Any:
        codes.append(main([*ONE, "--output", str(output)]))
        return original(*arguments, **options)

    monkeypatch.setattr(runs, "fit", again)
    assert main([*ONE, "--output", str(output)]) == 0
    assert codes == [2]
    assert f"--output: another run is writing into {output}" in capsys.readouterr().err
    assert len(read_rows(output / "results.jsonl")) == 1


def test_masks_of_one_class_are_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy: SegmentationData
) -> None:
    blank = Split(toy.train.images, torch.zeros_like(toy.train.masks), toy.train.names)
    monkeypatch.setattr(data, "make_scenes", lambda **_: SegmentationData(**(vars(toy) | {"train": blank})))
    assert main([*ONE, "--output", str(tmp_path / "out")]) == 2
    assert "at least two classes besides the ignored pixels, got ids [0]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_before_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("must be refused before training"))
    assert main([*ONE, "--output", "/dev/null/out"]) == 2
    assert "/dev/null" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ONE[:-2], "--device", "cuda", "--output", str(tmp_path / "out")]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "ce", "ce"], "--losses must be different names among ce, dice, lovasz, got ce ce"),
        (["--overlap", "1"], "--overlap must be at least 0 and below 1, got 1.0"),
        (["--ray.cpus", "0"], "--ray.cpus must be more than 0, got 0"),
        (["--ray.cpus", "2"], "--ray must be left out without --launcher ray"),
        (["--weights", "imagenet", "--start", "x"], "--start must be left out where --weights is given, got x"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--crop", "12", "64"], "--crop must be height and width of at least 16, got 12 64"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--dilations", "wide"], "wide"),
        (["--output-strides", "4"], "invalid choice '4'"),
        (["--evaluate-at", "0", "251"], "--evaluate-at must be different steps from 0, at most 200, got 0 251"),
        (["--evaluate-at", "5", "5"], "--evaluate-at must be different steps from 0, at most 200, got 5 5"),
        (
            ["--losses", "dice", "lovasz", "--class-weighting", "none"],
            "--class-weighting must be left out where --losses has no ce, got none",
        ),
        (["--overlap", "0.25"], "--overlap must be left out without --tile, got 0.25"),
        (
            ["--weights", "imagenet", "--freeze", "encoder", "--layer-decay", "0.9"],
            "--layer-decay must be left out with --freeze encoder, got 0.9",
        ),
        (["--freeze", "encoder"], "--freeze must be left out without --weights or --start, got encoder"),
    ],
)
def test_values_that_an_option_refuses_by_itself(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_unknown_data_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--data", "cityscapes"])
    assert caught.value.code == 2
    assert "scenes" in capsys.readouterr().err
