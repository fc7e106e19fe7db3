"""Claims of Latent-VG as numbers: latent expressions are diverse, and their subjects are head nouns.

Letters: E expressions, N latent expressions of each, K attribute tokens, C channels, (h, w) the size of masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.analysis.trained_model import TrainedModel, batches
from refseg.errors import UsageError
from refseg.models import LatentVG
from refseg.models.latent_vg.latents import semantic_tokens
from refseg.refshapes import vocabulary

_PAIRS = [pair for pairs in (*vocabulary.KIND_NOUNS.values(), vocabulary.ANY_NOUNS) for pair in pairs]
NOUNS = {word for pair in (*_PAIRS, vocabulary.PRONOUN) for word in pair}


def mean_cosine(vectors: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of N vectors: (..., N, C) -> (...). It is NaN for a single vector."""
    number = vectors.shape[-2]
    total = F.normalize(vectors.double(), dim=-1).sum(-2).square().sum(-1)  # all ordered pairs, and N times 1
    return (total - number) / (number * (number - 1)) if number > 1 else torch.full_like(total, torch.nan)


def mean_overlap(masks: Tensor) -> Tensor:
    """Return the mean IoU of all pairs of N masks: (E, N, h, w) -> (E,). Pairs of empty masks do not count."""
    flat = masks.flatten(2).double()
    shared = torch.bmm(flat, flat.transpose(1, 2))  # (E, N, N)
    areas = flat.sum(2)
    iou = shared / (areas[:, :, None] + areas[:, None] - shared)
    first, second = torch.triu_indices(masks.shape[1], masks.shape[1], 1)
    return iou[:, first, second].nanmean(1)


def head_nouns(text: str, tags: dict[str, Any], nouns: Collection[str]) -> set[int]:
    """Return the indices in `text.split()` of the nouns that describe the referents.

    RefShapes' tag `words` (instance id -> indices) says which words do. The star in "left of the star" is not one.
    """
    words = text.lower().split()
    described_by = {int(index) for indices in tags.get("words", {}).values() for index in indices}
    return {index for index in described_by if words[index].strip(",.") in nouns}


def measure_latents(trained: TrainedModel) -> dict[str, float]:
    """Return means over a data set.

    Cosines of latent expressions: "among" those of a text, "to_text", and "across" texts. "overlap": IoU of the masks
    of a text's latent expressions. "updates": cosine of the injector's updates of a text's attributes. "confidence":
    probability of the chosen subject, and "uniform" if all words had the same. Where tags allow it, "subject": how
    often it is a head noun, and "chance" if every word were equally likely.
    """
    cfg, model, dataset = trained
    if not isinstance(model, LatentVG) or model.latents is None:
        raise UsageError(f"{cfg.filename} has no latent expressions")
    rows: dict[str, list[Tensor]] = defaultdict(list)
    if model.concepts is not None:
        for layer in model.concepts.out:
            layer.register_forward_hook(lambda *call: rows["updates"].append(mean_cosine(call[-1])))
    latents = []
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            expressions = model(batch).auxiliary
        # Latent expressions
        text, latent = expressions.features[:, :1], expressions.features[:, 1:]
        latents.append(latent)
        rows["among"].append(mean_cosine(latent))
        rows["to_text"].append(F.cosine_similarity(text.double(), latent.double(), dim=-1).mean(1))
        rows["overlap"].append(mean_overlap(expressions.masks[:, 1:] > 0))
        # Subjects
        word_mask, word_of = (
            x.index_select(0, batch.tokens.text_of) for x in (batch.tokens.word_mask, batch.tokens.word_of)
        )
        rows["confidence"].append(expressions.subject_prob)
        rows["uniform"].append(1 / semantic_tokens(word_mask).sum(1).clamp_min(1))
        subjects = word_of.gather(1, expressions.subject_token[:, None])[:, 0].tolist()  # -1: a token of no word
        texts = [text for meta in batch.metas for text in meta.texts]
        tags = [tag for meta in batch.metas for tag in meta.tags or [{}] * len(meta.texts)]
        for text, of_text, subject in zip(texts, tags, subjects, strict=True):
            if nouns := head_nouns(text, of_text, NOUNS):
                rows["subject"].append(torch.tensor([subject in nouns]))
                rows["chance"].append(torch.tensor([len(nouns) / len(text.split())]))
    means = {name: torch.cat([row.double().cpu() for row in values]).nanmean().item() for name, values in rows.items()}
    means["across"] = mean_cosine(torch.cat(latents).transpose(0, 1)).mean().item()
    names = ("among", "to_text", "across", "overlap", "updates", "confidence", "uniform", "subject", "chance")
    return {name: means[name] for name in names if name in means}
