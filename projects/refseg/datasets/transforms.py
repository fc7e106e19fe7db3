"""Transforms: record -> sample, one after the other on a typed state. Geometry applies to image and masks alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import torch

from refseg.datasets.masks import decode, to_rle
from refseg.datasets.tokenizers import TextTokenizer
from refseg.errors import DataError
from refseg.records import Expression, Record
from refseg.registry import TRANSFORMS
from refseg.structures import GroundTruth, Sample, SampleMeta

cv2.setNumThreads(0)  # the data loader's workers are the parallelism


@dataclass(slots=True)
class TransformState:
    """A sample in the making: the record, the chosen expressions, and what the transforms have made so far.

    `instances`: indices into the record of the instances that the expressions refer to; `masks` (len(instances), h, w).
    """

    record: Record
    expressions: list[Expression]
    rng: np.random.Generator
    image: np.ndarray | None = None  # (h, w, 3) RGB uint8
    instances: list[int] = field(default_factory=list)
    masks: np.ndarray | None = None  # uint8 0/1
    rles: list[dict] = field(default_factory=list)
    token_ids: list[list[int]] | None = None
    pad_id: int = 0
    num_truncated: int = 0


def read_image(path: str) -> np.ndarray:
    """(h, w, 3) RGB uint8, EXIF orientation ignored as COCO's annotations do."""
    try:
        encoded = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"image cannot be read: {path} ({error.strerror})") from None
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if encoded.size else None
    if image is None:
        raise DataError(f"image is corrupt or of an unknown format: {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@TRANSFORMS.register_module()
class LoadImage:
    """Reads the image and the masks of the instances that the chosen expressions refer to (only those)."""

    def __call__(self, state: TransformState) -> TransformState:
        record = state.record
        state.image = read_image(record.image_path)
        if state.image.shape[:2] != tuple(record.size):
            raise DataError(
                f"image {record.image_path} has size {list(state.image.shape[:2])}, its annotation says "
                f"{list(record.size)}"
            )
        state.instances = sorted({index for expression in state.expressions for index in expression.referents})
        state.rles = [to_rle(record.instances[index].segmentation, record.size) for index in state.instances]
        masks = [decode(rle) for rle in state.rles]
        state.masks = np.stack(masks).astype(np.uint8) if masks else np.zeros((0, *record.size), np.uint8)
        return state


@TRANSFORMS.register_module()
class Resize:
    """To `size` (height, width). `mode='squash'` (LAVT and most of the field) ignores the aspect ratio; `'keep'` fits
    inside, and packing pads right and below. Image bilinear, masks nearest."""

    def __init__(self, size: Sequence[int], mode: Literal["squash", "keep"] = "squash") -> None:
        if mode not in ("squash", "keep"):
            raise ValueError(f"Resize.mode must be 'squash' or 'keep', not {mode!r}")
        self.size = (int(size[0]), int(size[1]))
        self.mode = mode

    def __call__(self, state: TransformState) -> TransformState:
        height, width = state.image.shape[:2]
        new_height, new_width = self.size
        if self.mode == "keep":
            scale = min(self.size[0] / height, self.size[1] / width)
            new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
        if (new_height, new_width) != (height, width):
            state.image = cv2.resize(state.image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
            masks = [cv2.resize(m, (new_width, new_height), interpolation=cv2.INTER_NEAREST) for m in state.masks]
            state.masks = np.stack(masks) if masks else np.zeros((0, new_height, new_width), np.uint8)
        return state


@TRANSFORMS.register_module()
class LoadText:
    """Makes tokens in the data workers. `tokenizer`: arguments of `TextTokenizer`."""

    def __init__(self, tokenizer: dict) -> None:
        self.tokenizer = TextTokenizer(**tokenizer)

    def __call__(self, state: TransformState) -> TransformState:
        texts = [expression.text for expression in state.expressions]
        state.token_ids, state.num_truncated = self.tokenizer(texts)
        state.pad_id = self.tokenizer.pad_id
        return state


@TRANSFORMS.register_module()
class PackSample:
    """Packs the state. `with_ground_truth` keeps what evaluation needs: RLEs at the original size."""

    def __init__(self, with_ground_truth: bool = False) -> None:
        self.with_ground_truth = with_ground_truth

    def __call__(self, state: TransformState) -> Sample:
        position = {instance: row for row, instance in enumerate(state.instances)}
        referents = torch.zeros(len(state.expressions), len(state.instances), dtype=torch.bool)
        for row, expression in enumerate(state.expressions):
            for instance in expression.referents:
                referents[row, position[instance]] = True
        truth = None
        if self.with_ground_truth:
            referred = [tuple(position[instance] for instance in e.referents) for e in state.expressions]
            truth = GroundTruth(instance_rles=state.rles, referents=referred)
        if state.token_ids is None:
            raise RuntimeError("the pipeline has no LoadText before PackSample")
        record = state.record
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(state.image.transpose(2, 0, 1))),
            token_ids=state.token_ids,
            pad_id=state.pad_id,
            instance_masks=torch.from_numpy(state.masks).bool(),
            referents=referents,
            meta=SampleMeta(
                image_id=record.image_id,
                image_path=os.fspath(record.image_path),
                original_size=record.size,
                content_size=state.image.shape[:2],
                expression_ids=tuple(e.expression_id for e in state.expressions),
                texts=tuple(e.text for e in state.expressions),
                tags=tuple(e.tags for e in state.expressions),
            ),
            ground_truth=truth,
            num_truncated=state.num_truncated,
        )
