"""What a row has beside its numbers: counts of every test image, and the curves of training, in one .npz file.

Shapes: N images, K classes, R bands of the boundary F-score, T points of a curve.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

Counts = NDArray[numpy.int64]
Floats = NDArray[numpy.float64]
Arrays = dict[str, NDArray[Any]]

# No file of ours comes near: a few hundred images of some twenty classes take one megabyte.
MOST_BYTES = 2 * 1024**3


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixels per image and class, ignored ones left out: any score of any set of images follows from them.

    names: N, each once. groups: N, what each image belongs to. class_names: K. hits (N, K) are right, truth are of the
    class, predicted are said to be. confusion: (N, K, K), rows truth, columns prediction; None where it was not kept.
    boundary: (N, K, R) F-scores 0..1, NaN where there is none to score, by bands; None where it was not kept.

    Raises:
        ValueError: names that repeat, sizes that do not fit, or counts that cannot be; the message says which.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    class_names: tuple[str, ...]
    hits: Counts
    truth: Counts
    predicted: Counts
    confusion: Counts | None = None
    boundary: Floats | None = None
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.class_names))
        if len(set(self.names)) < len(self.names) or len(self.groups) != len(self.names):
            raise ValueError("names of images must differ, and each image must have one group")
        expected = {"hits": shape, "truth": shape, "predicted": shape}
        expected |= {"confusion": (*shape, shape[1]), "boundary": (*shape, len(self.bands))}
        for name, wanted in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != wanted:
                raise ValueError(f"{name} must have the shape {wanted}, got {array.shape}")
        if (self.hits < 0).any() or (self.hits > numpy.minimum(self.truth, self.predicted)).any():
            raise ValueError("hits must lie between 0 and both truth and predicted")

    @property
    def union(self) -> Counts:
        """Pixels (N, K) of the truth or the prediction: IoU = hits / union."""
        return self.truth + self.predicted - self.hits

    def arrays(self) -> Arrays:
        """The fields as arrays; those that are None are left out."""
        return {name: numpy.array(value) for name, value in vars(self).items() if value is not None}


# Fields by the kinds of numpy's types that they may have in a file.
TEXTS, WHOLE = ("names", "groups", "class_names"), ("hits", "truth", "predicted", "confusion")
KINDS = dict.fromkeys(TEXTS, "U") | dict.fromkeys(WHOLE, "fiu") | {"boundary": "fiu", "bands": "Uf"}


def counts_of(arrays: Mapping[str, NDArray[Any]]) -> ImageCounts:
    """The counts in the arrays of a file.

    Raises:
        ValueError: a field is missing or has the wrong type, and what ImageCounts refuses.
    """
    found: dict[str, Any] = {name: array for name, array in arrays.items() if name in KINDS}
    if missing := [name for name in (*TEXTS, *WHOLE[:3]) if name not in found]:
        raise ValueError(f"lacks {', '.join(missing)}")
    for name, array in found.items():
        if array.dtype.kind not in KINDS[name]:
            raise ValueError(f"{name} has the type {array.dtype}")
        texts = name in (*TEXTS, "bands")
        with numpy.errstate(invalid="ignore"):  # what is not finite becomes negative, and is refused
            found[name] = tuple(map(str, array)) if texts else array.astype(int if name in WHOLE else float)
    return ImageCounts(**found)


def miou(hits: NDArray[Any], union: NDArray[Any]) -> Floats:
    """Mean IoU in percent, (R,), of summed counts (R, K); also () of (K,).

    A class whose union is 0 is absent and left out of the mean; NaN where all are.
    """
    present = union > 0
    iou = numpy.divide(hits, union, out=numpy.zeros(union.shape), where=present)
    number = present.sum(-1)
    mean: Floats = numpy.divide(100 * iou.sum(-1), number, out=numpy.full(number.shape, numpy.nan), where=number > 0)
    return mean


def pack(arrays: Arrays) -> bytes:
    """The arrays as the content of an .npz file, as small as their values allow."""
    buffer = io.BytesIO()
    small = {name: _narrow(array) for name, array in arrays.items()}
    numpy.savez_compressed(buffer, **small)  # type: ignore[arg-type]  # its stub takes the names for its own options
    return buffer.getvalue()


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "i" and array.size and array.min() >= 0 and array.max() < 2**32:
        return array.astype(numpy.uint32)
    return array.astype(numpy.float32) if array.dtype == numpy.float64 and array.ndim == 3 else array


def unpack(content: bytes) -> Arrays:
    """The arrays of an .npz file. Nothing in it is run as code.

    Raises:
        ValueError: it is no such file, is damaged, holds objects, or would need more than MOST_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if (size := sum(entry.file_size for entry in entries)) <= MOST_BYTES:
                return {entry.filename.removesuffix(".npy"): _array(archive.read(entry)) for entry in entries}
    except Exception as error:  # zipfile, zlib and numpy raise errors of a dozen kinds where bytes are damaged
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(f"is not an .npz file, or is damaged ({why})") from error
    raise ValueError(f"would take {size} bytes, more than {MOST_BYTES}")


def _array(content: bytes) -> NDArray[Any]:
    """The array of an .npy file. Its header is checked before memory is taken for what it claims."""
    file = io.BytesIO(content)
    headers = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
    shape, _, dtype = headers[numpy.lib.format.read_magic(file)](file)
    claimed, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if not dtype.hasobject and (claimed != there or min(shape, default=0) < 0 or not dtype.itemsize):
        raise ValueError(f"an array of shape {shape} and type {dtype} does not take {there} bytes")
    file.seek(0)
    array: NDArray[Any] = numpy.lib.format.read_array(file, allow_pickle=False)
    return array
