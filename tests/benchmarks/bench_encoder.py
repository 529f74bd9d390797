"""The encoder against timm's Swin through smp (`tu-swin_*`), forward and training, and the cost of dilation.

    pytest tests/benchmarks/bench_encoder.py -n 0 --benchmark-enable --benchmark-json=encoder.json
    python tests/benchmarks/encoder_table.py encoder.json

The machine's speed drifts, so every round times the baseline first and ours right after; the ratio of a row is the
median over rounds of baseline / ours. Peak memory is that of one call in a process of its own. Nothing here asserts a
time. Batch 2, random weights. Stem "shared" makes a level 1 of full width, where tu-swin makes none.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

import swinx
from experiments.evaluation.cost import PeakMemory

TIMM = {"swinx_t": "tu-swin_tiny_patch4_window7_224", "swinx_b": "tu-swin_base_patch4_window7_224"}
ROUNDS = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Network:
    """What is timed: stem None is timm's."""

    name: str
    stem: str | None
    output_stride: int = 32
    mode: Literal["forward", "compiled", "training"] = "forward"
    dtype: Literal["fp32", "bf16"] = "fp32"

    def encoder(self) -> nn.Module:
        torch.manual_seed(0)
        if self.stem is None:
            return get_encoder(TIMM[self.name], weights=None, strict_img_size=False)
        swinx.register_encoder(f"{self.name}_{self.stem}", base=self.name, stem=self.stem)
        return get_encoder(f"{self.name}_{self.stem}", weights=None, output_stride=self.output_stride)

    def runner(self) -> Callable[[Tensor], object]:
        """One forward pass, or one forward and backward pass."""
        model = self.encoder().train(self.mode == "training")
        if self.mode == "compiled":
            model = torch.compile(model)

        def forward(x: Tensor) -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
                return model(x)

        def step(x: Tensor) -> None:
            model.zero_grad(set_to_none=True)
            sum(level.square().mean() for level in model(x)[2:]).backward()

        return step if self.mode == "training" else forward


def image(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def peak_megabytes(network: Network, size: int, threads: int) -> float:
    """Growth of the resident set during one call, after a call on a small image has loaded what stays."""
    torch.set_num_threads(threads)
    run, x = network.runner(), image(size)
    run(image(64))
    before = PeakMemory(CPU).megabytes()
    peak = PeakMemory(CPU)
    run(x)
    return peak.megabytes() - before


def in_own_process(network: Network, size: int, threads: int) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_megabytes, network, size, threads).result()


def paired(benchmark, what: str, baseline: Network, subject: Network, size: int, threads: int) -> None:
    """Benchmark subject; before each of its rounds time the baseline, and keep the ratios in extra_info."""
    memory = [None, None]
    if subject.mode != "compiled":  # compilation itself takes more than either
        memory = [in_own_process(network, size, threads) for network in (baseline, subject)]
    x, theirs, ours = image(size), baseline.runner(), subject.runner()
    theirs(x)
    ours(x)
    seconds: list[float] = []

    def time_baseline() -> None:
        start = time.perf_counter()
        theirs(x)
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(ours, (x,), setup=time_baseline, rounds=ROUNDS, iterations=1)
    info = {"what": what, "dtype": subject.dtype, "size": size, "threads": threads, "torch": torch.__version__}
    info |= {"baseline_mb": memory[0], "mb": memory[1]}
    if benchmark.stats is not None:  # None where benchmarks are disabled
        data = benchmark.stats.stats.data
        ratios = [a / b for a, b in zip(seconds[-len(data) :], data, strict=True)]
        info |= {"baseline_ms": 1e3 * statistics.median(seconds), "ratio": statistics.median(ratios)}
    benchmark.extra_info.update(info)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize(("name", "stem"), [("swinx_t", "shared"), ("swinx_t", "none"), ("swinx_b", "shared")])
def test_forward(benchmark, name: str, stem: str, size: int, threads: int) -> None:
    paired(benchmark, f"{name}, stem {stem}, forward", Network(name, None), Network(name, stem), size, threads)


@pytest.mark.parametrize("size", [224, 512])
def test_forward_bf16(benchmark, size: int, threads: int) -> None:
    theirs, ours = Network("swinx_t", None, dtype="bf16"), Network("swinx_t", "shared", dtype="bf16")
    paired(benchmark, "swinx_t, stem shared, forward, autocast", theirs, ours, size, threads)


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("stem", ["shared", "none"])
def test_compiled_forward(benchmark, stem: str, size: int, threads: int) -> None:
    torch._dynamo.reset()  # generated code fixes the number of threads
    theirs, ours = Network("swinx_t", None, mode="compiled"), Network("swinx_t", stem, mode="compiled")
    paired(benchmark, f"swinx_t, stem {stem}, forward, both compiled", theirs, ours, size, threads)


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("stem", ["shared", "none"])
def test_training_step(benchmark, stem: str, size: int, threads: int) -> None:
    theirs, ours = Network("swinx_t", None, mode="training"), Network("swinx_t", stem, mode="training")
    paired(benchmark, f"swinx_t, stem {stem}, forward + backward", theirs, ours, size, threads)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_cost_of_dilation(benchmark, output_stride: int, threads: int) -> None:
    """The baseline is the same encoder at output stride 32, so ratio is the inverse of the cost."""
    what = f"swinx_t, stem none, forward at output stride {output_stride} (baseline: 32)"
    paired(benchmark, what, Network("swinx_t", "none"), Network("swinx_t", "none", output_stride), 512, threads)
