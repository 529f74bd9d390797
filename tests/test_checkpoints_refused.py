"""What is no fitting Swin checkpoint is refused with a message that says why, and leaves the encoder as it was."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from layouts import DEPTHS, EMBED, HEADS, LAYOUTS, backbone, fresh, official, ours
from safetensors.torch import save_file
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

import swinx
from swinx import SwinXEncoder


def refused(path: Path, *sayings: str, encoder: SwinXEncoder | None = None) -> str:
    """The message, which holds the file's name and all sayings; the encoder's weights stay bit for bit."""
    encoder = encoder or fresh()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        swinx.load_checkpoint(encoder, path)
    message = str(error.value)
    for saying in sayings:
        assert saying in message
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    return message


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def swin_v2() -> dict[str, Tensor]:
    return SwinTransformerV2(224, embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=7).state_dict()


def swin_mlp() -> dict[str, Tensor]:
    kept = {key: value for key, value in official().items() if ".attn" not in key}
    return {**kept, "layers.0.blocks.0.spatial_mlp.weight": torch.randn(49, 49, 1)}


def swin_moe() -> dict[str, Tensor]:
    kept = {key: value for key, value in official().items() if "layers.2.blocks.1.mlp." not in key}
    return {**kept, "layers.2.blocks.1.mlp._moe_layer.gates.0.wg.weight": torch.randn(8, 64)}


def swin_with_positions() -> dict[str, Tensor]:
    return {**official(), "absolute_pos_embed": torch.randn(1, 56 * 56, EMBED)}


@pytest.mark.parametrize(
    ("content", "family"),
    [(swin_v2, "Swin V2"), (swin_mlp, "Swin-MLP"), (swin_moe, "Swin-MoE"), (swin_with_positions, "Swin with absolute")],
)
@pytest.mark.parametrize("depth", [5, 1])
def test_a_relative_of_swin_is_named(
    content: Callable[[], dict[str, Tensor]], family: str, depth: int, tmp_path: Path
) -> None:
    refused(saved({"model": content()}, tmp_path), f"is {family}", encoder=fresh(depth=depth))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "beit_base_patch16_224", "pvt_v2_b0"])
def test_another_family_is_refused_by_its_first_entries(name: str, tmp_path: Path) -> None:
    state = timm.create_model(name, num_classes=2, **({"depth": 1} if "it_" in name else {})).state_dict()
    message = refused(saved(state, tmp_path), "no Swin Transformer", next(iter(state)))
    assert len(message) < 500 + len(str(tmp_path))


def test_a_dict_without_weights_is_refused(tmp_path: Path) -> None:
    refused(
        saved({"teacher": ours()}, tmp_path),
        "'state_dict_ema' or 'model_ema' or 'state_dict' or 'model_state_dict' or 'model' or 'net' or 'module'",
        "teacher",
    )
    refused(saved({}, tmp_path), "no tensors")
    refused(saved({"model": {}}, tmp_path), "no tensors")
    refused(saved({0: torch.ones(3), "param_groups": []}, tmp_path), "no tensors", "[0, 'param_groups']")


@pytest.mark.parametrize("places", [("student.backbone.", "teacher.backbone."), ("model.a.", "model.b.")])
def test_several_encoders_with_nothing_to_choose_one_by_are_listed(places: tuple[str, str], tmp_path: Path) -> None:
    weights = {place + key: value for place in places for key, value in ours().items()}
    one, other = places
    refused(saved({"state_dict": weights}, tmp_path), f"holds 2 encoders, under '{one}', '{other}'")


class WithMethods:
    """Pickles as an ordered dictionary of weights with attributes, as any file may hold one."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict.fromkeys(("items", "get", "values", "keys"), torch.Size)
        return OrderedDict, (), state, None, iter(ours().items())


@pytest.mark.parametrize("wrappers", [("state_dict",), ("state_dict", "model"), ("state_dict", "net", "module")])
def test_methods_that_a_file_gives_its_dictionaries_are_not_called(wrappers: tuple[str, ...], tmp_path: Path) -> None:
    content: Any = WithMethods()
    for wrapper in reversed(wrappers):
        content = {wrapper: content}
    encoder = fresh()
    swinx.load_checkpoint(encoder, saved(content, tmp_path))
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in ours().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embed_dim": 32}, ("embed_dim 16,", "embed_dim 32,")),
        ({"depths": (1, 2, 4, 1)}, ("depths (1, 2, 3, 1)", "depths (1, 2, 4, 1)")),
        ({"depths": (1, 2, 2, 1)}, ("depths (1, 2, 3, 1)", "depths (1, 2, 2, 1)")),
        ({"num_heads": (1, 2, 4, 16)}, ("num_heads (1, 2, 4, 8)", "num_heads (1, 2, 4, 16)")),
        ({"embed_dim": 64, "depths": (2, 2, 6, 2)}, ("embed_dim 16, depths (1, 2, 3, 1)", "64, depths (2, 2, 6, 2)")),
    ],
)
@pytest.mark.parametrize("name", ["official classification", "timm", "mmseg", "smp tu-swin", "ours"])
def test_another_size_is_refused_saying_both(
    name: str, changes: dict[str, Any], says: tuple[str, str], tmp_path: Path
) -> None:
    message = refused(saved(LAYOUTS[name][0](), tmp_path), *says, encoder=fresh(**changes))
    assert message.index(says[0]) < message.index("the encoder has") < message.index(says[1])
    assert "\n" not in message, "a wrong size is not listed entry by entry"


def test_a_shallower_checkpoint_of_ours_is_refused_by_its_depths(tmp_path: Path) -> None:
    refused(saved(fresh(depth=3).state_dict(), tmp_path), "depths (1, 2, 0, 0)", "depths (1, 2, 3, 1)")


# One of every kind, in every part of the network. An even side (36 rows) and 50 rows belong to no square window.
GONE = [
    "patch_embed.proj.bias",
    "layers.0.blocks.0.norm1.weight",
    "layers.1.blocks.0.attn.relative_position_bias_table",
    "layers.1.blocks.1.attn.qkv.bias",
    "layers.3.downsample.reduction.weight",
]
EXTRA = ["layers.2.blocks.1.gamma", "patch_embed.positions", "something.else"]
MISSHAPEN = {
    "patch_embed.proj.weight": (EMBED, 48),
    "layers.2.blocks.0.mlp.fc1.weight": (100, 64),
    "layers.2.blocks.0.attn.relative_position_bias_table": (36, 4),
    "layers.2.blocks.2.attn.relative_position_bias_table": (50, 4),
    "layers.3.blocks.0.attn.relative_position_bias_table": (169,),
    "layers.3.downsample.norm.bias": (17,),
}


@pytest.mark.parametrize("start", [ours, backbone])
def test_all_mismatches_are_listed_at_once(start: Callable[[], dict[str, Tensor]], tmp_path: Path) -> None:
    content = {key: value for key, value in start().items() if key not in GONE}
    content |= {key: torch.randn(3) for key in EXTRA} | {key: torch.randn(shape) for key, shape in MISSHAPEN.items()}
    message = refused(saved(content, tmp_path))
    state = fresh().state_dict()
    wanted = [f"missing {key}" for key in GONE] + [f"unexpected {key}" for key in EXTRA]
    wanted += [f"{k} has shape {shape}, the encoder's {tuple(state[k].shape)}" for k, shape in MISSHAPEN.items()]
    assert sorted(line.strip() for line in message.splitlines()[1:]) == sorted(wanted)


def test_misshapen_mmseg_merges_and_other_stems_are_listed(tmp_path: Path) -> None:
    content = LAYOUTS["mmseg"][0]()
    for key, value in content["state_dict"].items():
        if "stages.1.downsample.norm" in key:
            content["state_dict"][key] = value[:-1]
    refused(saved(content, tmp_path), "layers.2.downsample.norm.weight has shape (127,)", "norm.bias has shape (127,)")
    refused(saved(ours(), tmp_path), "missing patch_embed.conv1.conv.weight", encoder=fresh(stem="branch"))
    refused(
        saved(fresh(stem="branch").state_dict(), tmp_path),
        "unexpected patch_embed.conv2.norm.bias",
        encoder=fresh(stem="shared"),
    )


@pytest.mark.parametrize("kind", ["pth", "legacy pth", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{kind.split()[-1]}"
    if kind == "safetensors":
        save_file(ours(), path)
    else:
        torch.save({"model": official()}, path, _use_new_zipfile_serialization=kind == "pth")
    content = path.read_bytes()
    encoder = fresh()
    parts = [len(content) * part // 23 for part in range(1, 23)]
    for length in [0, 1, 7, 8, 40, 74, 300, 1000, *parts, len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path, "damaged or no checkpoint", encoder=encoder)


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"<!DOCTYPE html>", b"version https://git-lfs.github.com\n", bytes(99), pickle.dumps({"epoch": 3})],
    ids=repr,
)
def test_a_file_of_something_else_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    message = refused(path, "damaged or no checkpoint")
    assert "run code" not in message


class Touch:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "weights.pth"
    content = {"model": official(), "config": Touch(touched)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"config": Touch(touched)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "run code from the file", "mkdir")
    assert not touched.exists()
    torch.load(path, weights_only=False) if form != "bare pickle" else pickle.loads(path.read_bytes())
    assert touched.exists(), "the trap works"


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), "weights"])
def test_a_file_that_holds_no_dict_is_refused(content: Any, tmp_path: Path) -> None:
    refused(saved(content, tmp_path), "must hold a state dict", type(content).__name__)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    file = saved(ours(), tmp_path).rename(tmp_path / "saved" / "model.safetensors")
    os.mkfifo(tmp_path / "pipe.pth")
    for name, fault in (
        ("missing.pth", "which does not exist"),
        ("", "which is a folder: give a file in it"),
        ("saved", f"which is a folder: give {file}"),
        ("pipe.pth", "which is no regular file"),
    ):
        message = f"path must be a checkpoint file, got {tmp_path / name}, {fault}"
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
            swinx.load_checkpoint(fresh(), tmp_path / name)


def test_weights_in_memory_in_place_of_a_file_are_refused() -> None:
    message = (
        "path must be the path of a file, got OrderedDict; for weights in memory call encoder.load_state_dict(weights)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        swinx.load_checkpoint(fresh(), OrderedDict(ours()))
    with pytest.raises(TypeError, match=r"^path must be the path of a file, got int$"):
        swinx.load_checkpoint(fresh(), 3)


def test_a_model_in_place_of_its_encoder_is_refused(tmp_path: Path) -> None:
    path = saved(ours(), tmp_path)
    model = smp.FPN("swinx_n", encoder_weights=None, decoder_pyramid_channels=32, decoder_segmentation_channels=32)
    rule = r"encoder must be a SwinXEncoder or a module that holds one \(of an smp model: model\.encoder\)"
    for module in (model, nn.DataParallel(model)):
        with pytest.raises(TypeError, match=f"{rule}, got FPN$"):
            swinx.load_checkpoint(module, path)
    for module in (nn.Linear(2, 2), nn.ModuleList([fresh(), fresh()]), "swinx_n"):
        with pytest.raises(TypeError, match=f"{rule}, got {type(module).__name__}$"):
            swinx.load_checkpoint(module, path)


def test_a_state_dict_given_to_load_state_dict_is_refused_the_same_way() -> None:
    encoder = fresh(depth=4)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing layers\.0\.blocks\.0\.attn\.qkv\.bias"):
        encoder.load_state_dict({key: value for key, value in ours().items() if not key.endswith("qkv.bias")})
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
