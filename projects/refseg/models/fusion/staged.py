"""Cross-attention in both directions, stage by stage (CrossVLT, Cho et al. 2023; the early fusion of VIPA).

Letters: E expressions, P pixels, L words, C channels of the stage, D channels of words, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice
from refseg.models.fusion.base import Fused, Fusion, gate, init_linears, instance_norm
from refseg.models.layers import AttentionLayer
from refseg.registry import MODELS

UpdatesWords = Literal["between", "always", "never"]


@MODELS.register_module()
class StagedCrossAttention(Fusion):
    """Cross-attention from pixels to words, then from words to the updated pixels.

        F = GELU(project(V + norm(out(MHCA(norm(query(V)), words)))))
        V' = V + gate(F) * F
        L' = LayerNorm(L + MHCA(L, V')), L'' = LayerNorm(L' + MLP(L'))

    The decoder gets F, the next vision stage V', the next text stage L''. As in the published code: norms over the
    pixels of an image, GELU, gates of two layers and tanh, heads of 64 channels, and a new BERT-like layer for the
    words ahead of the next text stage. Parameters that have no effect there are left out: biases before a norm over
    pixels, and the gate of the last stage. docs/models.md lists the differences and the reasons: among others, we fuse
    pixels once per stage, not again after patch merging, and words attend to pixels before patch merging.

    Args:
        head_dim: Channels of an attention head. It must divide the channels of each stage and of the words.
        updates_words: "between": words attend to pixels after every vision stage but the last, so that each text stage
            gets words that have seen the previous vision stage. "always": also after the last one, which makes late
            fusion (`fused_stages=(3,)`) bidirectional. "never": only pixels are updated.
        ffn_ratio: Width of the words' MLP relative to their channels; 4 in BERT.
    """

    def __init__(
        self,
        *,
        pixel_dim: int,
        word_dim: int,
        feeds_next: bool = True,
        head_dim: int = 64,
        updates_words: UpdatesWords = "between",
        ffn_ratio: int = 4,
    ) -> None:
        super().__init__()
        check_choice("fusion.updates_words", updates_words, get_args(UpdatesWords))
        if pixel_dim % head_dim or word_dim % head_dim:
            raise ConfigError(
                f"fusion.head_dim {head_dim} must divide the {pixel_dim} channels of pixels and {word_dim} of words."
            )
        self.num_heads = pixel_dim // head_dim
        self.query = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.key = nn.Linear(word_dim, pixel_dim)
        self.value = nn.Linear(word_dim, pixel_dim)
        self.out = nn.Linear(pixel_dim, pixel_dim, bias=False)
        self.project = nn.Linear(pixel_dim, pixel_dim)
        self.gate = gate(pixel_dim) if feeds_next else None
        if self.gate is not None:
            init_linears(self.gate)
        reads = updates_words == "always" or (updates_words == "between" and feeds_next)
        heads, ffn_dim = word_dim // head_dim, ffn_ratio * word_dim
        self.word_layer = AttentionLayer(word_dim, heads, ffn_dim, memory_dim=pixel_dim) if reads else None

    def forward(self, pixels: Tensor, words: Tensor, *, word_mask: Tensor, pixel_mask: Tensor | None) -> Fused:
        # Cross-attention: pixels to words
        query = self._heads(instance_norm(self.query(pixels), pixel_mask))  # (E, H, P, d)
        key, value = self._heads(self.key(words)), self._heads(self.value(words))  # (E, H, L, d)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=word_mask[:, None, None])
        gathered = instance_norm(self.out(gathered.transpose(1, 2).flatten(2)), pixel_mask)  # (E, P, C)
        level = F.gelu(self.project(pixels + gathered))
        # Gate for the next stage
        if self.gate is not None:
            pixels = pixels + self.gate(level) * level
        # Cross-attention: words to pixels
        if self.word_layer is not None:
            words = self.word_layer(words, pixels, pixel_mask)
        return Fused(level, pixels, words)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
