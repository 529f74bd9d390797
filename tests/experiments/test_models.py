"""Models of runs: every part of a run reaches its model, and runs that cannot run are told apart."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import swinx
from experiments.records.grid import ALIGNMENTS, DECODERS, DILATIONS, NotApplicable, Run
from experiments.training import models
from experiments.training.models import applicable, build_model


def test_models_have_what_their_runs_say() -> None:
    run = Run("swinx_n", "none", "Unet", 8, 0, "enlarged", 4, "centred")
    encoder = build_model(run, 3).encoder
    assert isinstance(encoder, swinx.SwinXEncoder)
    assert "swinx_n_stem-none_window-4" in swinx.list_encoders()
    assert (encoder.config.stem, encoder.config.window_size) == ("none", 4)
    assert [stage.window_size for stage in encoder.layers] == [(4, 4), (4, 4), (8, 8), (16, 16)]
    assert [stage.downsample.spacing for stage in encoder.layers[1:]] == [1, 1, 2]
    assert [stage.downsample.stride for stage in encoder.layers[1:]] == [2, 1, 1]
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    logits = {}
    for alignment in ALIGNMENTS:
        torch.manual_seed(0)
        model = build_model(replace(run, alignment=alignment), 3).eval()
        logits[alignment] = model(x)
        assert logits[alignment].shape == (1, 3, 64, 96)
    assert not torch.allclose(logits["none"], logits["centred"])


def test_the_stride_reaches_decoders_that_read_it_whatever_the_rule() -> None:
    for decoder, rule in product(("DeepLabV3Plus", "PAN"), DILATIONS):
        model = build_model(Run("swinx_n", "inline", decoder, 16, 0, rule), 3).eval()
        assert model(torch.zeros(1, 3, 128, 160)).shape == (1, 3, 128, 160)
        assert model.encoder.layers[3].period == (2 if rule == "exact" else 1)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_accepted_stride_builds_and_keeps_the_image_size(decoder: str) -> None:
    """Also: the encoder really has the stride, whichever way the decoder takes it."""
    for output_stride in DECODERS[decoder].strides:
        model = build_model(Run("swinx_n", "inline", decoder, output_stride, 0), 5).eval()
        side = dict(DECODERS[decoder].min_side).get(output_stride, 64)
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, side, side)).shape == (1, 5, side, side)
        assert model.encoder.output_stride == min(output_stride, 2 ** (len(model.encoder.out_channels) - 1))


def test_scaled_rates_reach_as_many_pixels_at_every_stride() -> None:
    """One of DeepLabV3Plus's weights gives the features of stride 32 at the tokens that it shares with stride 8."""
    models = {}
    for stride in (8, 16, 32):
        torch.manual_seed(0)
        models[stride] = build_model(Run("swinx_n", "inline", "DeepLabV3PlusScaled", stride, 0), 3).eval()
    assert models[8].state_dict().keys() == models[16].state_dict().keys() == models[32].state_dict().keys()
    fine = torch.randn(1, 256, 28, 44, generator=torch.Generator().manual_seed(0))
    for stride, step in ((16, 2), (32, 4)):
        for branch in range(4):
            dense = models[8].decoder.aspp[0].convs[branch](fine)
            coarse = models[stride].decoder.aspp[0].convs[branch](fine[..., ::step, ::step])
            torch.testing.assert_close(dense[..., ::step, ::step], coarse)
    assert models[16].decoder.aspp[0].convs[1][0][0].dilation == (6, 6)  # DeepLab's own rate at stride 16


def test_runs_that_cannot_run_are_told_apart_with_the_rule() -> None:
    runs = [
        Run("swinx_n", "inline", "PAN", 16, 0),
        Run("swinx_n", "inline", "Unet", 8, 0),
        Run("vgg11", None, "DeepLabV3Plus", 16, 0, None, None, None),
        Run("vgg11", None, "Unet", 32, 0, None, None, None),
        Run("mit_b0", None, "UnetPlusPlus", 32, 1, None, None, None),
    ]
    able, unable = applicable(runs, [(67, 61)], 3)
    assert able == [runs[1], runs[3]]
    assert unable == [
        NotApplicable(runs[0], "PAN at output stride 16 needs image sides of at least 128 pixels, got 67x61"),
        NotApplicable(
            runs[2],
            "ValueError: 'VGG' models do not support dilated mode due to Max Pooling operations for downsampling!",
        ),
        NotApplicable(runs[4], "ValueError: UnetPlusPlus is not support encoder_name=mit_b0"),
    ]


def test_each_model_is_built_once_and_our_own_failures_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(run: Run, classes: int) -> torch.nn.Module:
        built.append(run)
        if run.decoder == "FPN":
            raise RuntimeError("first line\nsecond line")
        return torch.nn.Conv2d(3, classes, 1)

    monkeypatch.setattr(models, "build_model", build)
    seeds = [Run("swinx_n", "inline", "Unet", 32, seed) for seed in (3, 4)]
    other = [Run("resnet18", None, "FPN", 32, seed, None, None, None) for seed in (3, 4)]
    able, unable = applicable([*seeds, *other], [(32, 32)], 2)
    assert able == seeds
    assert [(absent.run, absent.rule) for absent in unable] == [(run, "RuntimeError: first line") for run in other]
    assert len(built) == 2
    with pytest.raises(RuntimeError, match="second line"):
        applicable([Run("swinx_n", "inline", "FPN", 32, 0)], [(32, 32)], 2)


def test_logits_of_another_size_are_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build_model", lambda *_: torch.nn.Conv2d(3, 2, 1, stride=2))
    run = Run("resnet18", None, "FPN", 32, 0, None, None, None)
    _, (absent,) = applicable([run], [(48, 64)], 2)
    assert absent.rule == "logits have 32x32 pixels for images of 48x64"
