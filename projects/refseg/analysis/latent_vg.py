"""Two claims of Latent-VG as numbers: latent expressions are diverse, and their subjects are head nouns.

Letters: E expressions, N latent expressions of each, C channels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.analysis.trained_model import TrainedModel, batches
from refseg.errors import UsageError
from refseg.models import LatentVG
from refseg.refshapes import vocabulary

_PAIRS = [pair for pairs in (*vocabulary.KIND_NOUNS.values(), vocabulary.ANY_NOUNS) for pair in pairs]
NOUNS = {word for pair in (*_PAIRS, vocabulary.PRONOUN) for word in pair}


class Closeness(NamedTuple):
    """Mean cosines, (E,) each: `among` the latent expressions of a text (NaN for a single one), and `to_text`."""

    among: Tensor
    to_text: Tensor


def closeness(text: Tensor, latents: Tensor) -> Closeness:
    """Compare features (E, C) of texts and (E, N, C) of latent expressions."""
    text, latents = F.normalize(text.float(), dim=-1), F.normalize(latents.float(), dim=-1)
    products = torch.bmm(latents, latents.transpose(1, 2))  # (E, N, N)
    pairs = ~torch.eye(latents.shape[1], dtype=torch.bool, device=latents.device)
    return Closeness(products[:, pairs].mean(1), (latents @ text[:, :, None]).mean((1, 2)))


def across_texts(latents: Tensor) -> float:
    """Return the mean cosine of latent expressions (E, N, C) with the same ones of other texts.

    This is the baseline for `Closeness.among`.
    """
    units = F.normalize(latents.double(), dim=-1)
    number = len(units)
    of_pairs = units.sum(0).square().sum(-1) - number  # (N,): all pairs of different texts
    return (of_pairs / (number * (number - 1))).mean().item()


def head_nouns(text: str, tags: dict[str, Any], nouns: Collection[str]) -> set[int]:
    """Return the indices in `text.split()` of the nouns that describe the referents.

    RefShapes' tag `words` (instance id -> indices) says which words do. The star in "left of the star" is not one.
    """
    words = text.lower().split()
    described_by = {int(index) for indices in tags.get("words", {}).values() for index in indices}
    return {index for index in described_by if words[index].strip(",.") in nouns}


def measure_latents(trained: TrainedModel) -> dict[str, float]:
    """Return mean cosines over a data set, and, where tags allow it, how often the subject is a head noun.

    "chance" is the same share if every word were equally likely to be the subject.
    """
    cfg, model, dataset = trained
    if not isinstance(model, LatentVG) or model.latents is None:
        raise UsageError(f"{cfg.filename} has no latent expressions")
    among, to_text, latents, is_noun, chances = [], [], [], [], []
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            expressions = model(batch).auxiliary
        # Cosines
        rows = closeness(expressions.text, expressions.latents)
        among.append(rows.among.cpu())
        to_text.append(rows.to_text.cpu())
        latents.append(expressions.latents.cpu())
        # Subjects. A token that belongs to no word has the index -1.
        texts = [text for meta in batch.metas for text in meta.texts]
        tags: list[dict[str, Any]] = []
        for meta in batch.metas:
            tags += meta.tags or [{}] * len(meta.texts)
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of)
        subjects = word_of.gather(1, expressions.subject_token[:, None])[:, 0].tolist()
        for text, of_text, subject in zip(texts, tags, subjects, strict=True):
            nouns = head_nouns(text, of_text, NOUNS)
            if nouns:
                is_noun.append(subject in nouns)
                chances.append(len(nouns) / len(text.split()))
    result = {
        "among": torch.cat(among).mean().item(),
        "to_text": torch.cat(to_text).mean().item(),
        "across": across_texts(torch.cat(latents)),
    }
    if is_noun:
        result |= {"subject": sum(is_noun) / len(is_noun), "chance": sum(chances) / len(chances)}
    return result
