"""The last transform: masks and boxes are made once, at the input's size, and all becomes a `Sample`."""

from __future__ import annotations

import os
from dataclasses import replace

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import (
    Box,
    Size,
    box_of_mask,
    clip_box,
    is_axis_aligned,
    is_resizing,
    move_box,
)
from refseg.datasets.masks import MasksAt, Overlap, to_rle
from refseg.datasets.transforms.referents import instance_mask
from refseg.datasets.transforms.state import TransformState
from refseg.errors import ConfigError
from refseg.records import AnnotatedInstance, Expression
from refseg.registry import TRANSFORMS
from refseg.structures import GroundTruth, Sample, SampleMeta


@TRANSFORMS.register_module()
class PackSample:
    """Packs the state into a `Sample`.

    `with_ground_truth` keeps what evaluation needs, at the original size; predictions are mapped back by resizing, so
    augmentation of the geometry is refused then.

    `overlap`: pixels that several polygons of an instance cover are mask ("union", as nearly everywhere) or background
    ("exclude", LAVT's family); of the ground truth, protocols decide. `masks_at`: whether the input's masks are
    polygons drawn at the input's size ("input", as ReLA and CoHD do) or pixels drawn at the original size and resized
    ("original", as LAVT, DMMI and CrossVLT do); boundary pixels differ.

    An instance that augmentation took out of sight is left out, and its expressions keep their other referents. An
    expression that has referents never loses all of them: the last ones stay, as one pixel if need be.
    """

    def __init__(
        self, *, with_ground_truth: bool = False, overlap: Overlap = "union", masks_at: MasksAt = "input"
    ) -> None:
        if overlap not in ("union", "exclude"):
            raise ValueError(f"PackSample.overlap must be 'union' or 'exclude', not {overlap!r}")
        if masks_at not in ("input", "original"):
            raise ValueError(f"PackSample.masks_at must be 'input' or 'original', not {masks_at!r}")
        self.with_ground_truth = with_ground_truth
        self.overlap: Overlap = overlap
        self.masks_at: MasksAt = masks_at

    def __call__(self, state: TransformState) -> Sample:
        record, size = state.record, state.size
        if state.token_ids is None or state.word_of is None:
            raise ConfigError("the pipeline needs LoadText before PackSample")
        truth = self._ground_truth(state) if self.with_ground_truth else None
        masks = self._masks(state)
        boxes = [input_box(record.instances[i], mask, state.matrix, size) for i, mask in masks.items()]
        return Sample(
            image=torch.from_numpy(to_planes(state.image)),
            token_ids=state.token_ids,
            word_of=state.word_of,
            pad_id=state.pad_id,
            instance_masks=torch.from_numpy(stack_masks(list(masks.values()), size)),
            instance_boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            referents=torch.from_numpy(relation(state.expressions, list(masks))),
            meta=SampleMeta(
                image_id=record.image_id,
                image_path=os.fspath(record.image_path),
                original_size=record.size,
                content_size=size,
                expression_ids=tuple(e.expression_id for e in state.expressions),
                texts=tuple(e.text for e in state.expressions),
                tags=tuple(e.tags for e in state.expressions),
                unknown_words=tuple(state.unknown_words),
            ),
            ground_truth=truth,
            num_truncated=state.num_truncated,
        )

    def _ground_truth(self, state: TransformState) -> GroundTruth:
        record, instances = state.record, state.instances
        if state.augmented_by or not is_resizing(state.matrix, record.size, state.size):
            raise ConfigError(
                f"PackSample(with_ground_truth=True) cannot follow {state.augmented_by or 'a change of geometry'}: "
                "predictions are mapped back to the original image by resizing. Leave out of evaluation pipelines "
                "whatever moves the image, Resize excepted"
            )
        row = {instance: row for row, instance in enumerate(instances)}
        referred = [record.instances[i] for i in instances]
        rles = [to_rle(instance.segmentation, record.size) for instance in referred]
        boxes = [original_box(instance, rle) for instance, rle in zip(referred, rles, strict=True)]
        kept = replace(
            record,
            instances=[replace(instance, box=box) for instance, box in zip(referred, boxes, strict=True)],
            expressions=[replace(e, referents=tuple(row[i] for i in e.referents)) for e in state.expressions],
        )
        return GroundTruth(kept, rles)

    def _masks(self, state: TransformState) -> dict[int, np.ndarray]:
        """(h, w) uint8 of each instance that the sample keeps, by its index in the record."""

        content = state.content(np.eye(3), state.size)

        def make(index: int, must_show: bool = False) -> np.ndarray:
            return instance_mask(
                state.record.instances[index],
                state.record.size,
                state.matrix,
                state.size,
                overlap=self.overlap,
                masks_at=self.masks_at,
                content=content,
                must_show=must_show,
            )

        masks = {index: make(index) for index in state.instances}
        if self.with_ground_truth:  # whose rows are those of the masks
            return masks
        kept = {index for index, mask in masks.items() if np.count_nonzero(mask)}
        if len(kept) == len(masks):
            return masks
        for expression in state.expressions:
            if kept.isdisjoint(expression.referents):
                masks |= {index: make(index, must_show=True) for index in expression.referents}
                kept.update(expression.referents)
        return {index: mask for index, mask in masks.items() if index in kept}


def to_planes(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (3, h, w), several times faster than a transposed copy."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return planes


def stack_masks(masks: list[np.ndarray], size: Size) -> np.ndarray:
    """uint8 0/1 -> (I, h, w) bool; the bytes are the same."""
    return np.stack(masks).view(np.bool_) if masks else np.zeros((0, *size), np.bool_)


def relation(expressions: list[Expression], instances: list[int]) -> np.ndarray:
    """(K, I) bool: which expression refers to which of the kept instances."""
    column = {instance: column for column, instance in enumerate(instances)}
    refers = np.zeros((len(expressions), len(instances)), np.bool_)
    for row, expression in enumerate(expressions):
        refers[row, [column[instance] for instance in expression.referents if instance in column]] = True
    return refers


def input_box(instance: AnnotatedInstance, mask: np.ndarray, matrix: np.ndarray, size: Size) -> Box:
    """x0, y0, x1, y1 in the input: the annotated box where it stays a box, else the box around the mask."""
    if instance.box is not None and is_axis_aligned(matrix):
        x, y, w, h = instance.box
        x0, y0, x1, y1 = clip_box(move_box(matrix, (x, y, x + w, y + h)), size)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    return box_of_mask(mask)


def original_box(instance: AnnotatedInstance, rle: dict) -> Box:
    """x, y, width, height in the original image."""
    if instance.box is not None:
        return instance.box
    x, y, w, h = coco_mask.toBbox(rle).tolist()
    return x, y, w, h
