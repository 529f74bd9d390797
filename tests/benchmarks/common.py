"""What the benchmarks share: options, rows with their origin, Markdown tables, and memory."""

import gc
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas
import torch

from experiments.records.files import write_whole
from experiments.records.options import choose_device
from experiments.records.results import RESULTS, Row, append_rows, provenance, read_rows

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ORIGIN = ["host", "torch", "timm", "triton", "threads", "commit", "command"]


@dataclass(frozen=True)
class Options:
    """Where to measure, and where to keep it."""

    output: Path
    """folder for results.jsonl and report.md"""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def torch_device(self) -> torch.device:
        """The device; raises ValueError where there is none such."""
        return torch.device(choose_device(self.device, "32"))


def append(folder: Path, rows: Sequence[Row], device: torch.device) -> None:
    """Append rows to those of a folder, with provenance, threads and Triton's version; free what they needed."""
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    origin = provenance(device) | {"threads": torch.get_num_threads(), "triton": triton}
    append_rows(folder / RESULTS, [row | origin for row in rows])
    gc.collect()
    torch.cuda.empty_cache()


def versions() -> Row:
    """Of what exports are made and run by, as far as it is installed."""
    found = {package.name: package.version for package in importlib.metadata.distributions()}
    return {name: found[name] for name in ("onnx", "onnxscript", "onnxruntime", "openvino") if name in found}


def report(folder: Path, columns: Sequence[str]) -> None:
    """Print and write report.md: some fields of each row, then where the rows come from."""
    rows = pandas.DataFrame(read_rows(folder / RESULTS))
    if rows.empty:
        raise SystemExit(f"{folder / RESULTS} holds no rows")
    tables = rows.reindex(columns=columns), rows.reindex(columns=ORIGIN).drop_duplicates()
    text = "\n\n".join(map(markdown, tables)) + "\n"
    write_whole(folder / "report.md", text)
    print(text)


def markdown(frame: pandas.DataFrame) -> str:
    """A table: numbers with up to three decimals, nothing where a value is missing."""
    plain = frame.round(3).convert_dtypes().astype(object)
    return plain.where(frame.notna(), None).to_markdown(index=False, missingval="")


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float | None:
    """What a call allocates at most on the GPU beyond what is there, in units of 10^6 bytes; None on the CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6
