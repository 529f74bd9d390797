"""Runs folders as comparisons leave them, made from a few numbers: N images, K classes, R boundary bands."""

import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy
from PIL import Image

from experiments.execution.runs import Source
from experiments.records.counts import ImageCounts, miou, pack
from experiments.records.grid import Run
from experiments.records.results import RESULT_FIELDS, Row, append_rows
from experiments.records.settings import Settings
from experiments.reporting.content import Content, gather
from experiments.reporting.load import read

CLASSES = ("road", "$<b>|&%", "rare")
BANDS = ("1", "2", "3", "0.75%")
PIXELS = 10**6
COMMAND = "python -m experiments.compare_decoders --data 'a&b' --seeds 0 --output runs/x"


def row(decoder: str, seed: int = 0, test: float = 50.0, *, steps: int = 20, **changes: object) -> Row:
    """A finished row with round numbers; changes of Run's fields change its name as well."""
    axes = {"encoder": "swinx_n", "stem": "inline", "decoder": decoder, "output_stride": 32, "seed": seed}
    run = Run(**(axes | {name: value for name, value in changes.items() if name in Run.__dataclass_fields__}))
    settings = Settings("toy", "x", 64, 80, steps, 2, "32", "cpu")
    result: Row = {
        **{"kind": "segmentation", "run": run.id, **asdict(run), **settings.as_row(), **dict.fromkeys(RESULT_FIELDS)},
        **{"commit": "0123456789abcdef", "dirty": False, "command": COMMAND, "time": "2026-01-01T00:00:00+00:00"},
        **{"host": "processor, 2 CPU cores", "cpu_capability": "AVX2", "python": "3.12", "torch": "2.14", "smp": "0.6"},
        **{"timm": "1.0", "numpy": "2.4", "swinx": "0.2", "threads": 1, "world_size": 1, "latency_sitting": "one"},
        **{"status": "ok", "error": None, "step": steps, "source": None, "images_seen": 2 * steps},
        **{
            "test_miou": test,
            "val_miou": test + 1,
            "class_iou": dict(zip(CLASSES, (test, test / 2, None), strict=True)),
        },
        **{"boundary_f1": dict(zip(BANDS, (20.0, 30.0, 35.5, None), strict=True)), "pixel_accuracy": 80.0},
        **{"params_m": 4.0, "gflops": 2.0, "peak_memory_mb": 1234.0, "train_minutes": 1.5},
        **{"latency_ms_p20": 10.0, "latency_ms_p50": 11.0, "latency_ms_p80": 13.0},
    }
    return result | changes


def again(trained: Row, **changes: object) -> Row:
    """The row of an evaluation of trained's weights."""
    return trained | {"source": summary(trained), "trained": False, "time": "2026-01-03T00:00:00+00:00"} | changes


def summary(trained: Row) -> Row:
    """What rows of trained's weights say of it."""
    return Source(trained, Path()).summary


def image_counts(item: Row, images: int = 24, spread: float = 4.0, classes: Sequence[str] = CLASSES) -> ImageCounts:
    """Counts whose mean IoU is test_miou: images are as hard for one row as for the other, but for some noise.

    PIXELS of the truth and of the prediction for each image and class; IoU = hits / (2 PIXELS - hits), over all images
    that of the row. The last class is in no image.
    """
    hard = numpy.random.default_rng(0).normal(0, 8, (images, len(classes)))
    own = numpy.random.default_rng(zlib.crc32(json.dumps([item["run"], item["step"]]).encode()))
    iou = (item["test_miou"] + hard + own.normal(0, spread, hard.shape)).clip(1, 99) / 100
    hits = 2 * PIXELS * iou / (1 + iou)
    wanted = 2 * PIXELS * item["test_miou"] / (100 + item["test_miou"])
    hits = (hits * wanted / hits.mean(0)).clip(0, PIXELS).round().astype(int)
    truth = numpy.full_like(hits, PIXELS)
    hits[:, -1] = truth[:, -1] = 0
    names = tuple(f"image {i}" for i in range(images))
    return ImageCounts(names, names, tuple(classes), hits, truth, truth.copy())


def folder(path: Path, rows: Sequence[Row], counts: Sequence[ImageCounts | None] = ()) -> Path:
    """A runs folder with these rows and what belongs to them; counts: of each row, which gets their score, else
    image_counts of it."""
    scores = [one and float(miou(one.hits.sum(0), one.union.sum(0))) for one in counts]
    known = [{} if x is None else {"test_miou": None if math.isnan(x) else round(x, 3)} for x in scores]
    rows = [item | score for item, score in zip(rows, known or [{}] * len(rows), strict=True)]
    classes = next(tuple(item["class_iou"]) for item in [*rows, row("FPN")] if item["class_iou"])
    data = {
        **{"name": "toy", "note": "a <note>", "images": "7 train, 3 val, 24 test", "class_names": classes},
        **{"examples": ["one", "two"], "left_out": ["a.png: broken"]},
        "colors": [f"#{60 * k % 256:02x}{200 - 15 * k:02x}40" for k in range(len(classes))] + ["#090909"],
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    for number in range(2):
        for name in ("image", "truth"):
            picture(path / "examples" / f"{number:02}_{name}.png", len(classes))
    append_rows(path / "results.jsonl", rows)
    for item, found in zip(rows, counts or [None] * len(rows), strict=True):
        if item["status"] != "ok":
            continue
        own = path / "runs" / item["run"]
        for number in range(2):
            picture(own / f"{number:02}.png", len(classes))
        for kind in ("worst", "best"):
            for number in (1, 2):
                picture(own / f"extreme_{kind}{number}.png", len(classes), width=240)
        arrays = (found or image_counts(item, classes=classes)).arrays()
        steps = numpy.arange(1.0, item["step"] + 1)
        arrays |= {"loss_step": steps, "loss": 2 / steps**0.5, "val_step": steps[::5]}
        arrays["val_miou"] = (item["test_miou"] or 0) * (1 - 1 / (1 + steps[::5]))
        (own / f"step{item['step']}.npz").write_bytes(pack(arrays))
    return path


def content_of(path: Path, rows: list[Row], contrasts: tuple[str, ...] = (), **options: bool) -> Content:
    """What a report of rows has."""
    return gather(read([folder(path, rows)]), contrasts, **options)


def picture(path: Path, classes: int, width: int = 80) -> None:
    """A PNG file of bands of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = numpy.add.outer(numpy.arange(64) // 8, numpy.arange(width) // 10) % classes
    image = Image.fromarray((pixels * (255 // classes)).astype(numpy.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())
