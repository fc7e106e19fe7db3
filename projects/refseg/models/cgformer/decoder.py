"""CGFormer's decoder: query tokens read words, group pixels level by level, and the last one draws the mask.

Letters: E expressions, N tokens, L words, P = h * w pixels of a level, C channels, D channels of words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_at_least, check_share
from refseg.models.encoders.vision import flatten_map
from refseg.models.layers import Attention, JoinLevels, feed_forward
from refseg.structures import EncodedFeatures


class ReadWords(nn.Module):
    """The last token reads the words; then all tokens go through a feed-forward network without a shortcut."""

    def __init__(self, embed_dim: int, word_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_token, self.norm_words = nn.LayerNorm(embed_dim), nn.LayerNorm(word_dim)
        self.cross_attn_words = Attention(embed_dim, 1, memory_dim=word_dim, dropout=dropout, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm_ffn, self.ffn = nn.LayerNorm(embed_dim), feed_forward(embed_dim, 2 * embed_dim, activation=nn.GELU)

    def forward(self, tokens: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Update tokens (E, N, C) from words (E, L, D) with word_mask (E, L)."""
        others, referent = tokens[:, :-1], tokens[:, -1:]
        update = self.cross_attn_words(self.norm_token(referent), self.norm_words(words), word_mask)
        tokens = torch.cat([others, referent + self.dropout(update)], 1)
        return self.ffn(self.norm_ffn(tokens))


class GroupPixels(nn.Module):
    """Each pixel joins one token; a token is updated with the sum of its pixels over their number + 1.

    In training, a pixel joins the token with the highest cosine plus Gumbel noise, with straight-through gradients.
    Such a draw has the probabilities softmax(cosines), whatever the temperature. At test time these probabilities
    replace the draws, so that answers are deterministic. The published code draws at test time too.

    Args:
        embed_dim: C.
        dropout: Dropout of the update and of the feed-forward network.
        log_temperature: Start of a parameter; see `GroupingDecoder`.
        draws_at_test: Draw at test time.
    """

    def __init__(self, embed_dim: int, *, dropout: float, log_temperature: float, draws_at_test: bool) -> None:
        super().__init__()
        self.draws_at_test = draws_at_test
        self.norm_pixels, self.norm_tokens = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.query, self.key, self.value = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm_ffn = nn.LayerNorm(embed_dim)
        self.ffn = nn.Sequential(
            *(nn.Linear(embed_dim, 2 * embed_dim), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(2 * embed_dim, embed_dim), nn.Dropout(dropout)),
        )
        self.log_temperature = nn.Parameter(torch.tensor(log_temperature))

    def forward(self, tokens: Tensor, pixels: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (E, N, C), pixels (E, P, C), pixel_mask (E, P) -> new tokens, and groups (E, N, P): who joined."""
        # Assign each pixel to a token
        pixels = self.norm_pixels(pixels)
        query = F.normalize(self.query(self.norm_tokens(tokens)).float(), dim=-1)
        key = F.normalize(self.key(pixels).float(), dim=-1)
        groups = self._assign(torch.bmm(query, key.transpose(1, 2)).float())  # (E, N, P)
        if pixel_mask is not None:
            groups = groups * pixel_mask[:, None]
        # Update the tokens
        share = groups / (groups.sum(-1, keepdim=True) + 1)
        update = self.out(torch.bmm(share.to(pixels.dtype), self.value(pixels)))
        return self.ffn(self.norm_ffn(tokens + self.dropout(update))), groups

    def _assign(self, cosines: Tensor) -> Tensor:
        if not (self.training or self.draws_at_test):
            return cosines.softmax(1)
        temperature = self.log_temperature.clamp(max=0).exp()
        noise = -torch.empty_like(cosines).exponential_().log()  # Gumbel
        soft = ((cosines + noise) / temperature).softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return hard - soft.detach() + soft


class MaskHead(nn.Module):
    """Upsample pixels by 4, and take their dot product with a kernel made of the last token."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(embed_dim)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(embed_dim)
        self.project = nn.Linear(embed_dim, embed_dim)
        self.kernel = nn.Linear(embed_dim, embed_dim + 1)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Map (E, C, h, w) and token (E, C) -> mask logits (E, 4 h + 2, 4 w + 2), with the frame of `framed`."""
        # Upsample twice
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.relu(norm(conv(x)))
        # The product of projected pixels and the kernel is that of pixels and the projected kernel
        kernel, bias = self.kernel(token).split([x.shape[1], 1], 1)  # (E, C), (E, 1)
        weight, offset = kernel @ self.project.weight, kernel @ self.project.bias  # (E, C), (E,)
        product = torch.bmm(weight[:, None], x.flatten(2)) + offset[:, None, None]  # (E, 1, 16 h w)
        return framed(product.unflatten(-1, x.shape[-2:])[:, 0], bias[..., None])


def framed(product: Tensor, bias: Tensor) -> Tensor:
    """Surround products (E, h, w) by a frame of zeros, one pixel wide, and add the bias (E, 1, 1).

    The published code applies its 1x1 kernel with a padding of 1. Weights that were trained so need the frame: resized
    to the input, all other pixels move inwards by up to one pixel.
    """
    return F.pad(product, (1, 1, 1, 1)) + bias


class GroupingDecoder(BaseModule):
    """Join levels from coarse to fine; after each step, query tokens read words and group the pixels.

    As in the published code, tokens read no words before the first grouping, and all later groupings share weights.

    Args:
        level_dims: Channels of the levels, fine to coarse.
        word_dim: D.
        embed_dim: C.
        num_tokens: N. The last one is the referent's.
        position_sides: Sides of the tables of positions, coarse to fine. Levels of other sizes interpolate them. 30,
            60, and 120 are those of strides 16, 8, and 4 at an input of 480 x 480.
        dropout: Dropout of attention, updates, and feed-forward networks of the tokens.
        log_temperature: Start of the parameter t; the temperature of the groupings' gradient is exp(min(t, 0)). 1 is
            the published code's: t gets no gradient, and the temperature stays 1. Below 0 it is learned.
        draws_at_test: Draw the groups at test time too, as the published code does. Its answers change with the seed.
    """

    def __init__(
        self,
        *,
        level_dims: Sequence[int],
        word_dim: int,
        embed_dim: int = 512,
        num_tokens: int = 2,
        position_sides: Sequence[int] = (30, 60, 120),
        dropout: float = 0.1,
        log_temperature: float = 1.0,
        draws_at_test: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("number of encoder.out_stages", len(level_dims), 3)
        check_at_least("decoder.num_tokens", num_tokens, 2)
        check_share("decoder.dropout", dropout)
        steps = len(level_dims) - 1
        if len(position_sides) != steps:
            raise ConfigError(
                f"decoder.position_sides {tuple(position_sides)} must have {steps} numbers: one for each of "
                "encoder.out_stages except the coarsest."
            )
        fine = list(reversed(level_dims[:-1]))
        self.tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, embed_dim), std=0.02))
        self.joins = nn.ModuleList(
            JoinLevels(coarse_dim, fine_dim, embed_dim, align_corners=True)
            for coarse_dim, fine_dim in zip([level_dims[-1]] + [embed_dim] * (steps - 1), fine, strict=True)
        )
        self.positions = nn.ParameterList(
            torch.randn(embed_dim, side, side) * embed_dim**-0.5 for side in position_sides
        )
        self.read_words = nn.ModuleList(ReadWords(embed_dim, word_dim, dropout) for _ in range(steps - 1))
        self.group_first, self.group_later = (
            GroupPixels(embed_dim, dropout=dropout, log_temperature=log_temperature, draws_at_test=draws_at_test)
            for _ in range(2)
        )
        self.mask_head = MaskHead(embed_dim)

    def forward(
        self, features: EncodedFeatures, words: Tensor, word_mask: Tensor, *, padded: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Levels of E expressions, words (E, L, D) -> framed mask logits, and groups of the last token (E, h, w)."""
        tokens = self.tokens.repeat(words.shape[0], 1, 1)  # (E, N, C)
        x = features.levels[-1]
        referent_groups = []
        finer = zip(self.joins, self.positions, features.levels[-2::-1], features.masks[-2::-1], strict=True)
        for step, (join, position, level, mask) in enumerate(finer):
            # Join the finer level
            x = join(x, level)  # (E, C, h, w)
            # Last token to words
            if step:
                tokens = self.read_words[step - 1](tokens, words, word_mask)
            # Tokens to pixels
            if position.shape[-2:] != x.shape[-2:]:
                position = F.interpolate(position[None], size=x.shape[-2:], mode="bicubic", align_corners=False)[0]
            pixels, size = flatten_map(x + position)
            group = self.group_later if step else self.group_first
            tokens, groups = group(tokens, pixels, mask.flatten(1) if padded else None)
            referent_groups.append(groups[:, -1].unflatten(-1, size))
        return self.mask_head(x, tokens[:, -1]), referent_groups
