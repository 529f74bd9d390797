"""What an encoder computes does not depend on the mode that it runs in, whatever stands in its modules' places."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import modifications
import pytest
import torch
from modifications import MODIFICATIONS, MODIFICATIONS_V2
from releases import older
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import swinx
from swinx import plans
from swinx.config import VARIANTS
from swinx.layers import Mlp, SwinBlock, WindowAttention


@pytest.fixture
def encoder() -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    return swinx.SwinXEncoder(replace(VARIANTS["swinx_n"], window_size=7)).eval()


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows of 49 tokens at a time."""
    monkeypatch.setattr(plans, "TOKENS_PER_SLICE", 101)
    plans.kept_slices.cache_clear()
    yield
    plans.kept_slices.cache_clear()


def levels(out: Tensor | list[Tensor]) -> list[Tensor]:
    """Those of an encoder, or the one of a stage."""
    return [out] if isinstance(out, Tensor) else out


def whole(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Whole grids: what is recorded for a backward pass is never sliced."""
    return [level.detach() for level in levels(model(x.clone().requires_grad_()))]


@torch.no_grad()
def evaluated(model: nn.Module, x: Tensor) -> list[Tensor]:
    return levels(model(x))


@torch.no_grad()
def compiled(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    return levels(torch.compile(model, backend="eager")(x))


@torch.no_grad()
def exported(model: nn.Module, x: Tensor) -> list[Tensor]:
    return levels(torch.export.export(model, (x,), strict=False).module()(x))


@torch.no_grad()
def traced(model: nn.Module, x: Tensor) -> list[Tensor]:
    return levels(torch.jit.trace(model, x, check_trace=False)(x))


def checkpointed(encoder: Any, x: Tensor) -> list[Tensor]:
    encoder.set_grad_checkpointing()
    return whole(encoder, x)


MODES: dict[str, Callable[[nn.Module, Tensor], list[Tensor]]] = {
    "evaluated": evaluated,
    "compiled": compiled,
    "exported": exported,
    "traced": traced,
}
MORE_MODES = MODES | {"inference mode": torch.inference_mode()(evaluated.__wrapped__), "checkpointed": checkpointed}
# torch.export does not know the first; with torch.jit.trace it draws other random numbers.
UNKNOWN = {
    ("exported", "weight of another type"),
    *((mode, f"stochastic depth left on{more}") for mode in ("exported", "traced") for more in ("", ", frozen")),
}
if not older("torch", "2.8") and older("torch", "2.14"):  # these lose such a weight of a plain nn.Linear, too
    UNKNOWN.add(("compiled", "weight of another type"))


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.filterwarnings("ignore")  # of torch about its own deprecated parts, which people use
@pytest.mark.parametrize(
    ("version", "name", "mode"),
    [
        (version, name, mode)
        for version, names in (("v1", MODIFICATIONS), ("v2", MODIFICATIONS_V2))
        for name in ("as made", *names)
        for mode in (MORE_MODES if name == "as made" else MODES)
    ],
)
def test_every_modification_acts_alike_in_every_mode(version: str, name: str, mode: str) -> None:
    if (mode, name) in UNKNOWN:
        pytest.skip("not a thing of this mode")
    # Compilers get the modified stage alone, on the grid that it has in the encoder: theirs is most of the time.
    staged = name != "as made" and mode != "evaluated"
    shape = (3, 16, 24, 32) if staged else (3, 3, 61, 93)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    encoder, plain = modifications.encoder(version), modifications.encoder(version)
    if staged and name not in ("shared MLP", "first block removed"):  # the first of its two blocks is modified
        del encoder.layers[1].blocks[1], plain.layers[1].blocks[1]
    encoder = {"as made": lambda encoder: encoder, **MODIFICATIONS, **MODIFICATIONS_V2}[name](encoder)
    model, plain = (encoder.layers[1], plain.layers[1]) if staged else (encoder, plain)
    torch.manual_seed(7)
    expected = whole(model, x)
    torch.manual_seed(7)
    # A trace holds the scale of the scores, a number computed from a size, in single precision.
    assert_same(MORE_MODES[mode](model, x), expected, 1e-7 if mode == "traced" else 1e-11)
    if name != "as made":
        plain = whole(plain, x)
        assert (plain[-1] - expected[-1]).abs().max() > 1e-5, "the modification has no effect at all"


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("before", [True, False])
def test_global_hooks_act_alike_in_every_mode(before: bool) -> None:
    x = torch.randn(3, 3, 61, 93, dtype=torch.float64)
    encoder = modifications.encoder()
    plain = whole(encoder, x)
    with modifications.global_hook(before):
        hooked = whole(encoder, x)
        assert_same(evaluated(encoder, x), hooked)
    assert (plain[-1] - hooked[-1]).abs().max() > 1e-3
    assert_same(evaluated(encoder, x), plain)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Mlp, "forward"), (Mlp, "__call__"), (nn.LayerNorm, "forward"), (WindowAttention, "project"),
        (SwinBlock, "_add"),
    ],
)  # fmt: skip
def test_a_method_replaced_on_a_class_acts_alike_in_every_mode(
    kind: type[nn.Module], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 3, 61, 93, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    encoder = modifications.encoder()
    plain, original = whole(encoder, x), getattr(kind, method)

    def by_the_largest(module: nn.Module, *arguments: Any) -> Tensor:
        result = original(module, *arguments)
        return result + result.abs() * result.amax().cos()

    monkeypatch.setattr(kind, method, by_the_largest, raising=False)
    patched = whole(encoder, x)
    assert_same(evaluated(encoder, x), patched)
    assert (plain[-1] - patched[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("version", "name"),
    [*(("v1", name) for name in MODIFICATIONS if "frozen" not in name), *(("v2", name) for name in MODIFICATIONS_V2)],
)
@pytest.mark.filterwarnings("ignore")
def test_every_learned_part_of_a_modification_gets_a_gradient(version: str, name: str) -> None:
    encoder = (MODIFICATIONS | MODIFICATIONS_V2)[name](modifications.encoder(version)).train()
    for _ in range(2):  # what is computed from a weight must be computed anew for each step
        encoder.zero_grad()
        sum(level.square().mean() for level in encoder(torch.randn(3, 3, 61, 93, dtype=torch.float64))[1:]).backward()
    idle = [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    # The norm of the inputs' rounding is flat, and an MLP that stands nowhere is not asked.
    assert not [key for key in idle if "unused" not in key]


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("batch", "impl", "output_stride"),
    [(1, "reference", 8), (4, "reference", 32), (1, "sdpa", 32), (7, "sdpa", 8), (4, "auto", 8), (7, "auto", 32)],
)
def test_sliced_evaluation_equals_whole_grids(
    encoder: swinx.SwinXEncoder, batch: int, impl: str, output_stride: int
) -> None:
    swinx.set_attention(encoder, impl)
    encoder.double().make_dilated(output_stride)
    x = torch.randn(batch, 3, 101, 131, dtype=torch.float64)
    kept = x.clone()
    expected = whole(encoder, x)
    sliced = evaluated(encoder, x)
    assert torch.equal(x, kept)
    assert_same(sliced, expected)
    encoder.train()
    for module in encoder.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    assert_same(whole(encoder, x), expected)


@torch.no_grad()
def test_evaluation_is_sliced_only_while_a_stage_is_as_made(
    encoder: swinx.SwinXEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests of this file would compare whole grids with whole grids."""
    sliced: list[int] = []
    plain = type(encoder.layers[0])._in_slices
    monkeypatch.setattr(
        type(encoder.layers[0]), "_in_slices", lambda stage, *rest: sliced.append(1) or plain(stage, *rest)
    )
    encoder(torch.randn(1, 3, 64, 64))
    assert len(sliced) == 4
    encoder.layers[1].blocks[0].mlp.register_forward_hook(lambda *_: None)
    encoder(torch.randn(1, 3, 64, 64))
    assert len(sliced) == 7


@torch.no_grad()
def test_a_block_compiled_in_place_sees_whole_grids(encoder: swinx.SwinXEncoder) -> None:
    torch._dynamo.reset()
    x = torch.randn(1, 3, 61, 93)
    expected = encoder(x)
    counter = CompileCounter()
    encoder.layers[1].blocks[0].compile(backend=counter)
    for one, other in zip(encoder(x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_checkpointing_gives_way_to_transformations() -> None:
    encoder = modifications.encoder()
    x = torch.randn(1, 3, 61, 93, dtype=torch.float64)

    def loss(image: Tensor) -> Tensor:
        return sum(level.square().mean() for level in encoder(image))

    expected = torch.func.grad(loss)(x)
    encoder.set_grad_checkpointing()
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)


@torch.no_grad()
def test_a_first_stage_without_identity_leaves_its_input_as_it_was(encoder: swinx.SwinXEncoder) -> None:
    stage = encoder.layers[0]
    x = torch.randn(2, 13, 17, 64)[..., ::2]
    expected, kept = stage(x), x.clone()
    for empty in (nn.Sequential(), nn.Sequential(nn.Identity())):
        stage.downsample = empty
        torch.testing.assert_close(stage(x), expected)
        assert torch.equal(x, kept)


@torch.no_grad()
def test_a_stage_leaves_its_input_as_it_was(encoder: swinx.SwinXEncoder) -> None:
    for index, module in enumerate(encoder.layers):
        x = torch.randn(2, 13, 17, 32 * 2 ** max(index - 1, 0))
        kept = x.clone()
        module(x)
        assert torch.equal(x, kept)


@torch.no_grad()
def test_what_a_hook_was_given_stays_as_it_was(encoder: swinx.SwinXEncoder) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    for module in (encoder.patch_embed.norm, encoder.layers[1].downsample, encoder.layers[2].blocks[0]):
        module.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    encoder(torch.randn(2, 3, 101, 131))
    assert len(seen) == 3
    assert all(torch.equal(now, then) for now, then in seen)


@torch.no_grad()
def test_hooks_see_whole_grids(encoder: swinx.SwinXEncoder) -> None:
    shapes: list[tuple[int, ...]] = []
    block = encoder.layers[0].blocks[1]

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(tuple(output.shape))

    for module in (block, block.mlp):
        module.register_forward_hook(note)
    encoder(torch.randn(2, 3, 256, 256))
    assert shapes == [(2, 64, 64, 32), (2, 64, 64, 32)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_dynamic_quantisation_gives_the_same_with_and_without_gradients(version: str) -> None:
    encoder = modifications.encoder(version).float()
    quantised = torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(2, 3, 61, 93)
    exact = whole(encoder, x)
    for impl in ("reference", "sdpa"):
        swinx.set_attention(quantised, impl)
        expected = whole(quantised, x)
        for one, other, float_level in zip(evaluated(quantised, x), expected, exact, strict=True):
            # A value between two steps of 8 bits may be rounded to either, as with torch 2.6.
            assert (one - other).norm() <= 0.01 * other.norm()
            assert (one - float_level).norm() <= 0.05 * float_level.norm()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_vmap_over_images_and_gradients_of_each_image(impl: str) -> None:
    encoder = modifications.encoder()
    swinx.set_attention(encoder, impl)
    x = torch.randn(3, 3, 61, 93, dtype=torch.float64)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            mapped = torch.vmap(lambda image: [level[0] for level in encoder(image[None])])(x)
        assert_same([level.detach() for level in mapped], whole(encoder, x))

    weights = {name: parameter.detach() for name, parameter in encoder.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        levels = torch.func.functional_call(encoder, weights, (image[None],))
        return sum(level.square().mean() for level in levels)

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for index in range(3):
        one = torch.func.grad(loss)(weights, x[index])
        alone = torch.autograd.grad(
            sum(level.square().mean() for level in encoder(x[index : index + 1])), list(encoder.parameters())
        )
        for (name, gradient), expected in zip(one.items(), alone, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(each[name][index], expected, rtol=1e-9, atol=1e-11)
    stacked = {name: torch.stack([value, 1.1 * value]) for name, value in weights.items()}
    with torch.no_grad():
        ensemble = torch.vmap(loss, in_dims=(0, None))(stacked, x[0])
        torch.testing.assert_close(ensemble[1], loss({name: 1.1 * value for name, value in weights.items()}, x[0]))


@pytest.mark.parametrize("way", ["assign", "to_empty"])
@pytest.mark.parametrize("name", ["swinx_n", "swinx_v2_t"])
def test_an_encoder_made_without_memory_computes_what_its_weights_say(name: str, way: str) -> None:
    config = replace(VARIANTS[name], depths=(1, 1, 2, 1))
    torch.manual_seed(0)
    source, x = swinx.SwinXEncoder(config).eval(), torch.randn(1, 3, 61, 93)
    with torch.device("meta"):
        empty = swinx.SwinXEncoder(config).eval()
    sizes = [tuple(level.shape) for level in evaluated(source, x)]
    assert [tuple(level.shape) for level in empty(x.to("meta"))] == sizes
    assert [tuple(level.shape) for level in evaluated(empty, x.to("meta"))] == sizes
    if way == "assign":
        empty.load_state_dict(source.state_dict(), assign=True)
    else:
        empty = empty.to_empty(device="cpu")
        empty.load_state_dict(source.state_dict())
    assert_same(evaluated(empty, x), evaluated(source, x))
    assert not list(source.buffers())


def test_an_empty_grid_stays_part_of_the_graph() -> None:
    qkv = torch.randn(0, 5, 7, 3, 2, 4, requires_grad=True)
    swinx.window_attention(qkv, torch.zeros(2, 9, 9), window_size=(3, 3)).sum().backward()
    assert qkv.grad is not None


@torch.no_grad()
def test_the_operator_of_plans_obeys_the_rules_of_operators() -> None:
    for shifted in (True, False):
        arguments = (2, 13, 17, (7, 7), (3, 3) if shifted else (0, 0), 1, shifted, torch.device("cpu"))
        torch.library.opcheck(torch.ops.swinx.window_indices.default, arguments)
