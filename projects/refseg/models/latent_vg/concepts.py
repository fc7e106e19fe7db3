"""Visual concept injector (LatentVG): share what the image shows of the target among attribute tokens.

Letters: E expressions, P patches, K attribute tokens of all latent expressions, M concepts (the paper's N_c), C
channels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from refseg.errors import ConfigError, check_choice

Normalize = Literal["columns", "rows"]


def relevant_patches(patches: Tensor, class_token: Tensor, valid: Tensor) -> Tensor:
    """Select the patches whose cosine with the text's class token is above the mean over valid patches: (E, P) bool.

    There is no gradient.

    Args:
        patches: (E, P, C).
        class_token: (E, C).
        valid: (E, P), False on padding.
    """
    with torch.autocast(patches.device.type, enabled=False):
        cosines = F.cosine_similarity(patches.detach().float(), class_token.detach().float()[:, None], -1)
    mean = (cosines * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
    return valid & (cosines > mean)


def shares(scores: Tensor, normalize: Normalize) -> Tensor:
    """Return the weights of concepts for each attribute from scores (E, K, M).

    "columns": softmax over attributes, which compete for each concept, then a weighted mean over concepts, as in slot
    attention (Locatello et al. 2020, algorithm 1). "rows": the usual softmax over concepts, the ablation.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if normalize == "rows":
        return scores.softmax(2)
    weights = scores.softmax(1)
    return weights / weights.sum(2, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


class VisualConceptInjector(BaseModule):
    """Concept tokens attend to the relevant patches, then attribute tokens attend to the concepts.

        C_V = softmax(C V_tr^T) V_tr        A + linear(column-normalized(query(A) C_V^T) C_V)

    Concepts start orthogonal and are shared by all layers. Each layer has its own norms, query and output layer. The
    text gives these steps but no projections. We project only the few attribute tokens: projecting patches in every
    layer would double the method's published cost, and projecting concept values equals projecting their sum.

    Args:
        embed_dim: C.
        num_layers: Number of encoder layers.
        num_concepts: M, 100 in the paper; at most C, so that concepts can be orthogonal.
        normalize: "columns", attributes compete for each concept, or "rows", the usual softmax over concepts
            (ablation).
    """

    def __init__(
        self, *, embed_dim: int, num_layers: int, num_concepts: int = 100, normalize: Normalize = "columns"
    ) -> None:
        super().__init__()
        if not 1 <= num_concepts <= embed_dim:
            raise ConfigError(f"concepts.num_concepts must be in [1, {embed_dim}] (embed_dim), not {num_concepts}.")
        check_choice("concepts.normalize", normalize, get_args(Normalize))
        self.normalize: Normalize = normalize
        # As long as normalized tokens, so that scaled dot products start with variance 1
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
        """Update attributes (E, K, C) from patches (E, P, C). Rows without relevant patches (E, P) stay unchanged."""
        # Concepts attend to the relevant patches
        retrieved = self.retrieve(layer, patches, relevant)  # (E, M, C)
        # Attributes attend to the concepts
        query = self.query[layer](self.norm_attributes[layer](attributes))
        scores = torch.bmm(query * query.shape[-1] ** -0.5, self.norm_concepts[layer](retrieved).transpose(1, 2))
        update = self.out[layer](torch.bmm(shares(scores, self.normalize).to(retrieved.dtype), retrieved))
        return attributes + update * relevant.any(1)[:, None, None]

    def retrieve(self, layer: int, patches: Tensor, relevant: Tensor) -> Tensor:
        """Return the concepts' attention output C_V (E, M, C)."""
        patches = self.norm_patches[layer](patches)
        patches = patches[:, None]  # one head
        concepts = self.concepts.to(patches.dtype).expand(len(patches), 1, -1, -1)
        return F.scaled_dot_product_attention(concepts, patches, patches, attn_mask=relevant[:, None, None])[:, 0]
