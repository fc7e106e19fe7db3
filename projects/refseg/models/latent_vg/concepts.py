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
from refseg.models.layers import masked_mean

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


class VisualConceptInjector(BaseModule):
    """Concept tokens attend to the relevant patches, then attribute tokens receive the concepts.

        C_V = softmax(C V_tr^T) V_tr        A + linear(softmax_columns(query(A) C_V^T) C_V)

    The softmax is over the attributes, which compete for each concept. Concepts start orthogonal and are shared by all
    layers. Each layer has its own norms, query and output layer. The text gives these steps but no projections. We
    project only the few attribute tokens: projecting patches in every layer would double the method's published cost,
    and projecting concept values equals projecting their sum.

    Args:
        embed_dim: C.
        num_layers: Number of encoder layers that have an injector.
        num_concepts: M, 100 in the paper; at most C, so that concepts can be orthogonal.
        normalize: "columns", attributes compete for each concept, or "rows", the usual softmax over concepts
            (ablation).
        centered: Subtract the mean of an image's relevant patches from them. It is ours. Without it, every concept
            retrieves about that mean, so there is nothing to compete for.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int,
        num_concepts: int = 100,
        normalize: Normalize = "columns",
        centered: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= num_concepts <= embed_dim:
            raise ConfigError(f"concepts.num_concepts must be in [1, {embed_dim}] (embed_dim), not {num_concepts}.")
        check_choice("concepts.normalize", normalize, get_args(Normalize))
        self.normalize: Normalize = normalize
        self.centered = centered
        # As long as normalized tokens, so that scaled dot products start with variance 1
        self.concepts = nn.Parameter(nn.init.orthogonal_(torch.empty(num_concepts, embed_dim), gain=embed_dim**0.5))
        self.norm_patches, self.norm_attributes, self.norm_concepts = (
            nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(num_layers)) for _ in range(3)
        )
        self.query, self.out = (
            nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(num_layers)) for _ in range(2)
        )
        for linear in self.out:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, layer: int, attributes: Tensor, patches: Tensor, relevant: Tensor) -> Tensor:
        """Update attributes (E, K, C) from patches (E, P, C). Rows without relevant patches (E, P) stay unchanged."""
        # Concepts attend to the relevant patches
        if self.centered:
            patches = patches - masked_mean(patches, relevant)[:, None]
        patches = self.norm_patches[layer](patches)[:, None]  # one head
        concepts = self.concepts.to(patches.dtype).expand(patches.shape[0], 1, -1, -1)
        mask = relevant[:, None, None]
        retrieved = F.scaled_dot_product_attention(concepts, patches, patches, attn_mask=mask)[:, 0]  # (E, M, C)
        # Attributes receive the concepts, which they compete for
        query = self.query[layer](self.norm_attributes[layer](attributes))
        scores = torch.bmm(query * query.shape[-1] ** -0.5, self.norm_concepts[layer](retrieved).transpose(1, 2))
        weights = scores.float().softmax(1 if self.normalize == "columns" else 2)  # (E, K, M)
        update = self.out[layer](torch.bmm(weights.to(retrieved.dtype), retrieved))
        return attributes + update * relevant.any(1)[:, None, None]
