"""A small model for RefShapes: convolutions, then pixels that attend to words and to each other. No paper.

Letters: B images, E expressions, L words, C channels, (h, w) the size at stride 8, P = h w pixels.
The image is encoded once; its features are gathered by `image_of` when they first meet words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.losses import dice_loss, mask_bce_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm; the first may halve the resolution."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, out_dim)
        changes = stride != 1 or in_dim != out_dim
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class FusionLayer(nn.Module):
    """Pixels attend to the words, then to each other, then a feed-forward; pre-norm."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_ratio: int = 2) -> None:
        super().__init__()
        self.norm_words = nn.LayerNorm(embed_dim)
        self.words = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm_pixels = nn.LayerNorm(embed_dim)
        self.pixels = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.ffn = nn.Sequential(
            nn.LayerNorm(embed_dim),
            nn.Linear(embed_dim, ffn_ratio * embed_dim),
            nn.GELU(),
            nn.Linear(ffn_ratio * embed_dim, embed_dim),
        )

    def forward(self, x: Tensor, word_feats: Tensor, word_padding: Tensor, pixel_padding: Tensor | None) -> Tensor:
        query = self.norm_words(x)  # (E, P, C)
        x = x + self.words(query, word_feats, word_feats, key_padding_mask=word_padding, need_weights=False)[0]
        query = self.norm_pixels(x)
        x = x + self.pixels(query, query, query, key_padding_mask=pixel_padding, need_weights=False)[0]
        return x + self.ffn(x)


def coordinates(pixel_mask: Tensor) -> Tensor:
    """(B, 2, h, w): x and y in -1..1 over each image's own content, so that "left" means left in the picture."""
    ones = pixel_mask.float()
    y = (ones.cumsum(1) - 0.5) / ones.sum(1, keepdim=True).clamp_min(1)
    x = (ones.cumsum(2) - 0.5) / ones.sum(2, keepdim=True).clamp_min(1)
    return torch.stack([x, y], 1) * 2 - 1


@MODELS.register_module()
class CrossAttentionBaseline(RefSegmentor):
    """Mask logits at stride 2 and a no-target logit. Loss: BCE + dice on the merged mask, BCE on no-target."""

    def __init__(
        self,
        *,
        text_encoder: dict,
        embed_dim: int = 96,
        num_heads: int = 4,
        num_layers: int = 3,
        no_target_weight: float = 0.5,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        self.no_target_weight = no_target_weight
        self.text_encoder = MODELS.build(text_encoder)
        half = embed_dim // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half // 2, 3, 2, 1, bias=False), nn.GroupNorm(8, half // 2), nn.ReLU(inplace=True)
        )
        self.stage4 = ResidualBlock(half // 2, half, 2)
        self.stage8 = nn.Sequential(ResidualBlock(half, embed_dim, 2), ResidualBlock(embed_dim, embed_dim, 1))
        self.position = nn.Sequential(nn.Linear(2, embed_dim), nn.ReLU(inplace=True), nn.Linear(embed_dim, embed_dim))
        self.project_words = nn.Linear(self.text_encoder.embed_dim, embed_dim)
        self.fusion = nn.ModuleList(FusionLayer(embed_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.reduce = nn.Conv2d(embed_dim, half, 1)
        self.mask_head = nn.Sequential(nn.Conv2d(half, half, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(half, 4, 1))
        self.no_target_head = nn.Sequential(
            nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(inplace=True), nn.Linear(embed_dim, 1)
        )

    def infer(self, batch: Batch) -> Prediction:
        feats4 = self.stage4(self.stem(batch.images))  # (B, C/2, 2h, 2w)
        feats8 = self.stage8(feats4)  # (B, C, h, w)
        size = feats8.shape[-2:]
        content = F.interpolate(batch.pixel_mask[:, None].float(), size=size, mode="nearest")[:, 0] > 0  # (B, h, w)
        position = self.position(coordinates(content).permute(0, 2, 3, 1)).flatten(1, 2)  # (B, P, C)
        pixels = feats8.flatten(2).transpose(1, 2) + position
        word_feats, word_mask = self.text_encoder(batch.tokens).per_expression()
        word_feats = self.project_words(word_feats)  # (E, L, C)

        x = pixels[batch.image_of]  # (E, P, C)
        padding = ~content.flatten(1)
        pixel_padding = padding[batch.image_of] if bool(padding.any()) else None
        for layer in self.fusion:
            x = layer(x, word_feats, ~word_mask, pixel_padding)
        x = self.norm(x)

        if pixel_padding is not None:
            x = x.masked_fill(pixel_padding[..., None], 0.0)
        count = (~padding).sum(1)[batch.image_of, None]  # (E, 1)
        pooled = torch.cat([x.sum(1) / count, x.amax(1)], 1)  # (E, 2C)
        maps = self.reduce(x.transpose(1, 2).unflatten(2, size))  # (E, C/2, h, w)
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False) + feats4[batch.image_of]
        mask_logits = F.pixel_shuffle(self.mask_head(maps), 2)[:, 0]  # (E, 4h, 4w): stride 2
        return Prediction(mask_logits, self.no_target_head(pooled)[:, 0])

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        target = F.adaptive_avg_pool2d(batch.merged_masks()[:, None].float(), prediction.mask_logits.shape[-2:])[:, 0]
        present = ~batch.no_target()
        no_target = F.binary_cross_entropy_with_logits(prediction.no_target_logit, (~present).float())
        return {
            "loss_mask": mask_bce_loss(prediction.mask_logits, target),
            "loss_dice": dice_loss(prediction.mask_logits[present], target[present]),
            "loss_no_target": self.no_target_weight * no_target,
        }
