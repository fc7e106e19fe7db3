"""Cross-attention in both directions, stage by stage (CrossVLT, Cho et al. 2023; the early fusion of VIPA).

Letters: E expressions, P pixels, L words, C channels of the stage, D channels of words, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import ConfigError
from refseg.models.fusion.base import Fused, Fusion, gate, init_linears, instance_norm
from refseg.models.layers import AttentionLayer
from refseg.registry import MODELS

UpdatesWords = Literal["between", "always", "never"]


@MODELS.register_module()
class StagedCrossAttention(Fusion):
    """Pixels read words; then words read the pixels that go on.

        F = GELU(project(V + norm(out(MHCA(norm(query(V)), words)))))
        V' = V + gate(F) * F
        L' = LayerNorm(L + MHCA(L, V')), L'' = LayerNorm(L' + MLP(L'))

    The decoder gets F, the next vision stage V', the next text stage L''. As in the published code: norms over the
    pixels of an image, GELU, gates of two layers and tanh, heads of 64 channels, and reading and MLP of words as new
    layers of BERT's form, ahead of the next text stage's. Without what has no effect there: biases before a norm over
    pixels, and the gate of the last stage. Unlike there, pixels are fused once per stage, and not again after they are
    merged for the next, and words read them before they are merged.

    Args:
        head_dim: channels of an attention head; of each stage and of words, channels must be multiples of it.
        updates_words: "between": words read pixels after every stage but the vision's last, so that each text stage
            gets words that have seen the vision stage before it. "always": after the last too, which makes late fusion
            (`fused_stages=(3,)`) one in both directions. "never": only pixels read; words are the text encoder's.
        ffn_ratio: width of the words' MLP; BERT's is 4.
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
        if updates_words not in get_args(UpdatesWords):
            raise ConfigError(
                f"fusion.updates_words is one of {', '.join(get_args(UpdatesWords))}, not {updates_words!r}"
            )
        if pixel_dim % head_dim or word_dim % head_dim:
            raise ConfigError(
                f"fusion.head_dim {head_dim} does not divide {pixel_dim} channels of pixels and {word_dim} of words"
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
        query = self._heads(instance_norm(self.query(pixels), pixel_mask))  # (E, H, P, d)
        key, value = self._heads(self.key(words)), self._heads(self.value(words))  # (E, H, L, d)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=word_mask[:, None, None])
        gathered = instance_norm(self.out(read.transpose(1, 2).flatten(2)), pixel_mask)  # (E, P, C)
        level = F.gelu(self.project(pixels + gathered))
        onwards = pixels if self.gate is None else pixels + self.gate(level) * level
        return Fused(level, onwards, words if self.word_layer is None else self.word_layer(words, onwards, pixel_mask))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
