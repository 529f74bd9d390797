"""Files of weights: what comes back is what was saved, and every other file is refused with a sentence."""

import copy
import os
import pickle
import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.models import build_model
from experiments.training.segmenter import Segmenter
from experiments.weights import FORMAT, load_weights, save_weights

CELL = Cell("swinx_n", "shared", "Unet", 16, 3, "exact", 5, "none")


@pytest.fixture(scope="module")
def model() -> Segmenter:
    """Untrained, with statistics in its BatchNorms that are not those of a new model."""
    torch.manual_seed(0)
    model = Segmenter(build_model(CELL, 3)).train()
    with torch.no_grad():
        model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    return model


@pytest.fixture
def path(tmp_path: Path, model: Segmenter, toy: SegmentationData) -> Path:
    path = tmp_path / "cells" / CELL.id / "last.pt"
    save_weights(path, model, CELL, toy, step=17, val_miou=41.5)
    return path


def changed(path: Path, **entries: Any) -> Path:
    """The file with other entries; those that are None are removed."""
    content = torch.load(path, weights_only=True) | entries
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"{path} ")) as caught:
        load_weights(path, "cpu")
    return str(caught.value)


def test_crops_are_told_and_files_from_before_they_were_have_none(
    path: Path, model: Segmenter, toy: SegmentationData
) -> None:
    assert load_weights(path, "cpu").crop is None
    save_weights(path, model, CELL, toy, step=17, val_miou=41.5, crop=(48, 32))
    assert load_weights(path, "cpu").crop == (48, 32)
    assert load_weights(changed(path, crop=None), "cpu").crop is None


def test_round_trip(path: Path, model: Segmenter, toy: SegmentationData) -> None:
    trained = load_weights(path, "cpu")
    images = torch.randint(0, 256, (2, 3, 61, 83), dtype=torch.uint8)
    assert not any(module.training for module in trained.model.modules())
    with torch.inference_mode():
        expected = model.eval()(images)
        assert expected.std() > 0
        assert torch.equal(trained.model(images), expected)
    assert (trained.cell, trained.class_names, trained.colors) == (CELL, toy.class_names, toy.colors)
    assert (trained.ignore_index, trained.height, trained.width) == (255, 64, 64)
    assert (trained.data, trained.step, trained.val_miou) == ("toy", 17, 41.5)


def test_a_file_holds_plain_values_only(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content["format"] == FORMAT

    def walk(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, type(None), torch.Tensor), type(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)

    walk(content)
    assert all(tensor.device.type == "cpu" for tensor in content["state_dict"].values())


def test_a_file_is_as_large_as_its_tensors(path: Path, model: Segmenter, toy: SegmentationData) -> None:
    copied = copy.deepcopy(model)
    head = copied.model.segmentation_head[0]
    head.bias = nn.Parameter(torch.zeros(10**6)[:3])  # torch would write all of what a view belongs to
    save_weights(path, copied, CELL, toy, step=0, val_miou=None)
    tensors = torch.load(path, weights_only=True)["state_dict"].values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert size < path.stat().st_size < size + 1000 * len(tensors)


def test_val_miou_may_be_missing(path: Path, model: Segmenter, toy: SegmentationData) -> None:
    save_weights(path, model, CELL, toy, step=0, val_miou=None)
    assert load_weights(path, "cpu").val_miou is None


def test_a_failed_write_leaves_the_older_file(
    path: Path, model: Segmenter, toy: SegmentationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_weights(path, model, CELL, toy, step=18, val_miou=None)
    assert load_weights(path, "cpu").step == 17
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_fields_of_a_cell_that_older_files_lack_take_their_defaults(
    path: Path, model: Segmenter, toy: SegmentationData
) -> None:
    cell = Cell("swinx_n", "inline", "FPN", 32, 0)
    save_weights(path, Segmenter(build_model(cell, 3)), cell, toy, step=0, val_miou=2.5)
    old = {name: asdict(cell)[name] for name in ("encoder", "stem", "decoder", "output_stride", "seed")}
    assert load_weights(changed(path, cell=old), "cpu").cell == cell


def test_fields_of_a_cell_are_refused_by_name(path: Path) -> None:
    assert "fields of a cell that are not known here: halo, twist" in refusal(
        changed(path, cell={**asdict(CELL), "halo": 3, "twist": None})
    )
    assert "lacks fields of its cell: decoder, seed" in refusal(
        changed(path, cell={"encoder": "swinx_n", "stem": "shared", "output_stride": 16})
    )


def test_missing_entries_are_named(path: Path) -> None:
    assert f"lacks colors, state_dict, which the format {FORMAT} has" in refusal(
        changed(path, colors=None, state_dict=None)
    )


def test_a_model_that_cannot_be_built_is_named(path: Path) -> None:
    error = refusal(changed(path, cell={**asdict(CELL), "encoder": "swinx_z"}))
    assert "names the model swinx_z-shared-Unet-os16-w5-seed3, which cannot be built here" in error


def test_tensors_that_do_not_fit_are_listed(path: Path) -> None:
    state = torch.load(path, weights_only=True)["state_dict"]
    bias = state.pop("segmentation_head.0.bias")
    state["segmentation_head.9.bias"] = bias
    state["segmentation_head.0.weight"] = state["segmentation_head.0.weight"][:, :7]
    lines = refusal(changed(path, state_dict=state)).splitlines()
    assert lines[0].endswith(f"holds tensors that do not fit the model {CELL.id}:")
    assert lines[1:] == [
        "  missing segmentation_head.0.bias",
        "  unexpected segmentation_head.9.bias",
        "  segmentation_head.0.weight has shape (3, 7, 3, 3), the model's (3, 16, 3, 3)",
    ]


def test_a_long_list_of_mismatches_is_cut(path: Path, model: Segmenter) -> None:
    count = len(model.model.state_dict())
    lines = refusal(changed(path, state_dict={})).splitlines()
    assert len(lines) == 22
    assert lines[-1] == f"  and {count - 20} more"


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; weights of a trained cell are wanted"):
            load_weights(path, "cpu")


def test_no_torch_file(path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", b"not weights\n", whole[: len(whole) // 2], pickle.dumps({"format": FORMAT})):
        path.write_bytes(content)
        assert "is not a torch file, or was cut off" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/notes.txt", "no tensors")
    assert "is not a torch file, or is damaged" in refusal(path)


def test_a_single_wrong_byte_in_a_tensor_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["step"] == 17  # torch alone does not look
    assert f"is damaged: the checksum of its entry {largest.filename} is wrong" in refusal(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "cell": Malicious(tmp_path / "made")}, tmp_path / "code.pt")
    assert "holds more than tensors (posix.mkdir): reading it would run code" in refusal(tmp_path / "code.pt")
    assert not (tmp_path / "made").exists()


def test_other_torch_files_are_told_apart(tmp_path: Path, model: Segmenter) -> None:
    path = tmp_path / "other.pt"
    state = model.model.state_dict()
    first = next(iter(state))
    kinds: dict[str, object] = {
        f"is a bare state dict ({len(state)} tensors, first {first})": state,
        "is a torch file that holds a list": [1, 2],
        "is of the format swinx-experiments-2": {"format": "swinx-experiments-2"},
        "is a torch file with the entries epoch, a, b, c, d, ...": dict.fromkeys(["epoch", "a", "b", "c", "d", "e"], 1),
        "is a torch file with the entries none": {},
    }
    for sentence, content in kinds.items():
        torch.save(content, path)
        error = refusal(path)
        assert sentence in error
        assert f"weights of a trained cell (format {FORMAT}) are wanted" in error


def test_a_lightning_checkpoint_is_told_apart(tmp_path: Path) -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(lightning.LightningModule())
    trainer.save_checkpoint(tmp_path / "resume.ckpt")
    assert "is a Lightning checkpoint, made for resuming a training run" in refusal(tmp_path / "resume.ckpt")
