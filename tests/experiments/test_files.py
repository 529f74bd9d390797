"""Files are whole or absent, a folder has one writer, and links lead nowhere."""

from pathlib import Path

import pytest

from experiments.records import files
from experiments.records.files import PLAIN_NAME, locked, plain_file, remove_torn, write_whole


def test_write_whole_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_temporary_files_of_killed_writers_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        ".lock",
        "a/.gitignore",
        "a/b.12345678",
        ".a.b",
        ".env.template",
        ".git/.foo.settings",
        ".git/.swinx-12345678",
    )
    kept = [tmp_path / name for name in names]
    for path in kept:
        write_whole(path, "x")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: None)  # where a kill would leave things
        write_whole(tmp_path / "a" / "weights.pt", "y")
    assert len(list((tmp_path / "a").iterdir())) == 3
    assert (tmp_path / ".git" / ".swinx-12345678").exists()
    remove_torn(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.md").symlink_to(tmp_path / "mine.txt")
    write_whole(tmp_path / "report.md", "Überweg")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "report.md").read_bytes() == "Überweg".encode()


def test_plain_files_lie_within_and_have_no_links_on_the_way(tmp_path: Path) -> None:
    within = tmp_path / "run"
    (within / "runs").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for folder in (within / "runs", tmp_path / "secret"):
        (folder / "00.png").touch()
    (within / "link.png").symlink_to(tmp_path / "secret" / "00.png")
    (within / "linked").symlink_to(tmp_path / "secret")
    assert plain_file(within / "runs" / "00.png", within)
    for path in ("link.png", "linked/00.png", "runs", "none.png", "runs/../../secret/00.png"):
        assert not plain_file(within / path, within), path
    assert not plain_file(tmp_path / "secret" / "00.png", within)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a\n", "a b", "-x", "x" * 201, "ä"])
def test_names_that_are_not_plain(name: str) -> None:
    assert PLAIN_NAME.fullmatch(name) is None


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="another run is writing into"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
