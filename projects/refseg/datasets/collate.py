"""Samples -> batch: stacks images (more is the preprocessor's), pads tokens to the longest, keeps each text once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refseg.registry import FUNCTIONS
from refseg.structures import Batch, Sample, TextTokens


def stack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) of the images' dtype, at the largest height and width, and (B, H, W) True on image."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    padded = images[0].new_zeros(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        _, h, w = image.shape
        padded[row, :, :h, :w] = image
        pixel_mask[row, :h, :w] = True
    return padded, pixel_mask


def distinct_tokens(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (U, L), word_mask (U, L), text_of (E,), where equal phrases share a row."""
    rows: dict[tuple[int, ...], int] = {}
    text_of = [rows.setdefault(tuple(ids), len(rows)) for ids in token_ids]
    length = max(len(ids) for ids in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    word_mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        word_mask[row, : len(tokens)] = True
    return ids, word_mask, torch.tensor(text_of)


@FUNCTIONS.register_module()
def collate_samples(samples: Sequence[Sample]) -> dict[str, Batch]:
    """`{"batch": Batch}`, the keyword that `RefSegmentor.forward` takes."""
    images, pixel_mask = stack_images([sample.image for sample in samples])
    height, width = pixel_mask.shape[1:]
    token_ids = [ids for sample in samples for ids in sample.token_ids]
    ids, word_mask, text_of = distinct_tokens(token_ids, samples[0].pad_id)
    masks = []
    for sample in samples:
        _, h, w = sample.instance_masks.shape
        masks.append(torch.nn.functional.pad(sample.instance_masks, (0, width - w, 0, height - h)))
    image_of = [row for row, sample in enumerate(samples) for _ in sample.token_ids]
    batch = Batch(
        images=images,
        pixel_mask=pixel_mask,
        tokens=TextTokens(ids, word_mask, text_of, sum(sample.num_truncated for sample in samples)),
        image_of=torch.tensor(image_of),
        metas=[sample.meta for sample in samples],
        instance_masks=masks,
        referents=[refers for sample in samples for refers in sample.referents],
        ground_truth=[sample.ground_truth for sample in samples],
        instance_boxes=[sample.instance_boxes for sample in samples],
    )
    return {"batch": batch}
