"""Runs that begin with a file of encoder weights know its content, not its name alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from toy import ONE

from experiments import evaluate
from experiments.compare_decoders import main
from experiments.execution import runs
from experiments.records.results import Row, read_rows

pytestmark = pytest.mark.usefixtures("tiny_scenes")


def encoder_file(path: Path, seed: int) -> str:
    """Write an encoder drawn from seed; returns what rows say of it."""
    torch.manual_seed(seed)
    save_file(smp.encoders.get_encoder("swinx_n", weights=None).state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def rows(folder: Path) -> list[Row]:
    return read_rows(folder / "results.jsonl")


def test_a_changed_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds of one configuration would begin with different encoders."""
    path, output = tmp_path / "w.safetensors", tmp_path / "out"
    common = [*ONE, "--weights", str(path), "--output", str(output)]
    one = encoder_file(path, 1)
    assert main(common) == 0
    assert [row["weights_id"] for row in rows(output)] == [one]
    contents = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    other = encoder_file(path, 2)
    assert main([*common, "--seeds", "0", "1"]) == 2
    told = f"--weights: {path} is not the file that {output} was begun with (SHA-256 {one} there, {other} now)"
    assert told in capsys.readouterr().err
    assert contents == {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    encoder_file(path, 1)
    assert main([*common, "--seeds", "0", "1"]) == 0
    assert [row["weights_id"] for row in rows(output)] == [one, one]
    assert evaluate.main([str(output), "--where", "seed=1", "--output", str(tmp_path / "again")]) == 0
    assert [row["weights_id"] for row in rows(tmp_path / "again")] == [one]


def test_each_seed_has_its_file_and_a_run_that_was_cut_off_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "w{seed}.safetensors", tmp_path / "out"
    ids = [encoder_file(Path(str(path).replace("{seed}", str(seed))), seed) for seed in (0, 1)]
    common = [*ONE, "--weights", str(path), "--output", str(output)]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", interrupt)
        assert main(common) == 130
    assert main([*common, "--seeds", "1"]) == 0
    assert [row["weights_id"] for row in rows(output)] == [ids[1]]
    encoder_file(tmp_path / "w0.safetensors", 5)
    assert main([*common, "--seeds", "0", "1"]) == 2
    assert f"{tmp_path}/w0.safetensors is not the file that {output} was begun with" in capsys.readouterr().err
    encoder_file(tmp_path / "w0.safetensors", 0)
    assert main([*common, "--seeds", "0", "1"]) == 0
    assert {row["seed"]: row["weights_id"] for row in rows(output)} == dict(enumerate(ids))


def test_a_file_that_changes_while_the_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "w.safetensors", tmp_path / "out"
    encoder_file(path, 1)
    original = runs.fit

    def change(*arguments: Any, **options: Any) -> Any:
        encoder_file(path, 2)
        return original(*arguments, **options)

    monkeypatch.setattr(runs, "fit", change)
    assert main([*ONE, "--weights", str(path), "--seeds", "0", "1", "--output", str(output)]) == 1
    assert f"ValueError: --weights: {path} has changed since the command began" in capsys.readouterr().out
    assert [row["seed"] for row in rows(output)] == [0]


def test_rows_of_before_stay_readable(tmp_path: Path) -> None:
    path, output = tmp_path / "w.safetensors", tmp_path / "out"
    one = encoder_file(path, 1)
    common = [*ONE, "--weights", str(path), "--output", str(output)]
    assert main(common) == 0
    for name, field in (("results.jsonl", "weights_id"), ("settings.json", "weights_ids")):
        content = json.loads((output / name).read_text())
        del content[field]
        (output / name).write_text(json.dumps(content) + "\n")
    assert evaluate.main([str(output), "--output", str(tmp_path / "again")]) == 0
    assert main([*common, "--seeds", "0", "1"]) == 0
    assert [row.get("weights_id") for row in (*rows(tmp_path / "again"), *rows(output))] == [None, None, one]
