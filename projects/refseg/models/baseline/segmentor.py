"""A small model for RefShapes: one query per expression attends to words and pixels. No paper, no pretraining.

What depends on the image alone is computed once per image and gathered by `image_of`.

Letters: B images, E expressions, L words, T = 1 + L tokens, C channels, D channels of the mask, (h, w) the size at
stride 8, P = h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.layers import Attention, ResidualBlock, feed_forward, masked_mean
from refseg.models.losses import covered_share, mask_bce_loss, merged_dice_loss
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


class EncoderLayer(nn.Module):
    """Self-attention of pixels, then feed-forward; pre-norm."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.self_attn = nn.LayerNorm(embed_dim), Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.ffn = feed_forward(embed_dim, 2 * embed_dim, activation=nn.GELU)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, valid)
        return x + self.ffn(self.norm2(x))


class DecoderLayer(nn.Module):
    """The query and the words of an expression attend to pixels, then to each other; feed-forward; pre-norm."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.cross_attn_pixels, self.self_attn = Attention(embed_dim, num_heads), Attention(embed_dim, num_heads)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.ffn = feed_forward(embed_dim, 2 * embed_dim, activation=nn.GELU)

    def forward(self, x: Tensor, token_mask: Tensor, memory: Tensor, pixel_valid: Tensor, image_of: Tensor) -> Tensor:
        # Cross-attention: tokens (E, T, C) to pixels (B, P, C)
        x = x + self.cross_attn_pixels(self.norm1(x), memory, pixel_valid, image_of)
        # Self-attention of tokens
        normed = self.norm2(x)
        x = x + self.self_attn(normed, normed, token_mask)
        # Feed-forward
        return x + self.ffn(self.norm3(x))


def coordinates(content: Tensor) -> Tensor:
    """Return x and y of each pixel in -1..1 over the image without its padding: (B, 2, h, w)."""
    ones = content.float()
    y = (ones.cumsum(1) - 0.5) / ones.sum(1, keepdim=True).clamp_min(1)
    x = (ones.cumsum(2) - 0.5) / ones.sum(2, keepdim=True).clamp_min(1)
    return torch.stack([x, y], 1) * 2 - 1


@MODELS.register_module()
class QueryBaseline(RefSegmentor):
    """Mask logits at stride 2 and a no-target logit; in training, after every decoder layer.

    Loss: BCE and dice of the merged mask and BCE of no-target, averaged over decoder layers.

    Args:
        text_encoder: A `TextEncoder`.
        embed_dim: C.
        mask_dim: D.
        num_heads: Attention heads.
        num_encoder_layers: Layers of self-attention of pixels.
        num_decoder_layers: Layers of the decoder.
        mask_weight, dice_weight, no_target_weight: Loss weights.
    """

    def __init__(
        self,
        *,
        text_encoder: dict,
        embed_dim: int = 128,
        mask_dim: int = 32,
        num_heads: int = 4,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 3,
        mask_weight: float = 2.0,
        dice_weight: float = 1.0,
        no_target_weight: float = 0.5,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        self.loss_weights = dict(mask=mask_weight, dice=dice_weight, no_target=no_target_weight)
        half, quarter = embed_dim // 2, embed_dim // 4
        self.stem = nn.Sequential(
            nn.Conv2d(3, quarter, 3, 2, 1, bias=False), nn.BatchNorm2d(quarter), nn.ReLU(inplace=True)
        )
        self.stage4 = ResidualBlock(quarter, half, 2)
        self.stage8 = nn.Sequential(ResidualBlock(half, embed_dim, 2), ResidualBlock(embed_dim, embed_dim, 1))
        self.position = nn.Sequential(nn.Linear(2, embed_dim), nn.ReLU(inplace=True), nn.Linear(embed_dim, embed_dim))
        self.encoder = nn.ModuleList(EncoderLayer(embed_dim, num_heads) for _ in range(num_encoder_layers))
        self.norm_memory = nn.LayerNorm(embed_dim)
        self.reduce = nn.Conv2d(embed_dim, half, 1)
        self.pixel_head = nn.Sequential(
            nn.Conv2d(half, half, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(half, 4 * mask_dim, 1), nn.PixelShuffle(2)
        )
        self.text_encoder = MODELS.build(text_encoder)
        self.project_words = nn.Linear(self.text_encoder.embed_dim, embed_dim)
        self.decoder = nn.ModuleList(DecoderLayer(embed_dim, num_heads) for _ in range(num_decoder_layers))
        self.norm_query = nn.LayerNorm(embed_dim)
        self.query_head = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.ReLU(inplace=True), nn.Linear(embed_dim, mask_dim + 2)
        )

    @property
    def shares_images(self) -> bool:
        return True

    def encode_images(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return memory (B, P, C), its mask (B, P), and pixel features (B, D, 4h, 4w) at stride 2."""
        # Convolutions
        feats4 = self.stage4(self.stem(batch.images))  # (B, C/2, 2h, 2w)
        feats8 = self.stage8(feats4)  # (B, C, h, w)
        size = feats8.shape[-2:]
        # Self-attention of pixels with learned positions
        content = F.interpolate(batch.pixel_mask[:, None].float(), size=size, mode="nearest")[:, 0] > 0  # (B, h, w)
        places = coordinates(content).permute(0, 2, 3, 1).to(feats8.dtype)  # (B, h, w, 2)
        position = self.position(places).flatten(1, 2)  # (B, P, C)
        memory, valid = feats8.flatten(2).transpose(1, 2) + position, content.flatten(1)
        for layer in self.encoder:
            memory = layer(memory, valid)
        memory = self.norm_memory(memory)
        # Upsample and add the stride-4 features
        maps = self.reduce(memory.transpose(1, 2).unflatten(2, size))  # (B, C/2, h, w)
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False) + feats4
        return memory, valid, self.pixel_head(maps)

    def infer_encoded(self, batch: Batch, images: tuple[Tensor, Tensor, Tensor]) -> Prediction:
        memory, valid, pixel_feats = images
        # Tokens of an expression: its query, which starts as the mean of the words, and the words
        word_feats, word_mask = self.text_encoder(batch.tokens).per_expression()
        word_feats = self.project_words(word_feats)  # (E, L, C)
        query = masked_mean(word_feats, word_mask)[:, None]
        tokens = torch.cat([query, word_feats], 1)  # (E, T, C)
        token_mask = F.pad(word_mask, (1, 0), value=True)
        # Decode; the query gives the mask embedding, its bias, and the no-target logit
        pixel_valid = valid[batch.image_of]  # (E, P)
        size = pixel_feats.shape[-2:]
        pixel_feats = pixel_feats.index_select(0, batch.image_of).flatten(2)  # (E, D, 4h4w)
        predictions = []
        for number, layer in enumerate(self.decoder):
            tokens = layer(tokens, token_mask, memory, pixel_valid, batch.image_of)
            if self.training or number + 1 == len(self.decoder):
                head = self.query_head(self.norm_query(tokens[:, 0]))  # (E, D + 2)
                logits = torch.bmm(head[:, None, 2:], pixel_feats) + head[:, None, 1:2]  # (E, 1, 4h4w)
                predictions.append((logits, head[:, 0]))
        outputs = [Prediction(logits.unflatten(2, size)[:, 0], no_target) for logits, no_target in predictions]
        outputs[-1].auxiliary = outputs[:-1]
        return outputs[-1]

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        target = covered_share(batch.merged_masks(), prediction.mask_logits.shape[-2:])
        absent = batch.no_target().float()
        layers = [*prediction.auxiliary, prediction]
        mask = sum(mask_bce_loss(p.mask_logits, target) for p in layers) / len(layers)
        dice = sum(merged_dice_loss(p.mask_logits, target, batch, None) for p in layers) / len(layers)
        no_target = sum(F.binary_cross_entropy_with_logits(p.no_target_logit, absent) for p in layers)
        return {
            "loss_mask": self.loss_weights["mask"] * mask,
            "loss_dice": self.loss_weights["dice"] * dice,
            "loss_no_target": self.loss_weights["no_target"] * no_target / len(layers),
        }
