"""Runs the snippets of pages, in order, each page in a folder and a process of its own.

python snippets.py PAGE ... prints a JSON object of the pages that failed, with what went wrong.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

import swinx  # registers its encoders
from swinx.__main__ import main as swinx_command
from swinx.checkpoint_tools import convert_checkpoint

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONAL = ("lightning",)  # installed neither with swinx nor for its tests


def snippets(page: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and first line of each block of a Markdown page; of a notebook each cell of code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"]):
            if cell["cell_type"] == "code":
                yield "python", "".join(cell["source"]), number
        return
    for match in BLOCK.finditer(text):
        yield match[1], match[2], text[: match.start(2)].count("\n") + 1


def official(path: Path) -> None:
    source = path.with_name("ours.safetensors")
    save_file(smp.encoders.get_encoder("swinx_t", weights=None).state_dict(), source)
    convert_checkpoint(source, path, "official")


def registered_by_hand(path: Path) -> None:
    """With the names of the official segmentation code: the merge before stage i + 1 is at the end of stage i."""
    model = smp.PAN("swinx_t", encoder_weights=None, encoder_output_stride=32, classes=11)
    old: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        stage = re.match(r"encoder\.layers\.(\d)\.downsample", name)
        name = name.replace(f"layers.{stage[1]}", f"layers.{int(stage[1]) - 1}") if stage else name
        old[re.sub(r"^encoder\.norms\.", "encoder.norm", name)] = value
    torch.save(old, path)


def tu_swin(path: Path) -> None:
    model = smp.Unet("tu-swin_tiny_patch4_window7_224", encoder_weights=None, classes=11)
    torch.save(model.state_dict(), path)


def classifier(path: Path) -> None:
    torch.save({"state_dict": timm.create_model("swinx_t", stem="inline").state_dict()}, path)


# Files that pages speak of as the reader's own; here with random weights.
FILES = {
    "swin_tiny_patch4_window7_224.pth": official,
    "old_model.pth": registered_by_hand,
    "tu_swin_model.pth": tu_swin,
    "output/train/RUN/model_best.pth.tar": classifier,
}


def run_page(page: Path, failures: Any) -> None:
    """Run all snippets of a page in one namespace."""
    line = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, write in FILES.items():
            if f'"{name}"' in page.read_text():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                write(Path(folder) / name)
        os.chdir(folder)
        try:
            names: dict[str, Any] = {"__name__": "__main__"}
            for language, text, line in snippets(page):
                if any(f"import {module}" in text and not importlib.util.find_spec(module) for module in OPTIONAL):
                    continue
                if language == "python":
                    exec(compile(text, f"{page.name}, block at {line}", "exec"), names)
                    continue
                for command in text.replace("\\\n", " ").splitlines():
                    words = shlex.split(command, comments=True)
                    if words[:3] == ["python", "-m", "swinx"] and swinx_command(words[3:]):
                        raise RuntimeError(f"{command} failed")
        except BaseException:  # SystemExit of a command too
            failures[str(page)] = f"{page.name}, block at {line}\n{traceback.format_exc()}"


def main(pages: list[str]) -> None:
    os.environ["MPLBACKEND"] = "agg"
    torch.set_num_threads(1)  # threads do not survive a fork
    context = multiprocessing.get_context("fork")  # once imported, torch and smp are there for every page
    failures = context.Manager().dict()
    for page in pages:
        process = context.Process(target=run_page, args=(Path(page), failures))
        process.start()
        process.join()
        if process.exitcode:
            failures[page] = f"{page} ended with status {process.exitcode}"
    print(json.dumps(dict(failures)))


if __name__ == "__main__":
    assert swinx.__file__
    main(sys.argv[1:])
