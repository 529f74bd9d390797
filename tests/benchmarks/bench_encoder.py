"""Whole encoders and DeepLabV3+, inference and training: every attention of swinx against timm's Swin.

    python -m tests.benchmarks.bench_encoder
    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_encoder --only inference --output runs/one_thread

Appends a row for each network, mode and task to results.jsonl, and writes report.md from all rows. The networks of a
task are timed in turn, round after round, so that a change of the machine's speed meets them all; the ratio of a row is
the median over rounds of the time of the baseline over its own: above 1 is faster. timm has no stride-2 level, so swinx
runs with stem "none" beside it, and no output stride but 32: elsewhere the attentions of swinx are compared with one
another, and the cost of dilation is that of the same encoder at output stride 32.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import segmentation_models_pytorch as smp
import torch
import tyro
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

import swinx
from experiments.evaluation.cost import autocast
from experiments.records.results import RESULTS, Row, read_rows
from swinx.attention import speed
from tests.benchmarks import common

TIMM = {"swinx_t": "tu-swin_tiny_patch4_window7_224", "swinx_b": "tu-swin_base_patch4_window7_224"}
TIMES = ("ms_p50", "ms_p20", "ms_p80", "ratio", "images_per_s")
COLUMNS = ("task", "attention", "output_stride", "compiled", *TIMES, "peak_memory_mb")
# Attention (timm for timm's encoder) and output stride of each network, the baseline first.
NETWORKS = {
    "encoder": (("timm", 32), ("triton", 32), ("sdpa", 32), ("reference", 32)),
    "dilation": (("auto", 32), ("auto", 16), ("auto", 8)),
    "DeepLabV3Plus": (("reference", 16), ("triton", 16), ("sdpa", 16)),
}


class Task(NamedTuple):
    """What all networks of a group do: the same pixels, the same kind of call. compiled: the first two networks."""

    variant: str
    model: Literal["encoder", "dilation", "DeepLabV3Plus"]
    size: int
    batch: int
    mode: Literal["inference", "train"]
    dtype: Literal["bf16", "fp32"] = "bf16"
    compiled: bool = False

    @property
    def name(self) -> str:
        """Stable name."""
        name = f"{self.variant}-{self.model}-{self.size}-b{self.batch}-{self.mode}-{self.dtype}"
        return f"{name}-compiled" if self.compiled else name


ON_GPU = (
    Task("swinx_t", "encoder", 224, 64, "inference"),
    Task("swinx_t", "encoder", 224, 64, "inference", compiled=True),
    Task("swinx_t", "encoder", 224, 64, "train"),
    Task("swinx_t", "encoder", 224, 64, "train", compiled=True),
    Task("swinx_t", "encoder", 512, 16, "inference"),
    Task("swinx_t", "encoder", 512, 16, "train"),
    Task("swinx_b", "encoder", 512, 8, "train"),
    Task("swinx_t", "dilation", 512, 16, "inference"),
    Task("swinx_t", "DeepLabV3Plus", 512, 16, "inference"),
    Task("swinx_t", "DeepLabV3Plus", 512, 16, "train"),
)
ON_CPU = (
    Task("swinx_t", "encoder", 224, 1, "inference", "fp32"),
    Task("swinx_t", "encoder", 224, 1, "inference", "fp32", compiled=True),
    Task("swinx_t", "encoder", 224, 1, "inference", "bf16"),
    Task("swinx_t", "encoder", 224, 1, "train", "fp32"),
    Task("swinx_t", "encoder", 512, 1, "inference", "fp32"),
    Task("swinx_t", "encoder", 512, 1, "inference", "fp32", compiled=True),
    Task("swinx_b", "encoder", 512, 1, "inference", "fp32"),
    Task("swinx_t", "dilation", 512, 1, "inference", "fp32"),
)


@dataclass(frozen=True)
class Options(common.Options):
    """Time whole networks."""

    output: Path = Path("runs/bench_encoder")
    rounds: int = 15
    """times that each network of a task is timed (CPU: a third)"""
    only: str = ""
    """measure only tasks whose name contains this; one that none contains writes the report alone"""


def network(task: Task, attention: str, output_stride: int) -> nn.Module:
    """The network of a task, with random weights."""
    torch.manual_seed(0)
    if attention == "timm":
        return get_encoder(TIMM[task.variant], weights=None, strict_img_size=False)
    if task.model == "DeepLabV3Plus":
        model = smp.DeepLabV3Plus(task.variant, encoder_weights=None, encoder_output_stride=output_stride, classes=11)
    else:
        swinx.register_encoder(f"{task.variant}_none", base=task.variant, stem="none")
        model = get_encoder(f"{task.variant}_none", weights=None, output_stride=output_stride)
    swinx.set_attention(model, attention)
    return model


def runner(model: nn.Module, task: Task, image: Tensor) -> Callable[[], None]:
    """One inference, or one forward and backward pass with an update."""
    fused = image.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused) if task.mode == "train" else None

    def call() -> None:
        with torch.inference_mode(optimizer is None), autocast(image.device, task.dtype):
            levels = model(image)
        if optimizer is not None:
            outputs = [levels] if isinstance(levels, Tensor) else levels[2:]
            sum(level.float().square().mean() for level in outputs).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return call


def measure(task: Task, rounds: int, device: torch.device) -> list[Row]:
    """A row for each network of a task, the baseline first."""
    gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if gpu else lambda: None
    shape = (task.batch, 3, task.size, task.size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    networks = [(attention, stride) for attention, stride in NETWORKS[task.model] if gpu or attention != "triton"]
    networks = networks[:2] if task.compiled else networks
    torch._dynamo.reset()
    calls = []
    for attention, stride in networks:
        model = network(task, attention, stride).to(device).train(task.mode == "train")
        calls.append(runner(torch.compile(model, dynamic=False) if task.compiled else model, task, image))
        for _ in range(3):
            calls[-1]()
    times = torch.empty(len(calls), rounds, dtype=torch.float64)
    for turn, number in itertools.product(range(rounds), range(len(calls))):
        wait()
        start = time.perf_counter()
        calls[number]()
        wait()
        times[number, turn] = 1e3 * (time.perf_counter() - start)
    rows = []
    for (attention, stride), call, spent in zip(networks, calls, times, strict=True):
        p20, p50, p80 = speed.percentiles(spent.tolist())
        row: Row = {"kind": "encoder", "task": task.name, "model": f"{task.variant} {task.model}", "mode": task.mode}
        row |= {"compiled": task.compiled, "dtype": task.dtype, "batch": task.batch, "height": task.size}
        row |= {"width": task.size, "output_stride": stride, "attention": attention}
        row |= {"ratio": speed.percentiles((times[0] / spent).tolist()).p50}
        row |= {"baseline": "{}, output stride {}".format(*networks[0]), "ms_p20": p20, "ms_p50": p50, "ms_p80": p80}
        row |= {"images_per_s": 1e3 * task.batch / p50, "peak_memory_mb": common.peak_megabytes(call, device)}
        rows.append(row)
    return rows


def main(options: Options) -> None:
    """Measure the tasks that have no rows, then write the report."""
    device = options.torch_device()
    gpu = device.type == "cuda"
    done = {row["task"] for row in read_rows(options.output / RESULTS)}
    for task in ON_GPU if gpu else ON_CPU:
        if task.name not in done and options.only in task.name:
            print(f"{task.name} ...", flush=True)
            rows = measure(task, options.rounds if gpu else options.rounds // 3, device)
            common.append(options.output, rows, device)
    common.report(options.output, COLUMNS)


if __name__ == "__main__":
    main(tyro.cli(Options))
