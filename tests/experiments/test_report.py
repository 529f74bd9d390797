"""What a report says: configurations over seeds, what may be called significant, and what may be compared."""

import csv
import re
from pathlib import Path

import numpy
import pandas
import pytest
from report_folder import CLASSES, again, folder, image_counts, row

from experiments.records.counts import ImageCounts
from experiments.records.grid import Run
from experiments.records.results import RESULT_FIELDS, Row
from experiments.reporting import pages, tables, text, write_report
from experiments.reporting.content import Content, gather, labels
from experiments.reporting.load import read
from experiments.reporting.rows import SETTINGS, fields_of


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a report, and are looked at in test_report_pages."""
    monkeypatch.setattr(pages, "_figures", lambda *_: [])


def content_of(path: Path, rows: list[Row], contrasts: tuple[str, ...] = (), **options: bool) -> Content:
    return gather(read([folder(path, rows)]), contrasts, **options)


def test_means_and_deviations_over_seeds_are_ranked(tmp_path: Path) -> None:
    rows = [row("Unet", 0, 40.0), row("FPN", 0, 50.0), row("Unet", 1, 44.0), row("FPN", 1, 50.0)]
    content = content_of(tmp_path, rows)
    table = tables.summary(content).set_index("label")
    assert table["rank"].to_dict() == {"FPN": 1, "Unet": 2}
    assert table["seeds"].tolist() == [2, 2]
    assert table["test_miou"].tolist() == [50.0, 42.0]
    assert table["test_miou sd"].tolist() == pytest.approx([0.0, 8**0.5])
    assert table["boundary_f1 2"].tolist() == [30.0, 30.0]
    classes = tables.classes(content)
    assert classes["road"].to_dict() == {"FPN": 50.0, "Unet": 42.0}
    assert classes["rare"].isna().all()
    shown, constant = tables.columns(content, tables.summary(content))
    assert dict(constant) == {
        **{"encoder": "swinx_n", "stem": "inline", "dilation": "exact", "window": "8", "alignment": "none"},
        **{"seeds": "2", "images seen": "40"},
    }
    headings = [column.heading for column in shown]
    assert "thin IoU %" not in headings, "nothing in it"
    ranking = tables.ranking(content, tables.summary(content), shown)
    assert ranking.iloc[1][["#", "decoder", "OS", "test mIoU %"]].tolist() == ["2", "Unet", "32", "42.0 ± 2.8"]
    assert ranking.iloc[1]["latency ms"] == "11.0 (10.0 to 13.0)"


def test_labels_name_only_what_varies() -> None:
    def named(*rows: Row) -> list[str]:
        return labels([fields_of(item) for item in rows])

    assert named(row("Unet"), row("FPN")) == ["Unet", "FPN"]
    strides = named(row("Unet"), row("Unet", output_stride=16), row("FPN"))
    assert strides == ["Unet · OS 32", "Unet · OS 16", "FPN · OS 32"]
    other = {"encoder": "resnet50", "stem": None, "dilation": None, "alignment": None}
    rules = [{}, {"dilation": "dense"}, {"window": 7}, {"alignment": "centred"}, other]
    assert named(*(row("Unet", output_stride=16, **changes) for changes in rules)) == [
        "Unet · swinx_n · exact · window 8",
        "Unet · swinx_n · dense · window 8",
        "Unet · swinx_n · exact · window 7",
        "Unet · swinx_n · exact · window 8 · centred",
        "Unet · resnet50",
    ]
    common = {"overlap": 0.25, "scales": [0.75, 1.0]}
    ways = [row("Unet", flip=flip, tile=tile, **common) for flip in (True, False) for tile in ([48, 32], None)]
    tiles = "tiles 48x32 overlap 0.25"
    assert named(*ways) == [f"Unet · {tiles} · mirrored", "Unet · mirrored", f"Unet · {tiles}", "Unet"]
    assert fields_of(ways[0])["inference"] == f"{tiles} + mirrored + scales 0.75 1.0"


def test_settings_that_differ_make_configurations_of_their_own(tmp_path: Path) -> None:
    """Seeds of other settings are no seeds of one configuration; a field that an earlier row lacks is no difference."""
    rows = [row("Unet", seed, 40.0 + seed) for seed in range(2)]
    del rows[0]["select"]
    rows += [row("Unet", seed, 45.0 + seed, learning_rate=0.1, evaluate_at=[3]) for seed in range(3)]
    content = gather(read([folder(tmp_path / "a", rows[:2]), folder(tmp_path / "b", rows[2:])]))
    assert [(c.label, len(c.results)) for c in content.configurations] == [
        ("Unet · learning rate 0.1", 3),
        ("Unet · learning rate 0.001", 2),
    ]
    shown, _ = tables.columns(content, tables.summary(content))
    assert "learning rate" in [column.heading for column in shown]


def test_every_setting_is_looked_at() -> None:
    """What is not a setting of a configuration is of the data, of the inference, or changes no score."""
    others = {"data", "data_id", "height", "width", "device", "evaluate_at", "corruptions"}
    known = {*SETTINGS, "tile", "overlap", "flip", "scales", *others}
    made = row("Unet").keys() - Run.__dataclass_fields__.keys() - {*RESULT_FIELDS}
    settings = made - known
    assert settings == {
        *("kind", "run", "commit", "dirty", "command", "time", "host", "cpu_capability", "python", "torch", "smp"),
        *("timm", "numpy", "swinx", "threads", "world_size", "status", "error", "step", "source"),
    }


def flat(iou: list[float], images: int = 24) -> ImageCounts:
    """Counts of images that are all alike: IoU = hits / (2000 - hits) by class, in percent."""
    hits = numpy.array([[round(2000 * x / (100 + x)) for x in iou]] * images)
    truth = numpy.full_like(hits, 1000)
    names = tuple(map(str, range(images)))
    return ImageCounts(names, names, CLASSES[: len(iou)], hits, truth, truth.copy())


def test_one_seed_is_never_significant(tmp_path: Path) -> None:
    """50 points apart on every image; and what adds seeds to the same folder is printed."""
    rows = [row("Unet", test=80.0), row("FPN", test=30.0)]
    output = folder(tmp_path, rows, [flat([80, 80]), flat([30, 30])])
    write_report(output)
    (line,) = csv.DictReader((output / "differences.csv").open(encoding="utf-8"))
    assert line.keys() == {
        *("contrast", "points", "low", "high", "p", "p_corrected", "significant", "reason", "smallest"),
    }
    assert (line["significant"], line["p"]) == ("", "")
    assert float(line["points"]) == pytest.approx(50, abs=0.2)
    markdown = (output / "report.md").read_text(encoding="utf-8")
    assert not re.search(
        r"\((resolved|significant)\)|[1-9]\d* of \d+ differences (is|are) (resolved|significant)", markdown
    )
    for name in ("report.md", "report.html"):
        words = re.sub(r"not (significant|tested)|not significantly", "", (output / name).read_text(encoding="utf-8"))
        assert "significant" not in words
        assert "python -m experiments.compare_decoders --data " in words
        assert "--output runs/x --seeds 0 1 2" in words


def test_three_seeds_find_what_is_far_apart(tmp_path: Path) -> None:
    rows = [
        row(d, seed, t + 0.1 * seed) for d, t in (("Unet", 70.0), ("FPN", 50.0), ("PAN", 50.0)) for seed in range(3)
    ]
    content = content_of(tmp_path, rows)
    found = {effect.name: tables.verdict(effect) for effect in content.effects}
    assert sorted(found.values()) == ["not significant", "significant", "significant"]
    table = tables.summary(content).set_index("label")
    assert table["letters"].to_dict() in ({"Unet": "a", "FPN": "b", "PAN": "b"}, {"Unet": "a", "PAN": "b", "FPN": "b"})
    assert (table["low"] < table["test_miou"] + 2).all()
    assert (table["high"] > table["low"]).all()
    second = content.configurations[1].label
    lead = table["test_miou"].iloc[0] - table["test_miou"].iloc[1]
    assert text.headline(content) == f"Unet reaches 70.1 % test mIoU, {lead:.1f} points above {second}: significant."
    (least,) = [line for line in text.on_differences(content) if line.startswith("Smallest difference")]
    ends = [f"{f([e.smallest for e in content.effects]):.1f}" for f in (min, max)]
    assert all(end in least for end in ends)
    assert text.advice(content) == []


def test_planned_contrasts_are_tested_alone(tmp_path: Path) -> None:
    rules = [(stride, rule) for stride in (16, 8) for rule in ("exact", "dense")]
    rows = [
        row("Unet", seed, {"exact": 60.0, "dense": 50.0}[rule] + 0.1 * seed, output_stride=stride, dilation=rule)
        for seed in range(3)
        for stride, rule in rules
    ]
    plan = tmp_path / "plan.txt"
    plan.write_text("exact-dense@os8  # planned\nexact-dense\n", encoding="utf-8")
    content = content_of(tmp_path / "runs", rows, (str(plan),))
    assert [effect.name for effect in content.effects] == ["exact-dense@os8", "exact-dense"]
    assert content.effects[1].contrast.weights == {
        c.label: pytest.approx(0.5 if "exact" in c.label else -0.5) for c in content.configurations
    }
    assert tables.effects(content)["significant"].tolist() == ["true", "true"]
    assert tables.differences(content)["made of"].str.startswith("one pair").tolist() == [True, False]
    assert not tables.summary(content)["letters"].any(), "letters are of all pairs"
    assert "no planned contrast" in text.headline(content)
    with pytest.raises(ValueError, match="--contrasts exact-enlarged"):
        gather(content.results, ["exact-enlarged"], strict=True)
    early = gather(content.results, ["exact-enlarged"])  # as in a grid whose first runs have finished
    assert early.effects == []
    assert any("exact-enlarged" in note for note in text.notes(early))


def test_many_pairs_leave_those_with_the_best(tmp_path: Path) -> None:
    rows = [row(d, seed, 40.0 + 3 * i) for i, d in enumerate(("Unet", "FPN", "PAN", "MAnet", "Linknet", "UPerNet"))
            for seed in range(2)]  # fmt: skip
    content = content_of(tmp_path, rows)
    assert len(content.effects) == len(tables.effects(content)) == 15
    assert [e.name.split(" - ")[0] for e in tables.shown_effects(content)] == ["UPerNet"] * 5
    assert any("5 of 15" in line for line in text.on_differences(content))


def test_readouts_of_the_same_models_are_compared_model_by_model(tmp_path: Path) -> None:
    """The models differ by much more than what mirrors are worth; an own seed spread would hide that."""
    trained = [row("PAN", seed, 40.0 + 9 * seed) for seed in range(3)]
    mirrored = [again(item, test_miou=item["test_miou"] + 3, flip=True) for item in trained]
    counts = [flat([item["test_miou"] + 0.1 * n] * 2) for n, item in enumerate(trained + mirrored)]
    one, other = folder(tmp_path / "a", trained, counts[:3]), folder(tmp_path / "b", mirrored, counts[3:])
    content = gather(read([one, other]))
    (effect,) = content.effects
    assert (effect.name, effect.significant) == ("PAN · mirrored - PAN", True)
    assert effect.points == pytest.approx(3.3, abs=0.1)
    assert any(
        note.startswith("3 of 6 rows evaluate weights that were trained elsewhere") for note in text.notes(content)
    )


def test_latencies_are_compared_within_one_sitting(tmp_path: Path) -> None:
    sittings = {"Unet": "one", "FPN": "one", "MAnet": "one", "PAN": "two"}
    rows = [row(d, seed, latency_sitting=s) for d, s in sittings.items() for seed in range(2)]
    rows[1] |= {"latency_sitting": "two", "latency_ms_p50": 99.0}
    content = content_of(tmp_path / "a", rows)
    table = tables.summary(content).set_index("label")
    assert table["latency_comparable"].to_dict() == {"Unet": True, "FPN": True, "MAnet": True, "PAN": False}
    assert table["latency_ms_p50"]["Unet"] == 11.0, "that of the sitting"
    ranking = tables.ranking(content, tables.summary(content), tables.columns(content, tables.summary(content))[0])
    marked = ranking.set_index("decoder")["latency ms"].str.endswith("†")
    assert marked.to_dict() == {"Unet": False, "FPN": False, "MAnet": False, "PAN": True}
    assert any(note.startswith("†") for note in text.notes(content))
    for n, item in enumerate(rows):  # each run in a process of its own, as on Ray; or rows that do not say
        item["latency_sitting"] = str(n) if n % 2 else None
    content = content_of(tmp_path / "b", rows)
    assert not tables.summary(content)["latency_comparable"].any()


def test_runs_without_a_result_stand_apart(tmp_path: Path) -> None:
    """Also one that diverged after it was evaluated on its way: its earlier scores are not in the ranking."""
    nothing = dict.fromkeys(RESULT_FIELDS)
    absent = (
        row("FPN", output_stride=16) | nothing | {"status": "not applicable", "error": "FPN takes 32", "step": None}
    )
    diverged = row("PAN") | nothing | {"status": "diverged", "error": "the loss became nan", "step": None}
    content = content_of(tmp_path, [row("Unet"), absent, row("PAN", step=5), diverged])
    assert [c.label for c in content.configurations] == ["Unet"]
    assert text.unfinished(content).values.tolist() == [
        [absent["run"], "not applicable", "FPN takes 32"],
        [diverged["run"], "diverged", "the loss became nan"],
    ]
    assert text.headline(content) == "Unet reaches 50.0 % test mIoU."
    write_report(folder(tmp_path / "only", [absent]))
    assert "No configuration has finished." in (tmp_path / "only" / "report.md").read_text(encoding="utf-8")
    assert pandas.read_csv(tmp_path / "only" / "summary.csv").empty


def test_headline_of_rows_without_a_score(tmp_path: Path) -> None:
    none = flat([0, 0])
    absent = ImageCounts(none.names, none.groups, none.class_names, *(0 * none.truth,) * 3)
    rows = [row("Unet"), row("FPN", test_miou=None)]
    content = gather(read([folder(tmp_path, rows, [image_counts(rows[0]), absent])]))
    assert text.headline(content) == "Unet reaches 50.0 % test mIoU."
    content = gather(read([folder(tmp_path / "none", rows[1:], [absent])]))
    assert text.headline(content) == "No class occurs in the test images, so there is nothing to rank."
    write_report(tmp_path)
    write_report(tmp_path / "none")


def test_missing_counts_and_steps(tmp_path: Path) -> None:
    rows = [row(d, seed, 20.0 + step, step=step) for d in ("Unet", "FPN") for seed in range(2) for step in (0, 10, 20)]
    output = folder(tmp_path, rows)
    content = gather(read([output]), ["Unet-FPN@step10"])
    assert [c.results[0].row["step"] for c in content.configurations] == [20, 20]
    assert [c.label for c, _ in content.over_steps][:3] == [f"Unet · step {step}" for step in (0, 10, 20)]
    assert content.over_steps[1][1].miou == pytest.approx(30, abs=3)
    assert content.effects[0].contrast.weights == {"Unet · step 10": 1.0, "FPN · step 10": -1.0}
    (output / "runs" / row("FPN")["run"] / "step20.npz").unlink()
    content = gather(read([output]))
    assert content.effects == []
    assert "Not compared: counts of each test image are missing for FPN." in text.notes(content)
    assert tables.summary(content).set_index("label")["low"].isna().to_dict() == {"Unet": False, "FPN": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select": "best"}, "By validation mIoU weights were chosen (--select): it is no held-out score."),
        ({"patience": 3}, "By validation mIoU training was ended (--patience): it is no held-out score."),
        ({"crop": [48, 32]}, "Models of crops of 48x32 were evaluated on whole images of 64x80 pixels "
         "(--tile evaluates as trained)."),
        ({"score_at": "native"}, "Scores are against masks at their own resolution (--score-at native)."),
    ],
)  # fmt: skip
def test_notes_follow_the_rows(changes: Row, said: str, tmp_path: Path) -> None:
    assert said in text.notes(content_of(tmp_path / "a", [row("Unet", **changes)]))
    plain = text.notes(content_of(tmp_path / "b", [row("Unet", crop=[64, 80])]))
    assert plain == ["a <note>", "Left out of the data: a.png: broken."]


def test_facts_list_values_that_differ(tmp_path: Path) -> None:
    rows = [row("Unet", dirty=True), row("FPN", host="another", world_size=2)]
    facts = dict(text.facts(content_of(tmp_path, rows), []))
    assert facts["hardware"] == (
        "host processor, 2 CPU cores, another; cpu capability AVX2; threads 1; world size 1, 2"
    )
    assert (facts["commit"], facts["uncommitted changes"]) == ("0123456789abcdef", "True, False")
    assert facts["data"] == "toy, 64x80, 7 train, 3 val, 24 test images"
    assert "learning rate 0.001" in facts["recipe"]
    assert facts["finished"] == "2026-01-01T00:00:00+00:00"


def test_more_seeds_are_asked_of_commands_of_this_project_alone() -> None:
    module = "python -m experiments.compare_decoders"
    for command, expected in (
        (f"{module} --seeds 0 --output 'a b'", f"{module} --output 'a b' --seeds 0 1 2"),
        (f"{module} --seeds 4 --steps 3", f"{module} --steps 3 --seeds 0 1 2 4"),
        ("python -u -m experiments.ablate stem", "python -u -m experiments.ablate stem --seeds 0 1 2 4"),
        (f"{module} --output 'a; rm b'", f"{module} --output 'a; rm b' --seeds 0 1 2 4"),
        ("python -c 'import this'", None),
        ("python -m http.server", None),
        ("python -m experiments.x 'open", None),
    ):
        assert text.more_seeds(command, {0, 1, 2, 4} if expected and "4" in expected else {0, 1, 2}) == expected
