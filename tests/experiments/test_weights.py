"""Files of weights: what comes back is what was saved, and every other file is refused with a sentence."""

import copy
import os
import pickle
import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.data import SegmentationData
from experiments.records.grid import Run
from experiments.training import weights
from experiments.training.models import Segmenter, build_model
from experiments.training.weights import FORMAT, load_weights, save_weights

RUN = Run("swinx_n", "shared", "Unet", 16, 3, "exact", 5, "none")


@pytest.fixture(scope="module")
def model() -> Segmenter:
    """Untrained, with statistics in its BatchNorms that are not those of a new model."""
    torch.manual_seed(0)
    model = Segmenter(build_model(RUN, 3)).train()
    with torch.no_grad():
        model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    return model


@pytest.fixture
def path(tmp_path: Path, model: Segmenter, toy: SegmentationData) -> Path:
    path = tmp_path / "runs" / RUN.id / "last.pt"
    save_weights(path, model, RUN, toy)
    return path


def changed(path: Path, **entries: Any) -> Path:
    """The file with other entries; those that are None are removed."""
    content = torch.load(path, weights_only=True) | entries
    removed = [name for name, value in entries.items() if value is None]
    torch.save({name: value for name, value in content.items() if name not in removed}, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"{path} ")) as caught:
        load_weights(path, "cpu")
    return str(caught.value)


def test_crops_are_told(path: Path, model: Segmenter, toy: SegmentationData) -> None:
    assert load_weights(path, "cpu").crop is None
    save_weights(path, model, RUN, toy, crop=(48, 32))
    assert load_weights(path, "cpu").crop == (48, 32)


def test_round_trip(path: Path, model: Segmenter, toy: SegmentationData) -> None:
    trained = load_weights(path, "cpu")
    images = torch.randint(0, 256, (2, 3, 61, 83), dtype=torch.uint8)
    assert not any(module.training for module in trained.model.modules())
    with torch.inference_mode():
        expected = model.eval()(images)
        assert expected.std() > 0
        assert torch.equal(trained.model(images), expected)
    assert (trained.run, trained.class_names, trained.colors) == (RUN, toy.class_names, toy.colors)
    assert (trained.ignore_index, trained.height, trained.width) == (255, 64, 64)
    assert trained.data == "toy"


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
    save_weights(path, copied, RUN, toy)
    tensors = torch.load(path, weights_only=True)["state_dict"].values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert size < path.stat().st_size < size + 1000 * len(tensors)


def test_a_failed_write_leaves_the_older_file(
    path: Path, model: Segmenter, toy: SegmentationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_weights(path, model, RUN, toy)
    assert path.read_bytes() == older
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_fields_of_a_run_are_refused_by_name(path: Path) -> None:
    assert "'halo'" in refusal(changed(path, run={**asdict(RUN), "halo": 3}))
    assert "'decoder' and 'seed'" in refusal(
        changed(path, run={"encoder": "swinx_n", "stem": "shared", "output_stride": 16})
    )


def test_missing_entries_are_named(path: Path) -> None:
    assert f"lacks usable entries colors, state_dict, which the format {FORMAT} has" in refusal(
        changed(path, colors=None, state_dict=None)
    )


def test_tensors_that_do_not_fit_are_listed(path: Path, model: Segmenter) -> None:
    state = torch.load(path, weights_only=True)["state_dict"]
    bias = state.pop("segmentation_head.0.bias")
    state["segmentation_head.9.bias"] = bias
    state["segmentation_head.0.weight"] = state["segmentation_head.0.weight"][:, :7]
    error = refusal(changed(path, state_dict=state))
    assert f"holds tensors that do not fit the model {RUN.id}:" in error
    assert 'Missing key(s) in state_dict: "segmentation_head.0.bias"' in error
    assert 'Unexpected key(s) in state_dict: "segmentation_head.9.bias"' in error
    assert "size mismatch for segmentation_head.0.weight" in error
    assert len(refusal(changed(path, state_dict={}))) < 7000
    refusal(changed(path, state_dict=state | {3: bias}))
    names = model.model.state_dict()
    refusal(changed(path, state_dict=dict.fromkeys(names, "text")))
    refusal(changed(path, state_dict={name: torch.zeros(2, 2, 2) for name in names}))


def test_a_model_that_the_file_does_not_hold_is_never_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may name a model of gigabytes: its sizes are compared before there is memory for it."""
    places = []

    def build(*arguments: Any, **options: Any) -> nn.Module:
        model = build_model(*arguments, **options)
        places.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr(weights, "build_model", build)
    assert load_weights(path, "cpu").model.model.segmentation_head[0].bias.device.type == "cpu"
    assert places == ["meta", "cpu"]
    assert "holds tensors that do not fit" in refusal(changed(path, state_dict={}))
    assert places == ["meta", "cpu", "meta"]


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; weights of a trained run are needed"):
            load_weights(path, "cpu")


def test_no_torch_file(path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", b"not weights\n", whole[: len(whole) // 2], pickle.dumps({"format": FORMAT})):
        path.write_bytes(content)
        assert "is damaged or no checkpoint" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/notes.txt", "no tensors")
    assert "is damaged or no checkpoint" in refusal(path)


def test_a_single_wrong_byte_in_a_tensor_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["height"] == 64  # torch alone does not look
    assert f"is damaged: the checksum of its entry {largest.filename} is wrong" in refusal(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "run": Malicious(tmp_path / "made")}, tmp_path / "code.pt")
    assert "holds more than tensors (posix.mkdir), and reading it could run code" in refusal(tmp_path / "code.pt")
    assert not (tmp_path / "made").exists()


def test_other_torch_files_are_told_apart(tmp_path: Path, model: Segmenter) -> None:
    path = tmp_path / "other.pt"
    kinds: dict[str, object] = {
        "is a torch file of another kind": model.model.state_dict(),
        "is of the format swinx-experiments-1": {"format": "swinx-experiments-1"},
    }
    for sentence, content in kinds.items():
        torch.save(content, path)
        error = refusal(path)
        assert sentence in error
        assert f"weights of a trained run (format {FORMAT}) are needed" in error


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"run": asdict(RUN) | {"encoder": "tu-hf-hub:someone/model"}}, "tu-hf-hub:someone/model is not one of"),
        ({"run": asdict(RUN) | {"encoder": "swinx_z"}}, "names a run that is not known here: --encoders: swinx_z"),
        ({"run": asdict(RUN) | {"encoder": ["swinx_n"]}}, "encoder must be text, got \"['swinx_n']\""),
        ({"run": asdict(RUN) | {"window": 10**6}}, "window must be a whole number of 1 to 64, got '1000000'"),
        ({"run": asdict(RUN) | {"seed": "../x"}}, "seed must be a whole number of 0 to"),
        ({"run": asdict(RUN) | {"decoder": "__class__"}}, "decoder must be among DeepLabV3, "),
        ({"run": asdict(RUN) | {"stem": 3}}, "stem must be among shared, branch, inline, none, None, got '3'"),
        (
            {"run": asdict(Run("vgg11", None, "DeepLabV3Plus", 16, 0, None, None, None))},
            "names the model vgg11-DeepLabV3Plus-os16-seed0, which cannot be built here (ValueError: 'VGG' models",
        ),
        ({"class_names": [str(i) for i in range(10**4)]}, "must have 1 to 255 different class_names"),
        ({"class_names": ["a", "a", "b"]}, "must have 1 to 255 different class_names"),
        ({"colors": [[0, 0, 0]]}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [[0, 0, 256]] * 4}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [1, 2, 3, 4]}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [[[1], 2, 3]] * 4}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [[1.0, 2, 3]] * 4}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [[True, 2, 3]] * 4}, "must have 4 RGB colors of 0 to 255"),
        ({"colors": [{0: 1, 1: 2, 2: 3}] * 4}, "must have 4 RGB colors of 0 to 255"),
        ({"class_names": [["a"], "b", "c"]}, "must have 1 to 255 different class_names"),
        ({"ignore_index": 2}, "must have an ignore_index of 3 to 255"),
        ({"short_side": 0}, "must have height, width and short_side of 1 to 32768 pixels"),
        ({"height": 10**9}, "must have height, width and short_side of 1 to 32768 pixels and a crop of 16 to 32768"),
        ({"crop": [8, 64]}, "and a crop of 16 to 32768"),
        ({"crop": [1, 2, 3]}, "must have height, width and short_side of 1 to 32768 pixels and a crop of 16 to 32768"),
        ({"height": "many"}, f"lacks usable entries height, which the format {FORMAT} has"),
    ],
)
def test_a_file_chooses_neither_hubs_nor_sizes(path: Path, entries: dict[str, Any], message: str) -> None:
    assert message in refusal(changed(path, **entries))
