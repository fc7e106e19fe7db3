import math

import pytest
import torch

from models.referring_checks import padded_images
from refseg.analysis.synthetic import dummy_batch
from refseg.models.losses import dice_per_map, mask_bce_loss, merged_dice_loss, merged_mask_losses, weighted_bce_loss
from refseg.models.losses.functional import corner_points, sample_points


def test_points_of_a_map_with_aligned_corners() -> None:
    """Sampling a small map of columns and rows there is sampling the large one that it is resized to."""
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    small = torch.stack([columns, rows])[None]
    large = torch.nn.functional.interpolate(small, size=(12, 20), mode="bilinear", align_corners=True)
    points = 0.1 + 0.8 * torch.rand(1, 50, 2)  # where no pixel outside is part of the mean
    found = sample_points(small, corner_points(points, (12, 20), (3, 5)))
    torch.testing.assert_close(found, sample_points(large, points), atol=1e-5, rtol=1e-5)


def test_bce_by_hand() -> None:
    """Logits 0 and ln 3 have probabilities 1/2 and 3/4; targets 1 and 0: (ln 2 + ln 4) / 2 = 1.5 ln 2."""
    loss = mask_bce_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(1.5 * math.log(2))


def test_dice_by_hand() -> None:
    """Probabilities 1/2, 3/4 against 1, 0: overlap 1/2, so 1 - (2 * 1/2 + 1) / (5/4 + 1 + 1) = 1 - 8/13. A second map
    with probabilities 1/2, 1/2 against 0, 0: 1 - 1/2."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert dice_per_map(logits, torch.tensor([[1, 0], [0, 0]])).tolist() == pytest.approx([5 / 13, 1 / 2])


def test_empty_bce_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 3, 3, requires_grad=True)
    value = mask_bce_loss(logits, torch.zeros(0, 3, 3))
    value.backward()
    assert value.item() == 0 and logits.grad.shape == (0, 3, 3)


def test_merged_dice_is_over_expressions_with_a_target() -> None:
    """Of the two expressions of an image, the last one has no target, so the mean is the first one's dice. Without any
    target it is 0, with zero gradients."""
    batch = dummy_batch(shape=(4, 4), expressions_per_image=2)["batch"]
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = batch.merged_masks()
    loss = merged_dice_loss(logits, target, batch, None)
    torch.testing.assert_close(loss, dice_per_map(logits, target)[0])
    batch.referents[0] = torch.zeros_like(batch.referents[0])
    (grad,) = torch.autograd.grad(merged_dice_loss(logits, target, batch, None), logits)
    assert not grad.any() and merged_dice_loss(logits, target, batch, None).item() == 0


def test_weighted_bce_is_two_class_cross_entropy() -> None:
    """Four pixels, weights 0.9 and 1.1: the cross-entropy of (0, x) with class weights, which PyTorch has."""
    logits = torch.tensor([[[1.0, -2.0], [0.5, 3.0]]])
    target = torch.tensor([[[True, False], [False, True]]])
    two = torch.stack([torch.zeros_like(logits), logits], 1)
    wanted = torch.nn.functional.cross_entropy(two, target.long(), torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(weighted_bce_loss(logits, target, (0.9, 1.1)), wanted)


def test_weighted_bce_by_hand() -> None:
    """Logit 0 costs log 2 everywhere; whatever the weights, the weighted mean is log 2. Of no pixel, 0."""
    loss = weighted_bce_loss(torch.zeros(1, 2, 2), torch.tensor([[[True, False], [False, False]]]), (0.9, 1.1))
    assert loss.item() == pytest.approx(0.693147, abs=1e-5)
    assert weighted_bce_loss(torch.zeros(0, 2, 2), torch.zeros(0, 2, 2, dtype=torch.bool), (0.9, 1.1)).item() == 0


def test_merged_losses_are_at_the_input_size() -> None:
    """Two phrases of 32 x 32 pixels, logits of 8 x 8: 0 everywhere, ln 2 each. The first refers to the upper half: dice
    is 1 - (2 x 512 x 0.5 + 1) / (1024 x 0.5 + 512 + 1); the second to nothing, and has no dice. If the lower half is
    padding, whatever is there, the first is 1 - 513 / (512 x 0.5 + 512 + 1)."""
    batch = dummy_batch(shape=(32, 32), expressions_per_image=2)["batch"]
    logits, masks = torch.zeros(2, 8, 8), batch.merged_masks()
    bce, dice = merged_mask_losses(logits, masks, batch)
    torch.testing.assert_close(bce, torch.tensor(2.0).log())
    torch.testing.assert_close(dice, torch.tensor(1 - 513 / 1025))
    logits[:, 5:] = 7.0
    bce, dice = merged_mask_losses(logits, masks, padded_images(batch, 16, 32))
    torch.testing.assert_close(bce, torch.tensor(2.0).log())
    torch.testing.assert_close(dice, torch.tensor(1 - 513 / 769))


def test_no_target_phrases_have_no_dice() -> None:
    batch = dummy_batch(shape=(32, 32), expressions_per_image=2)["batch"]
    nothing = [torch.zeros_like(refers) for refers in batch.referents]
    batch.referents = nothing
    bce, dice = merged_mask_losses(torch.zeros(2, 8, 8), batch.merged_masks(), batch)
    torch.testing.assert_close(bce, torch.tensor(2.0).log())
    assert dice.item() == 0
