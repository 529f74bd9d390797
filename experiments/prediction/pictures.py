"""Pictures of a folder: which there are, at what size a model sees them, and the files of a prediction.

Shapes: K classes, H W pixels of a picture, h w of what the model saw of it.
"""

import errno
import io
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from experiments.data.folder import IMAGES
from experiments.data.images import ImageError
from experiments.records.files import write_whole

KINDS = ("masks", "overlays", "confidence")
# What a file system says of a name that it cannot have, which says nothing about the next one.
BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

Bytes = NDArray[np.uint8]
Colors = tuple[tuple[int, int, int], ...]


def find_pictures(images: Path, output: Path) -> dict[str, Path]:
    """Files with the suffix of a picture by name, sorted: images itself, or all in that folder and its sub-folders.

    A name is the path within the folder without suffix, with forward slashes. What begins with a dot is left out, and
    so is output, which may lie inside the folder. Links to files are followed, links to folders are not.

    Raises:
        OSError: images does not exist, or a sub-folder cannot be read.
        ValueError: no picture, a file of another suffix, two pictures of one name, or images inside output.
    """
    if images.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"IMAGES must not lie inside --output, got {images} and {output}")

    def fail(error: OSError) -> NoReturn:
        raise error

    walk, root = os.walk(images, onerror=fail), images.parent if images.is_file() else images
    files = [images] if images.is_file() else sorted(Path(at, name) for at, _, names in walk for name in names)
    found: dict[str, Path] = {}
    for path in files:
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in IMAGES or path.parent.resolve().is_relative_to(output.resolve()):
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"IMAGES must differ in more than their suffix, got {found[name]} and {path}: rename one")
        found[name] = path
    if not found:
        raise ValueError(f"IMAGES must be or hold files with suffix {', '.join(IMAGES)}, got {images}")
    return found


def full_resolution(probabilities: Tensor, height: int, width: int) -> tuple[Bytes, Bytes]:
    """The most probable class of each pixel and 255 times its probability, rounded; both (H, W) uint8.

    probabilities: (K, h, w) float32, brought to H W pixels bilinearly (antialiased where it shrinks). Of equal classes
    the first wins. One class at a time is at full resolution, so that memory does not grow with K.

    Raises:
        ImageError: a probability is not finite.
    """
    if not probabilities.isfinite().all():
        raise ImageError("got probabilities that are not finite from the model")
    ids = torch.zeros(height, width, dtype=torch.uint8, device=probabilities.device)
    best = torch.full((height, width), -1.0, device=probabilities.device)
    for index, plane in enumerate(probabilities):
        if plane.shape != (height, width):
            plane = functional.interpolate(plane[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
        ids.masked_fill_(plane > best, index)
        best = torch.maximum(best, plane)
    return ids.cpu().numpy(), (255 * best).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def result(output: Path, kind: str, name: str) -> Path:
    """The file of a picture of one of KINDS."""
    return output / kind / f"{name}.png"


def write_results(output: Path, name: str, picture: Image.Image, ids: Bytes, confidence: Bytes, colors: Colors) -> None:
    """Write the three files of a picture, each whole or not at all. ids and confidence are (H, W), as the picture.

    masks: a palette picture whose pixels are the ids. overlays: the colours over the picture, half and half.

    Raises:
        ImageError: the file system cannot have a name. OSError: a file cannot be written.
    """
    mask = Image.fromarray(ids)
    mask.putpalette([channel for color in colors for channel in color])
    overlay = Image.blend(picture, mask.convert("RGB"), 0.5)
    for kind, image in zip(KINDS, (mask, overlay, Image.fromarray(confidence)), strict=True):
        buffer = io.BytesIO()
        # Level 2 takes a third of the time of Pillow's own 6 and a tenth more room.
        image.save(buffer, format="PNG", compress_level=2)
        try:
            write_whole(result(output, kind, name), buffer.getvalue())
        except OSError as error:
            if error.errno in BAD_NAME:
                raise ImageError(f"has a name that --output cannot have: {error.strerror}") from error
            raise
