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
