"""python -m swinx: what it says of every published layout, and what it writes, read by our loader and by timm's."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layouts import (
    DEPTHS,
    EMBED,
    HEADS,
    LAYOUTS,
    WINDOW,
    backbone,
    fresh,
    head,
    last_norm,
    level_norms,
    mmseg,
    official,
    official_backbone,
    prefixed,
)
from oracles_v2 import random_swin_v2_state_dict
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor

import swinx
from swinx.__main__ import main
from swinx.checkpoint_tools import convert_checkpoint, inspect_checkpoint

# How each layout is called, and the wrapper and the prefix under which it has the encoder.
FOUND = {
    "official classification": ("official, classification", "model", ""),
    "official segmentation": ("official, segmentation", "", ""),
    "official segmentation, wrapped": ("official, segmentation", "state_dict", "backbone."),
    "timm": ("timm", "", ""),
    "timm, training with averages": ("timm", "state_dict_ema", "module."),
    "DeiT, training with averages": ("timm", "model_ema", ""),
    "smp tu-swin": ("timm's features, as in smp's tu-swin", "", "encoder.model."),
    "mmseg": ("mmsegmentation", "state_dict", "backbone."),
    "MoBY": ("official, MoBY or SimMIM", "model", "encoder."),
    "SimMIM": ("official, MoBY or SimMIM", "model", "encoder."),
    "ours": ("swinx", "", ""),
    "ours in an smp model": ("swinx", "", "encoder."),
    "ours, data parallel": ("swinx", "state_dict", "module.encoder."),
    "ours, Lightning around a wrapper": ("swinx", "state_dict", "model.model.encoder."),
    "ours, compiled, data parallel": ("swinx", "", "_orig_mod.module.encoder."),
    "ours, Lightning, compiled": ("swinx", "state_dict", "model._orig_mod.encoder."),
    "ours, Lightning under another name": ("swinx", "state_dict", "net.encoder."),
    "ours, beside a teacher": ("swinx", "state_dict", "model.encoder."),
    "ours, a student": ("swinx", "model_state_dict", "student."),
    "ours, DeepSpeed": ("swinx", "module", "model.encoder."),
    "timm, in a net": ("timm", "net", ""),
    "timm, training with empty averages": ("timm", "state_dict", ""),
}
TIMM = {**backbone(), **prefixed("norm.", last_norm())}


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised(name: str, tmp_path: Path) -> None:
    content, levels = LAYOUTS[name]
    found = inspect_checkpoint(saved(tmp_path / "file.pth", content()))
    assert (found.layout, found.wrapper, found.prefix) == FOUND[name]
    assert (found.version, found.embed_dim, found.depths, found.num_heads) == ("v1", EMBED, DEPTHS, HEADS)
    assert found.windows == ((WINDOW, WINDOW),) * 4
    assert (found.stem, found.in_channels) == ("shared", 3)
    assert found.level_norms == tuple(level + 2 for level in levels)
    assert found.classes == (1000 if name == "official classification" or found.layout == "timm" else None)
    assert found.fits == {}


def test_heads_elsewhere_are_no_classifier(tmp_path: Path) -> None:
    """Whole models have layers called head in other places; a classifier's is beside the backbone, a matrix."""
    backbone = {**official_backbone(), **prefixed("norm.", last_norm())}
    aside = {"aux.head.weight": torch.randn(4, 8), "aux.head.bias": torch.randn(4)}
    kernel = {"head.weight": torch.randn(150, 8, 1, 1), "head.bias": torch.randn(150)}
    for number, others in enumerate((aside, kernel, prefixed("decoder.", kernel))):
        file = saved(tmp_path / f"{number}.pth", {**prefixed("backbone.", backbone), **others})
        assert inspect_checkpoint(file).classes is None
        convert_checkpoint(file, tmp_path / f"{number}.safetensors", "timm")
        assert not [key for key in load_file(tmp_path / f"{number}.safetensors") if "head" in key]
    for place in ("", "backbone."):
        beside = prefixed(place, head("head.fc"))
        file = saved(tmp_path / f"of {place}pth", {**prefixed("backbone.", backbone), **beside})
        assert inspect_checkpoint(file).classes == 1000


def inspected(path: Path, capsys: Any) -> dict[str, str]:
    """What is printed, by the word at the beginning of each line."""
    assert main(["inspect", str(path)]) == 0
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_places_and_windows_are_printed(tmp_path: Path, capsys: Any) -> None:
    wrapped = saved(tmp_path / "mmseg.pth", LAYOUTS["mmseg"][0]())
    assert inspected(wrapped, capsys)["layout"] == "mmsegmentation, under 'state_dict' and 'backbone.'"
    within = saved(tmp_path / "smp.pth", LAYOUTS["ours in an smp model"][0]())
    assert inspected(within, capsys)["layout"] == "swinx, under 'encoder.'"
    weights = random_swin_v2_state_dict(EMBED, DEPTHS, HEADS, torch.Generator().manual_seed(1), dtype=torch.float32)
    for windows, said in (
        ({}, "unknown"),
        (dict.fromkeys(range(4), (8, 16)), "8x16"),
        ({0: (8, 16), 1: (5, 5), 3: (3, 2)}, "8x16-5-unknown-3x2"),
    ):
        tables = {
            f"layers.{stage}.blocks.0.attn.relative_coords_table": torch.zeros(1, 2 * wh - 1, 2 * ww - 1, 2)
            for stage, (wh, ww) in windows.items()
        }
        assert inspected(saved(tmp_path / "v2.pth", weights | tables), capsys)["window"] == said


def test_a_file_of_timm_s_own_model_fits_the_encoder_of_its_sizes(tmp_path: Path, capsys: Any) -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=11)
    path = saved(tmp_path / "weights.safetensors", model.state_dict())
    assert inspect_checkpoint(path).fits == {"swinx_t": True, "swinx_s3_t": False}
    assert inspected(path, capsys) == {
        "layout": "timm",
        "architecture": "Swin V1, embed_dim 96, depths 2-2-6-2, num_heads 3-6-12-24",
        "window": "7",
        "stem": "shared or none, for 3 image channels",
        "level norms": "5",
        "classifier": "11 classes",
        "left out": "head (2)",
        "fits": "swinx_t, swinx_s3_t (another window)",
    }


def test_parts_that_are_not_plain_are_listed(tmp_path: Path) -> None:
    encoder = fresh(depth=4, in_channels=5, stem="branch", window_size=((3, 5), 4, 2, 2))
    found = inspect_checkpoint(saved(tmp_path / "ours.pt", encoder.state_dict()))
    assert (found.depths, found.num_heads, found.level_norms) == (DEPTHS[:3], HEADS[:3], (2, 3, 4))
    assert (found.stem, found.in_channels) == ("branch", 5)
    assert found.windows == (None, (4, 4), (2, 2)), "45 offsets are those of several windows"
    inline = inspect_checkpoint(saved(tmp_path / "inline.pt", fresh(stem="inline").state_dict()))
    assert inline.stem == "inline"
    found = inspect_checkpoint(saved(tmp_path / "moby.pt", LAYOUTS["MoBY"][0]()))
    assert found.dropped["queue1"] == 1
    assert found.dropped["attn_mask"] == 1
    assert found.dropped["relative_position_index"] == sum(DEPTHS)
    assert found.dropped["encoder_k"] == len(official_backbone())


def test_swin_v2_is_recognised(tmp_path: Path) -> None:
    model = timm.create_model("swinv2_tiny_window8_256", num_classes=0)
    path = saved(tmp_path / "v2.safetensors", model.state_dict())
    found = inspect_checkpoint(path)
    assert (found.version, found.depths, found.num_heads) == ("v2", (2, 2, 6, 2), (3, 6, 12, 24))
    assert found.windows == (None,) * 4
    assert found.fits == {"swinx_v2_t": True, "swinx_v2_t_w16": True}
    with pytest.raises(ValueError, match="Swin V2, which mmsegmentation does not have"):
        convert_checkpoint(path, tmp_path / "v2.pth", "mmseg")
    convert_checkpoint(path, tmp_path / "v2.pth", "official")
    convert_checkpoint(tmp_path / "v2.pth", tmp_path / "back.safetensors", "timm")
    assert equal(load_file(tmp_path / "back.safetensors"), dict(model.state_dict()))
    table = torch.zeros(1, 15, 31, 2)
    content = {f"layers.{stage}.blocks.0.attn.relative_coords_table": table for stage in range(4)} | model.state_dict()
    assert inspect_checkpoint(saved(tmp_path / "buffers.pth", {"model": content})).windows == ((8, 16),) * 4


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("source", ["timm", "official classification", "mmseg", "ours in an smp model"])
def test_what_is_written_is_what_others_write(source: str, suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "in.pth", LAYOUTS[source][0]())
    has_head, norms = source in ("timm", "official classification"), LAYOUTS[source][1]
    wanted: dict[Any, dict[str, Tensor]] = {
        "timm": dict(TIMM),
        "official": {
            key: value
            for key, value in official().items()
            if not key.startswith("head.") and "index" not in key and "mask" not in key
        },
        "mmseg": {key: value for key, value in mmseg().items() if "index" not in key and "mask" not in key},
    }
    wanted["mmseg"] = {
        k: v for k, v in wanted["mmseg"].items() if not (m := re.match(r"norm(\d)", k)) or int(m[1]) in norms
    }
    for layout, entries in wanted.items():
        target = tmp_path / f"{layout}{suffix}"
        left_out = convert_checkpoint(path, target, layout)
        lower = [f"norms.{level}.{end}" for level in norms[:-1] for end in ("weight", "bias")]
        head_keys = ["head.fc.weight", "head.fc.bias"] if has_head else []
        assert sorted(left_out) == sorted(head_keys if layout == "mmseg" else lower)
        content = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)
        if suffix == ".pth" and layout != "timm":
            (content,) = [content[{"official": "model", "mmseg": "state_dict"}[layout]]]
        head_name = {"timm": "head.fc.", "official": "head.", "mmseg": "none"}[layout]
        assert any(key.startswith(head_name) for key in content) == (has_head and layout != "mmseg")
        content = {key: value for key, value in content.items() if not key.startswith("head.")}
        assert equal(content, prefixed("backbone.", entries) if layout == "mmseg" else entries)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("layout", ["timm", "official", "mmseg"])
def test_our_loader_reads_what_was_written(layout: Any, tmp_path: Path) -> None:
    encoder = fresh(in_channels=4, window_size=((3, 5), 4, 2, 7))
    convert_checkpoint(saved(tmp_path / "in.pt", encoder.state_dict()), tmp_path / "out.pth", layout)
    other = fresh(in_channels=4, window_size=((3, 5), 4, 2, 7))
    for parameter in other.parameters():
        parameter.data.fill_(0.5)
    swinx.load_checkpoint(other, tmp_path / "out.pth")
    for key, value in other.state_dict().items():
        kept = layout != "mmseg" and re.match(r"norms\.[0-2]", key)
        assert torch.equal(value, torch.full_like(value, 0.5) if kept else encoder.state_dict()[key]), key


def test_timm_s_own_filter_reads_what_was_written(tmp_path: Path) -> None:
    theirs = SwinTransformer(img_size=224, embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW)
    names = head("head.fc")
    for layout in ("timm", "official"):
        path = tmp_path / f"{layout}.pth"
        convert_checkpoint(saved(tmp_path / f"{layout}-in.pth", {**TIMM, **names}), path, layout)  # type: ignore[arg-type]
        read = checkpoint_filter_fn(torch.load(path, weights_only=True), theirs)
        theirs.load_state_dict(read)
        assert equal(theirs.state_dict(), {**TIMM, **names})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_stay_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {key: value.to(dtype) for key, value in TIMM.items()}
    convert_checkpoint(saved(tmp_path / "in.pth", weights), tmp_path / "out.pth", "mmseg")
    convert_checkpoint(tmp_path / "out.pth", tmp_path / "back.safetensors", "timm")
    assert equal(load_file(tmp_path / "back.safetensors"), weights)


BROKEN: dict[str, tuple[Any, str]] = {
    "no tensors": ({"epoch": 3}, "holds no tensors"),
    "another network": ({"conv1.weight": torch.zeros(3)}, "no Swin Transformer in a known layout"),
    "Swin-MLP": ({**TIMM, "layers.0.blocks.0.spatial_mlp.weight": torch.zeros(3)}, "is Swin-MLP, which swinx has not"),
    "a missing entry": ({k: v for k, v in TIMM.items() if "layers.2.blocks.1.mlp.fc1.bias" not in k}, "missing layers"),
    "a missing block": ({k: v for k, v in TIMM.items() if "layers.2.blocks.1." not in k}, "blocks numbered from 0"),
    "a block far off": ({**TIMM, "layers.0.blocks.999999999.norm1.weight": torch.zeros(16)}, "blocks numbered from 0"),
    "an unexpected entry": ({**TIMM, "layers.0.extra": torch.zeros(3)}, "unexpected layers.0.extra"),
    "infinite": ({**TIMM, "norm.weight": torch.full((128,), torch.inf)}, "norms.3.weight must be finite"),
    "sparse": ({**TIMM, "norm.weight": torch.ones(128).to_sparse()}, "norm.weight must be dense"),
    "wide": ({**TIMM, "layers.0.blocks.0.norm1.weight": torch.zeros(2**20)}, "must have at most 65536 channels"),
    "flat table": ({**TIMM, "layers.1.blocks.0.attn.relative_position_bias_table": torch.zeros(9)}, "2 dimensions"),
    "no image": (
        {key: value for key, value in TIMM.items() if key != "patch_embed.proj.weight"},
        "incomplete: it lacks the first norm or the patch embedding",
    ),
    "heads": ({**TIMM, "layers.1.blocks.0.attn.relative_position_bias_table": torch.zeros(169, 3)}, "num_heads must"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_checkpoint_is_one_sentence_and_no_file(name: str, tmp_path: Path, capsys: Any) -> None:
    content, message = BROKEN[name]
    path, target = saved(tmp_path / "in.pth", content), tmp_path / "out.pth"
    for arguments in (["inspect", str(path)], ["convert", str(path), str(target), "--layout", "timm"]):
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert str(path) in said.err
        assert re.search(message, said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_convert_refuses_what_it_cannot_write(tmp_path: Path, capsys: Any) -> None:
    path = saved(tmp_path / "in.pth", TIMM)
    inline = saved(tmp_path / "inline.pth", fresh(stem="inline").state_dict())
    shallow = saved(tmp_path / "shallow.pth", fresh(depth=3).state_dict())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="layout must be one of timm, official, mmseg, got 'keras'"):
        convert_checkpoint(path, tmp_path / "out.pth", "keras")  # type: ignore[arg-type]
    cases = [
        (path, "in.pth", "target must not exist"),
        (path, "out.bin", r"target must end in \.safetensors, \.pth, \.pt"),
        (path, "none/out.pth", "target must be in a directory that exists"),
        (inline, "out.pth", f"{inline}: .*has the stem inline, which no other layout has"),
        (shallow, "out.pth", f"{shallow}: .*must have 4 stages to be converted, got 2"),
        (tmp_path / "none.pth", "out.pth", r"source must be a checkpoint file, got .*none\.pth, which does not exist"),
    ]
    for source, target, message in cases:
        assert main(["convert", str(source), str(tmp_path / target), "--layout", "official"]) == 1
        said = capsys.readouterr().err
        assert re.match(f"error: {message}", said)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_inspect_says_what_is_in_the_place_of_a_file(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model").mkdir()
    saved(tmp_path / "model" / "model.safetensors", TIMM)
    missing, folder = tmp_path / "none.pth", tmp_path / "model"
    for path, fault in (
        (missing, "which does not exist"),
        (folder, f"which is a folder: give {folder / 'model.safetensors'}"),
    ):
        assert main(["inspect", str(path)]) == 1
        assert capsys.readouterr().err == f"error: path must be a checkpoint file, got {path}, {fault}\n"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "in.pth", TIMM)

    def fail(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        convert_checkpoint(path, tmp_path / "out.pth", "timm")
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_convert_says_what_it_left_out(tmp_path: Path, capsys: Any) -> None:
    weights = {**backbone(), **level_norms("norms.{}"), **prefixed("patch_embed.", {})}
    path = saved(tmp_path / "in.pth", weights)
    assert main(["convert", str(path), str(tmp_path / "out.pth"), "--layout", "timm"]) == 0
    lower = ", ".join(f"norms.{level}.{end}" for level in range(3) for end in ("weight", "bias"))
    said = capsys.readouterr().out
    assert said == f"wrote {tmp_path / 'out.pth'} in the layout timm, without {lower}, which it does not have\n"


def test_list_names_every_encoder_with_its_sizes(capsys: Any) -> None:
    assert main(["list"]) == 0
    rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["name", *swinx.list_encoders()]
    (row,) = [row for row in rows if row[0] == "swinx_s3_t"]
    assert row[1:] == ["v1", "96", "2-2-6-2", "3-6-12-24", "7-7-14-7", "shared", "imagenet"]


def test_v2_of_any_window_converts(tmp_path: Path) -> None:
    weights = random_swin_v2_state_dict(EMBED, DEPTHS, HEADS, torch.Generator().manual_seed(1))
    convert_checkpoint(saved(tmp_path / "in.pth", weights), tmp_path / "out.pth", "official")
    convert_checkpoint(tmp_path / "out.pth", tmp_path / "back.pth", "timm")
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True), weights)
