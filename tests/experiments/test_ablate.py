"""Every ablation as a user runs it, for two steps, and the grid and the contrasts that it stands for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.ablate import ABLATIONS, main, options_of
from experiments.execution.prepare import check_contrasts
from experiments.records.grid import Run, grid
from experiments.records.options import Axes, CompareOptions
from experiments.records.results import read_rows
from experiments.records.settings import Settings
from experiments.training.models import build_model

SETTINGS = Settings("scenes", "0", 128, 160, 250, 8, "32", "cpu")
# Configurations without their encoder, swinx_n.
STRIDES = ("os32", *(f"os{stride}{rule}" for stride in (16, 8) for rule in ("", "-dense", "-enlarged")))
CENTRED = [f"os{stride}{how}" for stride in (16, 8) for how in ("", "-centred")]
EXPECTED = {
    "stem": {f"{s}-{d}-os32" for s in ("none", "shared", "branch", "inline") for d in ("Unet", "FPN")},
    "dilation": {f"inline-{decoder}-{rest}" for decoder in ("Unet", "Segformer") for rest in STRIDES},
    "alignment": {f"inline-{decoder}-{rest}" for decoder in ("Unet", "Segformer") for rest in CENTRED},
    "window": {f"inline-FPN-os32{window}" for window in ("-w4", "-w7", "", "-w12")},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_grid_and_contrasts_are_those_of_the_design(name: str) -> None:
    options = options_of(name)
    runs, missing = grid(options.axes)
    assert missing == []
    expected = {f"swinx_n-{rest}-seed{seed}" for rest in EXPECTED[name] for seed in range(3)}
    assert {run.id for run in runs} == expected
    assert len(runs) == len(expected)
    assert replace(options, axes=Axes(), contrasts=(), output=CompareOptions.output) == CompareOptions()
    assert options.contrasts
    check_contrasts(options.contrasts, runs, SETTINGS)
    with pytest.raises(ValueError, match="--contrasts exact-naive@os8: 'naive' is no value"):
        check_contrasts(["exact-naive@os8"], runs, SETTINGS)


@pytest.mark.usefixtures("tiny_scenes")
@pytest.mark.parametrize(
    ("name", "arguments", "ids"),
    [
        ("stem", ["--decoders", "Unet", "--stems", "branch"], ["branch-Unet-os32"]),
        (
            "dilation",
            ["--decoders", "Segformer", "--output-strides", "16", "--dilations", "enlarged"],
            ["inline-Segformer-os16-enlarged"],
        ),
        (
            "alignment",
            ["--decoders", "Segformer", "--output-strides", "8", "--alignments", "centred"],
            ["inline-Segformer-os8-centred"],
        ),
        ("window", ["--windows", "4"], ["inline-FPN-os32-w4"]),
    ],
)
def test_two_steps(name: str, arguments: list[str], ids: list[str]) -> None:
    """A changed grid lacks runs that contrasts of the ablation name: it is made all the same."""
    assert main([name, *arguments, "--seeds", "0", "--steps", "2", "--batch-size", "2", "--device", "cpu"]) == 0
    rows = read_rows(Path("runs") / f"ablate_{name}" / "results.jsonl")
    assert [(row["run"], row["status"], row["images_seen"]) for row in rows] == [
        (f"swinx_n-{each}-seed0", "ok", 4) for each in ids
    ]


def test_names_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--help"], 0), ([], 2), (["nothing"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
        streams = capsys.readouterr()
        assert all(name in streams.out + streams.err for name in ABLATIONS)
    for name, ablation in ABLATIONS.items():
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: python -m experiments.ablate {name}" in text
        assert ablation.question in " ".join(text.split())


def test_under_the_control_none_and_shared_are_one_network() -> None:
    """What the design of the stem ablation says of FPN: the same random numbers, the same logits."""
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    logits = {}
    for stem in ("none", "shared", "branch", "inline"):
        torch.manual_seed(0)
        model = build_model(Run("swinx_n", stem, "FPN", 32, 0), 3)
        torch.manual_seed(0)  # of stochastic depth and dropout
        logits[stem] = model(image)
    assert torch.equal(logits["none"], logits["shared"])
    assert not torch.allclose(logits["none"], logits["branch"])
    assert not torch.allclose(logits["none"], logits["inline"])
