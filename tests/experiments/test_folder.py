"""Reading folders of images and masks: what is read, and that all that is wrong is reported together by file."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.compare_decoders import main
from experiments.data import DataError, load_camvid, load_folder, pairs, read_class_names

NAMES = ("land", "water", "kelp")
H, W = 23, 37


def picture(seed: int, height: int = H, width: int = W) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def labels(seed: int, height: int = H, width: int = W) -> Image.Image:
    ids = np.asarray([0, 1, 2, 255], np.uint8)
    return Image.fromarray(ids[np.random.default_rng(seed).integers(0, 4, (height, width))])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two train pairs (a.png, b.jpg) and one pair each for val and test."""
    for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"))):
        for part in ("images", "masks"):
            (tmp_path / part / split).mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "images" / split / f"{name}.{'jpg' if name == 'b' else 'png'}")
        labels(number).save(tmp_path / "masks" / split / f"{name}.png")
    return tmp_path


def problems_of(root: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_folder(root, NAMES, **options)
    assert str(root) in str(caught.value)
    return caught.value.problems


def test_round_trip(tree: Path) -> None:
    (tree / "images/train/notes.txt").write_text("other files are passed over")
    data = load_folder(tree, NAMES, name="coast", thin_classes=(2,), note="a note")
    assert (data.name, data.class_names, data.ignore_index, data.thin_classes, data.note) == (
        "coast",
        NAMES,
        255,
        (2,),
        "a note",
    )
    assert data.train.names == ("a", "b")
    assert data.train.images.shape == (2, 3, H, W)
    assert data.train.images.dtype == data.train.masks.dtype == torch.uint8
    assert torch.equal(data.train.images[0], torch.from_numpy(np.array(picture(0))).permute(2, 0, 1))
    assert torch.equal(data.train.masks[1], torch.from_numpy(np.array(labels(1))))
    assert torch.equal(data.test.masks[0], torch.from_numpy(np.array(labels(3))))
    assert len(set(data.colors)) == len(NAMES) + 1


def test_palette_masks_give_the_index_and_grey_images_three_channels(tree: Path) -> None:
    mask = labels(0)
    mask.putpalette([7, 8, 9] * 256)
    assert mask.mode == "P"
    mask.save(tree / "masks/train/a.png")
    picture(0).convert("L").save(tree / "images/train/a.png")
    data = load_folder(tree, NAMES)
    assert torch.equal(data.train.masks[0], torch.from_numpy(np.array(labels(0))))
    assert torch.equal(data.train.images[0, 0], data.train.images[0, 2])


def test_size_resizes_images_smoothly_and_masks_to_nearest(tree: Path) -> None:
    Image.fromarray(np.full((60, 50, 3), 90, np.uint8)).save(tree / "images/val/c.png")
    Image.fromarray(np.full((60, 50), 2, np.uint8)).save(tree / "masks/val/c.png")
    data = load_folder(tree, NAMES, size=(11, 19))
    assert data.train.images.shape == (2, 3, 11, 19)
    assert data.train.masks.shape == (2, 11, 19)
    assert set(torch.unique(data.train.masks).tolist()) <= {0, 1, 2, 255}
    assert data.train.images[0].double().std() < np.asarray(picture(0)).std()  # averaged, not subsampled
    assert (data.val.images == 90).all()
    assert (data.val.masks == 2).all()


def test_an_image_lies_as_its_mask_was_drawn_on_it(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    sideways = picture(0).transpose(Image.Transpose.ROTATE_90)
    sideways.save(tree / "images/train/a.png", exif=exif)  # its mask has the turned size
    picture(2).save(tree / "images/val/c.png", exif=exif)  # its mask has the stored size
    data = load_folder(tree, NAMES)
    assert torch.equal(data.train.images[0], torch.from_numpy(np.array(picture(0))).permute(2, 0, 1))
    assert torch.equal(data.val.images[0], torch.from_numpy(np.array(picture(2))).permute(2, 0, 1))
    sideways.save(tree / "images/train/a.png")
    assert "images/train/a.png is 37x23, its mask masks/train/a.png 23x37; they must be equal" in problems_of(tree)


def test_missing_root_and_file_for_root(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "nowhere") == ("the folder does not exist",)
    (tmp_path / "file").touch()
    assert problems_of(tmp_path / "file") == ("this is not a folder",)


def test_missing_folders_and_empty_splits_are_reported_together(tree: Path) -> None:
    (tree / "masks/val/c.png").unlink()
    (tree / "images/test/d.png").unlink()
    (tree / "images/test").rmdir()
    assert problems_of(tree) == ("masks/val has no .png files", "images/test is missing")


def test_incomplete_and_double_pairs(tree: Path) -> None:
    picture(9).save(tree / "images/train/lonely.jpg")
    labels(9).save(tree / "masks/val/stray.png")
    picture(9).save(tree / "images/train/a.jpg")
    assert set(problems_of(tree)) == {
        "images/train/lonely.jpg has no mask masks/train/lonely.png",
        "masks/val/stray.png has no image images/val/stray.(jpg|png)",
        "images/train/a.png has the same name as a.jpg",
    }


def test_all_bad_files_are_reported_at_once(tree: Path) -> None:
    """One problem each in seven files, among them both of one pair."""
    image, mask = tree / "images/train/b.jpg", tree / "masks/train/b.png"
    image.write_bytes(image.read_bytes()[:-60])  # truncated
    mask.write_bytes(mask.read_bytes()[: mask.stat().st_size // 2])
    (tree / "images/val/c.png").write_text("no picture")
    picture(1).save(tree / "masks/val/c.png")  # colours in place of ids
    ids = np.zeros((H, W), np.uint8)
    ids[0, :3] = 3, 254, 3
    Image.fromarray(ids).save(tree / "masks/train/a.png")
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tree / "images/test/d.png")
    labels(3, H, W + 1).save(tree / "masks/test/d.png")
    found = problems_of(tree)
    assert len(found) == 7
    for start in (
        "masks/train/a.png has ids 3, 254; allowed are 0 to 2 and 255 (ignored)",
        "images/train/b.jpg cannot be read: image file is truncated",
        "masks/train/b.png cannot be read: ",
        "images/val/c.png is not a JPEG or PNG image",
        "masks/val/c.png must be single-channel 8-bit (mode L or P), is mode RGB",
        "images/test/d.png must have 8 bits a channel, is mode I;16",
        "images/test/d.png is 23x37, its mask masks/test/d.png 23x38; they must be equal",
    ):
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_sixteen_bit_and_one_bit_masks_are_refused(tree: Path) -> None:
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tree / "masks/train/a.png")
    Image.new("1", (W, H)).save(tree / "masks/val/c.png")
    found = problems_of(tree)
    assert [problem.split(" must ")[0] for problem in found] == ["masks/train/a.png", "masks/val/c.png"]


def test_several_sizes_need_size(tree: Path) -> None:
    picture(5, 40, 30).save(tree / "images/test/d.png")
    labels(5, 40, 30).save(tree / "masks/test/d.png")
    (problem,) = problems_of(tree)
    assert problem == (
        "images have 2 sizes, give size=(H, W) to resize them: "
        "23x37 (3, first images/train/a.png), 40x30 (1, first images/test/d.png)"
    )
    assert load_folder(tree, NAMES, size=(16, 16)).test.images.shape == (1, 3, 16, 16)


def test_long_lists_show_twenty_and_count_the_rest(tree: Path) -> None:
    for i in range(23):
        labels(i).save(tree / f"masks/train/x{i:02d}.png")
    with pytest.raises(DataError, match="23 problems") as caught:
        load_folder(tree, NAMES)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[-1].strip() == "and 3 more"
    assert len(caught.value.problems) == 23


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ()}, "class_names must be 1 to 255 different names, got 0"),
        ({"class_names": ("a", "a")}, "class_names must be 1 to 255 different names, got 2"),
        ({"ignore_index": 2}, "ignore_index must be 3 .* to 255, got 2"),
        ({"ignore_index": -100}, "ignore_index must be 3 .* to 255, got -100"),
        ({"colors": ((0, 0, 0),)}, "colors must have .* 4, got 1"),
        ({"size": (0, 8)}, r"size must be \(height, width\) of 1 or more, got \(0, 8\)"),
        ({"thin_classes": (3,)}, r"thin_classes must be ids 0 to 2, got \(3,\)"),
    ],
)
def test_bad_arguments_are_named(tree: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_folder(tree, **({"class_names": NAMES} | arguments))


def test_class_names_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(" land\nopen water\r\nkelp\n\n", encoding="utf-8")
    assert read_class_names(path) == ("land", "open water", "kelp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "names no class"),
        (b" \n\n", "names no class"),
        (b"land\n\nkelp\n", "line 2 is blank"),
        (b"land\nkelp\nland\n", "line 3 repeats 'land' of line 1"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_class_files(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        read_class_names(path)
    assert str(path) in str(caught.value)


def test_missing_class_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_class_names(tmp_path / "classes.txt")


def test_camvid() -> None:
    """Needs the data: SWINX_CAMVID, or ../shared/camvid beside the repository."""
    root = Path(os.environ.get("SWINX_CAMVID", Path(__file__).parents[3] / "shared" / "camvid"))
    if not root.is_dir():
        pytest.skip(f"CamVid is not at {root}; set SWINX_CAMVID to its folder")
    data = load_camvid(root, size=(48, 64))
    assert [len(split.names) for split in (data.train, data.val, data.test)] == [367, 101, 233]
    assert data.train.images.shape == (367, 3, 48, 64)
    assert [data.class_names[i] for i in data.thin_classes] == ["pole", "sign", "fence"]
    counts = torch.bincount(data.train.masks.flatten().long(), minlength=12).double()
    percent = dict(zip((*data.class_names, "ignored"), (100 * counts / counts.sum()).tolist(), strict=True))
    for name, share in {"road": 31.7, "building": 23.3, "sky": 16.8, "tree": 9.7, "ignored": 3.9}.items():
        assert percent[name] == pytest.approx(share, abs=0.5)


def test_a_set_that_does_not_fit_is_refused_before_any_file_is_decoded(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bytes of image and one of mask for each of 4 images; one byte short is too little."""
    monkeypatch.setattr(pairs, "available_memory", lambda: 4 * 4 * H * W)
    load_folder(tree, NAMES)
    monkeypatch.setattr(pairs, "available_memory", lambda: 4 * 4 * H * W - 1)
    assert load_folder(tree, NAMES, size=(H, W - 1)).test.masks.shape == (1, H, W - 1)
    monkeypatch.setattr(pairs, "_read", lambda *_: pytest.fail("a file was decoded"))
    (problem,) = problems_of(tree)
    assert problem.startswith("4 images and masks need 0.0 GB of memory")
    assert problem.endswith("give --size to read smaller images")
    monkeypatch.setattr(pairs, "available_memory", lambda: 16_000_000_000)
    (problem,) = problems_of(tree, size=(40_000, 50_000))
    assert problem == (
        "4 images and masks need 32.0 GB of memory, of which 16.0 GB are available; lower --size, which is 40000x50000"
    )


def test_available_memory_lies_between_nothing_and_all() -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e7 < pairs.available_memory() <= everything


def test_the_set_is_held_once(tree: Path) -> None:
    for number in range(30):
        for part, draw in (("images", picture), ("masks", labels)):
            draw(number, 211, 307).save(tree / part / f"train/x{number}.png")
    tracemalloc.start()
    data = load_folder(tree, NAMES, size=(211, 307))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(t.nbytes for s in (data.train, data.val, data.test) for t in (s.images, s.masks))
    assert size == 4 * 34 * 211 * 307
    assert size <= held < 1.1 * size
    assert peak < 1.3 * size


def test_a_split_without_a_labelled_pixel_is_refused(tree: Path) -> None:
    """Refused after resizing too; one class alone is no fault of a split as far as reading goes."""
    blank = np.full((H, W), 255, np.uint8)
    Image.fromarray(blank).save(tree / "masks/val/c.png")
    expected = "val has no labelled pixel: its masks hold 255 (ignored) everywhere"
    assert problems_of(tree) == (expected,)
    blank[0, 0] = 1
    Image.fromarray(blank).save(tree / "masks/val/c.png")
    assert load_folder(tree, NAMES).val.masks[0, 0, :2].tolist() == [1, 255]
    assert problems_of(tree, size=(5, 7)) == (expected,)


TINY = ("--data", "folder", "--decoders", "FPN", "--steps", "1", "--batch-size", "2", "--device", "cpu")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., int]:
    """compare_decoders on a set of 64 x 71 pixels under tmp_path / "set", one step per cell."""
    for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"))):
        for part, draw in (("images", picture), ("masks", labels)):
            (tmp_path / "set" / part / split).mkdir(parents=True, exist_ok=True)
            draw(number, 64, 71).save(tmp_path / "set" / part / split / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    places = ["--root", str(tmp_path / "set"), "--classes", str(tmp_path / "classes.txt")]
    places += ["--output", str(tmp_path / "out")]
    return lambda *more: main([*TINY, *places, *more])


def test_an_image_that_breaks_between_a_run_and_its_continuation(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    image = tmp_path / "set/images/train/b.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert command("--seeds", "0", "1") == 2
    assert "images/train/b.png cannot be read: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    image.write_bytes(whole)
    assert command() == 0
    assert (tmp_path / "out/results.jsonl").read_bytes() == before[tmp_path / "out/results.jsonl"]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ((1, 255), (), "at least two classes besides the ignored pixels, got ids [1]"),
        ((255,), (), "train has no labelled pixel"),
        ((0, 1), ("--batch-size", "3"), "--batch-size must not exceed the number of training images, 2, got 3"),
        ((0, 1), ("--crop", "64", "72"), "--crop must fit into the images, 64x71, got 64x72"),
    ],
    ids=["one class", "all ignored", "fewer images than a batch", "images smaller than the crop"],
)
def test_data_that_cannot_be_trained_on_is_refused_with_a_sentence(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ids: tuple[int, ...],
    options: tuple[str, ...],
    message: str,
) -> None:
    values = np.resize(np.asarray(ids, np.uint8), (64, 71))
    for name in ("a", "b"):
        Image.fromarray(values).save(tmp_path / f"set/masks/train/{name}.png")
    assert command(*options) == 2
    assert message in capsys.readouterr().err
