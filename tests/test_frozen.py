"""Stochastic depth and frozen parts: what cannot learn gives the same features twice."""

import importlib

import pytest
import torch
from decoders import image
from torch import Tensor
from torch.nn.parallel import replicate

import swinx


def test_stochastic_depth_rests_only_where_nothing_of_a_branch_can_learn() -> None:
    encoder = swinx.SwinXEncoder(swinx.SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 0.5)).train()
    x = image(16, 3, 64, 96)

    def is_random() -> bool:
        return not torch.equal(encoder(x)[5], encoder(x)[5])

    encoder.requires_grad_(False)
    assert not is_random()
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("norm" in name)
    assert is_random(), "norms alone are trained"
    encoder.requires_grad_(False)
    for module in list(encoder.modules()):  # as FSDP leaves modules in their forward: weights, but no parameters
        for name in list(module._parameters):
            weight = module._parameters.pop(name)
            setattr(module, name, None if weight is None else weight.detach())
    assert is_random()


def test_replicas_of_data_parallel_rest_where_their_module_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made as on several GPUs, with another copy in the place of the one between them."""

    def copies(weights: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[weight * 1 for weight in weights] for _ in devices]

    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional: device)
    encoder = swinx.SwinXEncoder(swinx.SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 0.5)).train()
    x = image(16, 3, 64, 96)
    encoder.freeze_stages(3)
    replica, _ = replicate(encoder, [0, 1])
    assert not list(replica.parameters())
    first, second = replica(x), replica(x)
    for level in range(5):
        assert torch.equal(first[level], second[level])
        assert torch.equal(first[level], encoder(x)[level])
    assert not torch.equal(first[5], second[5])
    replica, _ = replicate(encoder.requires_grad_(True), [0, 1])
    with torch.no_grad():
        assert not torch.equal(replica(x)[4], replica(x)[4])


def test_frozen_stages_stay_as_they_are_and_give_the_same_features_twice() -> None:
    encoder = swinx.SwinXEncoder(swinx.SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 0.5)).train()
    encoder.freeze_stages(3)
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    wanted = ("patch_embed.", *(f"{part}.{index}." for part in ("layers", "norms") for index in range(3)))
    assert frozen == {name for name, _ in encoder.named_parameters() if name.startswith(wanted)}
    x = image(16, 3, 64, 96)
    first, second = encoder(x), encoder(x)
    for level in range(5):
        assert torch.equal(first[level], second[level])
    assert not torch.equal(first[5], second[5]), "stochastic depth of the last stage"
    sum(level.square().mean() for level in first[1:]).backward()
    assert {name for name, parameter in encoder.named_parameters() if parameter.grad is None} == frozen


def test_stages_to_freeze_are_checked() -> None:
    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"], depth=3)
    for stages in (-1, 3, 1.0, True):
        with pytest.raises(ValueError, match=f"stages must be an integer from 0 to 2, got {stages}"):
            encoder.freeze_stages(stages)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    encoder.freeze_stages(0)
    assert {name.split(".")[0] for name, p in encoder.named_parameters() if not p.requires_grad} == {"patch_embed"}
