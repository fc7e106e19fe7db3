"""Whether latent expressions differ from each other and from their text, and which words are chosen as subjects: the
paper's claims of diversity and of subject selection, as numbers.

Letters: E expressions, N latent expressions of each, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Closeness(NamedTuple):
    """(E,) each: mean cosine `among` the latent expressions of a text, NaN of one alone, and of them `to_text`."""

    among: Tensor
    to_text: Tensor


def closeness(text: Tensor, latents: Tensor) -> Closeness:
    """Features (E, C) of texts and (E, N, C) of latent expressions."""
    text, latents = F.normalize(text.float(), dim=-1), F.normalize(latents.float(), dim=-1)
    number = latents.shape[1]
    products = torch.bmm(latents, latents.transpose(1, 2))  # (E, N, N)
    pairs = ~torch.eye(number, dtype=torch.bool, device=latents.device)
    return Closeness(products[:, pairs].mean(1), (latents @ text[:, :, None]).mean((1, 2)))


def across_texts(latents: Tensor) -> float:
    """Mean cosine of latent expressions (E, N, C) with those of the same place of the other E - 1 texts: what a cosine
    of `among` is to be compared with."""
    units = F.normalize(latents.double(), dim=-1)
    number = len(units)
    of_pairs = units.sum(0).square().sum(-1) - number  # (N,): all pairs of different texts
    return (of_pairs / (number * (number - 1))).mean().item()


def head_nouns(text: str, tags: dict[str, Any], nouns: Collection[str]) -> set[int]:
    """Indices in `text.split()` of the nouns that speak of the referents, by RefShapes' tag `words` (instance id ->
    indices); those of what the referents are told by, as in "left of the star", are not among them."""
    words = text.lower().split()
    told = {int(index) for indices in tags.get("words", {}).values() for index in indices}
    return {index for index in told if words[index].strip(",.") in nouns}


def hits(chosen: Iterable[int], targets: Iterable[set[int]]) -> list[bool]:
    """Of expressions with a noun, whether the chosen word (-1: a token that is no word's) is one of its nouns."""
    return [word in nouns for word, nouns in zip(chosen, targets, strict=True) if nouns]
