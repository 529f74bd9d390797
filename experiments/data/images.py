"""Image files, decoded: what a file holds is not believed, and nothing is waited for."""

import contextlib
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")  # as PIL calls them; the suffix of a file does not count


class ImageError(ValueError):
    """An image that cannot be used; the message goes on after its name."""


def read_image(path: Path, *, mode: str | None = "RGB", upright: bool = False) -> Image.Image:
    """The image in this mode of Pillow, None for that of its file; turned as its EXIF orientation says if upright.

    Raises:
        ImageError: no regular file, of none of FORMATS, damaged, of other than 8 bits a channel (as to grey of 2 or 4
            bits: in the mode of its file), or so large that Pillow takes it for an attack.
    """
    try:
        with _open(path) as image:
            stored = " ".join(str(args) for *_, args in image.tile)  # RGB;16B, of which Pillow keeps half
            image.load()  # open() reads the header only: a truncated file shows itself here
            if image.mode.startswith(("I", "F")):
                raise ImageError(f"must have 8 bits a channel, is mode {image.mode}")
            if deep := re.search(r"\w+;16[BLNS]", stored):
                raise ImageError(f"must have 8 bits a channel, is {deep.group()}")
            if mode is None and (shallow := re.search(r"\bL;[24]", stored)):
                raise ImageError(
                    f"must have 8 bits a pixel, is {shallow.group()}: Pillow spreads its values over 0 to 255"
                )
            turned = ImageOps.exif_transpose(image) if upright else image
            return turned.convert(mode) if mode else turned
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"is not an image ({', '.join(FORMATS)})") from error
    except Exception as error:  # decoders of damaged or hostile files raise nearly anything
        raise ImageError(f"cannot be read: {error}") from error


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width by the header; (0, 0) where there is none, which read_image reports."""
    with contextlib.suppress(Exception), _open(path) as image:
        return image.height, image.width
    return 0, 0


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():  # opening a pipe or a device would wait for ever
        raise ImageError("is not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that is refused
        return Image.open(path, formats=FORMATS)
