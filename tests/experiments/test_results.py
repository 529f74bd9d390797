"""Rows survive interruptions whole, are checked when read, and provenance does not guess."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import swinx
from experiments.records import results
from experiments.records.results import Row, append_rows, provenance, read_rows


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert read_rows(path) == []
    rows = [{"a": i, "name": "Überweg\n", "none": None} for i in range(3)]
    for row in rows:
        append_rows(path, [row])
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_torn_last_line_is_reported_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_rows(path, [{"a": 1}])
    with path.open("ab") as file:
        file.write(b'{"a": 2, "b"')
    with pytest.warns(UserWarning, match=r"results\.jsonl: the last line is torn"):
        assert read_rows(path) == [{"a": 1}]
    append_rows(path, [{"a": 3}])
    assert read_rows(path) == [{"a": 1}, {"a": 3}]


def test_file_of_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a"')
    append_rows(path, [{"a": 3}])
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
    append_rows(path, [{"a": 1}])
    with pytest.raises(ValueError, match="JSON"):
        append_rows(path, [{"a": float("nan")}])
    assert read_rows(path) == [{"a": 1}]


def test_short_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append_rows(path, [{"a": 1}])
    write = os.write
    monkeypatch.setattr(results.os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(OSError, match="only 5 of 9 bytes"):
        append_rows(path, [{"a": 2}])
    assert path.read_bytes() == b'{"a": 1}\n'


def _append_many(path: Path, writer: int) -> None:
    for i in range(50):
        append_rows(path, [{"writer": writer, "i": i, "padding": "x" * 5000}])


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


def test_provenance_has_the_fields_of_every_row() -> None:
    row = provenance(torch.device("cpu"))
    assert list(row)[:6] == ["commit", "dirty", "command", "time", "host", "cpu_capability"]
    assert {name: row[name] for name in ("torch", "smp", "timm", "numpy", "swinx")} == {
        "torch": torch.__version__,
        "smp": smp.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "swinx": swinx.__version__,
    }
    assert "core" in row["host"]
    assert row["time"].endswith("+00:00")
    json.dumps(row)


def test_rows_hold_the_command_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports paste it, with more seeds: without torchrun these would be trained in another way."""
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-u", "-m", "experiments.x", "--output", "a b"])
    assert provenance(torch.device("cpu"))["command"] == "python -u -m experiments.x --output 'a b'"
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("GROUP_WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    expected = "torchrun --nnodes=1 --nproc-per-node=8 -m experiments.x --output 'a b'"
    assert provenance(torch.device("cpu"))["command"] == expected


def test_commit_is_unknown_where_no_checkout_tracks_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed copy inside another project's checkout must not report that project's commit."""
    installed = tmp_path / "other" / "site-packages" / "records.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git = ["git", "-C", str(tmp_path / "other"), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    monkeypatch.setattr(results, "__file__", str(installed))
    row = provenance(torch.device("cpu"))
    assert (row["commit"], row["dirty"]) == (None, None)

    subprocess.run([*git, "add", "site-packages/records.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "now tracked"], check=True)
    row = provenance(torch.device("cpu"))
    assert len(row["commit"]) == 40
    assert row["dirty"] is False
    installed.write_text("changed")
    assert provenance(torch.device("cpu"))["dirty"] is True


ROW: Row = {
    "kind": "segmentation",
    "run": "swinx_n-inline-Unet-os32-seed0",
    "encoder": "swinx_n",
    "stem": "inline",
    "decoder": "Unet",
    "output_stride": 32,
    "seed": 0,
    "dilation": "exact",
    "window": None,
    "alignment": "none",
    "data_id": "x",
    "status": "ok",
    "step": 250,
    "test_miou": 41.5,
    "class_iou": {"a $<b>": 3, "c": None},
    "boundary_f1": {"1": 20.5, "0.75%": None},
    "source": None,
}


def test_a_row_of_a_comparison_is_read(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [ROW, ROW | {"step": 10}, ROW | {"flip": True}])
    assert len(read_rows(tmp_path / "rows.jsonl")) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "../../escaped"}, "run must be the plain name of its run, got '../../escaped'"),
        ({"run": "/etc/passwd"}, "run must be the plain name of its run"),
        ({"run": "swinx_n-inline-Unet-os32-seed1"}, "run must be the plain name of its run"),
        ({"encoder": "../x", "run": "../x-inline-Unet-os32-seed0"}, "run must be the plain name of its run"),
        ({"encoder": 3}, "encoder must be text, got '3'"),
        ({"seed": True}, "seed must be a whole number of 0 to 9223372036854775807, got 'True'"),
        ({"seed": -1}, "seed must be a whole number of 0 to 9223372036854775807, got '-1'"),
        ({"decoder": "<b>", "run": "swinx_n-inline-<b>-os32-seed0"}, "decoder must be among DeepLabV3, "),
        ({"stem": ["none"]}, "stem must be among shared, branch, inline, none, None"),
        ({"output_stride": 8.0}, "output_stride must be among 8, 16, 32, got '8.0'"),
        ({"data_id": None}, "data_id must be text, got 'None'"),
        ({"step": "9"}, "step must be a whole number from 0, or null, got '9'"),
        ({"status": "fine"}, "status must be one of ok, diverged, not applicable, got 'fine'"),
        ({"test_miou": "<b>"}, "test_miou must be a number of 0 to 100, or null, got '<b>'"),
        ({"test_miou": 1e999}, "test_miou must be a number of 0 to 100, or null, got 'inf'"),
        ({"val_miou": 100.1}, "val_miou must be a number of 0 to 100, or null, got '100.1'"),
        ({"ece": -0.1}, "ece must be a number of 0 to 100, or null, got '-0.1'"),
        ({"ece": True}, "ece must be a number of 0 to 100, or null, got 'True'"),
        ({"latency_ms_p50": 1.7e308}, "latency_ms_p50 must be a number of 0 to 1e+15, or null, got '1.7e+308'"),
        ({"step": 10**400}, "step must be a whole number from 0, or null, got '1000"),
        ({"world_size": "x"}, "world_size must be a whole number from 1, or null, got 'x'"),
        ({"world_size": 0}, "world_size must be a whole number from 1, or null, got '0'"),
        ({"time": {"a": 1}}, "time must be text or null, got "),
        ({"trained": False}, "trained must be true, or false in a row with a source, got 'False'"),
        ({"trained": None}, "trained must be true, or false in a row with a source, got 'None'"),
        ({"source": {"run": "a", "time": {}}}, "source must be an object with the plain name of a run, and its time"),
        ({"class_iou": [1, 2]}, "class_iou must be an object of numbers of 0 to 100, or null"),
        ({"class_iou": {"a": {}}}, "class_iou must be an object of numbers of 0 to 100, or null"),
        ({"boundary_f1": {"2": 1e308}}, "boundary_f1 must be an object of numbers of 0 to 100, or null"),
        ({"source": {"run": "../x"}}, "source must be an object with the plain name of a run, and its time"),
    ],
)
def test_rows_of_a_stranger_are_refused_with_their_line(tmp_path: Path, change: Row, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"step": 1}) + "\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(ValueError, match="line 2: ") as caught:
        read_rows(path)
    assert message in str(caught.value)


def test_a_row_that_lacks_what_its_run_is_is_refused(tmp_path: Path) -> None:
    names = ("encoder", "stem", "decoder", "output_stride", "seed", "dilation", "window", "alignment")
    for name in names:
        (tmp_path / "rows.jsonl").write_text(json.dumps({k: v for k, v in ROW.items() if k != name}) + "\n")
        with pytest.raises(ValueError, match=f"line 1: a row lacks {name}$"):
            read_rows(tmp_path / "rows.jsonl")


def test_a_row_that_comes_twice_is_no_second_seed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW, ROW | {"test_miou": 42.0}])
    with pytest.raises(ValueError, match=r"line 2: swinx_n-inline-Unet-os32-seed0 at step 250 is in line 1 already"):
        read_rows(path)


def test_rows_are_not_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OSError, match=r"rows.jsonl"):
        append_rows(tmp_path / "rows.jsonl", [ROW])
    assert (tmp_path / "mine.txt").read_text() == "mine"
