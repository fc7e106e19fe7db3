"""The mask head: what is averaged, and that places stay apart."""

from __future__ import annotations

import pytest
import torch

from refseg.errors import ConfigError
from refseg.models.latent_vg.decoder import MaskDecoder

E, C, H, W = 2, 8, 3, 4


def decoder(**settings: object) -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(embed_dim=C, width=6, **settings).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(E, C, H, W, generator=draw), torch.randn(E, 3, C, generator=draw)


def test_masks_of_all_expressions_are_averaged() -> None:
    """Logits, or probabilities, whose mean is a logit again."""
    patches, vectors = inputs()
    for average in ("logits", "probs"):
        module = decoder(average=average)
        single = torch.stack([module(patches, vectors[:, i : i + 1]) for i in range(3)])
        found = module(patches, vectors)
        assert found.shape == (E, 4 * H, 4 * W)
        wanted = single.mean(0) if average == "logits" else single.sigmoid().mean(0).logit()
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_each_patch_affects_only_its_part_of_the_mask(scale: int) -> None:
    """Whatever is in the last column of patches."""
    module, (patches, vectors) = decoder(scale=scale), inputs()
    other = patches.clone()
    other[..., -1] = 30.0
    one, two = module(patches, vectors), module(other, vectors)
    assert one.shape == (E, scale * H, scale * W)
    torch.testing.assert_close(one[..., :-scale], two[..., :-scale])
    assert not torch.isclose(one[..., -scale:], two[..., -scale:]).any()


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"average 'masks'\. Valid values: logits, probs"):
        decoder(average="masks")
    for scale in (0, 3):
        with pytest.raises(ConfigError, match="power of two"):
            decoder(scale=scale)
