"""The grid: stable names, defaults, combinations that are one and the same, and runs that cannot exist."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import segmentation_models_pytorch as smp
import torch

from experiments.records.grid import (
    ALIGNMENTS,
    DECODERS,
    DILATIONS,
    Axes,
    NotApplicable,
    Run,
    check_encoder,
    grid,
    own_stem,
    own_window,
    size_rule,
)
from experiments.training.models import build_model
from swinx.config import STEMS, VARIANTS

UNET = Axes(decoders=("Unet",), encoders=("swinx_n",), seeds=(0,))


def runs_of(axes: Axes) -> list[Run]:
    runs, missing = grid(axes)
    assert missing == []
    return runs


def test_defaults_are_the_decoders_own_strides_and_the_encoders_own_parts() -> None:
    runs = runs_of(replace(UNET, decoders=("DeepLabV3Plus", "DeepLabV3", "PAN", "Unet")))
    assert [run.output_stride for run in runs] == [16, 8, 16, 32]
    parts = {(run.stem, run.dilation, run.window, run.alignment) for run in runs}
    assert parts == {(VARIANTS["swinx_n"].stem, "exact", None, "none")}


def test_defaults_equal_those_of_smp() -> None:
    for name, rule in DECODERS.items():
        if rule.rates is not None:  # a decoder of ours
            continue
        parameter = inspect.signature(getattr(smp, name).__init__).parameters.get("encoder_output_stride")
        assert rule.by_argument == (parameter is not None), name
        if parameter is not None:
            assert rule.default == parameter.default, name
        assert rule.default in rule.strides


@pytest.mark.parametrize("encoder", ["swinx_n", "swinx_t", "swinx_b_w12"])
def test_naming_what_the_encoder_has_anyway_changes_nothing(encoder: str) -> None:
    bare = replace(UNET, encoders=(encoder,))
    stem, window = own_stem(encoder), own_window(encoder)
    assert stem is not None
    assert window is not None
    named = replace(bare, stems=(stem,), dilations=("exact",), windows=(window,), alignments=("none",))
    assert runs_of(named) == runs_of(replace(named, output_strides=(32,))) == runs_of(bare)


def test_every_axis_is_combined_with_every_other() -> None:
    axes = Axes(
        ("Unet", "UPerNet"), ("swinx_n",), (0, 1, 5), (8, 16), ("none", "shared"), DILATIONS, (4, 8), ALIGNMENTS
    )
    runs = runs_of(axes)
    asked = product(*vars(replace(axes, windows=(4, None))).values())  # type: ignore[arg-type]
    assert {tuple(getattr(run, name) for name in FIELDS) for run in runs} == set(asked)
    assert len(runs) == len({run.id for run in runs}) == 2 * 3 * 2 * 2 * 3 * 2 * 2
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


FIELDS = ("decoder", "encoder", "seed", "output_stride", "stem", "dilation", "window", "alignment")


def test_without_dilation_rules_and_alignments_give_one_run() -> None:
    runs = runs_of(replace(UNET, output_strides=(32, 16), dilations=DILATIONS, alignments=("centred", "none")))
    assert [run for run in runs if run.output_stride == 32] == [Run("swinx_n", "inline", "Unet", 32, 0)]
    assert len(runs) == 1 + 3 * 2
    (run,) = runs_of(replace(UNET, dilations=("dense",), alignments=("centred",)))
    assert (run.dilation, run.alignment) == ("exact", "none")


def test_encoders_of_other_libraries_get_one_run_for_all_options_of_ours() -> None:
    runs = runs_of(
        replace(UNET, encoders=("swinx_n", "resnet18"), output_strides=(16,), stems=STEMS, dilations=DILATIONS)
    )
    assert len(runs) == 4 * 3 + 1
    assert runs[-1] == Run("resnet18", None, "Unet", 16, 0, None, None, None)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("swinx_n", "inline", "Unet", 16, 3), "swinx_n-inline-Unet-os16-seed3"),
        (Run("resnet18", None, "Unet", 32, 0, None, None, None), "resnet18-Unet-os32-seed0"),
        (
            Run("swinx_t", "none", "PAN", 16, 0, "enlarged", 12, "centred"),
            "swinx_t-none-PAN-os16-enlarged-w12-centred-seed0",
        ),
    ],
)
def test_names_are_stable(run: Run, name: str) -> None:
    assert run.id == name


def test_impossible_runs_come_with_their_rules() -> None:
    runs, missing = grid(replace(UNET, decoders=("FPN", "DeepLabV3", "Unet"), output_strides=(16, 32)))
    assert [(run.decoder, run.output_stride) for run in runs] == [
        ("FPN", 32),
        ("DeepLabV3", 16),
        ("Unet", 16),
        ("Unet", 32),
    ]
    assert missing == [
        NotApplicable(Run("swinx_n", "inline", "FPN", 16, 0), "FPN takes output stride 32, got 16"),
        NotApplicable(Run("swinx_n", "inline", "DeepLabV3", 32, 0), "DeepLabV3 takes output stride 8, 16, got 32"),
    ]


def test_image_side_rule() -> None:
    assert size_rule("PAN", 32, 250, 300) is None  # padded to 256
    assert size_rule("Unet", 32, 1, 1) is None
    assert size_rule("PAN", 16, 97, 160) is None
    assert size_rule("PAN", 32, 300, 160) == (
        "PAN at output stride 32 needs image sides of at least 256 pixels, got 300x160"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoders": ["Unett"]}, r"--decoders: Unett is not one of DeepLabV3, .*Unet, "),
        ({"decoders": ["DPT"]}, r"--decoders: DPT is not one of"),
        ({"encoders": ["swinx_x"]}, r"--encoders: swinx_x is not one of .*swinx_b"),
        ({"encoders": ["tu-nothing"]}, r"--encoders: tu-nothing is not one of"),
        ({"windows": [7, 0]}, r"window must be a whole number of 1 to 64, got '0'"),
        ({"seeds": [0, -1]}, r"seed must be a whole number of 0 to \d+, got '-1'"),
        ({"decoders": ()}, "--decoders must be one or more, got none"),
        ({"encoders": ()}, "--encoders must be one or more, got none"),
        ({"seeds": ()}, "--seeds must be one or more, got none"),
    ],
)
def test_bad_choices_name_the_option_and_the_choices(changes: dict[str, Sequence[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(replace(UNET, **changes))  # type: ignore[arg-type]


def test_timm_encoders_are_known_by_their_name() -> None:
    (run,) = runs_of(replace(UNET, encoders=("tu-convnext_tiny.fb_in1k",)))
    assert run.id == "tu-convnext_tiny.fb_in1k-Unet-os32-seed0"


def test_one_network_is_one_run() -> None:
    """PSPNet reads down to stride 8 only: its output strides, rules and alignments are the same network."""
    axes = Axes(["PSPNet"], ["swinx_n"], [0], [8, 16, 32], dilations=DILATIONS, alignments=ALIGNMENTS)
    runs, missing = grid(axes)
    assert runs == [Run("swinx_n", "inline", "PSPNet", 32, 0)]
    assert missing == []
    image = torch.randn(1, 3, 64, 96)
    model = build_model(runs[0], 3).eval()
    with torch.inference_mode():
        expected = model(image)
        for stride in (8, 16):
            model.encoder.make_dilated(stride)
            assert torch.equal(model(image), expected)


def test_weights_fit_other_strides_rules_and_alignments_of_one_network() -> None:
    trained = Run("swinx_n", "inline", "Unet", 32, 3)
    for fitting in (
        trained,
        replace(trained, output_stride=8, dilation="dense"),
        replace(trained, output_stride=16, alignment="centred"),
        replace(trained, output_stride=16, dilation="enlarged"),
    ):
        assert trained.weights_fit(fitting)
    for changes in ({"seed": 4}, {"decoder": "FPN"}, {"stem": "none"}, {"window": 4}, {"encoder": "swinx_t"}):
        assert not trained.weights_fit(replace(trained, **changes))  # type: ignore[arg-type]
    enlarged = replace(trained, output_stride=16, dilation="enlarged")
    assert enlarged.weights_fit(enlarged)
    assert not enlarged.weights_fit(trained)


@pytest.mark.parametrize("name", ["tu-hf-hub:someone/model", "tu-hf_hub:someone/model", "tu-local-dir:/etc", "", "tu-"])
def test_no_name_leads_to_a_hub_or_a_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"--encoders: .* is not one of"):
        check_encoder(name)
