"""The pictures of a folder: which there are, how they are read, and at what size a model sees them."""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")
# The most pixels that a picture may have, read or enlarged: Pillow's limit, above which it takes a file for an attack.
MOST_PIXELS = 2 * (1024**3 // 4 // 3)


class PictureError(ValueError):
    """A picture that cannot be predicted; the message goes on after its name."""


@dataclass(frozen=True)
class Scaling:
    """At what size a model sees a picture: one of three rules; none of them leaves the picture as it is.

    short_side: the shorter side is brought to this many pixels, the aspect is kept. size: height and width, whatever
    the aspect.
    """

    short_side: int | None = None
    size: tuple[int, int] | None = None

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the model sees of a picture of this height and width.

        Raises:
            PictureError: the picture would have to be enlarged beyond MOST_PIXELS.
        """
        if self.size is not None:
            return self.size
        if self.short_side is None:
            return height, width
        factor = self.short_side / min(height, width)
        scaled = max(1, round(height * factor)), max(1, round(width * factor))
        if scaled[0] * scaled[1] > MOST_PIXELS:
            raise PictureError(
                f"is {height}x{width}: with a shorter side of {self.short_side} it would have {scaled[0]}x{scaled[1]} "
                f"pixels, more than {MOST_PIXELS}; --native predicts it as it is"
            )
        return scaled


def find_pictures(images: Path, output: Path) -> dict[str, Path]:
    """JPEG and PNG files by name, sorted: images itself, or all in that folder and its sub-folders.

    A name is the path within the folder without suffix, with forward slashes. What begins with a dot is left out, and
    so is output, which may lie inside the folder. Links to files are followed, links to folders are not.

    Raises:
        FileNotFoundError: images does not exist; other OSErrors where a sub-folder cannot be read.
        ValueError: no picture, a file of another suffix, two pictures of one name, or images inside output.
    """
    kinds = ", ".join(SUFFIXES)
    root, outside = images.resolve(), output.resolve()
    if root.is_relative_to(outside):
        raise ValueError(f"IMAGES must not lie inside --output, got {images} and {output}")
    if images.is_file():
        if images.suffix.lower() not in SUFFIXES:
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
        yield from (at / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)


def by_size(paths: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The same pictures with those of one size together, so that they can share batches."""
    return sorted(paths, key=lambda item: (_stored_size(item[1]), item[0]))


def _stored_size(path: Path) -> tuple[int, int]:
    """Width and height in the file's header. It only sorts: what has no readable header is reported on reading."""
    try:
        with _open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of MOST_PIXELS is no attack here
        return Image.open(path, formats=FORMATS)


def read_picture(path: Path) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says; transparency is dropped.

    Raises:
        PictureError: no JPEG or PNG, unreadable, cut off, of other than 8 bits a channel, or beyond MOST_PIXELS.
    """
    try:
        with _open(path) as picture:
            picture.load()  # open() reads the header only: a truncated file shows itself here
            if picture.mode.startswith(("I", "F")):
                raise PictureError(f"must have 8 bits a channel, is mode {picture.mode}")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError as error:
        raise PictureError("is not a JPEG or PNG image") from error
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise PictureError(f"cannot be read: {error}") from error
