"""The command as a user runs it: what it refuses, what it reports, how it goes on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import KINDS, Pixelwise, arguments, fill, picture, read, stand_in
from PIL import Image

from experiments.predict import main
from experiments.prediction import pictures as pictures_of
from experiments.prediction import prediction
from experiments.records.grid import Run


@pytest.fixture
def pixelwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pixelwise:
    return stand_in(monkeypatch, tmp_path / "w.pt")


def test_a_picture_that_fails_does_not_stop_the_others(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (64, 96), "sub/c.png": (64, 96)})
    whole = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((7, 11), 40000, np.uint16)).save(tmp_path / "in" / "d.png")
    assert main(arguments(tmp_path)) == 1
    streams = capsys.readouterr()
    assert "2 predicted: " in streams.out
    lines = streams.err.splitlines()
    assert lines[0] == "error: 2 of 4 pictures have no result:"
    assert sorted(lines[1:])[0].startswith(f"  {tmp_path}/in/b.png cannot be read: ")
    assert sorted(lines[1:])[1] == f"  {tmp_path}/in/d.png must have 8 bits a channel, is mode I;16"
    for kind in KINDS:
        found = {str(path.relative_to(tmp_path / "out" / kind)) for path in (tmp_path / "out" / kind).rglob("*.png")}
        assert found == {"a.png", "sub/c.png"}

    (tmp_path / "in" / "b.png").write_bytes(whole)
    (tmp_path / "in" / "d.png").unlink()
    pixelwise.calls.clear()
    assert main(arguments(tmp_path)) == 0
    assert "1 predicted, 2 finished before" in capsys.readouterr().out
    assert len(pixelwise.calls) == 1


def test_many_problems_are_counted(tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(23):
        (tmp_path / "in" / f"{i}.jpg").touch()
    assert main(arguments(tmp_path)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 3 more"


def test_a_changed_picture_is_predicted_again(tmp_path: Path, pixelwise: Pixelwise) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (64, 96)})
    assert main(arguments(tmp_path)) == 0
    old = (tmp_path / "in" / "a.png").stat()
    picture(7, 40, 60).save(tmp_path / "in" / "a.png")
    os.utime(tmp_path / "in" / "a.png", ns=(old.st_atime_ns, old.st_mtime_ns))  # as a copy that keeps times
    pixelwise.calls.clear()
    assert main(arguments(tmp_path)) == 0
    assert len(pixelwise.calls) == 1
    assert read(tmp_path / "out" / "masks" / "a.png").shape == (40, 60)

    (tmp_path / "out" / "confidence" / "b.png").unlink()
    assert main(arguments(tmp_path)) == 0
    assert (tmp_path / "out" / "confidence" / "b.png").exists()


def test_results_of_a_picture_that_became_unreadable_go(tmp_path: Path, pixelwise: Pixelwise) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (64, 96)})
    assert main(arguments(tmp_path)) == 0
    (tmp_path / "in" / "a.png").write_text("gone wrong")
    assert main(arguments(tmp_path)) == 1
    for kind in KINDS:
        assert [path.name for path in (tmp_path / "out" / kind).iterdir()] == ["b.png"]


def test_hostile_pictures_are_listed_and_the_others_done(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe, a device, and a picture that would be enlarged without end; names that are long, not UTF-8 or HTML."""
    unprintable = os.fsdecode(b"caf\xe9\n\x1b[2J")
    names = ["a", "x" * 246, "\U0001f990" * 62, unprintable, "<img src=x onerror=alert(1)>", "100% #1?", "$x$"]
    fill(tmp_path / "in", {f"{name}.png": (64, 96) for name in names})
    picture(0, 2, 60000).save(tmp_path / "in" / "thread.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "a.png")
    assert main(arguments(tmp_path)) == 1

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 4 of 12 pictures have no result:"
    at = f"  {tmp_path}/in/"
    reasons = (
        "gone.png cannot be read: ",
        "pipe.png is not a regular file",
        "thread.png would be enlarged to 64x1920000",
    )
    assert all(
        line.startswith(at + reason)
        for line, reason in zip(sorted(lines[1:]), (*reasons, "zero.png is not a regular file"), strict=True)
    )
    for kind in KINDS:
        written = {path.stem for path in (tmp_path / "out" / kind).iterdir()}
        assert written == {*names, "link"}

    fill(tmp_path / "in2", {f"{names[3]}.png": (64, 96)})
    Image.new("RGB", (9, 9)).save(tmp_path / "in2" / f"{unprintable}bad.gif")
    (tmp_path / "in2" / f"{unprintable}bad.gif").rename(tmp_path / "in2" / f"{unprintable}2.png")
    assert main(arguments(tmp_path, images="in2", output=f"out{unprintable}")) == 0
    assert "\\udce9\\n\\x1b[2J" in capsys.readouterr().out


def test_a_name_that_the_output_cannot_have_is_a_problem_of_the_picture(
    tmp_path: Path, pixelwise: Pixelwise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on file systems of shorter names than those of the pictures."""
    fill(tmp_path / "in", {"a.png": (64, 96), f"{'b' * 200}.png": (64, 96)})
    original = pictures_of.write_whole

    def short_names(path: Path, content: str | bytes) -> None:
        if len(path.name) > 143:
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        original(path, content)

    monkeypatch.setattr(pictures_of, "write_whole", short_names)
    assert main(arguments(tmp_path)) == 1
    assert "b.png has a name that --output cannot have: File name too long" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["a.png"]


def test_pictures_that_would_fill_the_memory(
    tmp_path: Path, pixelwise: Pixelwise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (640, 960)})
    monkeypatch.setattr(prediction, "available_memory", lambda: 4_000_000)
    assert main(arguments(tmp_path, "--native")) == 1
    assert "b.png needs 0.0 GB as the model sees it, 640x960: too much here" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["a.png"]
    # What counts is the largest view: 8 bytes for each of 3 classes and 128 x 192 pixels.
    for lack in (1, 0):
        monkeypatch.setattr(prediction, "available_memory", lambda lack=lack: 8 * 3 * 128 * 192 - lack)
        assert main(arguments(tmp_path, "--native", "--scales", "1", "2", output=f"{lack}")) == 1
        assert (tmp_path / f"{lack}" / "masks" / "a.png").exists() == (lack == 0)


def test_a_picture_that_takes_all_memory_of_the_gpu_leaves_the_others(
    tmp_path: Path, pixelwise: Pixelwise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (64, 96)})
    original, calls = prediction.probabilities, iter(range(2))

    def first_runs_out(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **options)

    monkeypatch.setattr(prediction, "probabilities", first_runs_out)
    assert main(arguments(tmp_path)) == 1
    assert "a.png CUDA out of memory; a smaller --tile needs less memory\n" in capsys.readouterr().err
    for kind in KINDS:
        assert [path.name for path in (tmp_path / "out" / kind).iterdir()] == ["b.png"]


def test_values_that_are_not_finite_are_a_problem_of_the_picture(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    with torch.no_grad():
        pixelwise.weight[1, 1] = torch.nan
    assert main(arguments(tmp_path)) == 1
    assert "a.png got probabilities that are not finite from the model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "masks").exists()


def test_pictures_too_small_for_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, tmp_path / "w.pt", Run("swinx_n", "inline", "PAN", 16, 0))
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (97, 140)})
    rule = "PAN at output stride 16 needs image sides of at least 128 pixels, got"
    assert main(arguments(tmp_path, "--native", "--tile", "128", "160")) == 1
    assert f"a.png is too small as the model sees it: {rule} 64x96" in capsys.readouterr().err
    assert (tmp_path / "out" / "masks" / "b.png").exists()
    # What decides is the size that the model meets: of tiles, and at each scale.
    for more, got in ((["--tile", "96", "128"], "96x128"), (["--scales", "1", "0.5"], "64x96")):
        assert main(arguments(tmp_path, "--short-side", "128", *more, output=got)) == 1
        assert f"a.png is too small as the model sees it: {rule} {got}\n" in capsys.readouterr().err


def test_another_prediction_is_refused(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    assert main(arguments(tmp_path)) == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main(arguments(tmp_path, "--flip", "--scales", "1", "2")) == 2
    assert "(flip False there, True now; scales [1.0] there, [1.0, 2.0] now)" in capsys.readouterr().err
    assert main(arguments(tmp_path, "--precision", "bf16")) == 2
    assert "(precision 32 there, bf16 now)" in capsys.readouterr().err
    assert main(arguments(tmp_path, "--size", "64", "96", output="sized")) == 0
    assert main(arguments(tmp_path, "--size", "64", "64", output="sized")) == 2
    assert "(size [64, 96] there, [64, 64] now)" in capsys.readouterr().err
    (tmp_path / "w.pt").write_bytes(b"trained for longer")
    assert main(arguments(tmp_path)) == 2
    assert "which holds another prediction (weights" in capsys.readouterr().err
    assert contents == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_results_of_other_pictures_are_not_taken_for_these(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cameras give the same names in every folder; a damaged picture takes no other one's results with it."""
    fill(tmp_path / "in", {"IMG_1.png": (64, 96), "IMG_2.png": (64, 96)})
    fill(tmp_path / "in2", {"IMG_1.png": (40, 60)})
    (tmp_path / "in2" / "IMG_2.png").write_text("damaged")
    (tmp_path / "link").symlink_to("in")
    assert main(arguments(tmp_path)) == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    capsys.readouterr()
    for images in ("in2", "in2/IMG_1.png"):
        assert main(arguments(tmp_path, images=images)) == 2
        there = f"(images {tmp_path}/in there, {tmp_path}/in2 now)"
        assert there in capsys.readouterr().err
    for images in ("in/IMG_1.png", "link", "in"):
        assert main(arguments(tmp_path, images=images)) == 0
        assert "0 predicted, " in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_foreign_outputs_are_refused(tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    assert main(arguments(tmp_path, output="notes")) == 2
    assert "--output must be new, empty or of this command" in capsys.readouterr().err
    assert main(arguments(tmp_path, output="notes/thesis.tex")) == 2
    assert "Not a directory" in capsys.readouterr().err
    for content in ("{", "[1]", "1"):
        (tmp_path / "notes" / "prediction.json").write_text(content)
        assert main(arguments(tmp_path, output="notes")) == 2
        assert "whose prediction.json is no JSON object" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["prediction.json", "thesis.tex"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--overlap", "1", "--native"], "--overlap must be at least 0 and below 1, got 1.0"),
        (["--overlap", "-0.1", "--native"], "--overlap must be at least 0 and below 1, got -0.1"),
        (["--tile", "0", "5"], "--tile must be height and width of at least 1, got 0 5"),
        (["--scales", "0", "1"], "--scales must be one or more positive finite factors, got 0.0 1.0"),
        (["--scales", "nan"], "--scales must be one or more positive finite factors"),
        (["--short-side", "0"], "--short-side must be at least 1, got 0"),
        (["--size", "5", "-1"], "--size must be height and width of at least 1, got 5 -1"),
        (["--native", "--short-side", "5"], "--short-side and --native exclude each other"),
        (["--native", "--size", "5", "5", "--short-side", "5"], "--short-side and --size and --native exclude each"),
        (["--overlap", "0.25"], "--overlap must be left out where pictures are not seen by tiles, got 0.25"),
        (["--precision", "16"], "--precision 16 needs --device cuda; bf16 works on the CPU"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    with pytest.raises(SystemExit, match="2"):  # some are refused by tyro, in a box
        raise SystemExit(main(arguments(tmp_path, *more)))
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_bad_images_are_refused(tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", {"a.png": (4, 5), "a.jpg": (4, 5), "sub/a.png": (4, 5)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    cases = {
        "in": f"IMAGES must differ in more than their suffix, got {tmp_path}/in/a.jpg and {tmp_path}/in/a.png",
        "empty": "IMAGES must be or hold files with suffix .png, .tif, .tiff, .bmp, .jpg, .jpeg, .webp, got",
        "notes.txt": "IMAGES must be or hold files with suffix .png, .tif, ",
        "gone": "which does not exist",
    }
    for images, message in cases.items():
        assert main(arguments(tmp_path, images=images)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "the same command continues" not in error
    assert main(arguments(tmp_path, images="in/sub", output="in")) == 2
    assert "IMAGES must not lie inside --output" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    assert main(arguments(tmp_path)) == 2
    missing = f"WEIGHTS must be a file, such as runs/ID/last.pt, got {tmp_path / 'w.pt'}, which does not exist"
    assert capsys.readouterr().err == f"error: {missing}\n"
    assert main(arguments(tmp_path, images="gone")) == 2
    both = f"{missing}\nIMAGES must be a folder or a file, got {tmp_path / 'gone'}, which does not exist"
    assert capsys.readouterr().err == f"error: {both}\n"
    (tmp_path / "w.pt").mkdir()
    assert main(arguments(tmp_path)) == 2
    assert capsys.readouterr().err == f"error: {missing.replace('does not exist', 'is a folder')}\n"
    (tmp_path / "w.pt").rmdir()
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "w.pt")
    assert main(arguments(tmp_path)) == 2
    assert "w.pt is a torch file of another kind" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    assert main([*arguments(tmp_path), "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_the_output_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "w.pt"), str(tmp_path)])
    assert caught.value.code == 2
    assert "--output" in capsys.readouterr().err


def _after(count: int, error: BaseException) -> Callable[[Path, str | bytes], None]:
    """write_whole that fails after some files."""
    written: list[Path] = []
    original = prediction.write_whole

    def write(path: Path, content: str | bytes) -> None:
        if len(written) == count:
            raise error
        original(path, content)
        written.append(path)

    return write


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command continues"),
        (OSError(28, "No space left on device"), 2, "No space left on device; what is finished is kept"),
    ],
)
def test_a_run_that_is_cut_off_goes_on(
    tmp_path: Path,
    pixelwise: Pixelwise,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    fill(tmp_path / "in", {f"{i}.png": (64, 96) for i in range(4)})
    with monkeypatch.context() as patch:
        # Two records, three files of the first picture, the mask of the second.
        write = _after(6, error)
        patch.setattr(prediction, "write_whole", write)
        patch.setattr(pictures_of, "write_whole", write)
        assert main(arguments(tmp_path)) == status
    streams = capsys.readouterr()
    assert message in streams.out + streams.err
    pixelwise.calls.clear()
    assert main(arguments(tmp_path)) == 0
    assert "3 predicted, 1 finished before" in capsys.readouterr().out
    assert len(pixelwise.calls) == 3
    assert all(len(list((tmp_path / "out" / kind).iterdir())) == 4 for kind in KINDS)


def test_an_output_that_cannot_be_written(
    tmp_path: Path, pixelwise: Pixelwise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    assert main([str(tmp_path / "w.pt"), str(tmp_path / "in"), "--output", "/dev/null/out"]) == 2
    assert "/dev/null" in capsys.readouterr().err
    assert pixelwise.calls == []
