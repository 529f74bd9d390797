"""Reading folders of images and masks: what is read, and that all that is wrong is reported together by file."""

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sets import NAMES, H, W, labels, load_set, picture, tensor, write_pair, write_set

from experiments.data import DataError, data_id, load
from experiments.records.options import DataOptions


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_set(tmp_path / "coast")


def problems_of(root: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_set(root, **options)
    return caught.value.problems


def test_round_trip_and_what_is_left_out(tree: Path) -> None:
    for name in ("images/train/notes.txt", "images/train/.hidden.png", "masks/val/c.png.aux.xml", "images/more"):
        (tree / name).touch()
    data = load_set(tree)
    assert (data.name, data.class_names, data.ignore_index, data.thin_classes) == ("coast", NAMES, 255, ())
    assert [split.names for split in (data.train, data.val, data.test)] == [("a", "b"), ("c",), ("d",)]
    assert data.train.images.shape == (2, 3, H, W)
    assert data.train.images.dtype == data.train.masks.dtype == torch.uint8
    assert torch.equal(data.train.images[0], tensor(picture(0)))
    assert torch.equal(data.train.masks[1], tensor(labels(1)))
    assert torch.equal(data.test.masks[0], tensor(labels(3)))
    assert len(set(data.colors)) == len(NAMES) + 1
    assert [line.split(":")[0] for line in data.left_out] == [
        "images/train/.hidden.png",
        "images/train/notes.txt",
        "masks/val/c.png.aux.xml",
        "images/more",
    ]


def test_images_that_are_in_training_too_are_counted(tree: Path) -> None:
    """Whatever their names, files and masks: what counts is what the model would see."""
    assert load_set(tree).note == ""
    for number, name in ((0, "test/x.png"), (0, "test/y.png"), (3, "val/x.png"), (7, "test/z.png")):
        write_pair(tree, number, name)
    labels(5).save(tree / "masks/test/y.png")
    picture(0).save(tree / "images/test/y.bmp")
    (tree / "images/test/y.png").unlink()
    said = "of 4 test images are also in the training split, pixel for pixel, so that scores on them say little"
    assert load_set(tree).note == f"2 {said}"
    write_pair(tree, 9, "train/t.png")
    picture(9).save(tree / "images/val/c.png")
    both = load_set(tree).note
    assert both == f"2 {said}; 1 of 2 validation images {said.split('images ')[1]}"


def test_a_long_list_of_what_is_left_out_is_cut(tree: Path) -> None:
    for number in range(23):
        (tree / f"images/val/{number}.txt").touch()
    left_out = load_set(tree).left_out
    assert len(left_out) == 21
    assert left_out[-1] == "and 3 more"


@pytest.mark.parametrize("image", ["x.tif", "x.TIFF", "x.webp", "x.bmp", "x.PNG"])
@pytest.mark.parametrize("mask", ["x.tif", "x.TIFF", "x.bmp", "x.PNG"])
def test_formats(tree: Path, image: str, mask: str) -> None:
    for folder in ("images", "masks"):
        (tree / folder / "test/d.png").unlink()
    picture(7).save(tree / "images/test" / image, **({"lossless": True} if image.endswith("webp") else {}))
    labels(7).save(tree / "masks/test" / mask)
    test = load_set(tree).test
    assert test.names == ("x",)
    assert torch.equal(test.images[0], tensor(picture(7)))
    assert torch.equal(test.masks[0], tensor(labels(7)))


def test_palette_masks_give_the_index_and_grey_images_three_channels(tree: Path) -> None:
    mask = labels(0)
    mask.putpalette([7, 8, 9] * 256)
    assert mask.mode == "P"
    mask.save(tree / "masks/train/a.png")
    picture(0).convert("L").save(tree / "images/train/a.png")
    train = load_set(tree).train
    assert torch.equal(train.masks[0], tensor(labels(0)))
    assert torch.equal(train.images[0], tensor(picture(0).convert("L")).expand(3, H, W))


def test_an_image_lies_as_its_mask_was_drawn_on_it(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    sideways = picture(0).transpose(Image.Transpose.ROTATE_90)
    sideways.save(tree / "images/train/a.png", exif=exif)  # its mask has the turned size
    picture(2).save(tree / "images/val/c.png", exif=exif)  # its mask has the stored size
    data = load_set(tree)
    assert torch.equal(data.train.images[0], tensor(picture(0)))
    assert torch.equal(data.val.images[0], tensor(picture(2)))
    sideways.save(tree / "images/train/a.png")
    assert problems_of(tree) == ("images/train/a.png is 37x23, its mask 23x37; they must be equal",)


def test_missing_root_folders_and_files_are_reported(tree: Path, tmp_path: Path) -> None:
    classes = tree / "classes.txt"
    assert problems_of(tmp_path / "nowhere", classes=classes) == ("the folder does not exist",)
    assert problems_of(classes, classes=classes) == ("this is not a folder",)
    (tree / "masks/val/c.png").unlink()
    (tree / "images/test/d.png").unlink()
    (tree / "images/test").rmdir()
    found = problems_of(tree)
    assert "masks/val is missing, or has no .png, .tif, .tiff, .bmp files" in found
    assert any(problem.startswith("images/test is missing") for problem in found)


def test_incomplete_and_double_pairs(tree: Path) -> None:
    picture(9).save(tree / "images/train/lonely.jpg")
    labels(9).save(tree / "masks/val/stray.png")
    picture(9).save(tree / "images/train/a.jpg")
    assert set(problems_of(tree)) == {
        "images/train/lonely.jpg has no mask in masks/train",
        "masks/val/stray.png has no image in images/val",
        "images/train/a.png has the same name as a.jpg",
    }


def png(path: Path, pixels: np.ndarray, bits: int) -> None:
    """A PNG file of 16 bits a channel or 4 bits a pixel, which Pillow does not write."""
    if bits == 4:
        pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2)))
        lines = (pixels[:, ::2] << 4 | pixels[:, 1::2]).astype(np.uint8)
    else:
        lines = pixels.astype(">u2")
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", W, H, bits, 2 if pixels.ndim == 3 else 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)),
        b"IEND": b"",
    }
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(file)


def test_all_bad_pairs_are_reported_at_once(tree: Path) -> None:
    for name in "efghi":
        write_pair(tree, 5, f"train/{name}.png")
    image, mask = tree / "images/train/b.jpg", tree / "masks/train/e.png"
    image.write_bytes(image.read_bytes()[:-60])  # truncated
    mask.write_bytes(mask.read_bytes()[: mask.stat().st_size // 2])
    (tree / "images/val/c.png").write_text("no picture")
    picture(1).save(tree / "masks/train/f.png")  # colours in place of ids
    ids = np.zeros((H, W), np.uint8)
    ids[0, :3] = 3, 254, 3
    Image.fromarray(ids).save(tree / "masks/train/a.png")
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tree / "images/test/d.png")
    Image.fromarray(np.zeros((H, W), bool)).save(tree / "masks/train/g.png")
    labels(3, H, W + 1).save(tree / "masks/train/h.png")
    png(tree / "images/train/k.png", np.full((H, W, 3), 4095), bits=16)
    labels(0).save(tree / "masks/train/k.png")
    picture(0).save(tree / "images/train/l.png")
    png(tree / "masks/train/l.png", np.full((H, W), 2), bits=4)
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tree / "masks/train/i.png")
    for name, kind in (("m", "JPEG"), ("n", "TIFF")):  # no suffix tells
        write_pair(tree, 5, f"train/{name}.png")
        labels(5).save(tree / f"masks/train/{name}.png", kind, **({"compression": "jpeg"} if kind == "TIFF" else {}))
    expected = {
        "images/train/a.png": "has a mask with ids 3, 254; allowed are 0 to 2 and 255 (ignored)",
        "images/train/b.jpg": "cannot be read: image file is truncated",
        "images/train/e.png": "has a mask that cannot be read: ",
        "images/train/f.png": "has a mask of mode RGB",
        "images/train/g.png": "has a mask of mode 1",
        "images/train/h.png": "is 23x37, its mask 23x38; they must be equal",
        "images/train/i.png": "has a mask that must have 8 bits a channel, is mode I;16",
        "images/train/k.png": "must have 8 bits a channel, is RGB;16B",
        "images/train/l.png": "has a mask that must have 8 bits a pixel, is L;4: Pillow spreads its values",
        "images/train/m.png": "has a mask that must not be JPEG, which changes ids",
        "images/train/n.png": "has a mask that must not be JPEG, which changes ids",
        "images/val/c.png": "is not an image (JPEG, PNG, ",
        "images/test/d.png": "must have 8 bits a channel, is mode I;16",
    }
    found = dict(problem.split(" ", 1) for problem in problems_of(tree))
    assert found.keys() == expected.keys()
    for name, start in expected.items():
        assert found[name].startswith(start), found[name]


def test_long_lists_show_twenty_and_count_the_rest(tree: Path) -> None:
    for i in range(23):
        labels(i).save(tree / f"masks/train/x{i:02d}.png")
    with pytest.raises(DataError, match="23 problems") as caught:
        load_set(tree)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tree}: ")
    assert len(lines) == 1 + 20 + 1
    assert lines[-1].strip() == "and 3 more"
    assert len(caught.value.problems) == 23


def test_a_split_without_a_labelled_pixel_is_refused(tree: Path) -> None:
    """Refused after resizing too; one class alone is no fault of a split as far as reading goes."""
    blank = np.full((H, W), 255, np.uint8)
    Image.fromarray(blank).save(tree / "masks/val/c.png")
    expected = "val has no labelled pixel: its masks hold 255 (ignored) everywhere"
    assert problems_of(tree) == (expected,)
    blank[0, 0] = 1
    Image.fromarray(blank).save(tree / "masks/val/c.png")
    assert load_set(tree).val.masks[0, 0, :2].tolist() == [1, 255]
    assert problems_of(tree, size=(5, 7)) == (expected,)


def bomb(path: Path, height: int, width: int) -> None:
    """A PNG of a few bytes that says it has so many pixels."""
    chunks = b""
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_hostile_files_are_listed_and_none_is_waited_for(tree: Path) -> None:
    train = tree / "images/train"
    for name in ("pipe", "device", "folder", "gone", "bomb"):
        labels(5).save(tree / f"masks/train/{name}.png")
    os.mkfifo(train / "pipe.png")
    (train / "device.png").symlink_to("/dev/zero")
    (train / "folder.png").mkdir()
    (train / "gone.png").symlink_to(tree / "nowhere")
    bomb(train / "bomb.png", 40_000, 40_000)
    found = dict(problem.split(" ", 1) for problem in problems_of(tree))
    assert found.pop("images/train/bomb.png").startswith("cannot be read: Image size (1600000000 pixels) exceeds limit")
    assert "No such file" in found.pop("images/train/gone.png")
    assert found == dict.fromkeys(
        (f"images/train/{n}.png" for n in ("device", "folder", "pipe")), "is not a regular file"
    )


def test_names_are_printable_text_and_links_to_files_are_followed(tree: Path, tmp_path: Path) -> None:
    """Names that are no UTF-8, that hold a line end, and of 250 letters; the owner of a set may use links."""
    write_pair(tmp_path, 11, "elsewhere/blob.png")
    names = [b"caf\xe9", b"line\nend", b"x" * 250, "größe $<&>".encode()]
    for name in names:
        for part in ("images", "masks"):
            link = os.path.join(os.fsencode(tree / part / "test"), name + b".png")
            os.symlink(os.fsencode(tmp_path / part / "elsewhere/blob.png"), link)
    test = load_set(tree).test
    assert set(test.names) == {"d", r"caf\udce9", r"line\nend", "x" * 250, "größe $<&>"}
    assert "".join(test.names).encode().decode().isprintable()
    assert all(
        torch.equal(test.images[test.names.index(name)], tensor(picture(11))) for name in test.names if name != "d"
    )
    os.symlink("/nowhere", os.path.join(os.fsencode(tree / "images/test"), b"\xff\x1b[2J.png"))
    assert problems_of(tree) == (r"images/test/\udcff\x1b[2J.png has no mask in masks/test",)


def test_class_names_from_a_file(tree: Path) -> None:
    (tree / "classes.txt").write_bytes("\ufeff land\nopen <water> $1\r\nkelp\n\n".encode())
    assert load_set(tree).class_names == ("land", "open <water> $1", "kelp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must name 1 to 255 classes, got 0"),
        (b" \n\n", "must name 1 to 255 classes, got 0"),
        (b"land\n\nkelp\n", "line 2 is blank"),
        (b"land\nkelp\nland\n", "line 3 is blank or repeats another: 'land'"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
        (b"\n".join(b"%d" % i for i in range(256)), "--classes must name 1 to 255 classes, got 256"),
    ],
)
def test_bad_class_files(tree: Path, text: bytes | None, message: str) -> None:
    (tree / "classes.txt").unlink()
    if text is not None:
        (tree / "classes.txt").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_set(tree)


ROOT, CLASSES = {"root": Path("pictures")}, {"classes": Path("names.txt")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CLASSES, "--classes is only for --data folder, got --data scenes"),
        ({"data": "pet", "ignore_index": 0}, "--ignore-index is only for --data folder, got --data pet"),
        (ROOT, "--root is only for --data folder, camvid, pet, got --data scenes"),
        ({"fit": "crop"}, "--fit is only for --data folder, camvid, pet, got --data scenes"),
        ({"groups": "(.)"}, "--groups is only for --data folder, camvid, pet, got --data scenes"),
        ({"size": (63, 160)}, "--size must be height and width of at least 64, got 63 160 with --data scenes"),
        ({"data": "folder", "size": (0, 8)}, "--size must be height and width of at least 1, got 0 8"),
        ({"data": "camvid"}, "--data camvid needs --root"),
        ({"data": "folder"} | ROOT, "--data folder needs --classes"),
        ({"data": "pet"} | ROOT, "--data pet needs --size H W"),
        ({"data": "folder", "fit": "crop"} | ROOT | CLASSES, "--fit must be left out without --size, got crop"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(DataOptions(**options))


@pytest.mark.parametrize("ignored", [2, -100, 256])
def test_the_ignored_id_is_none_of_a_class(tree: Path, ignored: int) -> None:
    with pytest.raises(ValueError, match=rf"--ignore-index must be 3 .* to 255, got {ignored}"):
        load_set(tree, ignore_index=ignored)
    with pytest.raises(DataError, match=r"with ids 255; allowed are 0 to 2 and 3 \(ignored\)"):
        load_set(tree, ignore_index=3)


def test_data_id_is_of_pixels_masks_and_classes_alone(tree: Path, tmp_path: Path) -> None:
    data = load_set(tree)
    same = load_set(write_set(tmp_path / "copy"), groups="(.)")
    assert data_id(same) == data_id(replace(data, note="other", left_out=("x",))) == data_id(data)
    changed = [replace(data, class_names=NAMES[::-1]), replace(data, thin_classes=(1,)), replace(data, train=data.test)]
    for field in ("images", "masks"):
        values = getattr(data.val, field).clone()
        values.view(-1)[-1] += 1
        changed.append(replace(data, val=replace(data.val, **{field: values})))
    assert len({data_id(data), *map(data_id, changed)}) == 6


def test_camvid() -> None:
    """Needs the data: SWINX_CAMVID, or ../shared/camvid beside the repository."""
    root = Path(os.environ.get("SWINX_CAMVID", Path(__file__).parents[3] / "shared" / "camvid"))
    if not root.is_dir():
        pytest.skip(f"CamVid is not at {root}; set SWINX_CAMVID to its folder")
    data = load(DataOptions(data="camvid", root=root, size=(48, 64)))
    assert [len(split.names) for split in (data.train, data.val, data.test)] == [367, 101, 233]
    assert data.train.images.shape == (367, 3, 48, 64)
    assert [data.class_names[i] for i in data.thin_classes] == ["pole", "sign", "fence"]
    counts = torch.bincount(data.train.masks.flatten().long(), minlength=12).double()
    percent = dict(zip((*data.class_names, "ignored"), (100 * counts / counts.sum()).tolist(), strict=True))
    for name, share in {"road": 31.7, "building": 23.3, "sky": 16.8, "tree": 9.7, "ignored": 3.9}.items():
        assert percent[name] == pytest.approx(share, abs=0.5)
    assert len(set(data.test.groups)) == 13
