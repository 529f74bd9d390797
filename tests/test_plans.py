"""Plans: slices hold every window once, and nothing made in special circumstances is kept."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import swinx
from swinx import plans, windows
from swinx.config import VARIANTS

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(14, 28), (13, 17), (29, 7), (1, 3)])
@pytest.mark.parametrize("shift", [(0, 0), (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_slices_hold_every_token_once_with_what_it_sees(
    height: int, width: int, shift: tuple[int, int], dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "TOKENS_PER_SLICE", 101)  # two windows of 49 tokens
    geometry = windows.WindowGeometry(3, height, width, (7, 7), shift, dilation)
    _, scatter_all, visible = plans.window_indices(geometry, shift != (0, 0), True, CPU)
    plans.kept_slices.cache_clear()
    slices = plans.kept_slices(geometry, shift != (0, 0), "sdpa", CPU)
    plans.kept_slices.cache_clear()
    tokens = 3 * height * width
    assert torch.equal(torch.cat([part.rows for part in slices]).sort().values, torch.arange(tokens))
    window_of = scatter_all // 49
    masked = 0
    for part in slices:
        assert part.padded == (part.gather is not None) == (part.scatter is not None)
        scatter = torch.arange(len(part.rows)) if part.scatter is None else part.scatter
        sees = (scatter[:, None] // 49) == (scatter[None] // 49)
        if part.visible is not None:
            masked += 1
            sees &= part.visible[scatter[:, None] // 49, scatter[:, None] % 49, scatter[None] % 49]
        expected = window_of[part.rows][:, None] == window_of[part.rows][None]
        if visible is not None:
            slot = scatter_all[part.rows]
            expected &= visible[slot[:, None] // 49, slot[:, None] % 49, slot[None] % 49]
        assert torch.equal(sees, expected)
        if part.gather is not None:
            assert torch.equal(part.gather[scatter], torch.arange(len(part.rows)))
            assert (part.gather == len(part.rows)).sum() == part.gather.numel() - len(part.rows)
    assert masked < len(slices) or min(height, width) < 14 * dilation or shift == (0, 0)


def circumstances(encoder: swinx.SwinXEncoder, x: torch.Tensor) -> dict[str, object]:
    """Ways to run an encoder whose tensors must not outlive them."""

    def fake() -> None:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            encoder(mode.from_tensor(x))

    def fake_around() -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            encoder(x)

    def other_device() -> None:
        with torch.device("meta"):
            encoder(x)

    return {
        "fake tensors": fake,
        "fake tensors around real ones": fake_around,
        "inference mode": lambda: torch.inference_mode()(encoder)(x),
        "vmap": lambda: torch.vmap(lambda image: encoder(image[None]))(x),
        "grad": lambda: torch.func.grad(lambda image: sum(level.mean() for level in encoder(image)))(x),
        "jvp": lambda: torch.func.jvp(lambda image: encoder(image)[1:], (x,), (x,)),
        "default device": other_device,
    }


@pytest.mark.parametrize("name", list(circumstances(None, torch.zeros(()))))  # type: ignore[arg-type]
@pytest.mark.parametrize("gradients", [True, False])
def test_a_run_in_special_circumstances_leaves_nothing_behind(name: str, gradients: bool) -> None:
    torch.manual_seed(0)
    encoder = swinx.SwinXEncoder(VARIANTS["swinx_n"]).eval()
    x = torch.randn(1, 3, 71, 83)
    for cache in (plans.kept_slices, plans._kept_indices):
        cache.cache_clear()
    with torch.set_grad_enabled(gradients):
        circumstances(encoder, x)[name]()
    with torch.no_grad():
        sliced = encoder(x)
    whole = [level.detach() for level in encoder(x)]
    sum(level.square().mean() for level in encoder.train()(x)[1:]).backward()
    for one, other in zip(sliced, whole, strict=True):
        assert type(one) is torch.Tensor
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
