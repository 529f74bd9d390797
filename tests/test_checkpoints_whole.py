"""A checkpoint is loaded whole or not at all: every entry is checked before the first weight changes."""

import collections
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import LAYOUTS, fresh, official, ours
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import prune

import swinx
from swinx import SwinXEncoder

KEY = "layers.1.blocks.0.attn.qkv.weight"


def snapshot(encoder: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in encoder.state_dict().items()}


def refused(encoder: SwinXEncoder, load: Callable[[], Any], *sayings: str) -> None:
    """load is a ValueError with all sayings, and leaves every bit as it was."""
    before = snapshot(encoder)
    with pytest.raises(ValueError, match=re.escape(sayings[0])) as error:
        load()
    assert all(saying in str(error.value) for saying in sayings), str(error.value)
    after = encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


class Labelled(Tensor):
    """A subclass of tensors."""


def _poisoned(value: Tensor, number: float) -> Tensor:
    value = value.clone()
    value.view(-1)[-1] = number
    return value


# name: (what stands in a floating entry's place, what the message says of it)
UNFIT: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda v: v.to_sparse(), "must be dense, got layout torch.sparse_coo"),
    "sparse rows": (lambda v: v.flatten(1).to_sparse_csr(), "must be dense, got layout torch.sparse_csr"),
    "quantised": (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "got a quantised one of torch.qint8"),
    "nested": (lambda v: torch.nested.nested_tensor([v[0], v[1]]), "must be a plain tensor, got a nested one"),
    "jagged": (
        lambda v: torch.nested.nested_tensor([v[0], v[1]], layout=torch.jagged),
        "must be a plain tensor, got a nested one",
    ),
    "meta": (lambda v: v.to("meta"), "must be on a device that holds data, got meta"),
    "subclass": (lambda v: v.as_subclass(Labelled), "must be a plain tensor, got Labelled"),
    "whole numbers": (lambda v: v.to(torch.int8), "floating dtype of 16, 32 or 64 bits, got torch.int8"),
    "truth values": (lambda v: v > 0, "floating dtype of 16, 32 or 64 bits, got torch.bool"),
    "complex": (
        lambda v: v.to(torch.complex64),
        "floating dtype of 16, 32 or 64 bits, got torch.complex64",
    ),
    "not a number": (lambda v: _poisoned(v, float("nan")), "must be finite in torch.float32"),
    "infinite": (lambda v: _poisoned(v, -float("inf")), "must be finite in torch.float32"),
    "beyond the encoder's dtype": (lambda v: _poisoned(v.double(), 1e39), "must be finite in torch.float32"),
    "eight bits": (lambda v: v.to(torch.float8_e4m3fn), "of 16, 32 or 64 bits, got torch.float8_e4m3fn"),
    "empty": (lambda v: v[:0], "must be of 1 to 16777216 elements, got shape (0, "),
    "another shape": (lambda v: v[:-1], "has shape"),
    "claimed size": (lambda v: torch.ones(1).expand(10**6, 10**6), "must be of 1 to 16777216 elements"),
}


@pytest.mark.filterwarnings("ignore")  # of torch about nested and sparse tensors
@pytest.mark.parametrize("layout", ["ours", "official classification", "mmseg", "smp tu-swin"])
@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_entry_is_refused_by_name_and_nothing_changes(name: str, layout: str) -> None:
    make, saying = UNFIT[name]
    content = LAYOUTS[layout][0]()
    inner = content.get("model", content.get("state_dict", content))
    key = next(key for key in inner if re.search(r"(layers|stages)[._]1\.blocks\.0\.attn\.(w_msa\.)?qkv\.weight$", key))
    inner[key] = make(inner[key])
    encoder = fresh()
    refused(encoder, lambda: encoder.load_state_dict(content), "does not fit", "qkv.weight ", saying)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in UNFIT if name not in ("jagged", "subclass")])
@pytest.mark.parametrize(
    "key",
    [
        "layers.0.blocks.0.attn.relative_position_bias_table",
        "layers.2.downsample.reduction.weight",
        "patch_embed.proj.weight",
        "norms.3.bias",
    ],
)
def test_every_kind_of_entry_is_checked_before_anything_is_computed_with_it(
    name: str, key: str, tmp_path: Path
) -> None:
    make, _ = UNFIT[name]
    weights = ours()
    try:
        weights[key] = make(weights[key])
    except (RuntimeError, IndexError):
        pytest.skip("torch makes no such tensor of this shape")
    torch.save(weights, tmp_path / "weights.pth")
    encoder = fresh(window_size=5, in_channels=5)  # tables are resized, kernels adapted
    refused(encoder, lambda: swinx.load_checkpoint(encoder, tmp_path / "weights.pth"), str(tmp_path))


def test_all_unfit_entries_are_listed_at_once() -> None:
    weights: dict[str, Any] = ours()
    weights[KEY] = weights[KEY].to_sparse()
    weights["norms.0.bias"] = [1.0, 2.0]
    weights["norms.1.bias"] = weights["norms.1.bias"].to(torch.int16)
    encoder = fresh()
    refused(
        encoder,
        lambda: encoder.load_state_dict(weights),
        f"{KEY} must be dense",
        "norms.0.bias must be a tensor, got list",
        "norms.1.bias must be of a floating dtype of 16, 32 or 64 bits, got torch.int16",
    )


def test_an_encoder_without_memory_is_not_loaded_into_the_void() -> None:
    with torch.device("meta"):
        encoder = fresh()
    with pytest.raises(ValueError, match=r"would be lost on the encoder's device meta: pass assign=True"):
        encoder.load_state_dict(ours())
    encoder.load_state_dict(ours(), assign=True)
    assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])


def test_half_precision_takes_what_it_can_hold() -> None:
    encoder = fresh().half()
    weights = ours()
    encoder.load_state_dict(weights)
    weights[KEY] = _poisoned(weights[KEY], 1e5)
    refused(encoder, lambda: encoder.load_state_dict(weights), f"{KEY} must be finite in torch.float16")
    encoder.load_state_dict(weights, assign=True)
    assert encoder.state_dict()[KEY].dtype == torch.float32


def test_what_a_foreign_checkpoint_lacks_must_be_in_the_encoder() -> None:
    with torch.device("meta"):
        encoder = fresh()
    with pytest.raises(ValueError, match=r"norms\.0\.weight is neither in the checkpoint nor in the encoder"):
        encoder.load_state_dict(official(), assign=True)


@pytest.mark.parametrize("gone", ["norms.0.weight", "norms.2.bias"])
@pytest.mark.parametrize("stem", ["shared", "inline"])
def test_a_norm_that_is_missing_from_our_own_checkpoint_is_named(stem: str, gone: str) -> None:
    encoder = fresh(stem=stem)
    weights = snapshot(encoder)
    del weights[gone]
    refused(encoder, lambda: encoder.load_state_dict(weights), f"missing {gone}")


@pytest.mark.parametrize("extra", ["layers.4.blocks.0.norm1.weight", "norms.4.bias", "layers.9.downsample.norm.bias"])
def test_stages_that_no_swin_has_are_unexpected(extra: str) -> None:
    encoder = fresh()
    weights = ours() | {extra: torch.ones(3)}
    refused(encoder, lambda: encoder.load_state_dict(weights), f"unexpected {extra}")


def test_an_entry_that_is_there_twice_is_named() -> None:
    encoder = fresh()
    weights = ours() | {f"_orig_mod.{KEY}": torch.ones(3)}
    refused(encoder, lambda: encoder.load_state_dict(weights), f"holds {KEY} twice")


@pytest.mark.parametrize("content", [None, [1], torch.ones(2)])
def test_what_is_no_mapping_is_refused(content: Any) -> None:
    encoder = fresh()
    refused(encoder, lambda: encoder.load_state_dict(content), "must be a mapping", type(content).__name__)


def test_assigned_entries_have_memory_of_their_own() -> None:
    weights = ours()
    weights["norms.3.bias"] = torch.ones(1).expand(128)
    encoder = fresh(window_size=5)
    with pytest.warns(UserWarning, match="resized"):
        encoder.load_state_dict(weights, assign=True)
    for parameter in encoder.parameters():
        assert parameter.is_contiguous()
    encoder.norms[3].bias.data.add_(torch.arange(128))


# Partial and modified encoders


def test_without_strict_a_partial_dictionary_is_taken_and_checked() -> None:
    weights = ours()
    part = {key: value + 1 for key, value in weights.items() if key.startswith("layers.2.blocks.1.mlp")}
    encoder = fresh()
    before = snapshot(encoder)
    result = encoder.load_state_dict(part, strict=False)
    assert set(result.missing_keys) == set(before) - set(part)
    after = encoder.state_dict()
    assert all(torch.equal(after[key], part.get(key, before[key])) for key in before)
    assert encoder.load_state_dict({}, strict=False).unexpected_keys == []
    more = part | {"classifier.weight": torch.ones(2, 2)}
    assert encoder.load_state_dict(more, strict=False).unexpected_keys == ["classifier.weight"]
    refused(encoder, lambda: encoder.load_state_dict(part), "the checkpoint has", "depths (0, 0, 2, 0)")
    part["layers.2.blocks.1.mlp.fc1.bias"] = torch.ones(3)
    refused(encoder, lambda: encoder.load_state_dict(part, strict=False), "mlp.fc1.bias has shape (3,)")
    del part["layers.2.blocks.1.mlp.fc1.bias"]
    part["layers.2.blocks.1.mlp.fc2.bias"] = torch.full((64,), torch.nan)
    refused(encoder, lambda: encoder.load_state_dict(part, strict=False), "mlp.fc2.bias must be finite")


def test_without_strict_another_family_is_still_refused() -> None:
    encoder = fresh()
    refused(encoder, lambda: encoder.load_state_dict({"conv1.weight": torch.ones(2)}, strict=False), "no Swin")


@pytest.mark.parametrize("place", ["stage", "block", "encoder"])
def test_a_compiled_part_loads_its_own_dictionary_and_a_plain_one(place: str) -> None:
    encoder = fresh()
    if place == "stage":
        encoder.layers[1] = torch.compile(encoder.layers[1])
    elif place == "block":
        encoder.layers[1].blocks[1] = torch.compile(encoder.layers[1].blocks[1])
    compiled = torch.compile(encoder) if place == "encoder" else encoder
    own = {key: torch.randn_like(value) for key, value in compiled.state_dict().items()}
    for strict in (True, False):
        compiled.load_state_dict(own, strict=strict)
        assert all(torch.equal(value, own[key]) for key, value in compiled.state_dict().items())
        own = {key: value + 1 for key, value in own.items()}
    encoder.load_state_dict(ours())
    state = {key.replace("_orig_mod.", ""): value for key, value in encoder.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in ours().items())
    plain = fresh()
    plain.load_state_dict(compiled.state_dict())
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in ours().items())


def test_names_of_checkpoint_wrappers_are_left_out() -> None:
    name, encoder = "layers.1.blocks.1.", fresh()
    encoder.load_state_dict({k.replace(name, f"{name}_checkpoint_wrapped_module."): v for k, v in ours().items()})
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in ours().items())


@pytest.mark.filterwarnings("ignore")
def test_a_modified_encoder_loads_its_own_dictionary() -> None:
    def pruned(encoder: SwinXEncoder) -> nn.Module:
        prune.l1_unstructured(encoder.layers[1].blocks[0].attn.qkv, "weight", 0.5)
        return encoder

    def normed(encoder: SwinXEncoder) -> nn.Module:
        torch.nn.utils.parametrizations.weight_norm(encoder.layers[0].blocks[0].mlp.fc1)
        encoder.layers[3].register_buffer("count", torch.tensor(7))
        return encoder

    def quantised(encoder: SwinXEncoder) -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear}, dtype=torch.qint8)

    x = torch.randn(1, 3, 61, 93)
    for change in (pruned, normed, quantised):
        source, target = change(fresh()), change(fresh())
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.2)
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True))
        with torch.no_grad():
            for one, other in zip(source.eval()(x), target.eval()(x), strict=True):
                assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_encoder_loads_its_own_dictionary(tmp_path: Path) -> None:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        encoder = fresh()
        for module in (*encoder.layers, encoder):
            fully_shard(module, mesh=mesh)
        weights = {key: value + 1 for key, value in encoder.state_dict().items()}
        encoder.load_state_dict(weights)
        for key, value in fresh().state_dict().items():
            assert torch.equal(encoder.state_dict()[key].full_tensor(), value + 1)
        weights[KEY] = weights[KEY] * torch.nan
        refused(encoder, lambda: encoder.load_state_dict(weights), f"{KEY} must be finite in torch.float32")
        whole = fresh()
        refused(whole, lambda: whole.load_state_dict(weights), f"{KEY} must be a plain tensor, got DTensor")
    finally:
        destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_cannot_load_its_part_leaves_everything_as_it_was() -> None:
    """What modules of other libraries ask for cannot be checked beforehand."""

    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 3}

        def set_extra_state(self, state: Any) -> None:
            raise TypeError("not this state")

    encoder = fresh()
    encoder.layers[3].blocks[0].mlp.fc2 = Stateful(512, 128)
    weights = {key: value + 1 if isinstance(value, Tensor) else value for key, value in encoder.state_dict().items()}
    for assign in (True, False):
        before = {key: value.clone() for key, value in encoder.named_parameters()}
        objects = dict(encoder.named_parameters())
        with pytest.raises(ValueError, match=r"does not fit a module in the encoder: .*not this state"):
            encoder.load_state_dict(weights, assign=assign)
        assert all(torch.equal(value, before[key]) for key, value in encoder.named_parameters())
        assert all(value is objects[key] for key, value in encoder.named_parameters())
    quantised = torch.ao.quantization.quantize_dynamic(fresh(), {nn.Linear}, dtype=torch.qint8)
    own = quantised.state_dict()
    packed = [key for key in own if key.endswith("_packed_params._packed_params")]
    first = next(value.clone() for value in quantised.parameters())
    for wrong in (5, own[packed[-2]], own[packed[-1]][:1]):
        broken = own.copy()
        broken._metadata = own._metadata
        broken[packed[-1]] = wrong
        broken = type(own)((key, v + 1 if isinstance(v, Tensor) and v.ndim else v) for key, v in broken.items())
        with pytest.raises(ValueError, match=re.escape(f"{packed[-1]} must be like the encoder's tuple")):
            quantised.load_state_dict(broken)
        assert torch.equal(next(quantised.parameters()), first)


def test_versions_of_modules_from_a_file_are_not_trusted(tmp_path: Path) -> None:
    for versions in ({"": {}, "layers.1": 5}, [1], {"layers.1": {"version": "x"}}):
        weights = collections.OrderedDict(ours())
        weights._metadata = versions
        torch.save(weights, tmp_path / "weights.pth")
        encoder = fresh()
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
        assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])


def test_a_compiled_encoder_is_checked_as_its_own(tmp_path: Path) -> None:
    weights = {f"_orig_mod.{key}": value for key, value in ours().items()}
    torch.save(weights, tmp_path / "good.pth")
    torch.save(weights | {"_orig_mod.norms.3.bias": torch.full((128,), torch.nan)}, tmp_path / "bad.pth")
    encoder = fresh()
    compiled = torch.compile(encoder)
    refused(encoder, lambda: swinx.load_checkpoint(compiled, tmp_path / "bad.pth"), "norms.3.bias must be finite")
    swinx.load_checkpoint(compiled, tmp_path / "good.pth")
    assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])
