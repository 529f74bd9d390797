"""Options of experiments.compare_decoders, and what of them is refused before any work."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import segmentation_models_pytorch as smp
import torch
import tyro

from experiments.data import SegmentationData
from experiments.data_options import DataOptions
from experiments.devices import check_precision, choose_device
from experiments.evaluation import Inference, check_inference
from experiments.launch import RayResources, check_ray
from experiments.training import Recipe, processes
from experiments.training.batches import check_crop
from experiments.training.optim import class_weights
from swinx.config import VARIANTS


@dataclass(frozen=True)
class Options:
    """Compare segmentation decoders on the same data, batches and budget.

    Trains every combination of the lists below and writes results.jsonl, report.html and report.md into the output
    folder. The same command on the same folder continues where it stopped.
    """

    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    decoders: tuple[str, ...] = ("DeepLabV3Plus", "Unet", "FPN", "PAN")
    """decoders of segmentation_models_pytorch"""
    encoders: tuple[str, ...] = ("swinx_n",)
    """swinx's encoders, smp's, or tu- and a timm model"""
    output_strides: tuple[int, ...] = ()
    """8, 16, 32; none: the decoder's own"""
    stems: tuple[str, ...] = ()
    """shared, branch, inline, none; none given: the encoder's own"""
    dilations: tuple[str, ...] = ()
    """exact, dense, enlarged: how stages beyond the output stride attend; none given: exact"""
    windows: tuple[int, ...] = ()
    """window sides in tokens; none given: the encoder's own"""
    alignments: tuple[str, ...] = ()
    """none, centred: where the tokens of dilated levels stand; none given: none"""
    seeds: tuple[int, ...] = (0,)
    """each seed is a training run of its own"""
    steps: int | None = None
    """training steps of each cell (default 250, unless --minutes is given)"""
    minutes: float | None = None
    """training time of each cell, instead of --steps"""
    batch_size: int = 8
    """images of a batch, over all processes"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32", "bf16", "16"] = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    inference: tyro.conf.OmitArgPrefixes[Inference] = field(default_factory=Inference)
    workers: int = 0
    """processes that prepare the batches of a cell; 0 prepares them between the steps"""
    loggers: tuple[Literal["csv", "tensorboard"], ...] = ("csv",)
    """logs of each step, into cells/ID/log"""
    launcher: Literal["here", "ray"] = "here"
    """here: one cell after another (under torchrun, by all processes); ray: cells spread over a cluster"""
    ray: RayResources = field(default_factory=RayResources)
    output: Path = Path("runs/compare_decoders")
    """folder for results and report"""


def check_options(options: Options) -> None:
    """Raise ValueError, naming option, rule and value, for what can be told without the data."""
    _check_execution(options)
    _check_weights(options)


def _check_weights(options: Options) -> None:
    """Pretrained weights that encoders do not have, and layer-wise decay of encoders that know no layers here."""
    for encoder in options.encoders:
        entry = smp.encoders.encoders.get(encoder)
        if options.recipe.weights is not None and entry is not None:
            tags = list(entry["pretrained_settings"])
            if options.recipe.weights not in tags:
                choices = ", ".join(tags) or "(none: it has no pretrained weights)"
                raise ValueError(f"--weights must be one of {choices} for {encoder}, got {options.recipe.weights}")
        if options.recipe.layer_decay < 1 and encoder not in VARIANTS:
            raise ValueError(f"--layer-decay is for encoders of swinx, got {encoder} among --encoders")


def _check_execution(options: Options) -> None:
    world = processes().world
    if options.batch_size < 2:
        raise ValueError(
            f"--batch-size must be at least 2 (BatchNorm cannot train on one image), got {options.batch_size}"
        )
    if options.batch_size % world:
        raise ValueError(
            f"--batch-size must be a multiple of the number of processes, {world}, got {options.batch_size}"
        )
    if options.recipe.class_weighting != Recipe().class_weighting and "ce" not in options.recipe.losses:
        losses = " ".join(options.recipe.losses)
        raise ValueError(f"--class-weighting is for ce, got {options.recipe.class_weighting} with --losses {losses}")
    if options.workers < 0:
        raise ValueError(f"--workers must not be negative, got {options.workers}")
    if options.launcher == "ray" and world > 1:
        raise ValueError("--launcher ray trains each cell in one process, got a start by torchrun")
    if options.launcher == "here" and options.ray != RayResources():
        raise ValueError("--ray options are for --launcher ray, got --launcher here")


def check_against(options: Options, data: SegmentationData) -> None:
    """Raise ValueError, naming option, rule and value, for what only the data can tell."""
    height, width = data.train.images.shape[-2:]
    if options.recipe.crop is not None:
        check_crop(options.recipe.crop, height, width)
    check_inference(options.inference, height, width)
    if options.batch_size > len(data.train.images):
        count = len(data.train.images)
        raise ValueError(
            f"--batch-size must not exceed the number of training images, {count}, got {options.batch_size}"
        )
    class_weights(data.train.masks, len(data.class_names), data.ignore_index)  # refuses masks of a single class


def device_of(options: Options) -> str:
    """The device that cells train on, "cpu" or "cuda".

    Raises:
        ValueError: there is none such, or it does not fit the other options.
        ImportError, ConnectionError: see check_ray.
    """
    if options.launcher == "ray":  # the machines of the cluster have devices of their own
        there = "cuda" if options.ray.gpus else "cpu"
        device: str = there if options.device == "auto" else options.device
        check_precision(options.precision, device)
        check_ray(options.ray, device)
        return device
    device = choose_device(options.device, options.precision)
    if device == "cuda" and processes().local_world > max(1, torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise ValueError(f"--nproc-per-node must not exceed the GPUs, {count}, got {processes().local_world}")
    return device
