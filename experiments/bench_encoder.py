"""Whole encoders and DeepLabV3+, inference and training: every attention of swinx against timm's Swin.

    python -m experiments.bench_encoder                 # on a GPU three minutes, on a CPU three
    python -m experiments.bench_encoder --report --output runs/bench_encoder

Writes results.jsonl (one row for each network, mode and task), report.md and report.html into a folder. The networks of
a task are timed in turn, round after round, so that a change of the machine's speed meets them all; the ratio of a row
is the median over rounds of the time of the baseline over its own. timm has no stride-2 level, so swinx runs with stem
"none" beside it, and no output stride but 32: DeepLabV3+ (output stride 16) compares the attentions of swinx alone.
"""

import functools
import gc
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import segmentation_models_pytorch as smp
import torch
import tyro
from rich.console import Console
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

import swinx
from experiments.evaluation.cost import AUTOCAST_DTYPES
from experiments.records import Row, append_row, provenance, read_rows
from experiments.speed import encoder_report, timing
from swinx.attention import speed

TIMM = {"swinx_t": "tu-swin_tiny_patch4_window7_224", "swinx_b": "tu-swin_base_patch4_window7_224"}
IMPLEMENTATIONS = ("triton", "sdpa", "reference")


@dataclass(frozen=True)
class Task:
    """What all networks of a group do: the same pixels, the same kind of call."""

    variant: str
    model: Literal["encoder", "DeepLabV3Plus"]
    size: int
    batch: int
    training: bool
    precision: Literal["bf16", "32"]
    compiled: bool = False  # also compiled, which takes a minute for each network

    @property
    def name(self) -> str:
        """Stable name."""
        call = "training" if self.training else "inference"
        return f"{self.variant}-{self.model}-{self.size}-b{self.batch}-{call}-{self.precision}"


@dataclass(frozen=True)
class Options:
    """Time whole networks."""

    output: Path = Path("runs/bench_encoder")
    """folder for results.jsonl, report.md and report.html"""
    device: str | None = None
    """cuda or cpu (default: cuda where there is one)"""
    compiled: bool = True
    """also time the best attention compiled, where a task says so"""
    rounds: int = 15
    """times that each network of a task is timed (CPU: a third)"""
    only: str = ""
    """measure only tasks whose name contains this"""
    report: bool = False
    """measure nothing: write the report from the rows that are there"""


def tasks(device: torch.device) -> list[Task]:
    """Throughput on a GPU, a single image on a CPU."""
    if device.type != "cuda":
        return [Task("swinx_t", "encoder", 224, 1, training, "32", compiled=not training) for training in (False, True)]
    return [
        Task("swinx_t", "encoder", 224, 64, False, "bf16", compiled=True),
        Task("swinx_t", "encoder", 224, 64, True, "bf16", compiled=True),
        Task("swinx_t", "encoder", 512, 16, False, "bf16"),
        Task("swinx_t", "encoder", 512, 16, True, "bf16"),
        Task("swinx_b", "encoder", 512, 8, True, "bf16"),
        Task("swinx_t", "DeepLabV3Plus", 512, 16, False, "bf16"),
        Task("swinx_t", "DeepLabV3Plus", 512, 16, True, "bf16"),
    ]


def network(task: Task, impl: str) -> nn.Module:
    """The network of a task: with this attention, or timm's for impl "timm"."""
    torch.manual_seed(0)
    if task.model == "DeepLabV3Plus":
        model = smp.DeepLabV3Plus(task.variant, encoder_weights=None, encoder_output_stride=16, classes=11)
    elif impl == "timm":
        return get_encoder(TIMM[task.variant], weights=None, strict_img_size=False)
    else:
        swinx.register_encoder(f"{task.variant}_none", base=task.variant, stem="none")
        model = get_encoder(f"{task.variant}_none", weights=None)
    swinx.set_attention(model, impl)
    return model


def runner(model: nn.Module, task: Task, image: Tensor) -> Callable[[], object]:
    """One inference, or one forward and backward pass with an update."""
    dtype = AUTOCAST_DTYPES.get(task.precision)
    mixed = functools.partial(
        torch.autocast, image.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    )

    def infer() -> object:
        with torch.inference_mode(), mixed():
            return model(image)

    if not task.training:
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=image.device.type == "cuda")

    def step() -> None:
        with mixed():
            levels = model(image)
        outputs = [levels] if isinstance(levels, Tensor) else levels[2:]
        sum(level.float().square().mean() for level in outputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(task: Task, options: Options, device: torch.device) -> list[Row]:
    """A row for each network of a task, the baseline first: timm's Swin, or the reference where timm has none."""
    baseline = "timm" if task.model == "encoder" else "reference"
    impls = [impl for impl in IMPLEMENTATIONS if impl not in (baseline, "" if device.type == "cuda" else "triton")]
    shape = (task.batch, 3, task.size, task.size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    rows = []
    for compiled in (False, True) if options.compiled and task.compiled else (False,):
        torch._dynamo.reset()
        calls: dict[str, Callable[[], object]] = {}
        for impl in (baseline, *(impls[:1] if compiled else impls)):
            model = network(task, impl).to(device).train(task.training)
            calls[impl] = runner(torch.compile(model, dynamic=False) if compiled else model, task, image)
            for _ in range(3):
                calls[impl]()
        times: dict[str, list[float]] = {impl: [] for impl in calls}
        for _ in range(options.rounds if device.type == "cuda" else options.rounds // 3):
            for impl, call in calls.items():
                times[impl].append(timing.once(call, device))
        for impl, call in calls.items():
            ratios = [theirs / ours for theirs, ours in zip(times[baseline], times[impl], strict=True)]
            p20, p50, p80 = speed.percentiles(times[impl])
            rows.append(
                {"task": task.name, **asdict(task), "attention": impl, "baseline": baseline, "compiled": compiled}
                | {"ms_p20": p20, "ms_p50": p50, "ms_p80": p80, "ratio": statistics.median(ratios)}
                | {"images_per_second": 1e3 * task.batch / p50, "peak_bytes": timing.peak_bytes(call, device)}
            )
        del calls
        gc.collect()
    return rows


def main(options: Options) -> None:
    """Measure the tasks that have no rows, then write the report."""
    path = options.output / "results.jsonl"
    if not options.report:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        done = {row["task"] for row in read_rows(path)}
        origin = provenance(device) | {"threads": torch.get_num_threads()}
        console = Console()
        for task in tasks(device):
            if task.name in done or options.only not in task.name:
                continue
            for row in measure(task, options, device):
                append_row(path, row | origin)
                console.print(encoder_report.line(row), highlight=False, soft_wrap=True)
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path} holds no rows")
    encoder_report.write(options.output, rows)
    print(f"{options.output / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options))
