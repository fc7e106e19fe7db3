"""Visual concept injector (Latent-VG): what the image shows of the target, shared out among attribute tokens.

Letters: E expressions, P patches, K attribute tokens of all latent expressions, M concepts (the paper's N_c), C
channels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError

Normalize = Literal["columns", "rows"]


def relevant_patches(patches: Tensor, class_token: Tensor, valid: Tensor) -> Tensor:
    """(E, P) bool: of the valid patches (E, P) those whose cosine with the text's class token exceeds the mean over
    them. Patches (E, P, C), class_token (E, C). Nothing learns from it."""
    with torch.autocast(patches.device.type, enabled=False):
        cosines = F.cosine_similarity(patches.detach().float(), class_token.detach().float()[:, None], -1)
    mean = (cosines * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
    return valid & (cosines > mean)


def shares(scores: Tensor, normalize: Normalize) -> Tensor:
    """Scores (E, K, M) -> weights of concepts for each attribute. "columns": a softmax over attributes, which so
    compete for each concept, then a weighted mean over concepts, as in slot attention (Locatello et al. 2020, algorithm
    1). "rows": the usual softmax over concepts, the ablation."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if normalize == "rows":
        return scores.softmax(2)
    weights = scores.softmax(1)
    return weights / weights.sum(2, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


class VisualConceptInjector(BaseModule):
    """Concept tokens, orthogonal at first, read the relevant patches, and attribute tokens read the concepts:

        C_V = softmax(C V_tr^T) V_tr        A + linear(column-normalized(query(A) C_V^T) C_V)

    In every layer with norms, query and linear layer of its own; the concepts are the same. The text tells the steps
    and none of the projections. There are two, both of the few attribute tokens: a projection of patches in every layer
    alone would double what the whole method is published to cost, and one of concepts' values is the same as one of
    their sum.

    Args:
        embed_dim: C.
        num_layers: of the encoder.
        num_concepts: M, 100 in the paper. No more than C, or they could not be orthogonal.
        normalize: how attributes share concepts; see `shares`.
    """

    def __init__(
        self, *, embed_dim: int, num_layers: int, num_concepts: int = 100, normalize: Normalize = "columns"
    ) -> None:
        super().__init__()
        if not 1 <= num_concepts <= embed_dim:
            raise ConfigError(
                f"concepts.num_concepts {num_concepts}: {embed_dim} channels have no more orthogonal ones"
            )
        if normalize not in get_args(Normalize):
            raise ConfigError(f"concepts.normalize is one of {', '.join(get_args(Normalize))}, not {normalize!r}")
        self.normalize: Normalize = normalize
        # As long as normalized tokens are, so that a scaled product begins with a variance of 1.
        self.concepts = nn.Parameter(nn.init.orthogonal_(torch.empty(num_concepts, embed_dim), gain=embed_dim**0.5))
        self.norm_patches, self.norm_attributes, self.norm_concepts = (
            nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(num_layers)) for _ in range(3)
        )
        self.query, self.out = (
            nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(num_layers)) for _ in range(2)
        )
        for linear in self.out:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, layer: int, attributes: Tensor, patches: Tensor, relevant: Tensor) -> Tensor:
        """Attributes (E, K, C), patches (E, P, C), relevant (E, P) -> attributes (E, K, C). Where no patch is relevant
        there is nothing to inject."""
        found = self.retrieve(layer, patches, relevant)  # (E, M, C)
        query = self.query[layer](self.norm_attributes[layer](attributes))
        scores = torch.bmm(query * query.shape[-1] ** -0.5, self.norm_concepts[layer](found).transpose(1, 2))
        update = self.out[layer](torch.bmm(shares(scores, self.normalize).to(found.dtype), found))
        return attributes + update * relevant.any(1)[:, None, None]

    def retrieve(self, layer: int, patches: Tensor, relevant: Tensor) -> Tensor:
        """C_V (E, M, C)."""
        patches = self.norm_patches[layer](patches)
        patches = patches[:, None]  # one head
        concepts = self.concepts.to(patches.dtype).expand(len(patches), 1, -1, -1)
        return F.scaled_dot_product_attention(concepts, patches, patches, attn_mask=relevant[:, None, None])[:, 0]
