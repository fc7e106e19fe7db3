"""VIPA's mask decoder with visual informative part attention (section III-C, eq. 8).

Letters: E expressions, T tokens of the key-value set, D channels of tokens, C channels of a stage, P = h * w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.models.layers import AttentionLayer, JoinLevels


class PartAttentionDecoder(BaseModule):
    """Attend to the key-value set (eq. 8), upsample, and join the encoder's next level, from coarse to fine.

    The paper gives neither the width nor how levels are joined. As in CrossVLT, we use two 3x3 convolutions and half of
    the coarsest level's channels.

    Args:
        level_dims: Channels of the encoder's levels, fine to coarse.
        token_dim: D.
        width: Channels of all stages but the first.
        num_heads: Attention heads. The paper does not give them.
        ffn_ratio: Width of eq. 8's MLP relative to the stage's channels. At 1 the whole model has 430 GFLOP, near the
            published 431 if that is not in MACs; at 4, as in BERT, it has 62 more.
    """

    def __init__(
        self, *, level_dims: Sequence[int], token_dim: int, width: int = 512, num_heads: int = 8, ffn_ratio: int = 1
    ) -> None:
        super().__init__()
        dims = [level_dims[-1], *[width] * (len(level_dims) - 1)]
        self.attn_layers = nn.ModuleList(
            AttentionLayer(dim, num_heads, ffn_ratio * dim, memory_dim=token_dim) for dim in dims
        )
        self.join = nn.ModuleList(
            JoinLevels(coarse, fine, width) for coarse, fine in zip(dims[:-1], reversed(level_dims[:-1]), strict=True)
        )
        self.classify = nn.Linear(dims[-1], 1)

    def forward(
        self, levels: Sequence[Tensor], masks: Sequence[Tensor] | None, tokens: Tensor, token_mask: Tensor | None
    ) -> Tensor:
        """Return mask logits (E, h, w) at the finest level.

        Args:
            levels: (E, C_i, h_i, w_i), fine to coarse.
            masks: (E, h_i, w_i), True on the image; None without padding.
            tokens: (E, T, D).
            token_mask: (E, T), True on real tokens; None if all are.
        """
        if masks is not None:  # zero padding, so that convolutions and upsampling do not read it
            levels = [level * mask[:, None] for level, mask in zip(levels, masks, strict=True)]
        x = levels[-1]
        for number, attention in enumerate(self.attn_layers):
            level = len(levels) - 1 - number
            # Upsample and join the next level
            if number:
                x = self.join[number - 1](x, levels[level])
            # Cross-attention: pixels to tokens
            size = x.shape[-2:]
            pixels = attention(x.flatten(2).transpose(1, 2), tokens, token_mask)  # (E, P, C)
            x = pixels.transpose(1, 2).unflatten(2, size)
            if masks is not None:
                x = x * masks[level][:, None]
        return self.classify(pixels)[..., 0].unflatten(1, size)
