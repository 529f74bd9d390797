"""The "imagefolder" layout: metadata in two formats, images and masks by its paths, refusals together by line."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.data import DataError, load_hub_folder

NAMES = ("land", "water", "kelp")
H, W = 19, 29


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8))


def labels(seed: int) -> Image.Image:
    ids = np.asarray([0, 1, 2, 255], np.uint8)
    return Image.fromarray(ids[np.random.default_rng(seed).integers(0, 4, (H, W))])


def write_lines(path: Path, lines: Sequence[dict[str, object]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


def write_set(root: Path, suffix: str, validation: str = "validation", column: str = "mask_file_name") -> None:
    """Two train pairs, the first one named last, one pair each for the others; images and masks in other folders."""
    for number, (split, names) in enumerate((("train", ("b", "a")), (validation, ("c",)), ("test", ("d",)))):
        (root / split / "photos").mkdir(parents=True)
        (root / split / "ids").mkdir()
        lines: list[dict[str, object]] = []
        for place, name in enumerate(names):
            picture(10 * number + place).save(root / split / f"photos/{name}.png")
            labels(10 * number + place).save(root / split / f"ids/{name}.png")
            lines.append({"file_name": f"photos/{name}.png", "site": "x, y", column: f"ids/{name}.png"})
        write_lines(root / split / f"metadata.{suffix}", lines)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", "jsonl")
    return tmp_path / "set"


def problems_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_hub_folder(root, NAMES)
    assert str(root) in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    ("suffix", "validation", "column"),
    [("jsonl", "validation", "mask_file_name"), ("csv", "val", "label_file_name"), ("csv", "dev", "kelp_file_name")],
)
def test_round_trip(tmp_path: Path, suffix: str, validation: str, column: str) -> None:
    write_set(tmp_path, suffix, validation, column)
    data = load_hub_folder(tmp_path, NAMES, name="coast")
    assert (data.name, data.class_names, data.ignore_index) == ("coast", NAMES, 255)
    assert data.train.names == ("photos/b", "photos/a")
    for split, first in ((data.train, 0), (data.val, 10), (data.test, 20)):
        for place in range(len(split.names)):
            image = torch.from_numpy(np.array(picture(first + place))).permute(2, 0, 1)
            assert torch.equal(split.images[place], image)
            assert torch.equal(split.masks[place], torch.from_numpy(np.array(labels(first + place))))


def test_pairs_of_columns_masks_elsewhere_and_links(tree: Path, tmp_path: Path) -> None:
    """The image may be an input; masks may lie beside the splits; files may be links, as in the hub's cache."""
    (tree / "masks").mkdir()
    (tree / "test/ids/d.png").rename(tree / "masks/d.png")
    (tree / "test/photos/d.png").rename(tmp_path / "blob")
    (tree / "test/photos/d.png").symlink_to(tmp_path / "blob")
    line = {"input_file_name": "photos/d.png", "output_file_name": "../masks/d.png"}
    write_lines(tree / "test/metadata.jsonl", [line])
    data = load_hub_folder(tree, NAMES)
    assert torch.equal(data.test.images[0], torch.from_numpy(np.array(picture(20))).permute(2, 0, 1))
    assert torch.equal(data.test.masks[0], torch.from_numpy(np.array(labels(20))))


def test_resizing_takes_the_centres_of_masks(tree: Path) -> None:
    Image.fromarray(np.asarray(labels(20)).repeat(3, 0).repeat(3, 1)).save(tree / "test/ids/d.png")
    Image.new("RGB", (3 * W, 3 * H), (7, 90, 200)).save(tree / "test/photos/d.png")
    data = load_hub_folder(tree, NAMES, size=(H, W))
    assert torch.equal(data.test.masks[0], torch.from_numpy(np.array(labels(20))))
    assert (data.test.images[0] == torch.tensor([7, 90, 200])[:, None, None]).all()


def test_missing_and_double_splits_and_metadata(tree: Path, tmp_path: Path) -> None:
    assert problems_of(tmp_path / "nowhere") == ("the folder does not exist",)
    (tree / "val").mkdir()
    (tree / "train/metadata.csv").touch()
    (tree / "test/metadata.jsonl").unlink()
    assert problems_of(tree) == (
        "train has both metadata.jsonl and metadata.csv; it must have one of them",
        "validation and val are the same split",
        "test has neither metadata.jsonl nor metadata.csv",
    )
    (tree / "test").rename(tree / "testing")
    assert problems_of(tree)[-1] == "test is missing"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("jsonl", "", "has no lines"),
        ("jsonl", '{"file_name": "photos/d.png"}\n', "ends in _file_name for masks, beside file_name; got none"),
        (
            "jsonl",
            '{"file_name": "a", "depth_file_name": "b", "mask_file_name": "c"}\n',
            "beside file_name; got depth_file_name, mask_file_name",
        ),
        ("jsonl", '{"mask_file_name": "ids/d.png"}\n', "must have a column file_name or image_file_name or input_"),
        ("jsonl", "\n{]\n", "cannot be read: line 2 is not JSON: "),
        ("jsonl", "[1]\n", "cannot be read: line 1 is not a JSON object"),
        ("csv", 'file_name,mask_file_name\n"a', "cannot be read: unexpected end of data"),
        ("csv", "file_name,mask_file_name\n\nphotos/d.png,\n", "line 3 has no mask_file_name"),
        ("csv", "file_name,mask_file_name\nphotos/d.png\n", "line 2 has no mask_file_name"),
        ("jsonl", '{"file_name": 7, "mask_file_name": "ids/d.png"}\n', "line 1 has no file_name"),
        ("jsonl", "\udcff", "cannot be read: 'utf-8' codec"),
    ],
)
def test_bad_metadata(tree: Path, name: str, content: str, problem: str) -> None:
    (tree / "test/metadata.jsonl").unlink()
    (tree / f"test/metadata.{name}").write_text(content, errors="surrogateescape")
    (found,) = problems_of(tree)
    assert found.startswith(f"test/metadata.{name} ")
    assert problem in found


def test_bad_files_are_reported_together(tree: Path, tmp_path: Path) -> None:
    """Paths out of the folder, an image of two splits, one that no line names, one that is not there, a bad id."""
    picture(1).save(tmp_path / "outside.png")
    picture(1).save(tree / "train/photos/stray.jpg")
    lines = [
        {"file_name": "photos/a.png", "mask_file_name": "ids/a.png"},
        {"file_name": "photos/b.png", "mask_file_name": "ids/b.png"},
        {"file_name": "photos/gone.png", "mask_file_name": "ids/gone.png"},
        {"file_name": "../../outside.png", "mask_file_name": "ids/a.png"},
        {"file_name": str(tmp_path / "outside.png"), "mask_file_name": "/etc/passwd"},
        {"file_name": ".", "mask_file_name": "ids/\0.png"},
        {"file_name": "../test/photos/d.png", "mask_file_name": "../test/ids/d.png"},
    ]
    write_lines(tree / "train/metadata.jsonl", lines)
    ids = np.zeros((H, W), np.uint8)
    ids[0, :2] = 3, 254
    Image.fromarray(ids).save(tree / "validation/ids/c.png")
    found = problems_of(tree)
    outside = f"{tmp_path / 'outside.png'} lies outside the folder"
    assert sorted(found) == sorted(
        (
            "train/photos/stray.jpg is in no line of train/metadata.jsonl",
            "../outside.png is named twice, in train and train",
            "test/photos/d.png is named twice, in train and test",
            outside,
            outside,
            "/etc/passwd lies outside the folder",
            "train/photos/gone.png is missing",
            "train cannot be read: [Errno 21] Is a directory: " + repr(str(tree / "train")),
            "train/ids/\0.png cannot be read: embedded null byte",
            "train/ids/gone.png is missing",
            "validation/ids/c.png has ids 3, 254; allowed are 0 to 2 and 255 (ignored)",
        )
    )


def test_names_must_tell_images_apart(tree: Path) -> None:
    picture(3).save(tree / "train/photos/a.jpg")
    labels(3).save(tree / "train/ids/second.png")
    with (tree / "train/metadata.jsonl").open("a") as stream:
        stream.write('{"file_name": "photos/a.jpg", "mask_file_name": "ids/second.png"}\n')
    assert problems_of(tree) == ("train/photos/a.jpg has the same name as train/photos/a.png",)


def test_bad_arguments_are_named(tree: Path) -> None:
    with pytest.raises(ValueError, match="class_names must be 1 to 255 different names"):
        load_hub_folder(tree, ("a", "a"))
    with pytest.raises(ValueError, match=r"ignore_index must be 3 .* to 255, got 2"):
        load_hub_folder(tree, NAMES, ignore_index=2)
    with pytest.raises(ValueError, match=r"size must be \(height, width\)"):
        load_hub_folder(tree, NAMES, size=(0, 5))
