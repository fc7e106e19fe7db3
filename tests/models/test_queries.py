"""Which pixels a query may read."""

import torch
import torch.nn.functional as F

from refseg.models.layers import Groups, PixelFeatures, pixel_attn_mask


def pixels_with(mask_feats: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None = None) -> PixelFeatures:
    valid = torch.ones(len(mask_feats), *size, dtype=torch.bool) if mask is None else mask
    return PixelFeatures(mask_feats, [], [], [valid], mask is not None)


def test_attention_inside_the_mask_or_everywhere() -> None:
    """Features of -1 in the left half and 1 in the right: queries of 1 and -1 read one half each, and one whose mask is
    empty, because features are never positive for it, reads everything."""
    feats = torch.ones(1, 2, 4, 8)
    feats[:, 0, :, :4] = -1.0
    embeds = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]])
    attn_mask = pixel_attn_mask(pixels_with(feats, (2, 4)), 0, embeds, Groups([1], "cpu")).view(3, 2, 4)
    assert attn_mask[0].tolist() == [[False, False, True, True]] * 2
    assert attn_mask[1].tolist() == [[True, True, False, False]] * 2
    assert attn_mask[2].all()


def test_padding_is_masked() -> None:
    """Nor when the mask lies in the padding alone: then all of the image is read."""
    feats = torch.ones(1, 1, 2, 4)
    feats[..., :2] = -1.0
    mask = torch.tensor([[[True, True, False, False]] * 2])
    attn_mask = pixel_attn_mask(pixels_with(feats, (2, 4), mask), 0, torch.ones(1, 1, 1), Groups([1], "cpu"))
    assert attn_mask.tolist() == [mask.flatten(1).tolist()]


def test_interpolating_features_equals_interpolating_masks() -> None:
    """Two images with two phrases each, against masks made first and interpolated then."""
    torch.manual_seed(0)
    feats, embeds = torch.randn(2, 5, 8, 12), torch.randn(4, 3, 5)
    masks = torch.einsum("end,edhw->enhw", embeds, feats[[0, 0, 1, 1]])
    wanted = F.interpolate(masks, size=(4, 6), mode="bilinear", align_corners=False).flatten(2) >= 0
    wanted |= ~wanted.any(-1, keepdim=True)
    groups = Groups([2, 2], "cpu")
    assert torch.equal(groups.ungroup(pixel_attn_mask(pixels_with(feats, (4, 6)), 0, embeds, groups)), wanted)
