"""Stochastic depth and frozen parts: what cannot learn gives the same features twice."""

import importlib

import pytest
import torch
from decoders import image
from torch import Tensor, nn
from torch.nn.parallel import replicate

import swinx


def build(version: str = "v1", rate: float = 0.5) -> swinx.SwinXEncoder:
    """In training. Norms of V2 start at zero, where nothing would show."""
    torch.manual_seed(0)
    encoder = swinx.SwinXEncoder(swinx.SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 4, rate, version=version)).train()
    for name, parameter in encoder.named_parameters():
        if ".norm" in name:
            nn.init.normal_(parameter, 1.0)
    return encoder


both_versions = pytest.mark.parametrize("version", ["v1", "v2"])


@both_versions
def test_stochastic_depth_rests_only_where_nothing_of_a_branch_can_learn(version: str) -> None:
    encoder = build(version)
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


@both_versions
@pytest.mark.parametrize("part", ["norm1", "attn", "norm2", "mlp"])
def test_a_part_that_learns_leaves_stochastic_depth_to_its_own_branch(part: str, version: str) -> None:
    encoder, dropped = build(version).requires_grad_(False), []
    block = encoder.layers[1].blocks[1]
    getattr(block, part).requires_grad_(True)
    for name, module in encoder.named_modules():
        if name.endswith("drop_path"):
            module.register_forward_hook(lambda _, inputs, output, name=name: dropped.append(name))
    encoder(image(2, 3, 64, 96))
    assert dropped == ["layers.1.blocks.1.drop_path"]


def test_replicas_of_data_parallel_rest_where_their_module_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made as on several GPUs, with another copy in the place of the one between them."""

    def copies(weights: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[weight * 1 for weight in weights] for _ in devices]

    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional: device)
    encoder = build()
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


@both_versions
def test_frozen_stages_stay_as_they_are_and_give_the_same_features_twice(version: str) -> None:
    encoder = build(version)
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


@both_versions
def test_a_frozen_stem_changes_no_gradient_of_the_stages(version: str) -> None:
    """Tokens that need no gradient enter blocks that do."""
    gradients, x = [], image(2, 3, 64, 96)
    for frozen in (False, True):
        encoder = build(version, rate=0.0)
        if frozen:
            encoder.freeze_stages(0)
        sum(level.square().mean() for level in encoder(x)[1:]).backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if not name.startswith("patch_embed")})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_stages_to_freeze_are_checked() -> None:
    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"], depth=3)
    for stages in (-1, 3, 1.0, True):
        with pytest.raises(ValueError, match=f"stages must be an integer from 0 to 2, got {stages}"):
            encoder.freeze_stages(stages)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    encoder.freeze_stages(0)
    for channels in (3, 5):
        encoder.set_in_channels(channels)  # makes new weights
        learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert learning == {name for name, _ in encoder.named_parameters() if not name.startswith("patch_embed.")}
