"""Oxford-IIIT Pet in a tiny copy of its layout: splits, classes, refusals, and the download from a server here."""

import io
import tarfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlretrieve

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_models_pytorch.datasets import OxfordPetDataset, oxford_pet

from experiments.data import DataError, download_pet, load_pet
from experiments.data.fetch_pet import main

H, W = 23, 37
TRAINVAL = [f"Bengal_{i}" for i in range(12)]
TEST = ["pug_2", "pug_1", "Siamese_7"]

Archives = dict[str, bytes]
Serve = Callable[..., None]


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


def problems_of(root: Path, size: tuple[int, int] = (H, W)) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_pet(root, size=size)
    assert str(root) in str(caught.value)
    return caught.value.problems


def test_splits_are_the_lists_with_every_tenth_for_validation(pets: Path) -> None:
    data = load_pet(pets, size=(H, W))
    assert data.val.names == ("Bengal_0", "Bengal_10")
    assert data.train.names == (*(f"Bengal_{i}" for i in range(1, 10)), "Bengal_11")
    assert data.test.names == ("pug_2", "pug_1", "Siamese_7")
    assert (data.name, data.class_names, data.ignore_index) == ("pet", ("background", "pet"), 255)
    assert len(data.colors) == 3


def test_pixels_and_ids(pets: Path) -> None:
    data = load_pet(pets, size=(H, W))
    decoded = np.array(Image.open(pets / "images/pug_1.jpg"))
    assert torch.equal(data.test.images[1], torch.from_numpy(decoded).permute(2, 0, 1))
    raw = trimap(len(TRAINVAL) + 1)
    for value, meaning in ((1, 1), (2, 0), (3, 255)):
        assert (data.test.masks[1].numpy()[raw == value] == meaning).all()
    # smp's own reading has one foreground: what is pet here, and what is ignored here.
    for number in range(len(data.train.names)):
        theirs = OxfordPetDataset(str(pets), "train")[number]["mask"]
        assert np.array_equal(theirs == 1, data.train.masks[number].numpy() != 0)


def test_resizing_keeps_ids_and_averages_images(pets: Path) -> None:
    raw = trimap(7, 3 * H, 3 * W)
    Image.fromarray(raw).save(pets / "annotations/trimaps/pug_2.png")
    fine = np.random.default_rng(8).integers(0, 256, (H, W, 3), dtype=np.uint8).repeat(3, 0).repeat(3, 1)
    Image.fromarray(fine).save(pets / "images/pug_2.jpg", format="PNG")
    data = load_pet(pets, size=(H, W))
    centres = raw[1::3, 1::3]  # of blocks of three pixels
    assert np.array_equal(data.test.masks[0].numpy(), np.asarray([99, 1, 0, 255], np.uint8)[centres])
    # Antialiased bilinear by a third: weights 1, 2, 3, 2, 1 of 9 around the centre of a block, along each axis.
    taps = tuple(zip(range(-1, 4), (1, 2, 3, 2, 1), strict=True))
    inner = sum(
        wy * wx / 81 * fine[3 + dy : 3 * H - 3 + dy : 3, 3 + dx : 3 * W - 3 + dx : 3].astype(float)
        for dy, wy in taps
        for dx, wx in taps
    )
    found = data.test.images[0].permute(1, 2, 0).numpy()[1:-1, 1:-1]
    assert np.abs(found - inner).max() <= 1  # both passes round


def test_a_gif_named_jpg_is_read(pets: Path) -> None:
    """The real set has a few."""
    Image.new("RGB", (W, H), (255, 0, 51)).save(pets / "images/pug_1.jpg", format="GIF")
    data = load_pet(pets, size=(H, W))
    assert data.test.images[1, :, 3, 5].tolist() == [255, 0, 51]


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, pets: Path) -> None:
    problem, advice = problems_of(tmp_path / "nowhere")
    assert problem == "the folder does not exist"
    assert "--root" in advice
    assert "experiments.data.fetch_pet" in advice
    (pets / "annotations/test.txt").unlink()
    assert problems_of(pets)[:-1] == ("annotations/test.txt is missing",)
    assert problems_of(pets / "images")[:4] == (
        "images is missing",
        "annotations/trimaps is missing",
        "annotations/trainval.txt is missing",
        "annotations/test.txt is missing",
    )


def test_bad_files_and_lists_are_reported_together(pets: Path) -> None:
    (pets / "images/Bengal_3.jpg").unlink()
    torn = pets / "images/Bengal_4.jpg"
    torn.write_bytes(torn.read_bytes()[:-60])
    raw = trimap(0)
    raw[0, :2] = 0, 4
    Image.fromarray(raw).save(pets / "annotations/trimaps/Bengal_5.png")
    Image.fromarray(trimap(6, H, W + 1)).save(pets / "annotations/trimaps/Bengal_6.png")
    with (pets / "annotations/test.txt").open("a") as stream:
        stream.write("Bengal_0 1 1 1\n../../secret 1 1 1\n")
    found = problems_of(pets)
    assert len(found) == 6
    for start in (
        "'Bengal_0' is listed twice, for val and for test",
        "images/Bengal_3.jpg is missing",
        "images/Bengal_4.jpg cannot be read: image file is truncated",
        "annotations/trimaps/Bengal_5.png has ids 0, 4; allowed are 1 to 2 and 3 (ignored)",
        f"images/Bengal_6.jpg is {H}x{W}, its mask annotations/trimaps/Bengal_6.png {H}x{W + 1}",
        f"{pets}/images/../../secret.jpg lies outside the folder",
    ):
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_empty_lists_are_refused(pets: Path) -> None:
    (pets / "annotations/test.txt").write_text("")
    assert problems_of(pets) == ("test has no images",)


def pack(root: Path) -> Archives:
    """The two archives as the real server has them."""
    packed = {}
    for part in ("images", "annotations"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            archive.add(root / part, arcname=part)
        packed[f"{part}.tar.gz"] = stream.getvalue()
    return packed


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """serve(archives, torn=None, told=True): a server on this machine stands in for the real one.

    Of the archive torn it sends one half; told says whether it announces lengths, of whole archives.
    """
    answers: dict[str, tuple[bytes, int | None]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in answers:
                self.send_error(404)
                return
            body, length = answers[self.path]
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    real = "https://www.robots.ox.ac.uk"

    def retrieve(url: str, **options: object) -> object:
        assert url.startswith(real)
        return urlretrieve(url.replace(real, f"http://127.0.0.1:{server.server_port}"), **options)

    monkeypatch.setattr(oxford_pet, "urlretrieve", retrieve)

    def start(archives: Archives, torn: str | None = None, told: bool = True) -> None:
        answers.clear()
        for name, body in archives.items():
            sent = body[: len(body) // 2] if name == torn else body
            answers[f"/~vgg/data/pets/data/{name}"] = sent, len(body) if told else None

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_gives_the_set_and_leaves_a_complete_one_alone(pets: Path, tmp_path: Path, serve: Serve) -> None:
    serve(pack(pets))
    root = tmp_path / "new/folder"
    download_pet(root)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "images"]
    ours, theirs = load_pet(root, size=(H, W)), load_pet(pets, size=(H, W))
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(ours, split).images, getattr(theirs, split).images)
        assert torch.equal(getattr(ours, split).masks, getattr(theirs, split).masks)
    serve({})  # nothing to be had: a second call must not ask
    download_pet(root)


@pytest.mark.parametrize("told", [True, False], ids=["length announced", "length unknown"])
@pytest.mark.parametrize("torn", ["images.tar.gz", "annotations.tar.gz"])
def test_a_torn_download_leaves_nothing_and_can_be_repeated(
    pets: Path, tmp_path: Path, serve: Serve, torn: str, told: bool
) -> None:
    archives = pack(pets)
    serve(archives, torn, told)
    root = tmp_path / "fresh"
    with pytest.raises(DataError, match="nothing of it was kept"):
        download_pet(root)
    assert list(root.iterdir()) == []
    assert problems_of(root)[0] == "images is missing"
    serve(archives)
    download_pet(root)
    assert len(load_pet(root, size=(H, W)).train.names) == 10


def test_a_download_without_some_files_is_not_kept(pets: Path, tmp_path: Path, serve: Serve) -> None:
    (pets / "images/pug_1.jpg").unlink()
    serve(pack(pets))
    with pytest.raises(DataError) as caught:
        download_pet(tmp_path / "fresh")
    assert "images/pug_1.jpg is missing" in caught.value.problems
    assert list((tmp_path / "fresh").iterdir()) == []


def test_a_part_of_a_set_is_neither_completed_nor_overwritten(pets: Path, serve: Serve) -> None:
    serve(pack(pets))
    (pets / "images/pug_1.jpg").unlink()
    with pytest.raises(DataError, match="delete it before downloading") as caught:
        download_pet(pets)
    assert caught.value.problems[0] == "images/pug_1.jpg is missing"
    assert not (pets / "images/pug_1.jpg").exists()


def test_the_command(pets: Path, tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve({})
    assert main([str(tmp_path / "fresh")]) == 2
    assert "HTTP Error 404" in capsys.readouterr().err
    serve(pack(pets))
    assert main([str(tmp_path / "fresh")]) == 0
    assert "complete" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 2
    assert "not a folder" in capsys.readouterr().err
