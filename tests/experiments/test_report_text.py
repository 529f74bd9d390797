"""What a report says in sentences: commands that add seeds, captions, notes and facts."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from report_folder import again, content_of, row

from experiments.records.options import CompareOptions
from experiments.records.results import RESULT_FIELDS
from experiments.reporting import tables, text
from experiments.reporting.content import Content
from experiments.reporting.text import with_seeds


def parsed(command: str) -> CompareOptions:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.compare_decoders"]
    return tyro.cli(CompareOptions, args=words[3:])


@pytest.mark.parametrize(
    "options",
    [
        "--decoders Unet FPN --output 'a folder'",
        "--decoders Unet --seeds 0 --groups '^(d[0-9])_' --output out",
        "--seeds 7 0 --no-flip --scales 0.5 1 --size 64 96",
    ],
)
def test_the_command_that_adds_seeds_is_that_of_the_run_with_other_seeds(options: str) -> None:
    command = f"python -m experiments.compare_decoders {options}"
    before, after = parsed(command), parsed(text.with_seeds(command, [1, 2]))
    assert after == replace(before, axes=replace(before.axes, seeds=(1, 2)))


def test_each_command_behind_a_folder_gets_its_missing_seeds(tmp_path: Path) -> None:
    a, c, e = (f"python -m experiments.{name}" for name in ("a", "c", "e"))
    rows = [row("Unet", 0, command=f"{a} --seeds 0 --b"), row("FPN", 1, command=f"{c} --seeds 1 3")]
    rows += [row("PAN", 2, command="python 'd"), row("Linknet", 0, command=e), row("Linknet", 1, command="f")]
    content = content_of(tmp_path / "a", rows)
    assert sorted(text.more_seeds(content)) == [f"{a} --b --seeds 1 2", f"{c} --seeds 0 2"]
    elsewhere = [again(row("Unet", command=f"{a} --seeds 0"), command=e)]
    content = content_of(tmp_path / "b", elsewhere)
    assert text.more_seeds(content) == [f"{a} --seeds 1 2", e]
    enough = [row("Unet", seed) for seed in range(2)]
    assert text.more_seeds(content_of(tmp_path / "c", enough)) == []


def test_each_configuration_gets_three_seeds_whatever_seeds_others_have(tmp_path: Path) -> None:
    """One command evaluated seed 0 of Unet, seeds 1 and 2 of FPN and seeds 0 and 1 of PAN, which diverged."""
    made = {"Unet": [0], "FPN": [1, 2], "PAN": [0, 1]}
    trained = [row(d, s, command=f"python -m experiments.{d.lower()}") for d, own in made.items() for s in own]
    evaluated = [again(item, command="python -m experiments.evaluate x") for item in trained]
    evaluated[-1] |= dict.fromkeys(RESULT_FIELDS) | {"status": "diverged", "error": "x", "step": None}
    assert sorted(text.more_seeds(content_of(tmp_path, evaluated))) == [
        "python -m experiments.evaluate x",
        "python -m experiments.pan --seeds 2 3",
        "python -m experiments.unet --seeds 1 2",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf /home/you",
        "python -c 'import os' -m experiments.compare_decoders",
        "python -m experiments",
        "python -m experimentsX.compare_decoders",
        "python -m 'experiments.compare_decoders;' rm",
        "python -m experiments.compare_decoders; rm -rf x",
        "torchrun --no-python -m experiments.compare_decoders",
        "X=1 python -m experiments.compare_decoders",
    ],
)
def test_commands_that_are_not_of_experiments_are_not_offered(command: str, tmp_path: Path) -> None:
    trained = row("Unet", command=command)
    content = content_of(tmp_path, [trained, again(row("FPN", command=command), command=command)])
    assert text.more_seeds(content) == []
    assert "To add seeds" not in text.on_differences(content, tables.differences(content), text.more_seeds(content))


def test_words_of_a_command_are_quoted() -> None:
    given = "python -u -m experiments.evaluate 'a;b' $(rm) > x & y"
    assert with_seeds(given, []) == "python -u -m experiments.evaluate 'a;b' '$(rm)' '>' x '&' y"
    given = "torchrun --nnodes=1 --nproc-per-node=8 -m experiments.compare_decoders --seeds 0 1 --steps 5"
    assert with_seeds(given, [2]) == given.replace("--seeds 0 1 --steps 5", "--steps 5 --seeds 2")


def test_captions_explain_the_columns_that_are_there_and_no_others(tmp_path: Path) -> None:
    def explained(content: Content) -> set[str]:
        said = text.on_ranking(content, tables.ranking(content.table))
        said += text.on_differences(content, tables.differences(content), text.more_seeds(content))
        words = ("Interval", "letter", "Boundary", "GFLOPs", "Latency", "Smallest", "Made of", "Means over seeds")
        return {word for word in words if word in said}

    rows = [row(decoder, seed, 40.0 + seed, latency_ms_p50=None) for decoder in ("Unet", "FPN") for seed in range(2)]
    exploration = {"Interval", "letter", "Boundary", "GFLOPs", "Smallest", "Means over seeds"}
    assert explained(content_of(tmp_path / "a", rows)) == exploration
    rows = [row("Unet", gflops=None), row("FPN", gflops=None)]
    assert explained(content_of(tmp_path / "b", rows, ("Unet-FPN",))) == {"Boundary", "Latency", "Made of"}


def test_one_configuration_has_no_lead_and_notes_of_the_data_come_first(tmp_path: Path) -> None:
    content = content_of(tmp_path / "b", [row("Unet", test=40.04)])
    assert text.headline(content) == "Unet reaches 40.0 % test mIoU."
    plain = text.notes(content)
    assert plain[0] == "a <note>"
    assert "a.png: broken" in plain[1]


def test_one_name_of_several_files_of_weights_is_pointed_out(tmp_path: Path) -> None:
    """Not where the name has the seed, or where an earlier version wrote the row."""

    def noted(name: str, weights: str, *ids: str | None) -> list[str]:
        rows = [row("Unet", seed, weights=weights, weights_id=one) for seed, one in enumerate(ids)]
        return text.notes(content_of(tmp_path / name, rows))[2:]

    assert noted("one", "w.pt", "a", "b", "a", None) == [
        "w.pt was 2 different files of weights: the runs of all count as of one."
    ]
    assert noted("seeds", "w{seed}.pt", "a", "b") == noted("same", "w.pt", "a", "a", None) == []


def test_facts_list_values_that_differ(tmp_path: Path) -> None:
    rows = [row("Unet", dirty=True), row("FPN", host="another", world_size=2)]
    facts = dict(text.facts(content_of(tmp_path, rows)).values.tolist())
    assert facts["hardware"] == (
        "host processor, 2 CPU cores, another; cpu capability AVX2; threads 1; world size 1, 2"
    )
    assert facts["code"] == "commit 0123456789abcdef; dirty True, False"
    assert facts["data"] == "toy, 7 train, 3 val, 24 test images"
    assert "learning rate 0.001" in facts["recipe"]
