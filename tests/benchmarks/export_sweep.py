"""Export every decoder at every output stride it takes, with Swin V1 and V2, and compare with eager code.

    python -m tests.benchmarks.export_sweep --output docs/benchmarks/export-sweep-DATE

appends a row for each model and way to OUTPUT.jsonl, leaves out what is there, and writes a table of all to OUTPUT.md.
The encoders are small, with every kind of block; batch, height and width are dynamic. A minute or two of one core a
row. Ways: onnxruntime; program and strict, the program of torch.export that ONNX is made of and the one of its strict
mode; aotinductor, which needs a C++ compiler. A failure is a row too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from experiments.records.results import provenance
from tests import export_models as models
from tests.benchmarks.common import versions

STRIDES = {
    "Unet": (32, 16, 8),
    "DeepLabV3Plus": (16, 8),
    "UPerNet": (32, 16, 8),
    "FPN": (32,),
    "PAN": (32, 16),
    "Segformer": (32, 16, 8),
}
WAYS = {
    "onnxruntime": "ONNX Runtime",
    "program": "torch.export",
    "strict": "torch.export, strict",
    "aotinductor": "AOTInductor",
}


def run_way(way: str, program: ExportedProgram) -> Callable[[Tensor], Tensor]:
    """What runs an exported program."""
    if way == "onnxruntime":
        return models.in_onnxruntime(program)
    if way == "aotinductor":
        folder = tempfile.mkdtemp()
        return models.in_aotinductor(program, Path(folder) / "model.pt2")
    return program.module()


def measure(decoder: str, stride: int, version: str, way: str) -> dict[str, Any]:
    """A row: the largest difference from eager, and processor seconds of the export and of what follows."""
    row: dict[str, Any] = {
        "kind": "export",
        "decoder": decoder,
        "output_stride": stride,
        "version": version,
        "way": way,
    }
    # Programs of torch.export check sizes, and refuse grids of one token; ONNX files do neither.
    sizes = [size for size in models.sizes(decoder) if way == "onnxruntime" or min(size[1:]) > 32]
    row |= {"sizes": sizes, "error": None}
    model = models.build_model(decoder, stride, version)
    try:
        start = time.process_time()
        with torch.no_grad():
            program = models.export(decoder, model, strict=way == "strict")
            exported = time.process_time()
            run = run_way(way, program)
        row |= {"export_cpu_s": round(exported - start, 1), "convert_cpu_s": round(time.process_time() - exported, 1)}
        row["largest_difference"] = float(f"{models.largest_difference(model, run, sizes):.2g}")
    except Exception as error:
        (*_, said) = str(error).strip().splitlines() or [""]
        row["error"] = f"{type(error).__name__}: {said[:200]}"
    return row | provenance(torch.device("cpu")) | versions()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each model, a column for each way that was run."""
    run = [way for way in WAYS if any(row["way"] == way for row in rows)]
    lines = [
        "# Exported models against eager code",
        "",
        "Largest differences of the output, in float32, over the sizes that the rows name; the first was traced.",
        "Empty: not run. Small encoders with random weights, v1 of Swin V1 and v2 of Swin V2. The last two columns are",
        "CPU seconds of the export and of the translation to ONNX.",
        "",
        f"| decoder | output stride | encoder | {' | '.join(WAYS[way] for way in run)} | export, s | to ONNX, s |",
        "|---|---:|---|" + "---:|" * (len(run) + 2),
    ]
    found = {(row["decoder"], row["output_stride"], row["version"], row["way"]): row for row in rows}
    for decoder, stride, version in dict.fromkeys(key[:3] for key in found):
        ways = {way: found.get((decoder, stride, version, way)) for way in run}
        shown = [
            "" if row is None else "fails" if row["error"] else f"{row['largest_difference']:.1e}"
            for row in ways.values()
        ]
        onnx = ways.get("onnxruntime") or {}
        seconds = [str(onnx.get(key, "")) for key in ("export_cpu_s", "convert_cpu_s")]
        lines.append(f"| {' | '.join([decoder, str(stride), version, *shown, *seconds])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["onnxruntime", "strict"])
    parser.add_argument("--decoders", nargs="+", choices=list(STRIDES), default=list(STRIDES))
    parser.add_argument("--versions", nargs="+", choices=list(models.CONFIGS), default=list(models.CONFIGS))
    options = parser.parse_args()
    file = options.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["decoder"], row["output_stride"], row["version"], row["way"]) for row in rows}
    for way in options.ways:
        for version in options.versions:
            for decoder in options.decoders:
                for stride in STRIDES[decoder]:
                    if (decoder, stride, version, way) in done:
                        continue
                    rows.append(measure(decoder, stride, version, way))
                    with file.open("a") as stream:
                        stream.write(json.dumps(rows[-1]) + "\n")
                    print(rows[-1], flush=True)
    options.output.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
