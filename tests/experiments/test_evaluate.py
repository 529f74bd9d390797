"""Trained weights evaluated once more: as they were, and at other strides, rules and alignments."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional
from toy import ONE, save_folder, toy_data

from experiments import compare_decoders, data, evaluate
from experiments.data import SegmentationData
from experiments.evaluation import cost, metrics
from experiments.execution import comparison, runs
from experiments.records.counts import ImageCounts, counts_of, unpack
from experiments.records.grid import DILATIONS, Run
from experiments.records.results import RESULT_FIELDS, Row, append_rows, read_rows
from experiments.records.settings import Settings
from experiments.reporting import pages
from experiments.reporting.content import configure
from experiments.reporting.load import read
from experiments.reporting.rows import model_of
from experiments.statistics.significance import Configured
from experiments.training.dilation_rules import enlarged_table, set_rule
from experiments.training.models import Segmenter, build_model
from experiments.training.weights import load_weights, save_weights

OF_TRAINING = {"images_seen", "train_minutes"}
MEASURED = set(RESULT_FIELDS) - OF_TRAINING - {name for name in RESULT_FIELDS if name.startswith(("latency", "peak"))}
SEGFORMER = "swinx_n-inline-Segformer-os32-seed0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of FPN and Segformer; the weights of the latter made such that each rule gives another prediction."""
    toy = toy_data()
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "make_scenes", lambda **_: toy)
        patch.setattr(cost, "latency", lambda *_, **__: (1.0, 2.0, 3.0))
        patch.setattr(pages, "_figures", lambda _: [])
        arguments = [*ONE[2:], "--decoders", "FPN", "Segformer", "--output", str(folder)]
        assert compare_decoders.main(arguments) == 0
        path = folder / "runs" / SEGFORMER / "last.pt"
        model = load_weights(path, "cpu")
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name.endswith("relative_position_bias_table"):
                    parameter.normal_(std=2)
            model.model.model.segmentation_head[0].weight.mul_(50)
        save_weights(path, model.model, model.run, toy)
        yield folder


def evaluated(folder: Path, output: Path, *arguments: str) -> tuple[int, dict[str, Row]]:
    code = evaluate.main([str(folder), "--device", "cpu", *arguments, "--output", str(output)])
    return code, {row["run"]: row for row in read_rows(output / "results.jsonl")}


def counts(folder: Path, name: str) -> ImageCounts:
    """The counts of the one row of a run."""
    (path,) = (folder / "runs" / name).glob("step*.npz")
    return counts_of(unpack(path.read_bytes()))


def same(one: ImageCounts, other: ImageCounts) -> bool:
    """Whether two counts agree in every pixel."""
    return all((getattr(one, name) == getattr(other, name)).all() for name in ("hits", "truth", "predicted"))


def test_as_trained_gives_the_same_row(trained: Path, tmp_path: Path) -> None:
    run = "swinx_n-inline-FPN-os32-seed0"
    code, rows = evaluated(trained, tmp_path / "out", "--where", "decoder=FPN")
    assert code == 0
    assert list(rows) == [run]
    source = {row["run"]: row for row in read_rows(trained / "results.jsonl")}[run]
    assert {name: rows[run][name] for name in MEASURED} == {name: source[name] for name in MEASURED}
    assert Settings.of(rows[run]) == Settings.of(source)
    assert {rows[run][name] for name in OF_TRAINING} == {None}
    assert rows[run]["source"] == {name: source[name] for name in runs.SOURCE_FIELDS}
    assert rows[run]["trained"] is False
    assert rows[run]["time"] >= source["time"]
    for name in ("00.png", "04.png", "extreme_worst1.png"):
        assert (tmp_path / "out" / "runs" / run / name).read_bytes() == (trained / "runs" / run / name).read_bytes()
    assert same(counts(tmp_path / "out", run), counts(trained, run))
    assert source["command"] in (tmp_path / "out" / "report.md").read_text()


def test_pictures_are_predicted_as_the_scores_are(trained: Path, toy: SegmentationData, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "make_scenes", lambda **_: toy)
        arguments = [*ONE[2:], "--decoders", "Unet", "--flip", "--output", str(tmp_path / "run")]
        assert compare_decoders.main(arguments) == 0
        assert evaluated(tmp_path / "run", tmp_path / "mirrored", "--flip")[0] == 0
        assert evaluated(tmp_path / "run", tmp_path / "plain")[0] == 0
    run = "swinx_n-inline-Unet-os32-seed0"
    pictures = {
        name: [(tmp_path / name / "runs" / run / f"0{number}.png").read_bytes() for number in range(5)]
        for name in ("run", "mirrored", "plain")
    }
    assert pictures["run"] == pictures["mirrored"] != pictures["plain"]


def by_hand(trained: Path, toy: SegmentationData, stride: int, rule: str) -> ImageCounts:
    """Counts of each test image: smp's model by name, dilated, with the weights, then the rule."""
    state = torch.load(trained / "runs" / SEGFORMER / "last.pt", weights_only=True)["state_dict"]
    model = smp.Segformer("swinx_n", encoder_weights=None, classes=3)
    if stride < 32:
        model.encoder.make_dilated(stride)
    model.load_state_dict(state)
    set_rule(model.encoder, rule)
    return metrics.evaluate(Segmenter(model), toy.test, toy, batch_size=2, device=torch.device("cpu"), precision="32")[
        1
    ]


def test_other_strides_and_rules_are_the_same_weights_there(
    trained: Path, toy: SegmentationData, tmp_path: Path
) -> None:
    arguments = ["--where", "decoder=Segformer", "--output-strides", "32", "16", "8"]
    arguments += ["--dilations", "exact", "dense", "enlarged"]
    code, rows = evaluated(trained, tmp_path / "out", *arguments)
    assert code == 0
    seen = set()
    names = {(row["output_stride"], row["dilation"]): row["run"] for row in rows.values()}
    assert set(names) == {(32, "exact"), *((stride, rule) for stride in (16, 8) for rule in DILATIONS)}
    for (stride, rule), run in names.items():
        found = counts(tmp_path / "out", run)
        assert same(found, by_hand(trained, toy, stride, rule))
        assert rows[run]["source"]["run"] == SEGFORMER
        seen.add(found.predicted.tobytes())
    assert len(seen) == len(names), "a setting that changes nothing shows nothing"


def test_enlarged_windows_get_the_resized_table_of_the_trained_weights(trained: Path) -> None:
    state = load_weights(trained / "runs" / SEGFORMER / "last.pt", "cpu").model.model.state_dict()
    model = build_model(Run("swinx_n", "inline", "Segformer", 8, 0, "enlarged"), 3, state=state)
    key = "encoder.layers.3.blocks.1.attn.relative_position_bias_table"
    window = model.encoder.layers[3].window_size[0] // 4
    assert torch.equal(model.state_dict()[key], enlarged_table(state[key], (window, window), 4))


def test_centred_and_mirrored(trained: Path, toy: SegmentationData, tmp_path: Path) -> None:
    arguments = ["--where", "decoder=Segformer", "--output-strides", "8", "--alignments", "none", "centred"]
    code, rows = evaluated(trained, tmp_path / "out", *arguments, "--flip", "--precision", "bf16")
    assert code == 0
    assert {(row["alignment"], row["flip"], row["precision"]) for row in rows.values()} == {
        ("none", True, "bf16"),
        ("centred", True, "bf16"),
    }
    assert len({row["test_miou"] for row in rows.values()}) == 2
    run = "swinx_n-inline-Segformer-os8-seed0"
    model = load_weights(trained / "runs" / SEGFORMER / "last.pt", "cpu").model
    model.model.encoder.make_dilated(8)
    hits = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for images, masks in zip(toy.test.images.split(2), toy.test.masks.split(2), strict=True):
            plain = model(images).float().softmax(1)
            mirrored = model(images.flip(-1)).float().softmax(1).flip(-1)
            predicted = ((plain + mirrored) / 2).argmax(1)
            right = functional.one_hot(predicted.where((predicted == masks) & (masks != toy.ignore_index), 3), 4)
            hits += right[..., :3].sum((1, 2)).tolist()
    assert counts(tmp_path / "out", run).hits.tolist() == hits


def test_the_same_command_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--where", "decoder=Segformer", "--output-strides"]
    assert evaluated(trained, tmp_path / "out", *arguments, "16")[0] == 0
    before = read_rows(tmp_path / "out" / "results.jsonl")
    original, asked = comparison.execute, []
    monkeypatch.setattr(
        comparison, "execute", lambda run, *rest, **by: asked.append(run.id) or original(run, *rest, **by)
    )
    assert evaluated(trained, tmp_path / "out", *arguments, "16", "32")[0] == 0
    assert asked == [SEGFORMER]
    rows = read_rows(tmp_path / "out" / "results.jsonl")
    assert [row["run"] for row in rows] == ["swinx_n-inline-Segformer-os16-seed0", SEGFORMER]
    assert rows[:1] == before


def test_runs_of_enlarged_windows_and_of_other_encoders(
    tmp_path: Path, tiny_scenes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained beside each other: all can be evaluated as they are; at other strides, what has other strides."""
    grid = ["--decoders", "Segformer", "--encoders", "swinx_n", "resnet18", "--output-strides", "16"]
    trained = tmp_path / "trained"
    command = [*ONE[2:], *grid, "--dilations", "enlarged", "dense", "--output", str(trained)]
    assert compare_decoders.main(command) == 0
    code, rows = evaluated(trained, tmp_path / "own")
    assert code == 0
    source = {row["run"]: row for row in read_rows(trained / "results.jsonl")}
    assert set(rows) == set(source)
    assert len(rows) == 3
    for run, row in rows.items():
        assert {name: row[name] for name in MEASURED} == {name: source[run][name] for name in MEASURED}
    strides = ["--output-strides", "8", "--dilations", "exact", "dense"]
    assert evaluated(trained, tmp_path / "no", *strides)[0] == 2
    assert "-os16-enlarged-seed0 was trained with enlarged windows, whose" in capsys.readouterr().err
    code, rows = evaluated(trained, tmp_path / "other", "--where", "dilation=dense,-", *strides)
    assert code == 0
    assert {(row["encoder"], row["output_stride"], row["dilation"]) for row in rows.values()} == {
        *(("swinx_n", 8, rule) for rule in ("exact", "dense")),
        ("resnet18", 8, None),
    }


def test_folders_that_were_begun_without_a_row_keep_their_kind(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_scenes: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    train = [*ONE[2:], "--decoders", "FPN", "Segformer", "--output"]
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "execute", interrupt)
        assert evaluated(trained, tmp_path / "evaluated")[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", interrupt)
        assert compare_decoders.main([*train, str(tmp_path / "training")]) == 130
    assert evaluated(trained, tmp_path / "training")[0] == 2
    assert "holds runs that were trained, choose" in capsys.readouterr().err
    assert compare_decoders.main([*train, str(tmp_path / "evaluated")]) == 2
    assert "holds evaluations of runs trained elsewhere, choose" in capsys.readouterr().err
    assert evaluated(trained, tmp_path / "evaluated", "--where", "decoder=FPN")[0] == 0


def test_the_same_models_are_compared_model_by_model(trained: Path, tmp_path: Path) -> None:
    source = copied(trained, tmp_path / "source", {}, {"run": SEGFORMER.replace("seed0", "seed1"), "seed": 1})
    other = source / "runs" / SEGFORMER.replace("seed0", "seed1") / "last.pt"
    weights = load_weights(other, "cpu")
    with torch.no_grad():
        weights.model.model.segmentation_head[0].weight.neg_()
    save_weights(other, weights.model, replace(weights.run, seed=1), toy_data())
    assert evaluated(source, tmp_path / "out", "--output-strides", "32", "8")[0] == 0
    found = [list(configuration.models) for configuration in configured(tmp_path / "out")]
    assert len(found) == 2
    assert sorted(found[0]) == sorted(found[1])
    assert len(set(found[0])) == 2


def configured(folder: Path) -> list[Configured]:
    """What the report of a folder compares."""
    return [
        Configured(c.label, {model_of(item.row): item.counts for item in c.results if item.counts})
        for c in configure(read([folder]).items)[0]
    ]


def test_runs_that_cannot_exist_have_rows(trained: Path, tmp_path: Path) -> None:
    code, rows = evaluated(trained, tmp_path / "out", "--output-strides", "16")
    assert code == 0
    assert {run: row["error"] for run, row in rows.items()} == {
        "swinx_n-inline-FPN-os16-seed0": "FPN takes output stride 32, got 16",
        "swinx_n-inline-Segformer-os16-seed0": None,
    }


def test_predictions_that_are_not_finite_are_told(trained: Path, toy: SegmentationData, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    path = copy / "runs" / SEGFORMER / "last.pt"
    weights = load_weights(path, "cpu")
    with torch.no_grad():
        weights.model.model.segmentation_head[0].bias.fill_(torch.nan)
    save_weights(path, weights.model, weights.run, toy)
    code, rows = evaluated(copy, tmp_path / "out", "--where", "decoder=Segformer")
    assert code == 1
    assert (rows[SEGFORMER]["status"], rows[SEGFORMER]["test_miou"]) == ("diverged", None)
    assert "not finite" in rows[SEGFORMER]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "decoder=PAN"], "--where: decoder PAN is not one of FPN, Segformer"),
        (["--where", "decoder=FPN", "--output-strides", "16"], "FPN takes output stride 32, got 16"),
        (["--precision", "16"], "--precision 16 needs --device cuda; bf16 works on the CPU"),
        (["--where", "status=diverged"], "--where: status diverged is not one of ok"),
        (["--data", "camvid"], "--data camvid needs --root"),
    ],
)
def test_bad_input_is_refused_before_work(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = evaluated(trained, tmp_path / "out", *arguments)
    assert (code, rows) == (2, {})
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_data_is_refused(
    trained: Path, toy: SegmentationData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(toy, tmp_path / "data")
    given = ["--data", "folder", "--root", str(tmp_path / "data"), "--classes", str(tmp_path / "data" / "classes.txt")]
    assert evaluated(trained, tmp_path / "out", *given)[0] == 2
    message = capsys.readouterr().err
    assert f"--data must be what {trained} was trained on, toy at 64x64 with data_id" in message
    assert "got data at 64x64 with" in message
    assert not (tmp_path / "out").exists()


def refused(folder: Path, output: Path, *arguments: str) -> None:
    """The command says no, and changes nothing."""
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert evaluated(folder, output, *arguments)[0] == 2
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def copied(trained: Path, target: Path, *changes: Row) -> Path:
    """A copy of the folder with one row, Segformer's, for each of these changes; None takes a field away."""
    shutil.copytree(trained, target)
    row = next(row for row in read_rows(trained / "results.jsonl") if row["run"] == SEGFORMER)
    (target / "results.jsonl").unlink()
    for change in changes:
        changed = {name: value for name, value in (row | change).items() if name not in change or value is not None}
        append_rows(target / "results.jsonl", [changed])
        shutil.copytree(trained / "runs" / SEGFORMER, target / "runs" / changed["run"], dirs_exist_ok=True)
    return target


def test_outputs_of_another_kind_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(trained, trained)
    assert f"{trained} holds runs that were trained, choose another folder" in capsys.readouterr().err
    out, segformer = tmp_path / "out", ("--where", "decoder=Segformer")
    assert evaluated(trained, out, *segformer)[0] == 0
    assert compare_decoders.main([*ONE[2:], "--decoders", "Segformer", "--output", str(out)]) == 2
    assert f"{out} holds evaluations of runs trained elsewhere" in capsys.readouterr().err
    refused(trained, out, *segformer, "--flip")
    assert "flip False there, True now" in capsys.readouterr().err
    refused(copied(trained, tmp_path / "later", {"time": "2000"}), out)
    assert f"{out} holds {SEGFORMER} with other weights (time 20" in (told := capsys.readouterr().err)
    assert "there, 2000 now), choose another folder" in told


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ([{"zoom": None}], [], "source/results.jsonl: a row lacks zoom: an older version made it"),
        ([{"zoom": [1]}], [], "source/results.jsonl: zoom has a value of another type: '[1]'"),
        ([{"precision": "16"}], [], "--precision 16 needs --device cuda; bf16 works on the CPU"),
        ([{"status": "diverged"}], [], "source has no finished run\n"),
        (
            [{"run": "swinx_n-inline-Segformer-os16-enlarged-seed0", "output_stride": 16, "dilation": "enlarged"}],
            ["--output-strides", "8"],
            "os16-enlarged-seed0 was trained with enlarged windows, whose position biases fit it alone, got swinx_n-",
        ),
        (
            [{}, {"run": SEGFORMER.replace("32", "16"), "output_stride": 16}],
            ["--output-strides", "8"],
            f"leave one finished run for {SEGFORMER.replace('32', '8')}, got {SEGFORMER} and swinx_n-inline-",
        ),
        (
            [{}, {"run": SEGFORMER.replace("seed0", "seed1"), "seed": 1, "steps": 9}],
            [],
            "--where must choose runs that were trained alike, got 2 ways of training",
        ),
    ],
    ids=["older", "other type", "half precision", "no finished run", "enlarged", "two sources", "two settings"],
)
def test_sources_that_do_not_fit_are_refused(
    changes: list[Row],
    arguments: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(copied(trained, tmp_path / "source", *changes), tmp_path / "out", *arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_gone_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = copied(trained, tmp_path / "source", {})
    (source / "runs" / SEGFORMER / "last.pt").unlink()
    refused(source, tmp_path / "out")
    assert f"{SEGFORMER}/last.pt: no such file" in capsys.readouterr().err


def test_weights_of_another_run_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = copied(trained, tmp_path / "source", {"run": SEGFORMER.replace("seed0", "seed1"), "seed": 1})
    assert evaluated(source, tmp_path / "out")[0] == 1
    assert f"last.pt holds weights of {SEGFORMER}, not of {SEGFORMER[:-1]}1" in capsys.readouterr().out
    assert read_rows(tmp_path / "out" / "results.jsonl") == []
