"""Oxford-IIIT Pet in a tiny copy of its layout: splits, classes and refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_models_pytorch.datasets import OxfordPetDataset
from torchvision.datasets import OxfordIIITPet

from experiments.data import DataError, SegmentationData, load
from experiments.records.options import DataOptions

H, W = 23, 37
TRAINVAL = [f"Bengal_{i}" for i in range(12)]
TEST = ["pug_2", "pug_1", "Siamese_7"]


def trimap(seed: int, height: int = H, width: int = W) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4, (height, width), dtype=np.uint8)


def write_set(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    (root / "annotations/trimaps").mkdir(parents=True)
    for seed, name in enumerate(TRAINVAL + TEST):
        pixels = np.random.default_rng(100 + seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{name}.jpg")
        Image.fromarray(trimap(seed)).save(root / f"annotations/trimaps/{name}.png")
    for split, names in (("trainval", TRAINVAL), ("test", TEST)):
        (root / f"annotations/{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_set(tmp_path / "pets")
    return tmp_path / "pets"


def load_pet(root: Path) -> SegmentationData:
    return load(DataOptions(data="pet", root=root, size=(H, W)))


def problems_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_pet(root)
    return caught.value.problems


def test_splits_are_the_lists_with_every_tenth_for_validation(pets: Path) -> None:
    (pets / "images/pug_9.jpg").touch()
    data = load_pet(pets)
    assert data.val.names == ("Bengal_0", "Bengal_10")
    assert data.train.names == (*(f"Bengal_{i}" for i in range(1, 10)), "Bengal_11")
    assert data.test.names == ("pug_2", "pug_1", "Siamese_7")
    assert (data.name, data.class_names, data.ignore_index) == ("pet", ("background", "pet"), 255)
    assert len(data.colors) == 3
    assert data.left_out == ("images/pug_9.jpg: in no list",)


def test_pixels_and_ids(pets: Path) -> None:
    data = load_pet(pets)
    decoded = np.array(Image.open(pets / "images/pug_1.jpg"))
    assert torch.equal(data.test.images[1], torch.from_numpy(decoded).permute(2, 0, 1))
    raw = trimap(len(TRAINVAL) + 1)
    for value, meaning in ((1, 1), (2, 0), (3, 255)):
        assert (data.test.masks[1].numpy()[raw == value] == meaning).all()
    # smp's own reading has one foreground: what is pet here, and what is ignored here.
    for number in range(len(data.train.names)):
        theirs = OxfordPetDataset(str(pets), "train")[number]["mask"]
        assert np.array_equal(theirs == 1, data.train.masks[number].numpy() != 0)


def test_a_gif_named_jpg_is_read(pets: Path) -> None:
    """The real set has a few."""
    Image.new("RGB", (W, H), (255, 0, 51)).save(pets / "images/pug_1.jpg", format="GIF")
    data = load_pet(pets)
    assert data.test.images[1, :, 3, 5].tolist() == [255, 0, 51]


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, pets: Path) -> None:
    assert problems_of(tmp_path / "nowhere") == ("the folder does not exist",)
    (pets / "annotations/test.txt").unlink()
    os.mkfifo(pets / "annotations/test.txt")
    problem, advice = problems_of(pets)
    assert problem == "annotations/test.txt is missing"
    assert "OxfordIIITPet" in advice
    parts = ("images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt")
    assert problems_of(pets / "images") == (*(f"{part} is missing" for part in parts), advice)


def test_bad_files_and_lists_are_reported_together(pets: Path) -> None:
    (pets / "images/Bengal_3.jpg").unlink()
    raw = trimap(0)
    raw[0, :2] = 0, 4
    Image.fromarray(raw).save(pets / "annotations/trimaps/Bengal_5.png")
    with (pets / "annotations/test.txt").open("a") as stream:
        stream.write("Bengal_0 1 1 1\n../../secret 1 1 1\n")
    found = problems_of(pets)
    assert len(found) == 4
    for start in (
        "'Bengal_0' is listed twice, for val and for test",
        "images/Bengal_3.jpg cannot be read: ",
        "images/Bengal_5.jpg has a mask with ids 0, 4; allowed are 1 to 2 and 3 (ignored)",
        "'../../secret', listed for test, is not the name of a file",
    ):
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_empty_lists_are_refused(pets: Path) -> None:
    (pets / "annotations/test.txt").write_text("")
    assert problems_of(pets) == ("test has no images",)


def test_the_folder_is_the_one_that_torchvision_makes(tmp_path: Path) -> None:
    write_set(tmp_path / "oxford-iiit-pet")
    assert len(OxfordIIITPet(tmp_path, split="test", target_types="segmentation")) == len(TEST)
    assert load_pet(tmp_path / "oxford-iiit-pet").test.names == tuple(TEST)
