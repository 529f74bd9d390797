"""Markdown table of a pytest-benchmark JSON file written by bench_encoder.py.

python tests/benchmarks/encoder_table.py encoder.json
"""

import json
import sys
from pathlib import Path


def table(path: Path) -> str:
    content = json.loads(path.read_text())
    cpu = content["machine_info"]["cpu"]
    commit = content["commit_info"]
    lines = [
        f"{cpu.get('brand_raw', 'unknown processor')}, {cpu.get('count')} cores, "
        f"Python {content['machine_info']['python_version']}, "
        f"torch {content['benchmarks'][0]['extra_info']['torch']}, "
        f"commit {commit['id'][:9]}{' (changed)' if commit['dirty'] else ''}, {content['datetime'][:10]}",
        "",
        "| what | dtype | image | threads | baseline ms | ms | ratio | baseline MB | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        lines.append(
            f"| {info['what']} | {info['dtype']} | {info['size']}² | {info['threads']} | {info['baseline_ms']:.0f} "
            f"| {1e3 * entry['stats']['median']:.0f} | **{info['ratio']:.2f}** "
            f"| {_megabytes(info['baseline_mb'])} | {_megabytes(info['mb'])} |"
        )
    return "\n".join(lines)


def _megabytes(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
