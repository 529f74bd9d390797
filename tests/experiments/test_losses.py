"""The objective against torch's cross-entropy and losses written out from their papers."""

import pytest
import torch
from torch import Tensor, nn
from toy import IGNORE

from experiments.training.losses import MAX_CLASS_WEIGHT, Objective, class_weights


@pytest.mark.parametrize("ignore", [255, 3])
def test_cross_entropy_equals_torchs_and_is_zero_without_labels(ignore: int) -> None:
    weights = torch.tensor([0.5, 1.0, 3.0])
    objective = Objective(("ce",), weights, ignore)
    logits = torch.randn(2, 3, 5, 7)
    masks = torch.randint(0, 3, (2, 5, 7), dtype=torch.uint8)
    masks[:, 2] = ignore
    expected = nn.functional.cross_entropy(logits, masks.long(), weight=weights, ignore_index=ignore)
    torch.testing.assert_close(objective(logits, masks), expected)
    assert objective(logits, torch.full_like(masks, ignore)) == 0


def dice(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:
    """Milletari et al. 2016, over the whole batch, mean over classes; a class that does not occur counts 0."""
    kept = masks != ignore
    probabilities = logits.double().softmax(1).movedim(1, -1)[kept]
    losses = []
    for k in range(logits.shape[1]):
        truth = (masks[kept] == k).double()
        score = 2 * (probabilities[:, k] * truth).sum() / (probabilities[:, k] + truth).sum()
        losses.append((1 - score) * bool(truth.any()))
    return torch.stack(losses).mean()


def lovasz(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:
    """Berman et al. 2018, eq. 9: the Lovász extension of the Jaccard loss of each class, mean over those present."""
    kept = masks != ignore
    probabilities = logits.double().softmax(1).movedim(1, -1)[kept]
    losses = []
    for k in range(logits.shape[1]):
        truth = masks[kept] == k
        if not truth.any():
            continue
        errors, order = (truth.double() - probabilities[:, k]).abs().sort(descending=True)
        total, before = torch.zeros((), dtype=torch.float64), 0.0
        for i in range(len(errors)):
            wrong = order[: i + 1]  # the pixels taken for mispredicted
            lost = 1 - (truth.sum() - truth[wrong].sum()) / (truth.sum() + (~truth[wrong]).sum())
            total = total + errors[i] * (float(lost) - before)
            before = float(lost)
        losses.append(total)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("ignore", [255, 3])
def test_dice_and_lovasz_equal_their_papers(ignore: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    masks = torch.randint(0, 2, (2, 5, 7), generator=generator, dtype=torch.uint8)  # class 2 is absent
    masks[:, 2] = ignore
    ones = torch.ones(3)
    for name, formula in (("dice", dice), ("lovasz", lovasz)):
        expected = formula(logits, masks, ignore)
        assert float(Objective((name,), ones, ignore)(logits, masks)) == pytest.approx(float(expected), rel=1e-5)
    both = Objective(("ce", "dice", "lovasz"), ones, ignore)
    parts = sum(float(Objective((name,), ones, ignore)(logits, masks)) for name in ("ce", "dice", "lovasz"))
    assert float(both(logits, masks)) == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize("names", [("dice",), ("lovasz",), ("ce", "dice", "lovasz")])
def test_images_without_a_label_give_zero_and_no_gradient(names: tuple[str, ...]) -> None:
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    loss = Objective(names, torch.ones(3), 255)(logits, torch.full((2, 5, 7), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_class_weights_by_hand() -> None:
    masks = torch.zeros(1, 10, 100, dtype=torch.uint8)
    masks[0, 0, :64] = 1
    masks[0, 1, :16] = 2
    masks[0, 2, :1] = 3
    masks[0, 5:] = IGNORE
    counts = torch.tensor([500.0 - 81, 64, 16, 1])
    median = counts.sort().values[1]
    expected = (median / counts).sqrt().clamp(max=MAX_CLASS_WEIGHT)
    torch.testing.assert_close(class_weights(masks, 5, IGNORE), torch.cat([expected, torch.ones(1)]))
    assert class_weights(masks, 5, IGNORE, "none").tolist() == [1.0] * 5


@pytest.mark.parametrize("value", [IGNORE, 1])
def test_masks_that_teach_nothing_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        class_weights(torch.full((2, 8, 8), value, dtype=torch.uint8), 3, IGNORE)
