"""Data preprocessor: move to the device, normalize, pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor

from refseg.registry import MODELS
from refseg.structures import Batch

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def pad_size(size: tuple[int, int], divisor: int | Sequence[int]) -> tuple[int, int]:
    """Return the size (height, width) after padding it to multiples of `divisor`."""
    of_height, of_width = (divisor, divisor) if isinstance(divisor, int) else divisor
    return -(-size[0] // of_height) * of_height, -(-size[1] // of_width) * of_width


def pad_batch(batch: Batch, divisor: int | Sequence[int]) -> Batch:
    """Pad height and width to multiples of `divisor`, on the right and at the bottom."""
    height, width = batch.images.shape[-2:]
    padded_height, padded_width = pad_size((height, width), divisor)
    pad = (0, padded_width - width, 0, padded_height - height)
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
    """Move a batch to the device, normalize its uint8 RGB images, and pad it.

    Padding is zero after normalization, which is the mean color.

    Args:
        mean, std: Per channel, in 0..255. By default they follow the image encoder, whose weights expect them; they are
            ImageNet's for one that does not say.
        size_divisor: Height and width are padded to multiples of it. A pair has a number for each.
        non_blocking: Copy to the device asynchronously.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size_divisor: int | Sequence[int] = 32,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        self.size_divisor = size_divisor
        self._follows = {"mean": mean is None, "std": std is None}
        for name, values in (("mean", mean or IMAGENET_MEAN), ("std", std or IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def follow(self, vision: Any) -> None:
        """Take mean and std from an image encoder that has them, where the config does not give them."""
        for name, follows in self._follows.items():
            if follows and hasattr(vision, name):
                getattr(self, name).copy_(torch.tensor(getattr(vision, name)).view(1, 3, 1, 1))

    def forward(self, data: dict[str, Batch], training: bool = False) -> dict[str, Batch]:
        batch = data["batch"].to(self.device, non_blocking=self._non_blocking)
        if batch.images.is_floating_point():
            raise TypeError(
                f"ReferringDataPreprocessor expects uint8 images from `collate_samples`, got {batch.images.dtype}."
            )
        images = (batch.images.float() - self.mean) / self.std * batch.pixel_mask[:, None]
        return {"batch": pad_batch(replace(batch, images=images), self.size_divisor)}
