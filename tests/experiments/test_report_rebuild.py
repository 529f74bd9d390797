"""experiments.report: a report from any subset of rows of several folders, or of committed rows alone."""

import json
import os
import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from report_folder import again, folder, image_counts, picture, row, summary

from experiments.records.results import Row, check_row, read_rows
from experiments.report import main
from experiments.reporting import pages
from experiments.reporting.content import gather
from experiments.reporting.load import read
from experiments.reporting.rows import source_of


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a report, and are looked at in test_report_pages."""
    monkeypatch.setattr(pages, "_figures", lambda _: [])


def rows_in(path: Path) -> list[Row]:
    return read_rows(path / "results.jsonl")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("two")
    for name, decoders in (("a", ["Unet", "FPN"]), ("b", ["PAN"])):
        folder(root / name, [row(decoder, seed, 40.0 + seed) for decoder in decoders for seed in range(2)])
    return [str(root / "a"), str(root / "b")]


def test_chosen_rows_make_a_report_of_their_own(two: list[str], tmp_path: Path) -> None:
    for where, decoders, seeds in (
        (["decoder=PAN", "seed=1"], {"PAN"}, {1}),
        (["decoder=Unet,PAN"], {"Unet", "PAN"}, {0, 1}),
    ):
        output = tmp_path / where[0]
        assert main([*two, "--output", str(output), "--where", *where]) == 0
        assert {item["decoder"] for item in rows_in(output)} == decoders
        assert {item["seed"] for item in rows_in(output)} == seeds
        assert set(pandas.read_csv(output / "summary.csv")["decoder"]) == decoders
        assert len(list((output / "pictures").iterdir())) == len(rows_in(output))
    assert "95 % interval" in (output / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 2)])
def test_a_report_that_was_cut_off_can_be_made_again(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException, status: int,
) -> None:  # fmt: skip
    def stop(*_: object) -> None:
        raise error

    arguments = [*two, "--output", str(tmp_path / "reports" / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(pages, "render", stop)
        assert main(arguments) == status
    assert "continues" not in capsys.readouterr().err
    assert list((tmp_path / "reports").iterdir()) == []
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["out"]
    (tmp_path / "made").mkdir()
    assert (tmp_path / "reports" / "out").stat().st_mode == (tmp_path / "made").stat().st_mode


def test_committed_rows_alone_give_the_same_report(two: list[str], tmp_path: Path) -> None:
    """From folders, from their merged set, and from NAME.jsonl with NAME.npz elsewhere."""
    assert main([*two, "--output", str(tmp_path / "out")]) == 0
    assert main([str(tmp_path / "out"), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    committed = tmp_path / "committed"
    committed.mkdir()
    for name, other in (("results.jsonl", "x.jsonl"), ("results.npz", "x.npz")):
        shutil.copy(tmp_path / "out" / name, committed / other)
    assert main([str(committed / "x.jsonl"), "--output", str(tmp_path / "third")]) == 0
    for name in ("report.tex", "summary.csv", "differences.csv"):
        assert (tmp_path / "third" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    found, original = read([committed / "x.jsonl"]), read(list(map(Path, two)))
    for item, other in zip(found.items, original.items, strict=True):
        assert item.arrays.keys() == other.arrays.keys()
        for name, array in item.arrays.items():
            assert array.tolist() == other.arrays[name].tolist()


def test_rows_that_were_left_out_or_moved_do_not_take_the_counts_of_others(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a merged set the counts are bound to rows by their number."""
    assert main([*two, "--output", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    shutil.copy(tmp_path / "out" / "results.npz", tmp_path / "x.npz")
    for kept, line, wrong, right in ((lines[1:], 1, "40.000", 41.0), ([*lines[:2], *lines[3:]], 3, "40.000", 41.0)):
        (tmp_path / "x.jsonl").write_text("".join(kept), encoding="utf-8")
        assert main([str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "new")]) == 2
        said = capsys.readouterr().err
        assert f"x.jsonl, line {line}: arrays of {json.loads(kept[line - 1])['run']} at step 20: " in said
        assert f"their test_miou is {wrong}, that of the row {right}" in said
        assert not (tmp_path / "new").exists()
    (tmp_path / "x.jsonl").write_text("".join(lines[:4]), encoding="utf-8")  # those at the end change no number
    assert main([str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "new")]) == 0


def test_one_run_with_several_ways_of_inference(tmp_path: Path) -> None:
    trained = [row("PAN", seed, 40.0 + 9 * seed) for seed in range(2)]
    tiles = [again(item, test_miou=item["test_miou"] + 3, tile=[48, 32], overlap=0.25, flip=True) for item in trained]
    one, other = folder(tmp_path / "whole", trained), folder(tmp_path / "tiles", tiles)
    own = other / "runs" / trained[0]["run"] / "00.png"
    picture(own, 2)
    output = tmp_path / "out"
    assert main([str(one), str(other), "--output", str(output)]) == 0
    table = pandas.read_csv(output / "summary.csv")
    assert table["label"].tolist() == ["PAN · tile 48 32 · flip True", "PAN · tile none · flip False"]
    assert table["test_miou"].tolist() == [47.5, 44.5]
    html = (output / "report.html").read_text(encoding="utf-8")
    assert b64encode(own.read_bytes()).decode() in html
    assert main([str(output), "--where", "tile=48 32", "flip=True", "--output", str(tmp_path / "part")]) == 0
    assert [item["tile"] for item in rows_in(tmp_path / "part")] == [[48, 32]] * 2


def test_a_report_of_several_recipes_can_be_read_again(tmp_path: Path) -> None:
    """Its rows are of the same runs at the same steps, and differ in their settings alone."""
    changes = ({}, {"losses": ["dice"]}, {"learning_rate": 5e-4}, {"steps": 40}, {"start": "/a"}, {"freeze": "encoder"})
    folders = [
        folder(tmp_path / str(n), [row("Unet", s, 40.0 + n, **c) for s in range(2)]) for n, c in enumerate(changes)
    ]
    assert main([*map(str, folders), "--output", str(tmp_path / "all")]) == 0
    assert len(rows_in(tmp_path / "all")) == 12
    assert main([str(tmp_path / "all"), "--where", "losses=dice", "--output", str(tmp_path / "dice")]) == 0
    assert [item["losses"] for item in rows_in(tmp_path / "dice")] == [["dice"]] * 2


def test_what_changes_no_score_makes_no_other_configuration(tmp_path: Path) -> None:
    rows = [row("Unet", 0, 40.0), row("Unet", 1, 41.0, validate_every=2), row("Unet", 2, 42.0, overlap=0.25)]
    (one,) = gather(read([folder(tmp_path, rows)])).configurations
    assert (one.label, len(one.results)) == ("Unet", 3)


def test_models_are_paired_by_the_training_that_they_come_from(tmp_path: Path) -> None:
    """Fine-tuned ones, their re-evaluations, and a second fine-tuning of these."""
    first = [row("Unet", seed, 40.0, time=f"2026-01-01T00:00:0{seed}.000+00:00") for seed in range(3)]
    tuned = [item | {"source": summary(item), "start": "/a", "time": "2026-01-02"} for item in first]
    flipped = [again(item, flip=True) for item in tuned]
    third = [item | {"source": summary(item), "start": "/b", "time": "2026-01-04"} for item in tuned]
    for made in (tuned, flipped, third):
        assert [source_of(item) for item in made] == [source_of(item) for item in first]
    folders = [folder(tmp_path / str(n), rows) for n, rows in enumerate((tuned, flipped))]
    (effect,) = gather(read(folders), ["flip=True-flip=False"]).effects
    assert effect.df == pytest.approx(2)
    bad = third[0] | {"source": third[0]["source"] | {"source": {"run": "../x"}}}
    with pytest.raises(ValueError, match="source must be an object with the plain name of a run"):
        check_row(bad)


def test_an_evaluation_that_repeats_the_one_after_training_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [row("Unet", seed, device="cpu") for seed in range(2)]
    finer = again(trained[0], run=row("Unet", output_stride=16)["run"], output_stride=16)
    one, other = folder(tmp_path / "trained", trained), folder(tmp_path / "again", [again(trained[0]), finer])
    for name, order in (("1", (one, other)), ("2", (other, one))):
        assert main([*map(str, order), "--output", str(tmp_path / name)]) == 0
        assert "left out: 1 rows" in capsys.readouterr().out
        rows = rows_in(tmp_path / name)
        assert sorted(item["run"] for item in rows) == sorted([finer["run"], *(item["run"] for item in trained)])
        assert [item["run"] for item in rows if item["source"]] == [finer["run"]]
    changed = again(trained[0])
    changed["source"] = changed["source"] | {"time": "2026-01-02T00:00:00+00:00"}  # of another training
    mixed = folder(tmp_path / "time", [changed])
    assert main([str(one), str(mixed), "--output", str(tmp_path / "none")]) == 2
    assert "a run may come once" in capsys.readouterr().err
    # Which of them is wanted can be said.
    assert main([str(one), str(mixed), "--where", "seed=1", "--output", str(tmp_path / "out")]) == 0
    bf16 = folder(tmp_path / "bf16", [again(trained[0], precision="bf16")])
    labels = [c.label for c in gather(read([one, bf16])).configurations]
    assert sorted(labels) == ["Unet · precision 32", "Unet · precision bf16"]


def test_evaluations_with_groups_or_corruptions_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the same models that differ in nothing else; and where each has what the other lacks, none is."""
    trained = [row("Unet", seed) for seed in range(2)]
    measured = [again(item, corruption_miou={"jpeg": 31.0}, corruptions=["jpeg"]) for item in trained]
    both = [item | {"corruption_miou": {"jpeg": 31.0, "contrast": 20.0}} for item in measured]
    drives = tuple(f"drive {i % 5}" for i in range(24))
    grouped = [replace(image_counts(item), groups=drives) for item in trained]
    others = [replace(counts, groups=drives[::-1]) for counts in grouped]
    plain, jpeg = folder(tmp_path / "plain", trained), folder(tmp_path / "jpeg", measured)
    more = folder(tmp_path / "more", both)
    by_drive = folder(tmp_path / "drives", [again(item) for item in trained], grouped)
    for paths, groups, kinds in (
        ((plain, jpeg), 24, {"jpeg"}),
        ((jpeg, plain, more), 24, {"jpeg", "contrast"}),
        ((plain, by_drive), 5, set()),
    ):
        content = gather(read(paths))
        assert content.comparison is not None
        assert (len(content.results.items), content.comparison.groups) == (2, groups)
        found = {key.partition(" ")[2] for key in content.table if key.startswith("corruption_miou ")}
        assert found == kinds
    assert main([str(plain), str(jpeg), "--output", str(tmp_path / "out")]) == 0
    assert "left out: 2 rows of models that other rows evaluate" in capsys.readouterr().out
    for other in (jpeg, folder(tmp_path / "others", [again(item) for item in trained], others)):
        assert main([str(by_drive), str(other), "--output", str(tmp_path / "none")]) == 2
        said = f"{trained[0]['run']} at 20 is there twice, each time with groups or corruptions that the other lacks"
        assert said in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_bad_input_is_refused(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(tmp_path / "o")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    other = folder(tmp_path / "other", [row("MAnet", data_id="y")])
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * (Path(two[1]) / "results.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    for arguments, message in (
        *(
            ([*two, "--output", at], "--output must be a new folder")
            for at in (str(tmp_path / "notes"), two[0], str(twice))
        ),
        ([*two, "--output", new, "--where", "seed=0", "seed=1"], "each field once"),
        ([str(twice), "--output", new], "is in line 1 already"),
        ([*two, str(other), "--output", new], "must be of the same data, got data_id x in"),
        ([str(tmp_path / "notes"), "--output", new], "holds no results"),
        ([str(tmp_path / "nothing"), "--output", new], "holds no results"),
        ([*two, "--output", new, "--where", "colour=red"], "of decoder, encoder, stem"),
        ([*two, "--output", new, "--where", "decoder=MAnet"], "MAnet is not one of FPN, PAN, Unet"),
        (
            [*two, "--output", new, "--where", "decoder=PAN", f"run={row('FPN')['run']}"],
            "no row meets decoder=PAN run=",
        ),
        ([*two, "--output", new, "--contrasts", "Unet-MAnet"], "--contrasts Unet-MAnet: 'MAnet' is no value"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not Path(new).exists()
    assert (tmp_path / "notes" / "thesis.tex").exists()
    assert (Path(two[0]) / "results.jsonl").exists()


def test_planned_contrasts_by_command(two: list[str], tmp_path: Path) -> None:
    assert main([*two, "--output", str(tmp_path / "out"), "--contrasts", "Unet-PAN"]) == 0
    assert pandas.read_csv(tmp_path / "out" / "differences.csv")["contrast"].tolist() == ["Unet-PAN"]


@pytest.mark.parametrize("name", ["/home/settings", "../../escaped", "..", "a/b", ".hidden", ""])
def test_rows_whose_names_are_paths_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, home = folder(tmp_path / "run", [row("FPN"), row("FPN", 1)]), tmp_path / "home"
    home.mkdir()
    (home / "settings.json").write_text('{"mine": 1}', encoding="utf-8")
    rows = rows_in(run)
    rows[0]["run"] = str(home / "settings") if name.startswith("/") else name
    (run / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    path = next(run.rglob("*.png"))
    path.unlink()
    os.symlink(home / "settings.json", path)
    assert main([str(run), "--output", str(tmp_path / "mine" / "out")]) == 2
    assert "run must be the plain name of its run" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert [path.name for path in tmp_path.rglob("*") if "escaped" in path.name] == []
    assert [path.name for path in home.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"source": null', '"source": {"run": "../x"}', "source must be an object with the plain name of a run"),
        ('"params_m": 4.0', f'"params_m": 1{"0" * 400}', "params_m must be a number of 0 to 1e+15, or null"),
        ('{"kind"', "[" * 100_000, "line 1: not JSON"),
        ('"tile": null', '"tile": ' + "[" * 100_000, "line 1: not JSON"),
    ],
)
def test_rows_of_other_types_are_refused(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder(tmp_path / "run", [row("FPN")])
    text = (run / "results.jsonl").read_text(encoding="utf-8")
    assert old in text
    (run / "results.jsonl").write_text(text.replace(old, new), encoding="utf-8")
    assert main([str(run), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
