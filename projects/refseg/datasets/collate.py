"""Collate samples into a batch. Images and tokens are padded to the largest, and each distinct text is kept once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refseg.registry import FUNCTIONS
from refseg.structures import Batch, Sample, TextTokens


def stack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images of any sizes.

    Returns:
        (B, 3, H, W) of the images' dtype at the largest height and width, and (B, H, W) bool, True on image.
    """
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    padded = images[0].new_zeros(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        _, h, w = image.shape
        padded[row, :, :h, :w] = image
        pixel_mask[row, :h, :w] = True
    return padded, pixel_mask


def distinct_tokens(samples: Sequence[Sample]) -> TextTokens:
    """Return the tokens of all samples' texts. Equal texts share a row."""
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    text_of = [
        rows.setdefault((tuple(ids), tuple(words)), len(rows))
        for sample in samples
        for ids, words in zip(sample.token_ids, sample.word_of, strict=True)
    ]
    token_ids, word_of = zip(*rows, strict=True)
    lengths = torch.tensor([len(ids) for ids in token_ids])
    return TextTokens(
        ids=pad_rows(token_ids, samples[0].pad_id),
        word_mask=torch.arange(int(lengths.max())) < lengths[:, None],
        text_of=torch.tensor(text_of),
        num_truncated=sum(sample.num_truncated for sample in samples),
        word_of=pad_rows(word_of, -1),
    )


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Pad rows at the end to a (rows, longest) int64 tensor."""
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)


@FUNCTIONS.register_module()
def collate_samples(samples: Sequence[Sample]) -> dict[str, Batch]:
    """Return `{"batch": Batch}`, the keyword argument of `RefSegmentor.forward`."""
    images, pixel_mask = stack_images([sample.image for sample in samples])
    height, width = pixel_mask.shape[1:]
    masks = []
    for sample in samples:
        _, h, w = sample.instance_masks.shape
        masks.append(torch.nn.functional.pad(sample.instance_masks, (0, width - w, 0, height - h)))
    batch = Batch(
        images=images,
        pixel_mask=pixel_mask,
        tokens=distinct_tokens(samples),
        image_of=torch.tensor([row for row, sample in enumerate(samples) for _ in sample.token_ids]),
        metas=[sample.meta for sample in samples],
        instance_masks=masks,
        referents=[refers for sample in samples for refers in sample.referents],
        ground_truth=[sample.ground_truth for sample in samples],
        instance_boxes=[sample.instance_boxes for sample in samples],
    )
    return {"batch": batch}
