"""Checkpoint files from anywhere: training files are read, and what would run code or take memory is refused."""

import argparse
import collections
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import EMBED, fresh, official, ours
from safetensors.torch import save_file
from test_checkpoints_whole import KEY, refused
from torch import nn

import swinx


def yacs_options() -> Any:
    """What yacs' CfgNode is: a dict with a state, in a module of its own."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    node = module.CfgNode(MODEL=module.CfgNode(TYPE="swin"), AMP=True)
    node.__dict__["__immutable__"] = True
    return module, node


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_training_file_is_read_without_its_classes(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, node = yacs_options()
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    encoder = fresh()
    content = {
        "model": official(),
        "optimizer": torch.optim.AdamW(encoder.parameters()).state_dict(),
        "lr_scheduler": {"base_values": [0.1], "t_in_epochs": False},
        "config": node,
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(opts=["a", None])),
        "ordered": collections.OrderedDict(a=1),
    }
    torch.save(content, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    before = set(torch.serialization.get_safe_globals())
    swinx.load_checkpoint(encoder, tmp_path / "ckpt.pth")
    assert "yacs" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before
    assert torch.equal(encoder.state_dict()[KEY], official()[KEY])


class Loud(argparse.Namespace):
    """A class that no file may choose."""


def test_other_classes_are_still_refused(tmp_path: Path) -> None:
    torch.save({"model": official(), "args": Loud(lr=0.1)}, tmp_path / "ckpt.pth")
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, tmp_path / "ckpt.pth"), "Loud", "save its state dict alone")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """A megabyte of them can claim a gigabyte."""
    torch.save(ours(), tmp_path / "weights.pth")
    packed = zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "weights.pth") as plain, packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, tmp_path / "small.pth"), "must not hold compressed records")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("elements", [2_000_000_321, -7])
def test_storages_that_a_file_does_not_hold_take_no_memory(elements: int, legacy: bool, tmp_path: Path) -> None:
    """The number of elements in the pickle is made another one."""
    path = tmp_path / "weights.pth"
    marked = torch.zeros(70001)
    torch.save({"model": ours() | {KEY: marked}}, path, _use_new_zipfile_serialization=not legacy)
    honest, claimed = (70001).to_bytes(4, "little"), elements.to_bytes(4, "little", signed=True)

    def lie(content: bytes) -> bytes:
        assert content.count(b"J" + honest) > 0  # BININT
        return content.replace(b"J" + honest, b"J" + claimed)

    if legacy:
        path.write_bytes(lie(path.read_bytes()))
    else:
        with zipfile.ZipFile(path) as plain:
            records = {info.filename: plain.read(info) for info in plain.infolist()}
        with zipfile.ZipFile(path, "w") as changed:
            for name, content in records.items():
                changed.writestr(name, lie(content) if name.endswith("data.pkl") else content)
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), "damaged or no checkpoint")


class Called:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "saying"),
    [
        (Called(bytearray, 2_000_000_000), "holds more than tensors (__builtin__.bytearray)"),
        (Called(torch.FloatTensor, [[0.5] * 1000] * 1000), "holds more than tensors (torch.FloatTensor)"),
        (Called(torch.FloatStorage, 2_000_000_000), "makes a FloatStorage"),
    ],
    ids=["bytes", "tensor", "storage"],
)
def test_calls_that_only_take_memory_are_refused(call: Called, saying: str, legacy: bool, tmp_path: Path) -> None:
    path, encoder = tmp_path / "weights.pth", fresh()
    torch.save({"model": ours(), "args": call}, path, _use_new_zipfile_serialization=not legacy)
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), saying)


def test_zip_files_that_two_readers_read_differently_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(ours(), path)
    content = path.read_bytes()
    encoder = fresh()
    for changed in (content + b"PK\5\6", content + bytes(22), b"PK\3\4" + content, content[:-2] + b"\1\0x"):
        path.write_bytes(changed)
        refused(encoder, lambda: swinx.load_checkpoint(encoder, path), "damaged or no checkpoint")
    with zipfile.ZipFile(path, "w") as twice:
        twice.writestr("archive/data.pkl", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            twice.writestr("archive/data.pkl", b"y")
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), "two records of one name")
    path.write_bytes(content)
    swinx.load_checkpoint(encoder, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_entries_that_share_one_storage_load(legacy: bool, tmp_path: Path) -> None:
    source = fresh()
    flat = nn.utils.parameters_to_vector(source.parameters()).detach()
    nn.utils.vector_to_parameters(flat, source.parameters())
    torch.save(source.state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    encoder = fresh()
    nn.init.zeros_(encoder.norms[0].bias)
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert torch.equal(encoder.norms[0].bias, source.norms[0].bias)


def test_options_that_the_user_allowed_stay_allowed(tmp_path: Path) -> None:
    torch.save({"model": official(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "weights.pth")
    entry = (collections.OrderedDict, "argparse.Namespace")
    with torch.serialization.safe_globals([entry]):
        swinx.load_checkpoint(fresh(), tmp_path / "weights.pth")
        assert entry in torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: swinx.load_checkpoint(fresh(), tmp_path / "weights.pth"), range(12)))


@pytest.mark.parametrize("name", ["WEIGHTS.SAFETENSORS", "weights.Safetensors"])
def test_capitals_in_a_suffix_mean_the_same(name: str, tmp_path: Path) -> None:
    encoder = fresh()
    save_file(ours(), tmp_path / name)
    swinx.load_checkpoint(encoder, tmp_path / name)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in ours().items())


def test_a_loaded_encoder_does_not_depend_on_its_file(tmp_path: Path) -> None:
    path, encoder = tmp_path / "weights.pth", fresh()
    torch.save(ours(), path)
    swinx.load_checkpoint(encoder, path)
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])
    assert encoder.patch_embed.proj.weight.shape[0] == EMBED
