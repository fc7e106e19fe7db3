"""How far the decoder's attention is spread, as a number (VIPA, Fig. 6 c: "lower modality projection entropy").

The paper shows maps and gives no measure. Here it is the entropy of eq. 8's softmax, as a share of the entropy of equal
weights: of a pixel over the tokens that it reads, and of a token over the pixels that read it.

Letters: E expressions, H heads, P pixels of a stage, T tokens of the key-value set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refseg.models.vipa.decoder import PartAttentionDecoder


class Spread(NamedTuple):
    """Of one stage, means over heads: `over_tokens` (E,), the mean of all pixels' entropies; `over_pixels` (E,), of all
    tokens'. From 0, one has all the weight, to 1, all weigh the same. NaN where there is one to choose from."""

    over_tokens: Tensor
    over_pixels: Tensor


def relative_entropy(weights: Tensor, valid: Tensor) -> Tensor:
    """Weights (..., S), zero where `valid` (..., S) is False -> (...): the entropy of their shares, divided by the
    logarithm of the number of valid places. NaN where they are fewer than two, or all weigh nothing."""
    shares = weights / weights.sum(-1, keepdim=True)
    number = valid.sum(-1)
    return torch.special.entr(shares).sum(-1) / number.log().where(number > 1, torch.nan)


def attention_spread(weights: Tensor, token_mask: Tensor, pixel_mask: Tensor) -> Spread:
    """Attention (E, H, P, T) of pixels, pixel_mask (E, P), over tokens, token_mask (E, T)."""
    weights = weights * pixel_mask[:, None, :, None] * token_mask[:, None, None]
    over_tokens = relative_entropy(weights, token_mask[:, None, None].expand_as(weights))  # (E, H, P)
    weights = weights.transpose(2, 3)
    over_pixels = relative_entropy(weights, pixel_mask[:, None, None].expand_as(weights))  # (E, H, T)
    return Spread(
        over_tokens.where(pixel_mask[:, None], torch.nan).flatten(1).nanmean(1),
        over_pixels.where(token_mask[:, None], torch.nan).flatten(1).nanmean(1),
    )


@contextmanager
def recorded_spread(decoder: PartAttentionDecoder) -> Iterator[list[Spread]]:
    """While it is open, the list holds the spreads of the decoder's last run, from the coarsest stage to the finest."""
    spreads: list[Spread] = []
    masks: list[Tensor | None] = []

    def begin(module: Any, args: tuple) -> None:
        levels, level_masks = args[:2]
        spreads.clear()
        masks[:] = [None] * len(levels) if level_masks is None else [mask.flatten(1) for mask in level_masks[::-1]]

    def record(read: Any, args: tuple) -> None:
        pixels, tokens, token_mask = args
        pixel_mask = masks[len(spreads)]
        if pixel_mask is None:
            pixel_mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        if token_mask is None:
            token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        with torch.no_grad():
            spreads.append(attention_spread(read.weights(pixels, tokens, token_mask), token_mask, pixel_mask))

    handles = [decoder.register_forward_pre_hook(begin)]
    handles += [layer.attn.register_forward_pre_hook(record) for layer in decoder.attn_layers]
    try:
        yield spreads
    finally:
        for handle in handles:
            handle.remove()
