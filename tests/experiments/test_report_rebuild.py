"""A report from any subset of rows of several folders."""

from pathlib import Path

import pandas
import pytest
from report_folder import add_counts, folder, row

from experiments.records import read_rows
from experiments.report.__main__ import main


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    for name, decoders in (("a", ["Unet", "FPN"]), ("b", ["PAN"])):
        rows = [row(decoder, seed, 40.0 + seed, data_id="x") for decoder in decoders for seed in range(2)]
        for item in rows:
            add_counts(tmp_path / name, item["cell"], [[50, 40], [60, 10]])
        folder(tmp_path / name, rows)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_chosen_rows_make_a_report_of_their_own(two: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    for where, decoders, seeds in (
        (["decoder=Unet,PAN"], {"Unet", "PAN"}, {0, 1}),
        (["decoder=PAN", "seed=1"], {"PAN"}, {1}),
        ([], {"Unet", "FPN", "PAN"}, {0, 1}),
    ):
        arguments = [*two, "--output", str(output), *(["--where", *where] if where else [])]
        assert main(arguments) == 0
        rows = read_rows(output / "results.jsonl")
        assert {item["decoder"] for item in rows} == decoders
        assert {item["seed"] for item in rows} == seeds
        assert set(pandas.read_csv(output / "summary.csv")["decoder"]) == decoders
        assert "95 % interval" in (output / "report.md").read_text()
        assert {path.name for path in (output / "cells").iterdir() if path.is_dir()} == {item["cell"] for item in rows}
    text = (output / "report.html").read_text()
    for source in two:  # nothing of the old folders is needed
        Path(source).rename(f"{source}-gone")
    assert main([str(output), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == text


def test_bad_input_is_refused(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    assert main([two[1], "--output", str(tmp_path / "mixed")]) == 0
    (tmp_path / "mixed" / "thesis.tex").touch()
    other = folder(tmp_path / "other", [row("MAnet", data_id="y")])
    for arguments, message in (
        ([*two, "--output", str(tmp_path / "notes")], "--output must be a new folder or one of an earlier call"),
        ([*two, "--output", two[0]], "--output must be"),
        ([*two, "--output", str(tmp_path / "mixed")], "holds other files too (thesis.tex), choose another folder"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "seed=0", "seed=1"], "each field may be given once"),
        ([two[0], two[0], "--output", str(tmp_path / "o")], "each cell may come once"),
        ([*two, str(other), "--output", str(tmp_path / "o")], "must be of the same data, got data_id x in"),
        ([str(tmp_path / "notes"), "--output", str(tmp_path / "o")], "holds no comparison"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "colour=red"], "with a field of decoder, encoder, stem"),
        ([*two, "--output", str(tmp_path / "o"), "--where", "decoder=MAnet"], "MAnet is not one of FPN, PAN, Unet"),
        (
            [*two, "--output", str(tmp_path / "o"), "--where", "decoder=PAN", "cell=" + row("FPN")["cell"]],
            "no row meets decoder=PAN cell=",
        ),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    assert (tmp_path / "notes" / "thesis.tex").exists()
    assert (tmp_path / "mixed" / "thesis.tex").exists()
    assert (Path(two[0]) / "results.jsonl").exists()


def test_rows_of_other_settings_and_without_data_id_go_together(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", [row("Unet", test=40.0, data_id="x", learning_rate=0.1)])
    earlier = row("FPN", test=41.0, learning_rate=0.2)  # has no data_id
    second = folder(tmp_path / "b", [earlier])
    assert main([str(first), str(second), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- settings that differ: learning rate 0.1, 0.2\n" in text
    assert "FPN reaches 41.0 % test mIoU, 1.0 points above Unet." in text
