"""The grid: stable names, defaults of each decoder, and refusals that list every impossible cell."""

import inspect

import pytest
import segmentation_models_pytorch as smp
import torch

import swinx
from experiments.cells import DECODERS, Cell, build_model, check_image_size, grid
from swinx.config import VARIANTS


def test_defaults_are_the_decoders_own_strides_and_the_encoders_own_stem() -> None:
    cells = grid(["DeepLabV3Plus", "DeepLabV3", "PAN", "Unet"], ["swinx_n"], [], [], [0])
    assert [cell.output_stride for cell in cells] == [16, 8, 16, 32]
    assert {cell.stem for cell in cells} == {VARIANTS["swinx_n"].stem}


def test_defaults_equal_those_of_smp() -> None:
    for name, rule in DECODERS.items():
        parameter = inspect.signature(getattr(smp, name).__init__).parameters.get("encoder_output_stride")
        assert rule.by_argument == (parameter is not None), name
        if parameter is not None:
            assert rule.default == parameter.default, name


def test_naming_the_own_stem_changes_nothing() -> None:
    own = VARIANTS["swinx_t"].stem
    assert grid(["Unet"], ["swinx_t"], [], [own], [0]) == grid(["Unet"], ["swinx_t"], [], [], [0])


def test_ids_are_unique_stable_and_fit_for_files() -> None:
    cells = grid(["Unet", "UPerNet"], ["swinx_n", "resnet18"], [8, 16], [], [0, 1])
    assert len({cell.id for cell in cells}) == len(cells) == 16
    assert Cell("swinx_n", "inline", "Unet", 16, 3).id == "swinx_n-inline-Unet-os16-seed3"
    assert Cell("resnet18", None, "Unet", 32, 0).id == "resnet18-Unet-os32-seed0"
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_impossible_cells_are_listed_together_with_their_rules() -> None:
    with pytest.raises(ValueError, match="these cells cannot exist") as caught:
        grid(["FPN", "DeepLabV3", "Unet"], ["swinx_n"], [16, 32], [], [0])
    message = str(caught.value)
    assert "FPN takes output stride 32, got 16" in message
    assert "DeepLabV3 takes output stride 8, 16, got 32" in message
    assert "Unet" not in message


def test_stems_belong_to_swinx() -> None:
    with pytest.raises(ValueError, match="stems belong to swinx encoders, resnet18 has none"):
        grid(["Unet"], ["swinx_n", "resnet18"], [], ["none"], [0])


def test_image_side_rule() -> None:
    cells = grid(["PAN", "Unet"], ["swinx_n"], [32], [], [0])
    check_image_size(cells, 250, 300)  # padded to 256
    with pytest.raises(ValueError, match="PAN at output stride 32 needs image sides of at least 256, got 128x160"):
        check_image_size(cells, 128, 160)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoders": ["Unett"]}, r"--decoders: Unett is not one of DeepLabV3, .*Unet, "),
        ({"decoders": ["DPT"]}, r"--decoders: DPT is not one of"),
        ({"decoders": []}, r"--decoders: at least one"),
        ({"decoders": ["Unet", "Unet"]}, r"--decoders: each may be given once, got Unet Unet"),
        ({"encoders": ["swinx_x"]}, r"--encoders: swinx_x is not one of .*swinx_b"),
        ({"encoders": ["tu-nothing"]}, r"--encoders: tu-nothing is not one of"),
        ({"output_strides": [4]}, r"--output-strides: 4 is not one of 8, 16, 32"),
        ({"stems": ["conv"]}, r"--stems: conv is not one of shared, branch, inline, none"),
        ({"seeds": []}, r"--seeds: at least one"),
    ],
)
def test_bad_choices_name_the_option_and_the_choices(changes: dict[str, list[object]], message: str) -> None:
    choice = {"decoders": ["Unet"], "encoders": ["swinx_n"], "output_strides": [], "stems": [], "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        grid(**(choice | changes))


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_accepted_stride_builds_and_keeps_the_image_size(decoder: str) -> None:
    """Also: the encoder really has the stride, whichever way the decoder takes it."""
    for output_stride in DECODERS[decoder].strides:
        model = build_model(Cell("swinx_n", "inline", decoder, output_stride, 0), 5).eval()
        side = dict(DECODERS[decoder].min_side).get(output_stride, 64)
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, side, side)).shape == (1, 5, side, side)
        assert model.encoder.output_stride == min(output_stride, 2 ** (len(model.encoder.out_channels) - 1))


def test_another_stem_is_registered_under_its_name() -> None:
    model = build_model(Cell("swinx_n", "none", "Unet", 32, 0), 2)
    assert isinstance(model.encoder, swinx.SwinXEncoder)
    assert "swinx_n_none" in swinx.list_encoders()
    assert model.encoder.out_channels[1] == 0
    build_model(Cell("swinx_n", "none", "FPN", 32, 0), 2)
