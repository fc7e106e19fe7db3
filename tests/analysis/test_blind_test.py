"""Exchanges of the blind test."""

from __future__ import annotations

import torch

from refseg.analysis.blind_test import other_image, other_phrases
from refseg.structures import Sample, SampleMeta


def test_exchanged_phrases_and_images() -> None:
    """The sample has three phrases and the other one has two, so the other's first phrase is used twice."""

    def sample(tokens: list[list[int]], fill: int, texts: str) -> Sample:
        meta = SampleMeta("0", "a.png", (4, 4), (4, 4), ("0",) * len(tokens), tuple(texts))
        masks, boxes = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4)
        referents = torch.ones(len(tokens), 1, dtype=torch.bool)
        image, word_of = torch.full((3, 4, 4), fill, dtype=torch.uint8), [[fill]] * len(tokens)
        return Sample(image, tokens, word_of, 0, masks, boxes, referents, meta)

    one, other = sample([[1], [2], [3]], 7, "aaa"), sample([[8], [9]], 200, "bc")
    exchanged = other_phrases(one, other)
    assert exchanged.token_ids == [[8], [9], [8]] and exchanged.word_of == [[200]] * 3
    assert exchanged.meta.texts == ("b", "c", "b") and exchanged.meta.expression_ids == one.meta.expression_ids
    assert exchanged.image is one.image
    changed = other_image(one, other)
    assert changed.image is other.image and changed.token_ids == one.token_ids and changed.meta is one.meta
