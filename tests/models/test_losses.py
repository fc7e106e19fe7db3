import math

import pytest
import torch

from refseg.models.losses import dice_loss, mask_bce_loss


def test_bce_by_hand() -> None:
    """Logits 0 and ln 3 have probabilities 1/2 and 3/4; targets 1 and 0: (ln 2 + ln 4) / 2 = 1.5 ln 2."""
    loss = mask_bce_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(1.5 * math.log(2))


def test_dice_by_hand() -> None:
    """Probabilities 1/2, 3/4 against 1, 0: overlap 1/2, so 1 - (2 * 1/2 + 1) / (5/4 + 1 + 1) = 1 - 8/13. A second map
    with probabilities 1/2, 1/2 against 0, 0: 1 - 1/2. Their mean."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    loss = dice_loss(logits, torch.tensor([[1, 0], [0, 0]]))
    assert loss.item() == pytest.approx((5 / 13 + 1 / 2) / 2)


@pytest.mark.parametrize("loss", [mask_bce_loss, dice_loss])
def test_no_maps_give_zero_with_a_gradient(loss: object) -> None:
    logits = torch.zeros(0, 3, 3, requires_grad=True)
    value = loss(logits, torch.zeros(0, 3, 3))
    value.backward()
    assert value.item() == 0 and logits.grad.shape == (0, 3, 3)
