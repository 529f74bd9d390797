"""Encoders of any architecture on images of any size, and files with any damage, drawn at random.

A hundred cases in every run, always the same. Thousands of new ones:

    pytest tests/test_any_input.py --hypothesis-profile=nightly
"""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import layouts
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from test_dilation import image, randomise, relative_error
from torch import Tensor

import swinx
from swinx import plans

SMALL = swinx.SwinConfig(8, (2, 2, 1, 1), (1, 2, 4, 8), (3, 4), 0.0)
SIDES = st.integers(2, 6)
WINDOWS = st.one_of(SIDES, st.tuples(SIDES, SIDES), st.tuples(*[st.one_of(SIDES, st.tuples(SIDES, SIDES))] * 4))
CONFIGS = st.builds(
    swinx.SwinConfig,
    embed_dim=st.just(8),
    depths=st.tuples(*[st.integers(1, 2)] * 4),
    num_heads=st.sampled_from([(1, 2, 4, 8), (2, 2, 2, 2), (1, 1, 8, 16)]),
    window_size=WINDOWS,
    drop_path_rate=st.just(0.1),
    stem=st.sampled_from(swinx.config.STEMS),
    version=st.sampled_from(swinx.config.VERSIONS),
)


@given(
    config=CONFIGS,
    depth=st.integers(1, 5),
    output_stride=st.sampled_from(swinx.config.OUTPUT_STRIDES),
    height=st.integers(5, 90),
    width=st.integers(5, 90),
    tokens_per_slice=st.integers(1, 300),
)
def test_any_encoder(
    config: swinx.SwinConfig, depth: int, output_stride: int, height: int, width: int, tokens_per_slice: int
) -> None:
    encoder = randomise(swinx.SwinXEncoder(config, depth=depth))
    x = image(height, width, batch=2)
    with torch.no_grad():
        undilated = encoder(x)
        keys = {name: value.shape for name, value in encoder.state_dict().items()}
        encoder.make_dilated(output_stride)
        assert {name: value.shape for name, value in encoder.state_dict().items()} == keys
        levels = encoder(x)
    assert len(levels) == depth + 1
    # Whole grids, which a backward pass needs, by either implementation; slices, which evaluation takes; single images.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "TOKENS_PER_SLICE", tokens_per_slice)
        plans.kept_slices.cache_clear()
        others = []
        for name in ("reference", "sdpa"):
            swinx.set_attention(encoder, name)
            others.append([level.detach() for level in encoder(x.clone().requires_grad_())])
            with torch.no_grad():
                others.append(encoder(x))
    plans.kept_slices.cache_clear()
    with torch.no_grad():
        others.append([torch.cat(pair) for pair in zip(encoder(x[:1]), encoder(x[1:]), strict=True)])
        low = encoder.float()(x.float())
    for index, info in enumerate(encoder.feature_info):
        level = levels[index]
        assert level.shape == (2, info.channels, -(-height // info.stride), -(-width // info.stride))
        assert level.isfinite().all()
        if not level.any():  # level 1 of the stem none
            continue
        d = info.period
        first_phase = level[..., ::d, ::d]
        assert relative_error(first_phase, undilated[index]) <= 1e-11, "the first phase is the undilated level"
        for other in others:
            assert relative_error(other[index], level) <= 1e-11
        assert relative_error(low[index].double(), level) <= 2e-2, "float32, with scores up to some tens"


LAYOUTS: dict[str, Any] = {
    "official": layouts.official, "mmseg": layouts.mmseg, "ours": layouts.ours, "tu-swin": layouts.tu_swin,
    "SimMIM": layouts.simmim,
}  # fmt: skip
# What every layout has and an encoder cannot do without.
NEEDED = ("blocks", "patch_embed", "reduction")
NEEDLESS = ("decoder", "index", "mask")


def weights_of(content: Any) -> dict[str, Tensor]:
    """The innermost dictionary of a checkpoint, which is changed in place."""
    while not any(isinstance(value, Tensor) for value in content.values()):
        content = next(value for value in content.values() if isinstance(value, dict))
    return content


@given(layout=st.sampled_from(sorted(LAYOUTS)), damage=st.data())
def test_a_damaged_state_dict_is_refused_and_changes_nothing(
    layout: str, damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = LAYOUTS[layout]()
    weights = weights_of(content)
    keys = sorted(
        key for key in weights if any(part in key for part in NEEDED) and not any(part in key for part in NEEDLESS)
    )
    key = damage.draw(st.sampled_from(keys))
    value = weights.pop(key)
    match damage.draw(
        st.sampled_from(["lost", "renamed", "longer", "flat", "not finite", "integers", "complex", "no tensor"])
    ):
        case "renamed":
            weights[key + "_"] = value
        case "longer":
            weights[key] = torch.cat([value, value])
        case "flat":
            weights[key] = value.reshape(-1, 1, 1, 1, 1)
        case "not finite":
            weights[key] = value.clone()
            weights[key].view(-1)[damage.draw(st.integers(0, value.numel() - 1))] = damage.draw(
                st.sampled_from([float("nan"), float("inf")])
            )
        case "integers":
            weights[key] = value.to(torch.int32)
        case "complex":
            weights[key] = value.to(torch.complex64)
        case "no tensor":
            weights[key] = damage.draw(st.sampled_from([None, "weight", 3.0, [1.0]]))
    path = tmp_path_factory.mktemp("damaged") / "checkpoint.pth"
    torch.save(content, path)
    encoder = layouts.fresh()
    before = {name: parameter.clone() for name, parameter in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"\S"):
        swinx.load_checkpoint(encoder, path)
    for name, parameter in encoder.state_dict().items():
        assert torch.equal(parameter, before[name]), name


@given(suffix=st.sampled_from([".pth", ".safetensors"]), damage=st.data())
def test_a_damaged_file_is_refused_or_read_whole(
    suffix: str, damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path: Path = tmp_path_factory.mktemp("damaged") / f"checkpoint{suffix}"
    if suffix == ".pth":
        torch.save(layouts.ours(), path)
    else:
        path.write_bytes(save({name: value.contiguous() for name, value in layouts.ours().items()}))
    content = numpy.frombuffer(path.read_bytes(), numpy.uint8).copy()
    begin = damage.draw(st.one_of(st.integers(0, 2000), st.integers(0, len(content) - 1)), label="begin")
    match damage.draw(st.sampled_from(["cut", "zeros", "flipped", "repeated"])):
        case "cut":
            content = content[:begin]
        case "zeros":
            content[begin : begin + damage.draw(st.integers(1, 5000))] = 0
        case "flipped":
            content[begin] ^= damage.draw(st.integers(1, 255))
        case "repeated":
            content = numpy.concatenate([content[:begin], content])
    path.write_bytes(content.tobytes())
    encoder = layouts.fresh()
    before = {name: parameter.clone() for name, parameter in encoder.state_dict().items()}
    try:
        swinx.load_checkpoint(encoder, path)
    except ValueError:
        for name, parameter in encoder.state_dict().items():
            assert torch.equal(parameter, before[name]), name
    else:
        assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def live_tensors() -> tuple[int, int]:
    """Their number and bytes."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return len(found), sum(tensor.untyped_storage().nbytes() for tensor in found)


@torch.no_grad()
def test_a_thousand_image_sizes_leave_no_more_than_a_hundred() -> None:
    """What is kept for a size gives way to what is kept for later ones, in evaluation and in training."""
    encoder = swinx.SwinXEncoder(SMALL, depth=3).eval()
    sizes = [(9 + number % 40, 9 + number * 7 % 53) for number in range(1000)]
    assert len(set(sizes)) == 1000
    left = []
    for number, (height, width) in enumerate(sizes, start=1):
        with torch.set_grad_enabled(number % 2 == 0):
            encoder(torch.zeros(1, 3, height, width))
        if number in (100, 1000):
            left.append(live_tensors())
    (few, few_bytes), (many, many_bytes) = left
    assert many <= few + 50  # slices of some sizes hold more tensors than those of others
    assert many_bytes <= few_bytes + 2**20


@torch.no_grad()
def test_threads_share_an_encoder_and_what_it_keeps() -> None:
    encoder = randomise(swinx.SwinXEncoder(SMALL, output_stride=16))
    images = [image(20 + 3 * number, 67 - 2 * number, batch=1) for number in range(24)]
    expected = [encoder(x) for x in images]
    for kept in (plans._kept_indices, plans.kept_slices):
        kept.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: _without_gradients(encoder, x), images * 2))
    for levels, wanted in zip(got, expected * 2, strict=True):
        assert all(torch.equal(level, other) for level, other in zip(levels, wanted, strict=True))


@torch.no_grad()
def _without_gradients(encoder: swinx.SwinXEncoder, x: Tensor) -> list[Tensor]:
    """Each thread has a gradient mode of its own."""
    return encoder(x)
