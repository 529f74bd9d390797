"""Pictures of a folder: which there are, how they are read, what a model sees of them, and the files of a prediction.

Shapes: K classes, H W pixels of a picture, h w of what the model saw of it.
"""

import errno
import html
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from experiments.data.folder import IMAGES
from experiments.data.reading import FORMATS, printable
from experiments.records.files import write_whole
from experiments.records.options import Size

KINDS = ("masks", "overlays", "confidence")
# The most pixels that a picture may be enlarged to: a few rows that are very long would become an enormous image.
MOST_ENLARGED = 2**24
# What a file system says of a name that it cannot have, which says nothing about the next one.
BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

Bytes = NDArray[np.uint8]
Colors = tuple[tuple[int, int, int], ...]


class PictureError(ValueError):
    """A picture that cannot be predicted; the message goes on after its name."""


def find_pictures(images: Path, output: Path) -> dict[str, Path]:
    """Files with the suffix of a picture by name, sorted: images itself, or all in that folder and its sub-folders.

    A name is the path within the folder without suffix, with forward slashes. What begins with a dot is left out, and
    so is output, which may lie inside the folder. Links to files are followed, links to folders are not.

    Raises:
        FileNotFoundError: images does not exist; other OSErrors where a sub-folder cannot be read.
        ValueError: no picture, a file of another suffix, two pictures of one name, or images inside output.
    """
    kinds = ", ".join(IMAGES)
    root, outside = images.resolve(), output.resolve()
    if root.is_relative_to(outside):
        raise ValueError(f"IMAGES must not lie inside --output, got {images} and {output}")
    if images.is_file():
        if images.suffix.lower() not in IMAGES:
            raise ValueError(f"IMAGES must be a folder or a file with suffix {kinds}, got {images}")
        return {images.stem: images}
    if not images.is_dir():
        raise FileNotFoundError(f"IMAGES must be a folder or a file, got {images}, which does not exist")
    found: dict[str, list[Path]] = {}
    for path in sorted(_walk(root, outside)):
        found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise ValueError(f"IMAGES must hold files with suffix {kinds}, got {images}, which has none")
    clashes = [" and ".join(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if clashes:
        shown = "; ".join(clashes[:5]) + ("; ..." if len(clashes) > 5 else "")
        raise ValueError(f"IMAGES must differ in more than their suffix, got {shown} in {images}: rename some")
    return {name: images / path.relative_to(root) for name, (path,) in found.items()}


def _walk(root: Path, excluded: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(root, onerror=fail):
        at = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".") and at / name != excluded]
        yield from (at / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGES)


def stored_size(path: Path) -> Size:
    """Width and height by the header, to sort by; (0, 0) where there is none, which read_picture reports."""
    try:
        with _open(path) as picture:
            return picture.size
    except Exception:  # see read_picture
        return 0, 0


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():  # opening a pipe or a device would wait for ever
        raise PictureError("is not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that is refused
        return Image.open(path, formats=FORMATS)


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says; transparency is dropped.

    Raises:
        PictureError: no regular file, of none of FORMATS, damaged, of other than 8 bits a channel, or so large that
            Pillow takes it for an attack.
    """
    try:
        with _open(path) as picture:
            picture.load()  # open() reads the header only: a truncated file shows itself here
            if picture.mode.startswith(("I", "F")):
                raise PictureError(f"must have 8 bits a channel, is mode {picture.mode}")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"is not an image ({', '.join(FORMATS)})") from error
    except Exception as error:  # decoders of damaged or hostile files raise nearly anything
        raise PictureError(f"cannot be read: {error}") from error


def enlarged(height: int, width: int, short_side: int) -> Size:
    """Height and width with the shorter side brought to short_side pixels.

    Raises:
        PictureError: the picture would be enlarged beyond MOST_ENLARGED.
    """
    factor = short_side / min(height, width)
    scaled = max(1, round(height * factor)), max(1, round(width * factor))
    if factor > 1 and scaled[0] * scaled[1] > MOST_ENLARGED:
        raise PictureError(
            f"is {height}x{width}: with a shorter side of {short_side} it would have {scaled[0]}x{scaled[1]} pixels, "
            f"more than {MOST_ENLARGED}; --native predicts it as it is"
        )
    return scaled


def full_resolution(probabilities: Tensor, height: int, width: int) -> tuple[Bytes, Bytes]:
    """The most probable class of each pixel and 255 times its probability, rounded; both (H, W) uint8.

    probabilities: (K, h, w) float32, brought to H W pixels bilinearly (antialiased where it shrinks). Of equal classes
    the first wins. One class at a time is at full resolution, so that memory does not grow with K.

    Raises:
        PictureError: a probability is not finite.
    """
    if not probabilities.isfinite().all():
        raise PictureError("got probabilities that are not finite from the model")
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
        PictureError: the file system cannot have a name. OSError: a file cannot be written.
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
                raise PictureError(f"has a name that --output cannot have: {error.strerror}") from error
            raise


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Prediction</title>
<style>:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }} body {{ margin: 1.5rem; }}
ul, main {{ display: flex; flex-wrap: wrap; gap: .4rem 1rem; padding: 0; list-style: none; }}
i {{ display: inline-block; width: 1em; height: 1em; margin-right: .4em; outline: 1px solid #8888; }}
figure {{ margin: 0; width: 20rem; overflow-wrap: anywhere; }} img {{ width: 100%; display: block; }}
</style></head><body><ul>{legend}</ul><main>{figures}</main></body></html>
"""


def index_page(names: Iterable[str], class_names: Iterable[str], colors: Colors) -> str:
    """HTML: the classes with their colours, and of each picture the overlay, with links to its files."""
    legend = [
        f'<li><i style="background:#{red:02x}{green:02x}{blue:02x}"></i>{html.escape(printable(name))}</li>'
        for name, (red, green, blue) in zip(class_names, colors, strict=True)
    ]
    figures = []
    for name in names:
        # By its bytes: a name need not be UTF-8.
        mask, overlay, confidence = (quote(os.fsencode(f"{kind}/{name}.png")) for kind in KINDS)
        figures.append(
            f'<figure><a href="{overlay}"><img src="{overlay}" alt="" loading="lazy"></a><figcaption>'
            f'{html.escape(printable(name))}: <a href="{mask}">mask</a>, <a href="{confidence}">confidence</a>'
            "</figcaption></figure>"
        )
    return PAGE.format(legend="\n".join(legend), figures="\n".join(figures))
