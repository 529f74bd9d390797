"""The speed benchmarks run on the CPU, measure what they say, and report from rows alone."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import swinx
from experiments.records.results import read_rows
from swinx.attention import speed
from swinx.attention.triton import parameters, table
from tests.benchmarks import bench_attention, bench_encoder, common, tune_attention
from tests.benchmarks.bench_attention import COMPARED, HEADLINE, SMALL, stage

CPU = torch.device("cpu")
TINY = stage(1, 15, 3, 4, "fp32")  # padded and shifted
GEOMETRY = TINY[0].geometry
PHASES = ("forward", "forward_backward")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on busy cores cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def leaves() -> list[torch.Tensor]:
    return speed.leaves(TINY[0], torch.float32, CPU)[0]


def test_bytes_are_those_of_the_tensors() -> None:
    qkv, bias, pad = leaves()
    out = speed.provider("reference", GEOMETRY, CPU)(qkv, bias, pad)
    moved = qkv.nbytes + out.nbytes
    assert speed.least_bytes(qkv, backward=False) == moved
    assert speed.least_bytes(qkv, backward=True) == moved + qkv.nbytes + out.nbytes + qkv.nbytes


def test_every_case_is_one_that_the_library_takes_and_has_its_own_row() -> None:
    for cases in (HEADLINE, SMALL):
        assert len({tuple(bench_attention.fields(*case).items()) for case in cases}) == len(cases)
        assert all(0 <= trial.geometry.shift[0] < trial.geometry.window_size[0] for trial, _ in cases)
    assert {dtype for _, dtype in HEADLINE} == set(common.DTYPES)
    assert set(COMPARED) < set(HEADLINE)


@pytest.mark.parametrize("name", bench_attention.PROVIDERS)
@pytest.mark.parametrize("phase", PHASES)
def test_providers_equal_the_reference_or_say_why_not(
    name: str, phase: bench_attention.Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole graphs as for a measurement, without half a minute of a C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    if name.startswith("triton") or (name == "flex_attention" and phase != "forward"):
        with pytest.raises(NotImplementedError):
            bench_attention.build(name, GEOMETRY, phase, leaves())
        return
    attention = bench_attention.build(name, GEOMETRY, phase, leaves())
    assert TINY[0].excess(torch.float32, CPU, phase != "forward", attention) <= 1


def test_a_wrong_provider_gets_no_time_and_one_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(provider: str, *rest: object) -> speed.Attention:
        if provider == "flex_attention":
            raise RuntimeError("no such kernel")
        return lambda qkv, bias, pad: swinx.window_attention(qkv, bias, window_size=(4, 4), pad_qkv=pad)

    monkeypatch.setattr(bench_attention, "build", broken)
    row = bench_attention.measure(TINY, "sdpa", "forward", CPU, 0.01, 1e9)
    assert row["status"] == "wrong"
    assert "ms_p50" not in row
    row = bench_attention.measure(TINY, "flex_attention", "forward", CPU, 0.01, 1e9)
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: no such kernel")


def test_saved_bytes_count_each_memory_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert bench_attention.saved_bytes(lambda: (x * x).sum()) == x.nbytes
    assert bench_attention.saved_bytes(lambda: x.exp().sum()) == x.nbytes


def test_attention_benchmark_writes_rows_once_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attention, "SMALL", (TINY,))
    providers = ("reference", "sdpa", "triton")
    options = bench_attention.Options(tmp_path, "cpu", providers=providers, seconds=0.01)
    bench_attention.main(options)
    rows = read_rows(tmp_path / "results.jsonl")
    assert [row["status"] for row in rows] == 2 * ["ok", "ok", "not applicable"]
    assert all(row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"] for row in rows if row["status"] == "ok")
    # The fields that records promise (design of rows), and where a row comes from.
    promised = {"kind", "provider", "phase", "dtype", "batch", "height", "width", "heads", "head_dim", "window"}
    promised |= {"shift", "dilation", "ms_p20", "bandwidth_share", "peak_memory_mb", "saved_mb"}
    promised |= {"commit", "host", "torch", "threads", "triton"}
    assert promised <= set(rows[0])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    lines = [[value.strip() for value in line.strip("|").split("|")] for line in text.splitlines()]
    made = [dict(zip(bench_attention.COLUMNS, line, strict=True)) for line in lines[2:8]]
    for line, row in zip(made, rows, strict=True):
        assert (line["provider"], line["phase"], line["status"]) == (row["provider"], row["phase"], row["status"])
        assert line["ms_p50"] == "" or float(line["ms_p50"]) == pytest.approx(row["ms_p50"], abs=6e-4)
    assert [line["ms_p50"] == "" for line in made] == 2 * [False, False, True]
    (tmp_path / "report.md").unlink()
    bench_attention.main(bench_attention.Options(tmp_path, "cpu", providers=()))
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    bench_attention.main(options)
    assert read_rows(tmp_path / "results.jsonl") == rows


def test_encoder_benchmark_writes_rows_once_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = (
        bench_encoder.Task("swinx_t", "encoder", 32, 1, "train", "fp32"),
        bench_encoder.Task("swinx_n", "DeepLabV3Plus", 64, 1, "inference", "bf16"),
        bench_encoder.Task("swinx_n", "dilation", 64, 1, "inference", "fp32"),
    )
    monkeypatch.setattr(bench_encoder, "ON_CPU", tasks)
    options = bench_encoder.Options(tmp_path, device="cpu", rounds=3)
    bench_encoder.main(options)
    rows = read_rows(tmp_path / "results.jsonl")
    networks = [(row["attention"], row["output_stride"]) for row in rows]
    assert networks[:3] == [("timm", 32), ("sdpa", 32), ("reference", 32)]
    assert networks[3:] == [("reference", 16), ("sdpa", 16), ("auto", 32), ("auto", 16), ("auto", 8)]
    assert [
        row["ratio"] for row in rows if row["baseline"] == f"{row['attention']}, output stride {row['output_stride']}"
    ]
    assert all(rows[i]["ratio"] == 1 for i in (0, 3, 5))
    promised = {"kind", "model", "mode", "compiled", "dtype", "batch", "height", "width", "output_stride"}
    assert promised | {"images_per_s", "peak_memory_mb", "commit", "host", "torch"} <= set(rows[0])
    assert (tmp_path / "report.md").read_text(encoding="utf-8").count(f"| {tasks[0].name} ") == 3
    bench_encoder.main(options)
    assert read_rows(tmp_path / "results.jsonl") == rows


def test_the_networks_of_the_dilation_task_differ_in_their_stride_alone() -> None:
    task = bench_encoder.Task("swinx_n", "dilation", 64, 1, "inference", "fp32")
    image = torch.zeros(1, 3, 64, 64)
    sides = {}
    for _, stride in bench_encoder.NETWORKS["dilation"]:
        model = bench_encoder.network(task, "auto", stride).eval()
        with torch.inference_mode():
            sides[stride] = [level.shape[-1] for level in model(image)]
    assert {stride: found[-3:] for stride, found in sides.items()} == {32: [8, 4, 2], 16: [8, 4, 4], 8: [8, 8, 8]}


def test_tuning_writes_the_module_it_reads() -> None:
    """The committed table is what the script would write for its entries."""
    text = tune_attention.render(table.TABLE, table.ORIGINS)
    scope: dict = {}
    exec(text, scope)
    assert scope["TABLE"] == table.TABLE
    assert Path(table.__file__).read_text() == text


def test_tuning_chooses_every_entry_of_the_table() -> None:
    assert {key for key, _ in tune_attention.cases(parameters.GENERATIONS)} == set(table.TABLE)


def test_the_table_is_what_its_candidates_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not timed has a row of Triton 3.9.0 for every candidate, so nothing is compiled."""
    monkeypatch.setattr(tune_attention.triton, "__version__", "3.9.0")
    monkeypatch.setattr(tune_attention, "compile_kernel", lambda *of: pytest.fail("a candidate without a row"))
    for key, case in tune_attention.cases(parameters.GENERATIONS):
        assert tune_attention.chosen(key, case) == table.TABLE[key], key
