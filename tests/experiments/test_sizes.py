"""How images and masks come to one size, masks at their own resolution, and that a set fits into memory.

Shapes: H W pixels of the tensors, h w pixels of a file.
"""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sets import H, W, labels, load_set, picture, tensor, write_pair, write_set
from torch import Tensor

from experiments.data import DataError, SegmentationData, reading

IGNORE = 255


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_set(tmp_path)


def one(tree: Path, height: int, width: int, size: tuple[int, int], fit: str, native: bool = False) -> SegmentationData:
    """The set whose test image has this height and width."""
    write_pair(tree, 5, "test/d.png", height, width)
    return load_set(tree, size=size, fit=fit, native=native)


def shrunk(image: Image.Image, height: int, width: int) -> Tensor:
    """(3, height, width) by torch's antialiased bilinear resizing."""
    return F.interpolate(tensor(image)[None].double(), (height, width), mode="bilinear", antialias=True)[0]


def assert_alike(image: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, in each of two passes."""
    assert (image.double() - expected).abs().max() <= 1


def test_pad_keeps_the_aspect_and_fills_below_with_the_mean_and_ignored_pixels(tree: Path) -> None:
    """An image of 60 x 100 pixels in 40 x 50: at half its size, 30 x 50, and ten rows of padding."""
    test = one(tree, 60, 100, (40, 50), "pad").test
    assert_alike(test.images[0, :, :30], shrunk(picture(5, 60, 100), 30, 50))
    mean = test.images[0, :, :30].double().mean((1, 2)).round()
    assert (test.images[0, :, 30:] == mean[:, None, None]).all()
    odd = labels(5, 60, 100).resize((50, 30), Image.Resampling.NEAREST)
    assert torch.equal(test.masks[0], tensor(ImageOps.pad(odd, (50, 40), color=IGNORE, centering=(0, 0))))


@pytest.mark.parametrize(("height", "width"), [(41, 97), (97, 41), (7, 200), (11, 12)])
def test_pad_is_that_of_pillow(tree: Path, height: int, width: int) -> None:
    test = one(tree, height, width, (40, 50), "pad").test
    how = {"method": Image.Resampling.NEAREST, "color": IGNORE, "centering": (0, 0)}
    assert torch.equal(test.masks[0], tensor(ImageOps.pad(labels(5, height, width), (50, 40), **how)))
    how = {"method": Image.Resampling.BILINEAR, "centering": (0, 0)}
    seen = torch.tensor(np.array(ImageOps.pad(Image.new("L", (width, height), 1), (50, 40), centering=(0, 0)))) == 1
    assert torch.equal(
        test.images[0][:, seen], tensor(ImageOps.pad(picture(5, height, width), (50, 40), **how))[:, seen]
    )


@pytest.mark.parametrize("turned", [False, True])
def test_crop_keeps_the_aspect_and_the_centre(tree: Path, turned: bool) -> None:
    """At half its size an image of 80 x 160 covers 40 x 50 as 40 x 80, of which columns 15 to 64 are the centre."""
    shape, size = ((160, 80), (50, 40)) if turned else ((80, 160), (40, 50))
    test = one(tree, *shape, size, "crop").test
    whole = shrunk(picture(5, *shape), shape[0] // 2, shape[1] // 2)
    assert_alike(test.images[0], whole[:, 15:65] if turned else whole[:, :, 15:65])
    mask = tensor(labels(5, *shape))[1::2, 1::2]  # nearest by half: the pixel that begins at the centre
    assert torch.equal(test.masks[0], mask[15:65] if turned else mask[:, 15:65])


def test_stretch_and_equal_aspects_resize_the_whole(tree: Path) -> None:
    """114 x 150 scaled to fit into 38 x 50 fills it: no fit pads or crops it. 115 x 150 fills it by rounding."""
    for height, fit in ((114, "pad"), (114, "crop"), (114, "stretch"), (115, "pad")):
        test = one(tree, height, 150, (38, 50), fit).test
        assert_alike(test.images[0], shrunk(picture(5, height, 150), 38, 50))
        assert torch.equal(test.masks[0], tensor(labels(5, height, 150).resize((50, 38), Image.Resampling.NEAREST)))
    test = one(tree, 90, 30, (38, 50), "stretch").test
    assert_alike(test.images[0], shrunk(picture(5, 90, 30), 38, 50))


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(2, 60_000), (60_000, 2), (1, 1)])
def test_extreme_images(tree: Path, fit: str, height: int, width: int) -> None:
    data = one(tree, height, width, (40, 50), fit)
    assert data.test.images.shape == (1, 3, 40, 50)
    assert (data.test.masks != IGNORE).any() or fit != "pad" or height == width


def test_the_short_side_is_the_median_over_the_pictures(tree: Path) -> None:
    """Of 30 x 50, 40 x 50 and 10 x 50 pixels; without a size there is none."""
    for name, height, width in (("e", 120, 150), ("f", 20, 100)):
        write_pair(tree, 6, f"test/{name}.png", height, width)
    data = one(tree, 60, 100, (40, 50), "pad")
    assert (data.train.short_side, data.test.short_side) == (31, 30)
    assert load_set(write_set(tree / "own")).test.short_side is None


def test_several_sizes_need_size(tree: Path) -> None:
    write_pair(tree, 5, "test/d.png", 40, 30)
    write_pair(tree, 6, "val/e.png", 23, 30)
    with pytest.raises(DataError) as caught:
        load_set(tree)
    expected = "is {}, the first one 23x37; --size H W brings images to one size, as --fit says"
    assert caught.value.problems == (
        "images/val/e.png " + expected.format("23x30"),
        "images/test/d.png " + expected.format("40x30"),
    )


@pytest.mark.parametrize(("fit", "shown"), [("pad", (30, 50)), ("stretch", (40, 50))])
def test_native_masks_and_where_their_images_lie(tree: Path, fit: str, shown: tuple[int, int]) -> None:
    """A mask shrunk to what is shown of it is the mask of the tensor."""
    write_pair(tree, 6, "test/e.png", 120, 150)
    data = one(tree, 60, 100, (40, 50), fit, native=True)
    assert data.test.shown == (shown, (40, 50))
    assert [tuple(mask.shape) for mask in data.test.native_masks] == [(60, 100), (120, 150)]
    assert torch.equal(data.test.native_masks[0], tensor(labels(5, 60, 100)))
    for mask, native, (rows, columns) in zip(data.test.masks, data.test.native_masks, data.test.shown, strict=True):
        small = Image.fromarray(native.numpy()).resize((columns, rows), Image.Resampling.NEAREST)
        assert torch.equal(mask[:rows, :columns], tensor(small))
        assert (mask[rows:] == IGNORE).all()
    assert data.train.native_masks is data.val.native_masks is None


def test_native_masks_are_refused_for_crops_and_none_where_nothing_is_resized(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"--score-at native .* got --fit crop"):
        load_set(tree, size=(16, 16), fit="crop", native=True)
    assert load_set(tree, native=True).test.native_masks is None
    assert load_set(tree, size=(16, 16)).test.native_masks is None


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bytes of image and one of mask for each of 4 images; one byte short is too little."""
    needed = 4 * 4 * H * W
    monkeypatch.setattr(reading, "available_memory", lambda: needed)
    assert load_set(tree, size=(H, W - 1)).test.masks.shape == (1, H, W - 1)
    load_set(tree)
    monkeypatch.setattr(reading, "available_memory", lambda: needed - 1)
    monkeypatch.setattr(reading, "read_image", lambda *_: pytest.fail("a file was decoded"))
    with pytest.raises(
        DataError, match=r"4 images and masks of 23 37 pixels need 0\.0 GB .* give a smaller --size H W"
    ):
        load_set(tree)
    with pytest.raises(DataError, match=r"of 40000 50000 pixels need 32\.0 GB of memory, of which 0\.0 GB"):
        load_set(tree, size=(40_000, 50_000))


def test_masks_kept_at_their_own_size_count_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside 4 images and masks of 5 x 7 pixels, one test mask of its own size is kept."""
    needed = 4 * 4 * 5 * 7 + H * W
    monkeypatch.setattr(reading, "available_memory", lambda: needed)
    assert load_set(tree, size=(5, 7), native=True).test.native_masks[0].shape == (H, W)
    monkeypatch.setattr(reading, "available_memory", lambda: needed - 1)
    load_set(tree, size=(5, 7))
    with pytest.raises(DataError, match=r"of 5 7 pixels, and test masks of their own size, need 0\.0 GB"):
        load_set(tree, size=(5, 7), native=True)


def test_available_memory_lies_between_nothing_and_all() -> None:
    assert 1e7 < reading.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_set_is_held_once(tree: Path) -> None:
    """Besides the tensors, which tracemalloc does not see, what is held at a time is a few images of 34."""
    for number in range(30):
        write_pair(tree, number, f"train/x{number}.png", 131, 97)
    tracemalloc.start()
    data = load_set(tree, size=(131, 97))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(t.nbytes for s in (data.train, data.val, data.test) for t in (s.images, s.masks))
    assert size == 4 * 34 * 131 * 97
    assert peak < 0.3 * size
