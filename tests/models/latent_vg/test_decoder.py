"""The mask head of Latent-VG."""

from __future__ import annotations

import math

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.latent_vg.decoder import MaskDecoder, average_masks

E, C, H, W = 2, 8, 3, 4


def decoder(**settings: object) -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(embed_dim=C, width=6, **settings).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(E, C, H, W, generator=draw), torch.randn(E, 3, C, generator=draw)


def test_average_masks_by_hand() -> None:
    """Probabilities 0.2, 0.5 and 0.8 average to 0.5, and 0.2, 0.5 and 0.35 to 0.35. Logits: 0 in the first."""
    masks = torch.tensor([[0.2, 0.2], [0.5, 0.5], [0.8, 0.35]]).logit()[None, :, None]  # (1, 3, 1, 2)
    torch.testing.assert_close(average_masks(masks, "probs").sigmoid(), torch.tensor([[[0.5, 0.35]]]))
    assert average_masks(masks, "logits")[0, 0, 0].item() == pytest.approx(0, abs=1e-6)


def test_average_of_sure_masks_is_finite() -> None:
    """One of two expressions is sure: half a pixel. Both are sure: the logit and its gradient do not saturate."""
    masks = torch.tensor([[-200.0, -200.0], [200.0, -300.0]])[None, :, None].requires_grad_()
    found = average_masks(masks, "probs")
    torch.testing.assert_close(found, torch.tensor([[[0.0, -200.0 - math.log(2)]]]))
    found.sum().backward()
    assert torch.isfinite(masks.grad).all() and masks.grad[0, 0, 0, 1] == 1


def test_each_expression_has_its_own_mask() -> None:
    module, (patches, vectors) = decoder(), inputs()
    found = module(patches, vectors)
    assert found.shape == (E, 3, 4 * H, 4 * W)
    for i in range(3):
        torch.testing.assert_close(found[:, i : i + 1], module(patches, vectors[:, i : i + 1]))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_each_patch_affects_only_its_part_of_the_mask(scale: int) -> None:
    module, (patches, vectors) = decoder(scale=scale), inputs()
    other = patches.clone()
    other[..., -1] = 30.0
    one, two = module(patches, vectors), module(other, vectors)
    assert one.shape == (E, 3, scale * H, scale * W)
    torch.testing.assert_close(one[..., :-scale], two[..., :-scale])
    assert not torch.isclose(one[..., -scale:], two[..., -scale:]).any()


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"average 'masks'\. Valid values: probs, logits"):
        decoder(average="masks")
    for scale in (0, 3):
        with pytest.raises(ConfigError, match="power of two"):
            decoder(scale=scale)
