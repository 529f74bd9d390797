"""Oxford-IIIT Pet in a tiny copy of its layout: splits, classes, refusals, and the download from a server here."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_models_pytorch.datasets import OxfordPetDataset
from torchvision.datasets import OxfordIIITPet

from experiments import fetch_pet
from experiments.data import DataError, SegmentationData, data_id, load
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
    assert "experiments.fetch_pet" in advice
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


@pytest.fixture
def server(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server on this machine: the set as two archives, with the sums that are expected of them."""
    folder = tmp_path / "server"
    folder.mkdir()
    sums = {}
    for part in ("images", "annotations"):
        path = folder / f"{part}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(pets / part, arcname=part)
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as served:
        monkeypatch.setattr(fetch_pet, "SERVER", f"http://127.0.0.1:{served.server_port}/")
        monkeypatch.setattr(fetch_pet, "ARCHIVES", sums)
        thread = Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield folder
        served.shutdown()
        thread.join()


def test_the_command_gives_the_set_and_leaves_a_complete_one_alone(
    server: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new/folder"
    assert fetch_pet.main([str(root)]) == 0
    assert f"complete in {root}" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "images"]
    assert data_id(load_pet(root)) == data_id(load_pet(pets))
    for archive in server.iterdir():
        archive.unlink()  # nothing to be had: a second call must not ask
    assert fetch_pet.main([str(root)]) == 0
    (root / "images/pug_1.jpg").unlink()
    assert fetch_pet.main([str(root)]) == 2
    assert "HTTP Error 404" in capsys.readouterr().err


@pytest.mark.parametrize("torn", ["images.tar.gz", "annotations.tar.gz"])
def test_a_torn_download_is_not_taken_for_the_set_and_can_be_repeated(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str
) -> None:
    archive, root = server / torn, tmp_path / "fresh"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert fetch_pet.main([str(root)]) == 2
    assert "corrupted" in capsys.readouterr().err
    assert "annotations/test.txt is missing" in problems_of(root)
    archive.write_bytes(whole)
    assert fetch_pet.main([str(root)]) == 0
    assert len(load_pet(root).train.names) == 10


def test_a_set_that_lacks_files_on_the_server_or_a_file_for_a_folder(
    pets: Path, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "images/pug_1.jpg").unlink()
    request.getfixturevalue("server")
    assert fetch_pet.main([str(tmp_path / "fresh")]) == 2
    assert "images/pug_1.jpg is missing" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert fetch_pet.main([str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_addresses_and_sums_are_those_of_torchvision() -> None:
    ours = {(fetch_pet.SERVER + name, md5) for name, md5 in fetch_pet.ARCHIVES.items()}
    assert ours == set(OxfordIIITPet._RESOURCES)
