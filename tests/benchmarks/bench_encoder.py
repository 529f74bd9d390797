"""The encoder against timm's Swin through smp (`tu-swin_*`), forward and training, and the cost of dilation.

    pytest tests/benchmarks/bench_encoder.py -n 0 --benchmark-enable --benchmark-json=encoder.json
    python tests/benchmarks/encoder_table.py encoder.json

The machine's speed drifts, so every round times the baseline first and ours right after; the ratio of a row is the
median over rounds of baseline / ours. Nothing here asserts a time. Batch 2, random weights. Stem "shared"
makes a level 1 of full width, where tu-swin makes none.
"""

import gc
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

import swinx
from experiments.evaluation.cost import PeakMemory

TIMM = {"swinx_t": "tu-swin_tiny_patch4_window7_224", "swinx_b": "tu-swin_base_patch4_window7_224"}
ROUNDS = 5
CPU = torch.device("cpu")


def ours(name: str, stem: str = "shared", output_stride: int = 32) -> nn.Module:
    torch.manual_seed(0)
    swinx.register_encoder(f"{name}_{stem}", base=name, stem=stem)
    return get_encoder(f"{name}_{stem}", weights=None, output_stride=output_stride)


def timm(name: str) -> nn.Module:
    torch.manual_seed(0)
    return get_encoder(TIMM[name], weights=None, strict_img_size=False)


def image(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def peak_megabytes(function: Callable[[], object]) -> float:
    """Peak resident set of the process during one call, above what it held before."""
    gc.collect()
    before = PeakMemory(CPU).megabytes()
    peak = PeakMemory(CPU)
    function()
    return peak.megabytes() - before


def paired(benchmark, baseline: Callable[[], object], subject: Callable[[], object], **info: object) -> None:
    """Benchmark subject; before each of its rounds time the baseline, and keep the ratios in extra_info."""
    baseline()
    subject()
    memory = peak_megabytes(baseline), peak_megabytes(subject)
    baseline_seconds: list[float] = []

    def time_baseline() -> None:
        start = time.perf_counter()
        baseline()
        baseline_seconds.append(time.perf_counter() - start)

    benchmark.pedantic(subject, setup=time_baseline, rounds=ROUNDS, iterations=1)
    info |= {"torch": torch.__version__, "baseline_mb": memory[0], "mb": memory[1]}
    if benchmark.stats is not None:  # None where benchmarks are disabled
        seconds = benchmark.stats.stats.data
        ratios = [a / b for a, b in zip(baseline_seconds[-len(seconds) :], seconds, strict=True)]
        info |= {"baseline_ms": 1e3 * statistics.median(baseline_seconds), "ratio": statistics.median(ratios)}
    benchmark.extra_info.update(info)


def forward(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            return model(x)

    return run


def training_step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        sum(level.square().mean() for level in model(x)[2:]).backward()

    return run


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize(("name", "stem"), [("swinx_t", "shared"), ("swinx_t", "none"), ("swinx_b", "shared")])
def test_forward(benchmark, name: str, stem: str, size: int, threads: int) -> None:
    x = image(size)
    info = {"what": f"{name}, stem {stem}, forward", "dtype": "fp32", "size": size, "threads": threads}
    paired(benchmark, forward(timm(name).eval(), x, "fp32"), forward(ours(name, stem).eval(), x, "fp32"), **info)


@pytest.mark.parametrize("size", [224, 512])
def test_forward_bf16(benchmark, size: int, threads: int) -> None:
    x = image(size)
    info = {"what": "swinx_t, stem shared, forward, autocast", "dtype": "bf16", "size": size, "threads": threads}
    paired(benchmark, forward(timm("swinx_t").eval(), x, "bf16"), forward(ours("swinx_t").eval(), x, "bf16"), **info)


@pytest.mark.parametrize("size", [224, 512])
def test_compiled_forward(benchmark, size: int) -> None:
    threads = 1  # each cell compiles two networks, which takes minutes
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    x = image(size)
    theirs, mine = torch.compile(timm("swinx_t").eval()), torch.compile(ours("swinx_t").eval())
    info = {"what": "swinx_t, stem shared, forward, both compiled", "dtype": "fp32", "size": size, "threads": threads}
    paired(benchmark, forward(theirs, x, "fp32"), forward(mine, x, "fp32"), **info)


@pytest.mark.parametrize("size", [224, 512])
def test_training_step(benchmark, size: int, threads: int) -> None:
    x = image(size)
    info = {"what": "swinx_t, stem shared, forward + backward", "dtype": "fp32", "size": size, "threads": threads}
    paired(benchmark, training_step(timm("swinx_t").train(), x), training_step(ours("swinx_t").train(), x), **info)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_cost_of_dilation(benchmark, output_stride: int, threads: int) -> None:
    """The baseline is the same encoder at output stride 32, so ratio is the inverse of the cost."""
    x = image(512)
    what = f"swinx_t, stem none, forward at output stride {output_stride} (baseline: 32)"
    subject = forward(ours("swinx_t", "none", output_stride).eval(), x, "fp32")
    info = {"dtype": "fp32", "size": 512, "threads": threads}
    paired(benchmark, forward(ours("swinx_t", "none").eval(), x, "fp32"), subject, what=what, **info)
