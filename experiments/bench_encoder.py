"""Whole encoders and DeepLabV3+, inference and training: every attention of swinx against timm's Swin.

    python -m experiments.bench_encoder                 # on a GPU three minutes, on a CPU four
    OMP_NUM_THREADS=1 python -m experiments.bench_encoder --only inference --output runs/one_thread
    python -m experiments.bench_encoder --report --output DIR

Appends a row for each network, mode and task to results.jsonl, and writes report.md from all rows. The networks of a
task are timed in turn, round after round, so that a change of the machine's speed meets them all; the ratio of a row is
the median over rounds of the time of the baseline over its own: above 1 is faster. timm has no stride-2 level, so swinx
runs with stem "none" beside it, and no output stride but 32: elsewhere the attentions of swinx are compared with one
another, and the cost of dilation is that of the same encoder at output stride 32.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import segmentation_models_pytorch as smp
import torch
import tyro
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

import swinx
from experiments.records.files import write_whole
from experiments.records.results import Row, append_rows, provenance, read_rows
from swinx.attention import speed

TIMM = {"swinx_t": "tu-swin_tiny_patch4_window7_224", "swinx_b": "tu-swin_base_patch4_window7_224"}
Call = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What all networks of a group do: the same pixels, the same kind of call."""

    variant: str
    model: Literal["encoder", "dilation", "DeepLabV3Plus"]
    size: int
    batch: int
    mode: Literal["inference", "train"]
    dtype: Literal["bf16", "fp32"] = "bf16"
    compiled: bool = False  # also compiled, which takes a minute for each network

    @property
    def name(self) -> str:
        """Stable name."""
        return f"{self.variant}-{self.model}-{self.size}-b{self.batch}-{self.mode}-{self.dtype}"

    def networks(self, gpu: bool) -> list[tuple[str, int]]:
        """Attention (timm for timm's encoder) and output stride of each, the baseline first."""
        if self.model == "dilation":
            return [("auto", 32), ("auto", 16), ("auto", 8)]
        stride = 16 if self.model == "DeepLabV3Plus" else 32
        baseline = "timm" if self.model == "encoder" else "reference"
        others = [name for name in ("triton", "sdpa", "reference") if name != baseline and (gpu or name != "triton")]
        return [(name, stride) for name in (baseline, *others)]


ON_GPU = (
    Task("swinx_t", "encoder", 224, 64, "inference", compiled=True),
    Task("swinx_t", "encoder", 224, 64, "train", compiled=True),
    Task("swinx_t", "encoder", 512, 16, "inference"),
    Task("swinx_t", "encoder", 512, 16, "train"),
    Task("swinx_b", "encoder", 512, 8, "train"),
    Task("swinx_t", "dilation", 512, 16, "inference"),
    Task("swinx_t", "DeepLabV3Plus", 512, 16, "inference"),
    Task("swinx_t", "DeepLabV3Plus", 512, 16, "train"),
)
ON_CPU = (
    Task("swinx_t", "encoder", 224, 1, "inference", "fp32", compiled=True),
    Task("swinx_t", "encoder", 224, 1, "train", "fp32"),
    Task("swinx_t", "dilation", 512, 1, "inference", "fp32"),
)


@dataclass(frozen=True)
class Options:
    """Time whole networks."""

    output: Path = Path("runs/bench_encoder")
    """folder for results.jsonl and report.md"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compiled: bool = True
    """also time the best attention compiled, where a task says so"""
    rounds: int = 15
    """times that each network of a task is timed (CPU: a third)"""
    only: str = ""
    """measure only tasks whose name contains this"""
    report: bool = False
    """measure nothing: write the report from the rows that are there"""


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


def runner(model: nn.Module, task: Task, image: Tensor) -> Call:
    """One inference, or one forward and backward pass with an update."""
    mixed = torch.autocast(image.device.type, torch.bfloat16, enabled=task.dtype == "bf16")

    def infer() -> object:
        with torch.inference_mode(), mixed:
            return model(image)

    if task.mode == "inference":
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=image.device.type == "cuda")

    def step() -> None:
        with mixed:
            levels = model(image)
        outputs = [levels] if isinstance(levels, Tensor) else levels[2:]
        sum(level.float().square().mean() for level in outputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(task: Task, options: Options, device: torch.device) -> list[Row]:
    """A row for each network of a task, the baseline first."""
    gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if gpu else lambda: None
    shape = (task.batch, 3, task.size, task.size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    baseline, *others = task.networks(gpu)
    rows: list[Row] = []
    for compiled in (False, True) if options.compiled and task.compiled else (False,):
        torch._dynamo.reset()
        calls: dict[tuple[str, int], Call] = {}
        for key in (baseline, *(others[:1] if compiled else others)):
            model = network(task, *key).to(device).train(task.mode == "train")
            calls[key] = runner(torch.compile(model, dynamic=False) if compiled else model, task, image)
            for _ in range(3):
                calls[key]()
        times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        for _ in range(options.rounds if gpu else options.rounds // 3):
            for key, call in calls.items():
                wait()
                start = time.perf_counter()
                call()
                wait()
                times[key].append(1e3 * (time.perf_counter() - start))
        for key, call in calls.items():
            p20, p50, p80 = speed.percentiles(times[key])
            ratio = statistics.median(theirs / ours for theirs, ours in zip(times[baseline], times[key], strict=True))
            row: Row = {
                "kind": "encoder",
                "task": task.name,
                "model": f"{task.variant} {task.model}",
                "mode": task.mode,
            }
            row |= {"compiled": compiled, "dtype": task.dtype, "batch": task.batch, "height": task.size}
            row |= {"width": task.size, "output_stride": key[1], "attention": key[0], "ratio": ratio}
            row |= {"baseline": "{}, output stride {}".format(*baseline), "ms_p20": p20, "ms_p50": p50, "ms_p80": p80}
            row |= {"images_per_s": 1e3 * task.batch / p50, "peak_memory_mb": None}
            if gpu:  # what a call allocates beyond weights and state
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                call()
                wait()
                row["peak_memory_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
            rows.append(row)
        del calls
        gc.collect()
    return rows


def report(rows: Sequence[Row]) -> str:
    """Markdown: a line a row; then where they come from."""
    names = ("task", "attention", "output stride", "compiled", "ms", "p20 to p80", "ratio", "images/s", "peak MB")
    lines = [names, ("---",) * 4 + ("---:",) * 5]
    for row in rows:
        peak = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
        head = row["task"], row["attention"], str(row["output_stride"]), "yes" if row["compiled"] else "no"
        spread = f"{row['ms_p20']:.2f} to {row['ms_p80']:.2f}"
        numbers = f"{row['ms_p50']:.2f}", spread, f"{row['ratio']:.2f}", f"{row['images_per_s']:.1f}", peak
        lines.append((*head, *numbers))
    told = ("host", "torch", "timm", "threads", "commit", "command")
    origin = dict.fromkeys(f"- {name}: {row[name]}" for name in told for row in rows)
    return "\n".join(["# Encoder", "", *(f"| {' | '.join(line)} |" for line in lines), "", *origin, ""])


def main(options: Options) -> None:
    """Measure the tasks that have no rows, then write the report."""
    path = options.output / "results.jsonl"
    if not options.report:
        there = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(there if options.device == "auto" else options.device)
        done = {row["task"] for row in read_rows(path)}
        origin = provenance(device) | {"threads": torch.get_num_threads()}
        for task in ON_GPU if device.type == "cuda" else ON_CPU:
            if task.name not in done and options.only in task.name:
                print(f"{task.name} ...", flush=True)
                append_rows(path, [row | origin for row in measure(task, options, device)])
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path} holds no rows")
    text = report(rows)
    write_whole(options.output / "report.md", text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
