"""VIPA's decoder: sizes, padding, and the number of levels."""

from __future__ import annotations

import torch

from refseg.models.vipa.decoder import PartAttentionDecoder


def decoder(*dims: int) -> PartAttentionDecoder:
    torch.manual_seed(0)
    return PartAttentionDecoder(level_dims=dims, token_dim=5, width=8, num_heads=2).eval()


def levels(*dims: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, dim, 16 >> i, 24 >> i, generator=draw) for i, dim in enumerate(dims)]


TOKENS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))


def test_masks_have_the_finest_resolution() -> None:
    for dims in ((4, 6, 8, 12), (6, 8), (8,)):
        assert decoder(*dims)(levels(*dims), None, TOKENS, None).shape == (2, 16, 24)


def test_eq_8_by_hand() -> None:
    """With one level there is nothing to join: attention, MLP, linear."""
    module, (level,) = decoder(8), levels(8)
    pixels = level.flatten(2).transpose(1, 2)
    read = module.attn_layers[0].norm1(pixels + module.attn_layers[0].attn(pixels, TOKENS))
    out = module.classify(module.attn_layers[0].norm2(read + module.attn_layers[0].ffn(read)))
    torch.testing.assert_close(module([level], None, TOKENS, None).flatten(1), out[..., 0])


def test_padded_pixels_and_tokens_have_no_effect() -> None:
    """The right half of each level and the third token may hold anything. Convolutions read zeros there."""
    module, clean = decoder(4, 6, 8, 12), levels(4, 6, 8, 12)
    masks = [(torch.arange(level.shape[-1]) < level.shape[-1] // 2).expand(2, *level.shape[-2:]) for level in clean]
    dirty = [level.masked_fill(~mask[:, None], 50.0) for level, mask in zip(clean, masks, strict=True)]
    token_mask = torch.tensor([[True, True, False]] * 2)
    other = TOKENS.masked_fill(~token_mask[..., None], 9.0)
    one, two = module(clean, masks, TOKENS, token_mask), module(dirty, masks, other, token_mask)
    torch.testing.assert_close(one, two)
