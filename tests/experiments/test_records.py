"""Rows survive interruptions whole, files are replaced whole, and provenance does not guess."""

import json
import multiprocessing
import os
import subprocess
from pathlib import Path

import pytest
import torch

from experiments import records
from experiments.records import append_row, provenance, read_rows, remove_torn, write_whole


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert read_rows(path) == []
    rows = [{"a": i, "name": "Überweg\n", "none": None} for i in range(3)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_torn_last_line_is_reported_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "b"')
    with pytest.warns(UserWarning, match=r"results\.jsonl: the last line is torn"):
        assert read_rows(path) == [{"a": 1}]
    append_row(path, {"a": 3})
    assert read_rows(path) == [{"a": 1}, {"a": 3}]


def test_file_of_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a"')
    append_row(path, {"a": 3})
    assert read_rows(path) == [{"a": 3}]


@pytest.mark.parametrize(
    ("line", "message"), [("{broken", "line 2: not JSON"), ("[1]", "line 2: expected a JSON object")]
)
def test_broken_line_in_the_middle_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_what_json_cannot_hold_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"a": float("nan")})
    assert read_rows(path) == [{"a": 1}]


def test_short_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"a": 1})
    write = os.write
    monkeypatch.setattr(records.os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(OSError, match="only 5 of 9 bytes"):
        append_row(path, {"a": 2})
    assert path.read_bytes() == b'{"a": 1}\n'


def _append_many(path: Path, writer: int) -> None:
    for i in range(50):
        append_row(path, {"writer": writer, "i": i, "padding": "x" * 5000})


def test_writers_in_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(timeout=60)
    rows = read_rows(path)
    assert sorted((row["writer"], row["i"]) for row in rows) == [(w, i) for w in range(3) for i in range(50)]


def test_write_whole_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(records.os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_provenance_has_the_fields_of_every_row() -> None:
    row = provenance(torch.device("cpu"))
    assert list(row) == ["commit", "dirty", "command", "time", "host", "python", "torch", "swinx"]
    assert "core" in row["host"]
    assert row["time"].endswith("+00:00")
    json.dumps(row)


def test_commit_is_unknown_where_no_checkout_tracks_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed copy inside another project's checkout must not report that project's commit."""
    installed = tmp_path / "other" / "site-packages" / "records.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git = ["git", "-C", str(tmp_path / "other"), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    monkeypatch.setattr(records, "__file__", str(installed))
    row = provenance(torch.device("cpu"))
    assert (row["commit"], row["dirty"]) == (None, None)

    subprocess.run([*git, "add", "site-packages/records.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "now tracked"], check=True)
    row = provenance(torch.device("cpu"))
    assert len(row["commit"]) == 40
    assert row["dirty"] is False
    installed.write_text("changed")
    assert provenance(torch.device("cpu"))["dirty"] is True


def test_temporary_files_of_killed_writers_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [tmp_path / ".lock", tmp_path / "a" / ".gitignore", tmp_path / "a" / "b.12345678", tmp_path / ".a.b"]
    for path in kept:
        write_whole(path, "x")
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", lambda *_: None)  # where a kill would leave things
        write_whole(tmp_path / "a" / "weights.pt", "y")
    assert len(list((tmp_path / "a").iterdir())) == 3
    remove_torn(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
