"""Say what a checkpoint file is, and write it in another layout."""

import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from swinx.checkpoint_files import existing, read_checkpoint
from swinx.checkpoint_layouts import (
    BLOCK,
    DROPPED,
    LAYOUTS,
    OTHER_FAMILIES,
    VERSION_MARKS,
    Entries,
    Layout,
    from_our_names,
    refuse_foreign,
    take_apart,
    to_our_names,
    without_wrappers,
)
from swinx.checkpoints import convert_state_dict, refuse_unfit
from swinx.config import STAGES, VARIANTS, Pair, Stem, SwinConfig, Version, shown
from swinx.encoder import SwinXEncoder

SUFFIXES = (".safetensors", ".pth", ".pt")
_NORM = re.compile(r"^norms\.(\d+)\.")
_WIDEST = 2**16  # channels


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint file is.

    layout: whose. wrapper, prefix: where in it the backbone is. version, embed_dim, depths, num_heads: as in
    SwinConfig, of the stages that it has. windows: of each stage; None where the file does not tell, as in Swin V2
    without buffers, and where the window is no square. stem: "shared" stands for "none" too, which has the same
    entries. in_channels: of the image. level_norms: levels whose norm it has. classes: of its classifier, None without
    one. dropped: how many entries `swinx.load_checkpoint` leaves out, by the first part of their names. fits: the
    published variants of its sizes, with whether their windows are those of the file.
    """

    layout: str
    wrapper: str
    prefix: str
    version: Version
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    windows: tuple[Pair | None, ...]
    stem: Stem
    in_channels: int
    level_norms: tuple[int, ...]
    classes: int | None
    dropped: dict[str, int]
    fits: dict[str, bool]


def inspect_checkpoint(path: str | Path) -> Inspection:
    """What a file is that `swinx.load_checkpoint` would read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none, or incomplete; the message says what it is instead, where that is known.
    """
    path = existing(path, "path")
    with _naming(path):
        return _inspect(_read(path))[0]


def convert_checkpoint(source: str | Path, target: str | Path, layout: Layout) -> list[str]:
    """Write a checkpoint in another layout: as a whole, or not at all.

    A classifier's head goes along where the layout has one. Numbers, dtypes and windows stay as they are. A `.pth` has
    the wrapper that its readers expect, "model" or "state_dict"; `.safetensors` cannot have one.

    Args:
        source: a file that `swinx.load_checkpoint` reads, with all four stages.
        target: a new file, `.safetensors`, `.pth` or `.pt`.
        layout: "timm", "official" (classification) or "mmseg".

    Returns:
        Our names of entries that the layout does not have.

    Raises:
        FileNotFoundError: no such source, or no such directory for target.
        FileExistsError: target exists.
        ValueError: another suffix or layout, or a checkpoint that is incomplete or that the layout cannot hold.
    """
    target = Path(target)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {shown(layout)}")
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"target must end in {', '.join(SUFFIXES)}, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"target must be in a directory that exists, got {target}")
    if target.exists():
        raise FileExistsError(f"target must not exist, got {target}")
    source = existing(source, "source")
    with _naming(source):
        parts = _read(source)
        inspection, weights = _inspect(parts)
        if len(inspection.depths) < STAGES:
            raise ValueError(f"the checkpoint must have {STAGES} stages to be converted, got {len(inspection.depths)}")
        for key, value in _head(parts).items():
            weights[f"head.fc.{key}"] = value
        renamed, left_out = from_our_names(weights, layout)
    wrapper = {"timm": None, "official": "model", "mmseg": "state_dict"}[layout]
    renamed = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in renamed.items()}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as folder:
        written = Path(folder) / target.name
        if target.suffix.lower() == ".safetensors":
            save_file(renamed, written, metadata={"format": "pt"})
        else:
            torch.save({wrapper: renamed} if wrapper else renamed, written)
        os.replace(written, target)
    return left_out


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file before what is said of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> Entries:
    parts = take_apart(read_checkpoint(path))
    return parts._replace(backbone=without_wrappers(parts.backbone))


def _inspect(parts: Entries) -> tuple[Inspection, dict[str, Tensor]]:
    """What it is, and the weights of its encoder under our names."""
    backbone = parts.backbone
    refuse_foreign(backbone, OTHER_FAMILIES, "which swinx has not")
    refuse_unfit(backbone, {})
    weights = to_our_names(backbone)
    config, stages, in_channels, windows = _architecture(weights, backbone)
    norms = tuple(sorted({int(match[1]) for key in weights if (match := _NORM.match(key))}))
    for index in set(range(stages)) - set(norms):  # what is missing by rights is not to be missed
        size = config.embed_dim * 2**index
        weights |= {f"norms.{index}.weight": torch.ones(size), f"norms.{index}.bias": torch.zeros(size)}
    with torch.device("meta"):
        encoder = SwinXEncoder(config, in_channels=in_channels, depth=stages + 1)
    weights = dict(convert_state_dict(weights, encoder, assign=True))  # refuses what is missing, and what is too much
    kept = {key: weights[key] for key in weights if not (match := _NORM.match(key)) or int(match[1]) in norms}
    classes = _head(parts).get("weight")
    fits = {
        name: all(window in (None, stage.window_size) for window, stage in zip(windows, published.stages, strict=False))
        for name, published in VARIANTS.items()
        if _sizes(published, stages) == _sizes(config, stages)
    }
    inspection = Inspection(
        layout=_layout(parts, norms),
        wrapper=parts.wrapper,
        prefix=parts.prefix,
        version=config.version,
        embed_dim=config.embed_dim,
        depths=config.depths[:stages],
        num_heads=config.num_heads[:stages],
        windows=windows,
        stem=config.stem,
        in_channels=in_channels,
        level_norms=tuple(index + 2 for index in norms),
        classes=None if classes is None else classes.shape[0],
        dropped=_dropped(parts),
        fits=dict(sorted(fits.items(), key=lambda item: not item[1])),
    )
    return inspection, kept


def _sizes(config: SwinConfig, stages: int) -> tuple[object, ...]:
    return config.version, config.embed_dim, config.depths[:stages], config.num_heads[:stages]


def _architecture(
    weights: dict[str, Tensor], backbone: dict[str, Tensor]
) -> tuple[SwinConfig, int, int, tuple[Pair | None, ...]]:
    """A configuration with the sizes of the weights, how many stages they have, image channels, and known windows."""
    blocks = sorted({(int(match[1]), int(match[2])) for key in weights if (match := BLOCK.match(key))})
    counts = Counter(stage for stage, _ in blocks)
    stages = len(counts)
    if stages > STAGES or blocks != [(stage, block) for stage in range(stages) for block in range(counts[stage])]:
        raise ValueError(f"the checkpoint must have blocks numbered from 0 in stages 0 to 3, got {len(blocks)} others")
    version: Version = "v2" if any(mark in key for key in weights for mark in VERSION_MARKS["v2"]) else "v1"
    first, kernel = weights.get("layers.0.blocks.0.norm1.weight"), weights.get("patch_embed.proj.weight")
    convolution = weights.get("patch_embed.conv1.conv.weight")
    reading = kernel if convolution is None else convolution
    if first is None or kernel is None or reading is None or kernel.ndim != 4 or reading.ndim != 4:
        raise ValueError("the checkpoint is incomplete: it lacks the first norm or the patch embedding")
    if first.numel() > _WIDEST or reading.shape[1] > _WIDEST:
        raise ValueError(f"the checkpoint must have at most {_WIDEST} channels, got {first.numel()}")
    stem: Stem = "shared" if convolution is None else "branch" if kernel.shape[-1] == 4 else "inline"
    heads, windows, sides = [], [], []
    for stage in range(STAGES):
        table = _entry(weights, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2)
        scale = _entry(weights, f"layers.{stage}.blocks.0.attn.logit_scale", 3)
        coordinates = _entry(backbone, f"layers.{stage}.blocks.0.attn.relative_coords_table", 4)
        heads.append(table.shape[1] if table is not None else len(scale) if scale is not None else 1)
        offsets = 1 if table is None else len(table)
        side = round(offsets**0.5)
        window = None
        if coordinates is not None:  # of official files of V2, which otherwise do not tell
            window = ((coordinates.shape[1] + 1) // 2, (coordinates.shape[2] + 1) // 2)
        elif table is not None and side * side == offsets and side % 2 == 1:
            window = ((side + 1) // 2, (side + 1) // 2)
        windows.append(window)
        sides.append(window or ((offsets + 1) // 2, 1))  # any with so many offsets
    depths = tuple(counts.get(stage, 1) for stage in range(STAGES))
    config = SwinConfig(
        embed_dim=first.numel(),
        depths=depths,  # type: ignore[arg-type]  # four
        num_heads=tuple(heads),  # type: ignore[arg-type]
        window_size=tuple(sides),  # type: ignore[arg-type]
        drop_path_rate=0.0,
        stem=stem,
        version=version,
    )
    return config, stages, reading.shape[1], tuple(windows[:stages])


def _entry(weights: dict[str, Tensor], key: str, ndim: int) -> Tensor | None:
    value = weights.get(key)
    if value is not None and value.ndim != ndim:
        raise ValueError(f"the checkpoint's {key} must have {ndim} dimensions, got shape {tuple(value.shape)}")
    return value


def _layout(parts: Entries, norms: tuple[int, ...]) -> str:
    names = parts.backbone
    if any(key.startswith("stages.") for key in names):
        return "mmsegmentation"
    if any(key.startswith("layers_0.") for key in names):
        return "timm's features, as in smp's tu-swin"
    if any(key.startswith("norms.") for key in names):
        return "swinx"
    if not any(key.startswith("layers.0.downsample.") for key in names):
        return "timm"
    if len(norms) > 1:
        return "official, segmentation"
    return "official, MoBY or SimMIM" if parts.prefix.endswith("encoder.") else "official, classification"


def _head(parts: Entries) -> dict[str, Tensor]:
    """weight (K, C) and bias (K,) of a classifier: beside the backbone, or beside the modules in it."""
    outside = parts.prefix.removesuffix(".").rpartition(".")
    for head in (f"{place}head{name}" for place in (parts.prefix, outside[0] + outside[1]) for name in (".fc", "")):
        weight, bias = (parts.entries.get(f"{head}.{end}") for end in ("weight", "bias"))
        if weight is not None and bias is not None and (weight.ndim, bias.ndim) == (2, 1):
            return {"weight": weight, "bias": bias}
    return {}


def _dropped(parts: Entries) -> dict[str, int]:
    """How many entries are left out, by the first part of their names, or the last of buffers."""
    counts: Counter[str] = Counter()
    for key in parts.entries:
        name = key.removeprefix(parts.prefix)
        if not key.startswith(parts.prefix):
            counts[key.partition(".")[0][:60]] += 1
        elif DROPPED.search(name):
            counts[name.partition(".")[0] if name.startswith("head.") else name.rpartition(".")[2]] += 1
    return dict(counts)
