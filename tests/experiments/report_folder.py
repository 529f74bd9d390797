"""Folders of rows and side files as comparisons leave them, with round numbers."""

import json
from pathlib import Path

from PIL import Image

from experiments.records import Row, append_row

CLASSES = ("road", "pole <thin>", "rare")
CURVE = {"step": [1.0, 2.0, 3.0], "loss": [2.0, 1.5, 1.0]}


def row(decoder: str, seed: int = 0, test: float = 50.0, **changes: object) -> Row:
    """A finished row with round numbers."""
    result: Row = {
        "kind": "segmentation",
        "cell": f"swinx_n-inline-{decoder}-os{changes.get('output_stride', 32)}-{changes.get('stem')}-seed{seed}",
        "status": "ok",
        "error": None,
        "encoder": "swinx_n",
        "decoder": decoder,
        "output_stride": 32,
        "stem": "inline",
        "seed": seed,
        "data": "toy",
        "steps": 20,
        "minutes": None,
        "batch_size": 2,
        "precision": "32",
        "threads": 1,
        "images_seen": 40,
        "train_minutes": 1.5,
        "val_miou": test + 1,
        "test_miou": test,
        "thin_miou": None,
        "class_iou": {"road": test, "pole <thin>": test / 2, "rare": None},
        "pixel_accuracy": 80.0,
        "params_m": 4.0,
        "gflops": 2.0,
        "latency_ms_p20": 10.0,
        "latency_ms_p50": 11.0,
        "latency_ms_p80": 13.0,
        "peak_memory_mb": 1234.0,
        "peak_memory_scope": "resident set during the cell",
        "commit": "0123456789abcdef",
        "dirty": False,
        "command": "python -m experiments.compare_decoders --data 'a&b'",
        "time": "2026-01-01T00:00:00+00:00",
        "host": "processor, 2 CPU cores",
        "python": "3.12",
        "torch": "2.14",
        "swinx": "0.1.0",
    }
    return result | changes


def folder(path: Path, rows: list[Row]) -> Path:
    """An output folder with these rows and the side files they need."""
    data = {
        "name": "toy",
        "note": "a <note>",
        "class_names": CLASSES,
        "colors": [[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 9]],
        "thin_classes": [1],
        "images": {"train": 7, "val": 3, "test": 5},
        "height": 64,
        "width": 64,
        "panel": ["one", "two"],
    }
    for number in range(2):
        for name in ("image", "truth"):
            picture(path / "panel" / f"{number:02}_{name}.png")
    (path / "panel" / "data.json").write_text(json.dumps(data))
    for item in rows:
        append_row(path / "results.jsonl", item)
        if item["status"] == "ok":
            for number in range(2):
                picture(path / "cells" / item["cell"] / f"{number:02}.png")
            (path / "cells" / f"{item['cell']}.json").write_text(json.dumps(CURVE))
    return path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def add_counts(path: Path, cell: str, hits: list[list[int]], truth: int = 100) -> None:
    """The counts of each test image: truth and predicted pixels of each class, hits of (N, K) of them."""
    totals = [[truth] * len(line) for line in hits]
    counts = {"names": [f"image {i}" for i in range(len(hits))], "class_names": CLASSES[: len(hits[0])]}
    content = json.dumps({**counts, "hits": hits, "truth": totals, "predicted": totals})
    (path / "cells" / cell).mkdir(parents=True, exist_ok=True)
    (path / "cells" / cell / "images.json").write_text(content)
