"""Window attention by every provider of `experiments.bench_attention`, under pytest-benchmark.

    pytest tests/benchmarks/bench_attention.py -n 0 --benchmark-enable --benchmark-json=attention.json

On a GPU the clock stops when the device is idle. Nothing here asserts a time.
"""

import time

import pytest
import torch

from experiments.bench_attention import TOLERANCE, difference, run
from experiments.speed import providers
from experiments.speed.cases import Case, headline, small

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = headline()[:3] if DEVICE.type == "cuda" else small()


def synchronized_time() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@pytest.mark.benchmark(timer=synchronized_time)
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", providers.PROVIDERS)
def test_attention(benchmark, name: str, case: Case, direction: str) -> None:
    try:
        attention = providers.build(name, case, DEVICE, direction == "both")
    except providers.NotApplicableError as reason:
        pytest.skip(str(reason))
    error = difference(case, attention, direction, DEVICE)
    assert error <= TOLERANCE[case.dtype]
    benchmark.extra_info.update({"case": case.name, "provider": name, "direction": direction, "error": error})
    benchmark.pedantic(run, (attention, case.inputs(DEVICE), direction), rounds=20, warmup_rounds=3)
