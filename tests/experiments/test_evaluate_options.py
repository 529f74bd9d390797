"""What rows of an evaluation say: the run that was trained, whatever its parts, and the options of the evaluation."""

from pathlib import Path

import pytest
from toy import ONE, save_folder, toy_data

from experiments import compare_decoders, data, evaluate
from experiments.records.counts import counts_of, unpack
from experiments.records.options import DataOptions
from experiments.records.results import read_rows

pytestmark = pytest.mark.usefixtures("tiny_scenes")


def test_rows_are_of_the_last_step_and_of_what_was_asked_for(tmp_path: Path) -> None:
    """With window and stem of the training, other groups, masks of their own size, a corruption and a contrast."""
    root, trained, output = tmp_path / "data", tmp_path / "trained", tmp_path / "out"
    save_folder(toy_data(128), root)
    own = ["--data", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), "--size", "64", "64"]
    grid = ["--decoders", "Segformer", "--windows", "4", "--stems", "none", "--evaluate-at", "0"]
    assert compare_decoders.main([*ONE[2:], *own, *grid, "--output", str(trained)]) == 0
    first, last = read_rows(trained / "results.jsonl")
    assert (first["step"], last["step"], last["groups_id"]) == (0, 1, None)
    asked = ["--score-at", "native", "--corruptions", "jpeg", "--groups", "(toy)"]
    there = ["--output-strides", "32", "8", "--contrasts", "os8-os32"]
    assert evaluate.main([str(trained), "--device", "cpu", *own, *asked, *there, "--output", str(output)]) == 0
    rows = read_rows(output / "results.jsonl")
    assert [row["output_stride"] for row in rows] == [32, 8]
    options = DataOptions(data="folder", root=root, classes=root / "classes.txt", size=(64, 64), groups="(toy)")
    loaded = data.load(options, native=True)
    native = [[int((mask == k).sum()) for k in range(3)] for mask in loaded.test.native_masks or ()]
    for row in rows:
        assert (row["window"], row["stem"], row["step"]) == (4, "none", 1)
        assert {name: row["source"][name] for name in ("run", "step")} == {"run": last["run"], "step": 1}
        assert (row["groups_id"], row["score_at"]) == (data.groups_id(loaded), "native")
        assert list(row["corruption_miou"]) == row["corruptions"] == ["jpeg"]
        counts = counts_of(unpack((output / "runs" / row["run"] / "step1.npz").read_bytes()))
        assert counts.truth.tolist() == native
        assert counts.groups == ("toy",) * 5
    assert "os8-os32" in (output / "differences.csv").read_text()
