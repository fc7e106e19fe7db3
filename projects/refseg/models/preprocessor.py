"""The data preprocessor: device, mean and std, and the size of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor

from refseg.registry import MODELS
from refseg.structures import Batch

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def pad_batch(batch: Batch, divisor: int) -> Batch:
    """Height and width become multiples of `divisor`, padded right and below."""
    height, width = batch.images.shape[-2:]
    pad = (0, -width % divisor, 0, -height % divisor)
    if not any(pad):
        return batch
    return replace(
        batch,
        images=F.pad(batch.images, pad),
        pixel_mask=F.pad(batch.pixel_mask, pad),
        instance_masks=[F.pad(masks, pad) for masks in batch.instance_masks],
    )


@MODELS.register_module()
class ReferringDataPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device, normalises its uint8 RGB images, and pads it to multiples of `size_divisor`.

    Padding is zero after normalisation, the mean colour.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_divisor: int = 32,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        self.size_divisor = size_divisor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, data: dict[str, Batch], training: bool = False) -> dict[str, Batch]:
        batch = data["batch"].to(self.device, non_blocking=self._non_blocking)
        if batch.images.is_floating_point():
            raise TypeError("ReferringDataPreprocessor takes uint8 images as `collate_samples` makes them")
        images = (batch.images.float() - self.mean) / self.std * batch.pixel_mask[:, None]
        return {"batch": pad_batch(replace(batch, images=images), self.size_divisor)}
