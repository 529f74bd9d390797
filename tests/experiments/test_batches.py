"""Batches: augmentation that keeps masks on their pixels, and an order that depends on seed and number alone."""

import pytest
import torch
from scipy.stats import kstest, uniform
from torchvision import tv_tensors
from toy import IGNORE, color_coded

from experiments.data import Split
from experiments.training.batches import Batches, ScaleCrop, augmentation


def batches_of(split: Split, batch_size: int, seed: int, **share: int) -> Batches:
    return Batches(split, batch_size, seed, augmentation((64, 64), (1.0, 2.0), 0.3), **share)


def test_augmented_masks_stay_on_their_pixels_and_ids_are_never_invented() -> None:
    split = color_coded(7, 0)
    batches = batches_of(split, 4, 3)
    disagreeing = labelled = 0
    for step in range(12):
        images, masks = batches[step]
        assert images.dtype == masks.dtype == torch.uint8
        assert images.shape == (4, 3, 64, 64)
        assert masks.shape == (4, 64, 64)
        assert set(masks.unique().tolist()) <= {0, 1, 2, IGNORE}
        for image, mask in zip(images.float().mean(1), masks, strict=True):
            for id_ in range(3):
                # The class's own level, after brightness and contrast: the median over its pixels.
                level = image[mask == id_].median() if (mask == id_).any() else torch.tensor(0.0)
                disagreeing += int(((image - level).abs() > 12)[mask == id_].sum())
                labelled += int((mask == id_).sum())
    # Only bilinear blends at the edges of blocks, 16 pixels or more wide, may differ.
    assert disagreeing < 0.08 * labelled


def test_enlarged_masks_have_no_drift_against_their_images() -> None:
    """At every zoom, thresholding the bilinear image gives the mask: "nearest" would be off by up to half a pixel."""
    ramp = torch.arange(64).ge(29).to(torch.uint8).expand(64, 64)
    image = tv_tensors.Image((ramp * 255).expand(3, 64, 64).contiguous())
    crop = ScaleCrop(64, 64)
    for width in range(33, 64):
        params = {"top": 0, "left": 3, "height": width, "width": width}
        zoomed = crop.transform(image, params)[0]
        mask = crop.transform(tv_tensors.Mask(ramp.contiguous()), params)
        assert isinstance(mask, tv_tensors.Mask)
        assert ((zoomed > 127) == mask.bool()).float().mean() > 1 - 1.01 / 64


def test_batches_depend_on_seed_and_step_alone() -> None:
    split = color_coded(7, 0)
    first, same, other = (batches_of(split, 3, seed) for seed in (5, 5, 6))
    forward = [first[step] for step in range(10)]
    torch.manual_seed(99)  # a model that draws random numbers
    torch.rand(1000)
    state = torch.get_rng_state()
    for step in reversed(range(10)):
        for one, two in zip(forward[step], same[step], strict=True):
            assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(forward[step][0], other[step][0]) for step in range(10))


def test_every_image_comes_once_per_pass() -> None:
    batches = batches_of(color_coded(7, 0), 3, 1)
    drawn = [index for step in range(7) for index in batches.indices(step)]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert drawn[:7] != drawn[7:14]


def test_processes_share_every_batch_of_one() -> None:
    split = color_coded(7, 0)
    whole = batches_of(split, 6, 2)
    shares = [batches_of(split, 6, 2, rank=rank, world=3) for rank in range(3)]
    for number in range(4):
        for i in (0, 1):
            assert torch.equal(torch.cat([share[number][i] for share in shares]), whole[number][i])


def test_crops_are_pieces_of_the_images() -> None:
    """Without zoom and colour a crop is cut out as it is, flipped or not, and every position comes up."""
    image = torch.arange(3 * 13 * 17).view(3, 13, 17).remainder(251).to(torch.uint8)
    split = Split(image.expand(3, 3, 13, 17).contiguous(), image[0].expand(3, 13, 17).contiguous(), ("a", "b", "c"))
    batches = Batches(split, 3, 0, augmentation((5, 7), (1.0, 1.0), 0.0))
    pieces = {image[:, y : y + 5, x : x + 7].numpy().tobytes(): (y, x) for y in range(9) for x in range(11)}
    found = set()
    for number in range(100):
        for crop, mask in zip(*batches[number], strict=True):
            assert torch.equal(crop[0], mask)
            position = pieces.get(crop.numpy().tobytes()) or pieces.get(crop.flip(-1).numpy().tobytes())
            assert position is not None
            found.add(position)
    assert {y for y, _ in found} == set(range(9))
    assert {x for _, x in found} == set(range(11))


def test_the_area_of_crops_is_uniform_and_half_of_them_are_mirrored() -> None:
    size, zoom = (800, 1000), (1.25, 2.5)
    image = tv_tensors.Image(torch.empty(3, 1000, 1200, dtype=torch.uint8))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [ScaleCrop(*size, zoom).make_params([image]) for _ in range(500)]
        areas = [params["height"] * params["width"] / (800 * 1000) for params in drawn]
        assert kstest(areas, uniform(0.16, 0.64 - 0.16).cdf).pvalue > 0.05
        ramp = torch.arange(0, 240, 3, dtype=torch.uint8).expand(3, 80, 80)
        for zoomed, factor in (((1.0, 1.0), 1), ((2.0, 2.0), 2)):
            augment, mirrored = augmentation((80, 80), zoomed, 0.0), 0
            for _ in range(200):
                found = augment(tv_tensors.Image(ramp)).int()[0, 0]
                mirrored += int(found[0] > found[-1])
                assert found.max() - found.min() == pytest.approx(237 / factor, abs=6)
            assert 80 <= mirrored <= 120


def test_brightness_contrast_and_saturation_vary_as_far_as_asked() -> None:
    """By how each changes dark grey, light grey and a colour: the mean, the difference of greys, and that of channels.

    None of them changes what is read off for those before it.
    """
    rows = torch.tensor([[80, 80, 80], [180, 180, 180], [180, 130, 80]], dtype=torch.uint8)
    image = rows.T.reshape(3, 3, 1).expand(3, 3, 8)
    grey = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    augment, found = augmentation((3, 8), (1.0, 1.0), 0.2), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(150):
            dark, light, color = augment(tv_tensors.Image(image))[..., 0].T.double()
            brightness = torch.stack([dark, light, color]).mv(grey).mean() / rows.double().mv(grey).mean()
            difference = (light - dark)[0]
            found.append([brightness, difference / 100 / brightness, (color[0] - color[2]) / difference])
    for factors in torch.tensor(found).T:
        assert factors.min() == pytest.approx(0.8, abs=0.03)
        assert factors.max() == pytest.approx(1.2, abs=0.03)
