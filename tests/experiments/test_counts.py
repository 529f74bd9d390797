"""Counts of test images: scores follow from sums, files hold them whole, and foreign files are refused."""

import io
import zipfile
from typing import Any

import numpy
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from experiments.records import counts
from experiments.records.counts import ImageCounts, counts_of, miou, pack, unpack


def made(**changes: Any) -> ImageCounts:
    """Five images of three classes, the last of which occurs nowhere."""
    confusion = numpy.random.default_rng(0).integers(0, 90, (5, 3, 3))
    confusion[:, 2] = confusion[:, :, 2] = 0
    values = {
        "names": tuple("abcde"),
        "groups": tuple("xxyyz"),
        "class_names": ("road", "sky <&>", "Überweg"),
        "hits": confusion.diagonal(axis1=1, axis2=2),
        "truth": confusion.sum(2),
        "predicted": confusion.sum(1),
        "confusion": confusion,
        "boundary": numpy.where(confusion[..., :2] > 40, confusion[..., :2] / 90, numpy.nan),
        "bands": ("1", "0.75%"),
    }
    return ImageCounts(**values | changes)


def test_mean_iou_is_that_of_all_pixels_over_classes_that_occur() -> None:
    given = made()
    assert given.confusion is not None
    confusion = given.confusion.sum(0)
    truth, predicted = (
        torch.from_numpy(numpy.repeat(part.ravel(), confusion.ravel())) for part in numpy.indices((3, 3))
    )
    expected = 100 * multiclass_jaccard_index(predicted, truth, 3, average="none")[:2].mean().item()
    assert miou(given.hits.sum(0), given.union.sum(0)) == pytest.approx(expected, rel=1e-6)
    assert numpy.isnan(miou(numpy.zeros(3), numpy.zeros(3)))


def test_what_is_packed_comes_back() -> None:
    given = made()
    found = counts_of(unpack(pack(given.arrays())))
    assert (found.names, found.groups, found.class_names, found.bands) == (
        given.names,
        given.groups,
        given.class_names,
        given.bands,
    )
    for name in ("hits", "truth", "predicted", "confusion"):
        numpy.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    numpy.testing.assert_allclose(found.boundary, given.boundary, rtol=1e-7)
    bare = counts_of(unpack(pack(made(confusion=None, boundary=None, bands=()).arrays())))
    assert bare.confusion is None
    assert bare.boundary is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": tuple("abcda")}, "names of images must differ"),
        ({"groups": ("x",)}, "each image must have one group"),
        ({"class_names": ("a", "b")}, r"hits must have the shape \(5, 2\), got \(5, 3\)"),
        ({"bands": ("1",)}, r"boundary must have the shape \(5, 3, 1\), got \(5, 3, 2\)"),
        ({"hits": numpy.full((5, 3), -1)}, "hits must lie between 0 and both truth and predicted"),
        ({"hits": numpy.full((5, 3), 10**6)}, "hits must lie between 0 and both truth and predicted"),
    ],
)
def test_counts_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_files_of_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = made().arrays()
    for content in (b"", b"no archive", pack(arrays)[:200]):
        with pytest.raises(ValueError, match=r"is not an .npz file, or is damaged"):
            unpack(content)
    pickled = io.BytesIO()
    numpy.savez(pickled, names=numpy.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        unpack(pickled.getvalue())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hits.npy", bytes(10**6))
    monkeypatch.setattr(counts, "MOST_BYTES", 10**5)
    with pytest.raises(ValueError, match="would take 1000000 bytes, more than 100000"):
        unpack(bomb.getvalue())
    with pytest.raises(ValueError, match="lacks truth"):
        counts_of({name: array for name, array in arrays.items() if name != "truth"})
    with pytest.raises(ValueError, match="hits has the type <U1"):
        counts_of(arrays | {"hits": numpy.array(["1"])})


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def header(shape: str, kind: str = "<f8") -> bytes:
    """An .npy file without its numbers."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header("(10000000000000,)"),
        header("(4000000000000000000, 5)"),
        header("(1" + 40 * "0" + ",)"),
        header("(-5, -1)") + bytes(40),
        header("(1000000000,)", "<U1000"),
        header("(1000000000000,)", "<U0"),
        header(200 * "("),
        header(3 * '"'),
        header("(1,)") + bytes(9),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_headers_that_claim_what_is_not_there_are_refused(content: bytes) -> None:
    """Before any memory is taken."""
    with pytest.raises(ValueError, match=r"is not an .npz file, or is damaged \("):
        unpack(zipped(hits=content))


def test_damage_anywhere_is_refused_in_one_way() -> None:
    """One to three bytes of the archive are overwritten: of its own, of compressed parts and of headers in them."""
    content, random = pack(made().arrays()), numpy.random.default_rng(3)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for at in random.integers(0, len(content), random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        try:
            counts_of(unpack(bytes(damaged)))
        except ValueError as error:
            refused += "\n" not in str(error)
    assert refused > 300
    encrypted, other_method = bytearray(content), bytearray(content)
    entry = content.rindex(b"PK\x01\x02")
    encrypted[entry + 8] |= 1
    other_method[entry + 10] = 99
    for damaged in (encrypted, other_method):
        with pytest.raises(ValueError, match=r"is not an .npz file, or is damaged"):
            unpack(bytes(damaged))
