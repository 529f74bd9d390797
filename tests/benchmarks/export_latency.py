"""Time swinx_t in every way to deploy it beside timm's Swin-T, exported in the same ways at its one size.

    python -m tests.benchmarks.export_latency --output docs/benchmarks/export-latency-cpu-DATE

writes a row for each engine and model to OUTPUT.jsonl and a table of them to OUTPUT.md. All engines live in one
process, on one thread; a round times each once, in random order, and a ratio is the median over rounds of timm's time
over ours in the same round. swinx_t is exported once, with dynamic batch, height and width, and traced at another size
than the one that is timed; timm's network takes 224 x 224 alone. Batch 1, float32, random weights, no gradients. Making
everything takes some 10 minutes on one core.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import swinx
from experiments.records.results import provenance
from tests.benchmarks.common import versions

MODELS = {"swinx_t": "swinx_t", "timm": "tu-swin_tiny_patch4_window7_224"}
ENGINES = ("eager", "compile", "onnxruntime", "openvino", "aotinductor")
SIDE = 224
Call = Callable[[Tensor], Any]


def export(name: str, model: nn.Module) -> ExportedProgram:
    """The program of a model: dynamic for ours, of one size for timm's."""
    assert name in swinx.list_encoders() or name == "timm"
    if name == "timm":
        return torch.export.export(model, (torch.randn(1, 3, SIDE, SIDE),))
    dynamic = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=(dynamic,))


def in_onnxruntime(path: Path) -> Call:
    """A session of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image.numpy()})


def in_openvino(path: Path) -> Call:
    """A compiled model of one thread, in float32."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda image: list(request.infer([image.numpy()]).values())


def make(name: str, engines: list[str], folder: Path) -> tuple[dict[str, Call], dict[str, float]]:
    """The callables of a model by engine, and processor seconds of each step, of one export for all that need it."""
    torch.manual_seed(0)
    model = get_encoder(MODELS[name], weights=None).eval()
    calls: dict[str, Call] = {}
    seconds: dict[str, float] = {}

    def timed(what: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        seconds[what] = round(time.process_time() - start, 1)
        return result

    if "eager" in engines:
        calls["eager"] = model
    if "compile" in engines:
        compiled = torch.compile(model)
        timed("compile", lambda: compiled(torch.randn(1, 3, SIDE, SIDE)))
        calls["compile"] = compiled
    if {"onnxruntime", "openvino", "aotinductor"} & set(engines):
        program = timed("export", lambda: export(name, model))
    if {"onnxruntime", "openvino"} & set(engines):
        path = folder / f"{name}.onnx"
        timed("onnx", lambda: torch.onnx.export(program, dynamo=True, verbose=False).save(path))
        if "onnxruntime" in engines:
            calls["onnxruntime"] = timed("onnxruntime", lambda: in_onnxruntime(path))
        if "openvino" in engines:
            calls["openvino"] = timed("openvino", lambda: in_openvino(path))
    if "aotinductor" in engines:
        package = str(folder / f"{name}.pt2")
        if {"onnxruntime", "openvino"} & set(engines):
            program = export(name, model)  # the translation to ONNX leaves symbols behind that AOTInductor trips over
        timed("aotinductor", lambda: torch._inductor.aoti_compile_and_package(program, package_path=package))
        calls["aotinductor"] = torch._inductor.aoti_load_package(package)
    return calls, seconds


def rounds(calls: dict[tuple[str, str], Call], count: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of each callable in each round; two rounds before them do not count."""
    image = torch.randn(1, 3, SIDE, SIDE)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(count + 2):
        for key in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[key](image)
            times[key].append(1e3 * (time.perf_counter() - start))
    return {key: measured[2:] for key, measured in times.items()}


def largest_difference(call: Call, expected: list[Tensor], image: Tensor) -> float:
    """From what eager code gives, over all levels."""
    return max(
        float(numpy.abs(numpy.asarray(got) - want.numpy()).max(initial=0.0))
        for got, want in zip(call(image), expected, strict=True)
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each engine."""
    row = rows[0]
    lines = [
        "# Latency of exported encoders",
        "",
        f"`swinx_t` exported with dynamic sizes, timm's Swin-T for {SIDE} × {SIDE} pixels only. Both are timed at that",
        f"size, in turns: batch 1, float32, one thread. Medians of {row['rounds']} rounds, of the ratio also the",
        "quartiles. *Made in*: CPU seconds of export and compilation.",
        "",
        f"{row['host']} ({row['cpu_capability']}), torch {row['torch']}, timm {row['timm']}, ONNX Runtime",
        f"{row['onnxruntime']}, OpenVINO {row['openvino']}, commit {row['commit'][:9]}, {row['time'][:10]}:",
        f"`{row['command']}`",
        "",
        "| engine | swinx_t, ms | timm, ms | timm / swinx_t | swinx_t made in, s | timm made in, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_key = {(row["model"], row["engine"]): row for row in rows}
    for engine in dict.fromkeys(row["engine"] for row in rows):
        ours, theirs = by_key["swinx_t", engine], by_key["timm", engine]
        low, middle, high = (ours[f"ratio_timm_p{p}"] for p in (25, 50, 75))
        lines.append(
            f"| {engine} | {ours['ms_p50']:.0f} | {theirs['ms_p50']:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {ours['made_cpu_s']:.0f} | {theirs['made_cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make all, time them, write rows and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls: dict[tuple[str, str], Call] = {}
    made: dict[tuple[str, str], float] = {}
    differences: dict[tuple[str, str], float] = {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            found, seconds = make(name, options.engines, Path(folder))
            print(name, seconds, flush=True)
            image = torch.randn(1, 3, SIDE, SIDE)
            torch.manual_seed(0)
            expected = get_encoder(MODELS[name], weights=None).eval()(image)
            for engine, call in found.items():
                calls[name, engine] = call
                stages = {"onnxruntime": ("export", "onnx"), "openvino": ("export", "onnx"), "aotinductor": ("export",)}
                made[name, engine] = sum(seconds.get(stage, 0.0) for stage in (*stages.get(engine, ()), engine))
                differences[name, engine] = largest_difference(call, expected, image)
        times = rounds(calls, options.rounds)
    rows = []
    for (name, engine), measured in times.items():
        low, middle, high = statistics.quantiles(measured, n=4)
        row: dict[str, Any] = {"kind": "export-latency", "model": name, "engine": engine, "dtype": "fp32", "batch": 1}
        row |= {"height": SIDE, "width": SIDE, "threads": 1, "rounds": options.rounds}
        row |= {"ms_p25": round(low, 2), "ms_p50": round(middle, 2), "ms_p75": round(high, 2)}
        row |= {"made_cpu_s": round(made[name, engine], 1)}
        row |= {"largest_difference": float(f"{differences[name, engine]:.2g}")}
        if name != "timm":
            ratios = [theirs / ours for theirs, ours in zip(times["timm", engine], measured, strict=True)]
            quartiles = zip((25, 50, 75), statistics.quantiles(ratios, n=4), strict=True)
            row |= {f"ratio_timm_p{p}": round(value, 3) for p, value in quartiles}
        rows.append(row | provenance(torch.device("cpu")) | versions())
    options.output.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options.output.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
