"""The speed benchmarks run on the CPU, measure what they say, and report from rows alone."""

from pathlib import Path

import pytest
import torch

import swinx
from experiments import bench_attention, bench_encoder, tune_attention
from experiments.records import read_rows
from experiments.speed import attention_report, providers, timing
from experiments.speed.cases import Case, full, headline, small
from swinx.attention.triton import parameters, table

CPU = torch.device("cpu")
TINY = Case("swinx_t", 60, 1, 1, 4, dtype="fp32")  # 15 x 15 tokens: padded and shifted


def test_bytes_are_those_of_the_tensors() -> None:
    qkv, bias, pad = TINY.inputs(CPU)
    _, _, _, window, shift, dilation = TINY.geometry
    out = swinx.window_attention(qkv, bias, window_size=window, shift=shift, dilation=dilation, pad_qkv=pad)
    moved = qkv.nbytes + out.nbytes
    assert TINY.bytes_moved(backward=False) == moved
    assert TINY.bytes_moved(backward=True) == moved + qkv.nbytes + out.nbytes + qkv.nbytes


def test_every_case_is_one_that_the_library_takes_and_has_its_own_name() -> None:
    for cases in (headline(), small(), list(full())):
        assert len({case.name for case in cases}) == len(cases)
        assert all(0 <= case.shift < case.window for case in cases)


@pytest.mark.parametrize("name", providers.PROVIDERS)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_providers_equal_the_reference_or_say_why_not(name: str, direction: str) -> None:
    needs_gpu = name in ("triton", "triton, CUDA graph", "flash_swin_attn", "natten")
    if needs_gpu or (name == "flex_attention" and direction == "both"):
        with pytest.raises(providers.NotApplicableError):
            providers.build(name, TINY, CPU, direction == "both")
        return
    attention = providers.build(name, TINY, CPU, direction == "both")
    assert bench_attention.difference(TINY, attention, direction, CPU) < 1e-5


def test_a_wrong_provider_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(qkv: torch.Tensor, bias: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return swinx.window_attention(qkv, bias, window_size=(4, 4), pad_qkv=pad)

    monkeypatch.setattr(providers, "build", lambda *_: unmasked)
    row = bench_attention.measure(TINY, "sdpa", "forward", CPU, 0.01, 1e9)
    assert row["status"] == "wrong"
    assert "ms_p50" not in row


def test_a_provider_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(providers, "build", broken)
    row = bench_attention.measure(TINY, "sdpa", "forward", CPU, 0.01, 1e9)
    assert row["status"] == "failed"
    assert row["reason"] == "RuntimeError: no such kernel"


def test_saved_bytes_count_each_memory_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert timing.saved_bytes(lambda: (x * x).sum()) == x.nbytes
    assert timing.saved_bytes(lambda: x.exp().sum()) == x.nbytes


def test_attention_benchmark_writes_rows_once_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attention, "small", lambda: [TINY])
    options = bench_attention.Options(
        tmp_path, providers=("reference", "sdpa", "natten"), directions=("forward", "both"), seconds=0.01, device="cpu"
    )
    bench_attention.main(options)
    rows = read_rows(tmp_path / "results.jsonl")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "ok", "not applicable", "not applicable"]
    assert all(row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"] for row in rows if row["status"] == "ok")
    bench_attention.main(options)
    assert read_rows(tmp_path / "results.jsonl") == rows
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://github.com", "")
    assert "natten: natten has no relative position bias" in text
    attention_report.write(tmp_path, rows)
    assert (tmp_path / "report.md").read_text() == text


def test_unknown_provider_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--providers must be among triton, .*; got cudnn"):
        bench_attention.main(bench_attention.Options(tmp_path, providers=("cudnn",)))


def test_encoder_benchmark_writes_rows_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        bench_encoder.Task("swinx_t", "encoder", 32, 1, True, "32"),
        bench_encoder.Task("swinx_t", "DeepLabV3Plus", 64, 1, False, "32"),
    ]
    monkeypatch.setattr(bench_encoder, "tasks", lambda device: tasks)
    bench_encoder.main(bench_encoder.Options(tmp_path, device="cpu", compiled=False, rounds=3))
    rows = read_rows(tmp_path / "results.jsonl")
    assert [row["attention"] for row in rows] == ["timm", "sdpa", "reference", "reference", "sdpa"]
    assert all(row["ratio"] == 1 for row in rows if row["attention"] == row["baseline"])
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert tasks[0].name in (tmp_path / "report.md").read_text()


def test_tuning_writes_the_module_it_reads(tmp_path: Path) -> None:
    """The committed table is what the script would write for its entries."""
    text = tune_attention.render(table.TABLE, table.ORIGINS)
    scope: dict = {}
    exec(text, scope)
    assert scope["TABLE"] == table.TABLE
    assert Path(table.__file__).read_text() == text


def test_tuning_chooses_every_entry_of_the_table() -> None:
    chosen = {
        parameters.table_key(kernel, window**2, head_dim, 2 if precision == "bf16" else 4, generation)
        for kernel, window, head_dim, precision, generation in tune_attention.cases(
            tune_attention.Options(), parameters.GENERATIONS
        )
    }
    assert chosen == set(table.TABLE)
