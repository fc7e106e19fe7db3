"""Collate samples into a batch. Images and tokens are padded to the largest, and each distinct text is kept once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from refseg.registry import FUNCTIONS
from refseg.structures import Batch, Sample, TextTokens


@FUNCTIONS.register_module()
def collate_samples(samples: Sequence[Sample]) -> dict[str, Batch]:
    """Return `{"batch": Batch}`, the keyword argument of `RefSegmentor.forward`."""
    # Images and masks, padded right and below.
    height = max(sample.image.shape[1] for sample in samples)
    width = max(sample.image.shape[2] for sample in samples)
    images = samples[0].image.new_zeros(len(samples), 3, height, width)
    pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
    instance_masks = []
    for row, sample in enumerate(samples):
        _, h, w = sample.image.shape
        images[row, :, :h, :w] = sample.image
        pixel_mask[row, :h, :w] = True
        instance_masks.append(pad(sample.instance_masks, (0, width - w, 0, height - h)))
    # Tokens. Texts with equal tokens and words share a row.
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    text_of = [
        rows.setdefault((tuple(ids), tuple(words)), len(rows))
        for sample in samples
        for ids, words in zip(sample.token_ids, sample.word_of, strict=True)
    ]
    ids, words = ([torch.tensor(row, dtype=torch.long) for row in column] for column in zip(*rows, strict=True))
    lengths = torch.tensor([len(row) for row in ids])
    tokens = TextTokens(
        ids=pad_sequence(ids, batch_first=True, padding_value=samples[0].pad_id),
        word_mask=torch.arange(int(lengths.max())) < lengths[:, None],
        text_of=torch.tensor(text_of),
        num_truncated=sum(sample.num_truncated for sample in samples),
        word_of=pad_sequence(words, batch_first=True, padding_value=-1),
        pad_id=samples[0].pad_id,
    )
    batch = Batch(
        images=images,
        pixel_mask=pixel_mask,
        tokens=tokens,
        image_of=torch.tensor([row for row, sample in enumerate(samples) for _ in sample.token_ids]),
        metas=[sample.meta for sample in samples],
        instance_masks=instance_masks,
        referents=[refers for sample in samples for refers in sample.referents],
        ground_truth=[sample.ground_truth for sample in samples],
        instance_boxes=[sample.instance_boxes for sample in samples],
    )
    return {"batch": batch}
