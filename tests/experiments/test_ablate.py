"""Every ablation as a user runs it, for two steps, and the grid that it stands for."""

import functools
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from toy import toy_data

from experiments import (
    ablate_alignment,
    ablate_dilation,
    ablate_stem,
    ablate_window,
    runs,
    data,
)
from experiments.grid import Axes, Run, grid
from experiments.compare_options import Options
from experiments.models import build_model
from experiments.results import read_rows

ABLATIONS = (ablate_stem, ablate_dilation, ablate_alignment, ablate_window)
SEEDS = (0, 1)


def intended(module: ModuleType) -> list[Run]:
    """The runs of an ablation's docstring, one after the other."""

    def run(decoder: str, seed: int, output_stride: int = 32, stem: str = "inline", **parts: object) -> Run:
        return Run("swinx_n", stem, decoder, output_stride, seed, **parts)  # type: ignore[arg-type]

    if module is ablate_stem:
        stems = ("none", "shared", "branch", "inline")
        return [run(decoder, seed, stem=stem) for seed in SEEDS for decoder in ("Unet", "FPN") for stem in stems]
    if module is ablate_window:
        return [run("FPN", seed, window=window) for seed in SEEDS for window in (4, 7, None, 12)]
    option = "dilation" if module is ablate_dilation else "alignment"
    values = ("exact", "dense", "enlarged") if module is ablate_dilation else ("none", "centred")
    runs = []
    for seed in SEEDS:
        for decoder in ("Unet", "Segformer"):
            if module is ablate_dilation:
                runs.append(run(decoder, seed))
            runs += [run(decoder, seed, stride, **{option: value}) for stride in (16, 8) for value in values]
    return runs


@pytest.mark.parametrize("module", ABLATIONS, ids=lambda module: module.__name__.split(".")[-1])
def test_the_grid_is_the_one_of_the_docstring(module: ModuleType) -> None:
    defaults: Options = module.DEFAULTS
    runs, missing = grid(Axes(**{field.name: getattr(defaults, field.name) for field in fields(Axes)}))
    assert missing == []
    assert len(runs) == len(intended(module))
    assert set(runs) == set(intended(module))
    assert f"{len(runs)} runs" in " ".join((module.__doc__ or "").split())
    axes = {field.name for field in fields(Axes)} | {"output"}
    same = {field.name: getattr(Options(), field.name) for field in fields(Options) if field.name in axes}
    assert replace(defaults, **same) == Options()  # nothing else differs from compare_decoders
    assert defaults.output == Path("runs") / module.__name__.split(".")[-1]


@pytest.mark.parametrize(
    ("module", "arguments", "runs"),
    [
        (ablate_stem, ["--decoders", "Unet", "--stems", "none", "branch"], ["none-Unet-os32", "branch-Unet-os32"]),
        (
            ablate_dilation,
            ["--decoders", "Segformer", "--output-strides", "16", "--dilations", "dense", "enlarged"],
            ["inline-Segformer-os16-dense", "inline-Segformer-os16-enlarged"],
        ),
        (
            ablate_alignment,
            ["--decoders", "Segformer", "--output-strides", "8", "--alignments", "centred"],
            ["inline-Segformer-os8-centred"],
        ),
        (ablate_window, ["--windows", "4"], ["inline-FPN-os32-w4"]),
    ],
    ids=lambda value: value.__name__.split(".")[-1] if isinstance(value, ModuleType) else "",
)
def test_two_steps(
    module: ModuleType,
    arguments: list[str],
    runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = toy_data()
    monkeypatch.setattr(data, "make_scenes", lambda **_: toy)
    short = functools.partial(runs.evaluation.latency, warmup=0, runs=3)
    monkeypatch.setattr(runs.evaluation, "latency", short)
    command = [*arguments, "--seeds", "0", "--steps", "2", "--batch-size", "2", "--device", "cpu"]
    assert module.main(command) == 0
    rows = read_rows(module.DEFAULTS.output / "results.jsonl")
    assert [(row["run"], row["status"], row["images_seen"]) for row in rows] == [
        (f"swinx_n-{name}-seed0", "ok", 4) for name in runs
    ]


def test_help_says_what_the_ablation_is(capsys: pytest.CaptureFixture[str]) -> None:
    for module in ABLATIONS:
        with pytest.raises(SystemExit) as caught:
            module.main(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: python -m {module.__name__}" in text
        assert (module.__doc__ or "").splitlines()[0] in text


def test_under_the_control_none_and_shared_are_one_network() -> None:
    """What the docstring of ablate_stem says of FPN: the same random numbers, the same logits."""
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
