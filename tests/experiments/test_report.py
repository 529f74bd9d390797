"""What a report says: configurations over seeds, what may be called significant, and what may be compared."""

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest
from report_folder import CLASSES, COMMAND, PIXELS, again, content_of, folder, image_counts, row

from experiments.records.counts import ImageCounts
from experiments.records.grid import Run
from experiments.records.results import RESULT_FIELDS, Row
from experiments.reporting import pages, tables, text
from experiments.reporting.content import gather, labels
from experiments.reporting.load import read
from experiments.reporting.rows import SETTINGS, axes_of
from experiments.reporting.text import with_seeds


def test_means_and_deviations_over_seeds_are_ranked(tmp_path: Path) -> None:
    rows = [row("Unet", 0, 40.0), row("FPN", 0, 50.0), row("Unet", 1, 44.0), row("FPN", 1, 50.0)]
    table = content_of(tmp_path, rows).table
    ranking = tables.ranking(table)
    assert "under jpeg %" not in ranking, "nothing in it"
    assert ranking[["#", "configuration", "seeds", "test mIoU %", "params M", "latency ms"]].values.tolist() == [
        ["1", "FPN", "2", "50.0 ± 0.0", "4.00", "11.0"],
        ["2", "Unet", "2", "42.0 ± 2.8", "4.00", "11.0"],
    ]
    table = table.set_index("label")
    assert table["test_miou"].to_dict() == {"FPN": 50.0, "Unet": 42.0}
    assert table["sd of test_miou"].tolist() == pytest.approx([0.0, 8**0.5])
    assert table["boundary_f1 2"].tolist() == [30.0, 30.0]
    classes = tables.classes(table.reset_index())
    assert classes["road"].to_dict() == {"1 FPN": 50.0, "2 Unet": 42.0}
    assert classes["rare"].isna().all()


def test_labels_name_only_what_is_needed() -> None:
    def named(*rows: Row) -> list[str]:
        return labels([axes_of(item) for item in rows])

    assert named(row("Unet"), row("FPN")) == ["Unet", "FPN"]
    strides = named(row("Unet"), row("Unet", output_stride=16), row("FPN"))
    assert strides == ["Unet · OS 32", "Unet · OS 16", "FPN · OS 32"]
    assert named(row("Unet"), row("DeepLabV3", output_stride=8)) == ["Unet", "DeepLabV3"], "determined by the decoder"
    other = {"encoder": "resnet50", "stem": None, "dilation": None, "alignment": None}
    rules = [{}, {"dilation": "dense"}, {"window": 7}, {"alignment": "centred"}, other]
    assert named(*(row("Unet", output_stride=16, **changes) for changes in rules)) == [
        "Unet · swinx_n · exact · window 8 · alignment none",
        "Unet · swinx_n · dense · window 8 · alignment none",
        "Unet · swinx_n · exact · window 7 · alignment none",
        "Unet · swinx_n · exact · window 8 · alignment centred",
        "Unet · resnet50",
    ]


def test_settings_that_differ_make_configurations_of_their_own(tmp_path: Path) -> None:
    """Seeds of other settings are no seeds of one configuration; a field that an earlier row lacks is no difference."""
    rows = [row("Unet", seed, 40.0 + seed) for seed in range(2)]
    del rows[0]["zoom"]
    rows += [row("Unet", seed, 45.0 + seed, learning_rate=0.1, evaluate_at=[3]) for seed in range(3)]
    content = gather(read([folder(tmp_path / "a", rows[:2]), folder(tmp_path / "b", rows[2:])]))
    assert [(c.label, len(c.results)) for c in content.configurations] == [
        ("Unet · learning rate 0.1", 3),
        ("Unet · learning rate 0.001", 2),
    ]


def test_every_setting_is_looked_at() -> None:
    """What is not a setting of a configuration is of the data, or changes no score."""
    others = {"data", "data_id", "groups_id", "height", "width", "device", "evaluate_at"}
    others |= {"corruptions", "validate_every"}
    made = row("Unet").keys() - Run.__dataclass_fields__.keys() - {*RESULT_FIELDS} - {*SETTINGS} - others
    assert made == {
        *("kind", "run", "commit", "dirty", "command", "time", "host", "cpu_capability", "python", "torch", "smp"),
        *("timm", "numpy", "swinx", "threads", "world_size", "status", "error", "step", "source"),
    }


def flat(iou: list[float], images: int = 24) -> ImageCounts:
    """Counts of images that are all alike: IoU = hits / (2 PIXELS - hits) by class, in percent."""
    hits = numpy.array([[round(2 * PIXELS * x / (100 + x)) for x in iou]] * images)
    truth = numpy.full_like(hits, PIXELS)
    names = tuple(map(str, range(images)))
    return ImageCounts(names, names, CLASSES[: len(iou)], hits, truth, truth.copy())


def test_one_seed_is_never_significant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 points apart on every image; and what adds seeds to the same folder is said."""
    monkeypatch.setattr(pages, "_figures", lambda _: [])
    output = folder(tmp_path, [row("Unet", test=80.0), row("FPN", test=30.0)], [flat([80, 80]), flat([30, 30])])
    pages.write_report(output)
    (line,) = pandas.read_csv(output / "differences.csv").to_dict("records")
    assert {name for name, value in line.items() if pandas.notna(value)} == {"contrast", "points", "reason"}
    assert line["points"] == pytest.approx(50, abs=0.2)
    for name in ("report.md", "report.html"):
        words = re.sub(r"not (significant|tested)|not significantly", "", (output / name).read_text(encoding="utf-8"))
        assert not re.search(r"(?<!filled: )significant", words)
        assert "python -m experiments.compare_decoders --data " in words
        assert with_seeds(COMMAND, [1, 2]) in html.unescape(words)


def test_three_seeds_find_what_is_far_apart(tmp_path: Path) -> None:
    scores = {"Unet": 70.0, "FPN": 50.0, "PAN": 50.0}
    content = content_of(tmp_path, [row(d, seed, t + 0.1 * seed) for d, t in scores.items() for seed in range(3)])
    found = tables.differences(content)
    assert sorted(found["result"]) == ["not significant", "significant", "significant"]
    assert found["smallest to be found"].tolist() == [f"{effect.smallest:.1f}" for effect in content.effects]
    table = content.table.set_index("label")
    assert table["letters"].to_dict() == {"Unet": "a", "FPN": "b", "PAN": "b"}
    assert (table["low"] < table["test_miou"] + 2).all()
    assert (table["high"] > table["low"]).all()
    first = content.effects[0]
    assert first.name == "Unet - FPN"
    assert text.headline(content) == "Unet reaches 70.1 % test mIoU, 20.0 points above FPN: significant."
    other = replace(content, effects=[replace(first, points=12.34)])
    assert "12.3 points above FPN" in text.headline(other), "of the effect: scores of rows are rounded"


def test_planned_contrasts_are_tested_alone(tmp_path: Path) -> None:
    rules = [(stride, rule) for stride in (16, 8) for rule in ("exact", "dense")]
    rows = [
        row("Unet", seed, {"exact": 60.0, "dense": 50.0}[rule] + 0.1 * seed, output_stride=stride, dilation=rule)
        for seed in range(3)
        for stride, rule in rules
    ]
    content = content_of(tmp_path / "runs", rows, ("exact-dense@os8", "exact-dense"))
    assert [effect.name for effect in content.effects] == ["exact-dense@os8", "exact-dense"]
    assert content.effects[1].contrast.weights == {
        c.label: pytest.approx(0.5 if "exact" in c.label else -0.5) for c in content.configurations
    }
    assert tables.effects(content)["significant"].tolist() == [True, True]
    assert tables.differences(content)["made of"].str.startswith("one pair").tolist() == [True, False]
    assert not content.table["letters"].any(), "letters are of all pairs"
    assert "above" not in text.headline(content), "its lead is none of the planned contrasts"
    with pytest.raises(ValueError, match="--contrasts exact-enlarged"):
        gather(content.results, ["exact-enlarged"], strict=True)
    early = gather(content.results, ["exact-enlarged"])  # as in a grid whose first runs have finished
    assert not early.effects
    assert any("exact-enlarged" in note for note in text.notes(early))


def test_many_pairs_leave_those_with_the_best(tmp_path: Path) -> None:
    decoders = ("Unet", "FPN", "PAN", "MAnet", "Linknet", "UPerNet")
    content = content_of(tmp_path, [row(d, s, 40.0 + 3 * i) for i, d in enumerate(decoders) for s in range(2)])
    assert len(content.effects) == len(tables.effects(content)) == 15
    assert [name.split(" - ")[0] for name in tables.differences(content)["contrast"]] == ["UPerNet"] * 5


def test_readouts_of_the_same_models_are_compared_model_by_model(tmp_path: Path) -> None:
    """The models differ by much more than what mirrors are worth; an own seed spread would hide that."""
    trained = [row("PAN", seed, 40.0 + 9 * seed) for seed in range(3)]
    mirrored = [again(item, test_miou=item["test_miou"] + 3, flip=True) for item in trained]
    counts = [flat([item["test_miou"] + 0.1 * n] * 2) for n, item in enumerate(trained + mirrored)]
    one, other = folder(tmp_path / "a", trained, counts[:3]), folder(tmp_path / "b", mirrored, counts[3:])
    content = gather(read([one, other]))
    (effect,) = content.effects
    assert (effect.name, effect.significant) == ("PAN · flip True - PAN · flip False", True)
    assert effect.points == pytest.approx(3.3, abs=0.1)
    assert effect.df == 2
    assert any(note.startswith("3 of 6 rows evaluate weights") for note in text.notes(content))
    others = [item | {"source": item["source"] | {"time": "2026-01-02T00:00:00+00:00"}} for item in mirrored]
    (apart,) = gather(read([one, folder(tmp_path / "c", others, counts[3:])])).effects
    assert (apart.name, apart.points, apart.significant) == (effect.name, effect.points, False)
    assert apart.df == pytest.approx(4, abs=0.1), "of other trainings of these runs: Welch's"


def test_latencies_are_shown_within_one_sitting(tmp_path: Path) -> None:
    sittings = {"Unet": "one", "FPN": "one", "MAnet": "one", "PAN": "two"}
    rows = [row(d, seed, latency_sitting=s) for d, s in sittings.items() for seed in range(2)]
    rows[1] |= {"latency_sitting": "two", "latency_ms_p50": 99.0}
    table = content_of(tmp_path / "a", rows).table
    assert dict(zip(table["label"], tables.ranking(table)["latency ms"], strict=True)) == {
        **{"Unet": "11.0", "FPN": "11.0", "MAnet": "11.0", "PAN": "–"},
    }
    for n, item in enumerate(rows):  # each run in a process of its own, as on Ray; or rows that do not say
        item["latency_sitting"] = str(n) if n % 2 else None
    assert "latency ms" not in tables.ranking(content_of(tmp_path / "b", rows).table)


def test_runs_without_a_result_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that diverged after it was evaluated on its way: its earlier scores are not in the ranking."""
    nothing = dict.fromkeys(RESULT_FIELDS)
    absent = row("FPN", output_stride=16) | nothing
    absent |= {"status": "not applicable", "error": "FPN takes 32", "step": None}
    diverged = row("PAN") | nothing | {"status": "diverged", "error": "the loss became nan", "step": None}
    rows = [row("Unet"), absent, absent | {"flip": True}, row("PAN", step=5), diverged]
    content = content_of(tmp_path, rows)
    assert [c.label for c in content.configurations] == ["Unet"]
    assert tables.unfinished(content).values.tolist() == [
        [absent["run"], "not applicable", "FPN takes 32"],
        [diverged["run"], "diverged", "the loss became nan"],
    ]
    pages.write_report(folder(tmp_path / "only", [absent]))
    assert absent["run"] in (tmp_path / "only" / "report.md").read_text(encoding="utf-8")
    assert pandas.read_csv(tmp_path / "only" / "summary.csv").empty


def test_rows_without_a_score_are_last(tmp_path: Path) -> None:
    none = flat([0, 0])
    absent = ImageCounts(none.names, none.groups, none.class_names, *(0 * none.truth,) * 3)
    rows = [row("Unet", test_miou=None), row("FPN")]
    content = gather(read([folder(tmp_path, rows, [absent, image_counts(rows[1])])]))
    assert [c.label for c in content.configurations] == ["FPN", "Unet"]
    assert "Unet" not in text.headline(content)
    assert any("Unet" in note for note in text.notes(content))
    pages.write_report(tmp_path)
    pages.write_report(folder(tmp_path / "none", rows[:1], [absent]))


def test_missing_counts_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(d, seed, 20.0 + step, step=step) for d in ("Unet", "FPN") for seed in range(2) for step in (0, 10, 20)]
    output = folder(tmp_path, rows)
    content = gather(read([output]), ["Unet-FPN@step10"])
    assert [c.results[0].row["step"] for c in content.configurations] == [20, 20]
    assert [c.label for c, _ in content.steps][:3] == [f"Unet · step {step}" for step in (0, 10, 20)]
    assert content.steps[1][1].miou == pytest.approx(30, abs=3)
    assert content.effects[0].contrast.weights == {"Unet · step 10": 1.0, "FPN · step 10": -1.0}
    (tmp_path / "planned.txt").write_text("Unet-FPN@step10\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # so that "step" is in the file alone, not in its name
    assert gather(read([output]), ["planned.txt"]).effects == content.effects
    (output / "runs" / row("FPN")["run"] / "step20.npz").unlink()
    content = gather(read([output]))
    assert not content.effects
    assert text.headline(content) == "Unet reaches 40.0 % test mIoU.", "no lead over what was not compared"
    assert any(note.endswith("missing for FPN.") for note in text.notes(content))
    assert content.table.set_index("label")["low"].isna().to_dict() == {"Unet": False, "FPN": True}


def test_steps_that_only_some_seeds_have_are_not_compared(tmp_path: Path) -> None:
    """As of two folders that were evaluated at other steps."""
    folders = [
        folder(tmp_path / f"{seed}", [row("Unet", seed, 30.0 + step, step=step) for step in steps])
        for seed, steps in enumerate(((5, 10, 20), (10, 15, 20)))
    ]
    steps = gather(read(folders)).steps
    assert [(one.label, len(one.results), score.models) for one, score in steps] == [
        ("Unet · step 10", 2, 2),
        ("Unet · step 20", 2, 2),
    ]


def test_groups_are_scored_apart(tmp_path: Path) -> None:
    """Drive a has IoU 1/3 and 3/7 of its two classes; drive b 1/3 and 3/5 with one seed, 1/3 and 1/7 with the other."""
    rows = [row("Unet", 0), row("Unet", 1)]
    drives = ("a/0",) * 12 + ("a/1",) * 3 + ("b/0",) * 9
    found = []
    for one, hits_of_b in zip(rows, (0.75, 0.25), strict=True):
        counts = image_counts(one)
        hits, in_a = counts.hits.copy(), numpy.arange(24) < 15
        hits[:, 0] = PIXELS // 2
        hits[in_a, 1] = PIXELS // 10 * (6 + numpy.arange(15) % 3 - 1)  # counts are added up, not scores: 3 / 7
        hits[~in_a, 1] = PIXELS * hits_of_b
        found.append(replace(counts, groups=drives, hits=hits))
    table = tables.groups(gather(read([folder(tmp_path / "two", rows, found)])))
    assert list(table) == ["a (15 images)", "b (9 images)"]
    expected = [(1 / 3 + 3 / 7) / 2, (1 / 3 + (3 / 5 + 1 / 7) / 2) / 2]
    assert table.to_numpy().tolist() == [pytest.approx([100 * value for value in expected])]
    alone = [replace(counts, groups=counts.names) for counts in found]
    assert tables.groups(gather(read([folder(tmp_path / "alone", rows, alone)]))).empty


@pytest.mark.parametrize("count", [2, 8, 9])
def test_groups_that_a_table_has_room_for_are_in_the_report(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_figures", lambda _: [])
    rows = [row("Unet"), row("FPN", test=40.0)]
    groups = tuple(f"drive {i % count}" for i in range(24))
    output = folder(tmp_path, rows, [replace(image_counts(one), groups=groups) for one in rows])
    pages.write_report(output)
    written = {kind: (output / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "tex")}
    assert f"24 test images in {count} groups." in written["html"]
    assert f"24 test images in {count} groups." in written["md"]
    table = tables.groups(gather(read([output])))
    assert table.shape == ((2, count) if count < 9 else (0, 0))
    for kind, cell in (("html", r"<td[^>]*>{}</td>\s*"), ("md", r"\| +{} +"), ("tex", " & {}")):
        assert ("Test mIoU by group of images, percent" in written[kind]) == (count < 9)
        for line in table.values.tolist():
            assert re.search("".join(cell.format(f"{value:.1f}") for value in line), written[kind])
