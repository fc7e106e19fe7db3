"""The last transform: make masks and boxes once, at the input's size, and pack everything into a `Sample`."""

from __future__ import annotations

import os
from dataclasses import replace

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import Box, Size, box_of_mask, clip_box, is_axis_aligned, is_resizing, move_box
from refseg.datasets.masks import MasksAt, Overlap, instance_mask, to_rle
from refseg.datasets.transforms.state import TransformState
from refseg.errors import ConfigError
from refseg.records import AnnotatedInstance
from refseg.registry import TRANSFORMS
from refseg.structures import GroundTruth, Sample, SampleMeta


@TRANSFORMS.register_module()
class PackSample:
    """Pack the state into a `Sample`.

    An instance that augmentation moved out of view is dropped, and its expressions keep their other referents. An
    expression never loses its last referents: they stay visible as at least one pixel.

    Args:
        with_ground_truth: Add the ground truth at the original size, for evaluation. Predictions are mapped back by
            resizing, so the pipeline must not augment geometry.
        overlap: Whether pixels that several polygons of an instance cover are mask ("union", nearly everywhere) or
            background ("exclude", LAVT's family). For the ground truth, protocols decide.
        masks_at: Whether polygons are drawn at the input's size ("input", as in ReLA and CoHD) or drawn at the original
            size and resized ("original", as in LAVT, DMMI and CrossVLT). Boundary pixels differ.
    """

    def __init__(
        self, *, with_ground_truth: bool = False, overlap: Overlap = "union", masks_at: MasksAt = "input"
    ) -> None:
        if overlap not in ("union", "exclude"):
            raise ConfigError(f"PackSample.overlap must be 'union' or 'exclude', not {overlap!r}")
        if masks_at not in ("input", "original"):
            raise ConfigError(f"PackSample.masks_at must be 'input' or 'original', not {masks_at!r}")
        self.with_ground_truth = with_ground_truth
        self.overlap: Overlap = overlap
        self.masks_at: MasksAt = masks_at

    def __call__(self, state: TransformState) -> Sample:
        record, size = state.record, state.size
        if state.token_ids is None or state.word_of is None:
            raise ConfigError("the pipeline needs LoadText before PackSample")
        truth = self._ground_truth(state) if self.with_ground_truth else None
        # Masks and boxes of the visible referents.
        masks = self._masks(state)
        boxes = [input_box(record.instances[i], mask, state.matrix, size) for i, mask in masks.items()]
        stacked = np.stack(list(masks.values())) if masks else np.zeros((0, *size), np.uint8)
        # Relation of expressions to these instances.
        refers = [[index in expression.referents for index in masks] for expression in state.expressions]
        # Color planes: cv2.split is several times faster than a transposed copy.
        planes = np.empty((3, *size), np.uint8)
        cv2.split(state.image, list(planes))
        return Sample(
            image=torch.from_numpy(planes),
            token_ids=state.token_ids,
            word_of=state.word_of,
            pad_id=state.pad_id,
            instance_masks=torch.from_numpy(stacked.view(np.bool_)),
            instance_boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            referents=torch.tensor(refers, dtype=torch.bool).view(len(refers), len(masks)),
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
                f"PackSample(with_ground_truth=True) cannot follow {state.augmented_by or 'a change of geometry'}, "
                "because predictions are mapped back to the original image by resizing. Remove all transforms that "
                "move the image, except Resize, from evaluation pipelines"
            )
        row = {instance: row for row, instance in enumerate(instances)}
        referred = [record.instances[i] for i in instances]
        rles = [to_rle(instance.segmentation, record.size) for instance in referred]
        with_boxes = [
            replace(instance, box=instance.box or tuple(coco_mask.toBbox(rle).tolist()))
            for instance, rle in zip(referred, rles, strict=True)
        ]
        referred_only = replace(
            record,
            instances=with_boxes,
            expressions=[replace(e, referents=tuple(row[i] for i in e.referents)) for e in state.expressions],
        )
        return GroundTruth(referred_only, rles)

    def _masks(self, state: TransformState) -> dict[int, np.ndarray]:
        """Return the (h, w) uint8 mask of each instance that the sample keeps, by its index in the record."""
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
        if self.with_ground_truth:  # its rows match those of the masks
            return masks
        visible = {index for index, mask in masks.items() if np.count_nonzero(mask)}
        if len(visible) == len(masks):
            return masks
        for expression in state.expressions:
            if visible.isdisjoint(expression.referents):
                masks |= {index: make(index, must_show=True) for index in expression.referents}
                visible.update(expression.referents)
        return {index: mask for index, mask in masks.items() if index in visible}


def input_box(instance: AnnotatedInstance, mask: np.ndarray, matrix: np.ndarray, size: Size) -> Box:
    """Return x0, y0, x1, y1 in the input: the annotated box if it stays a box, else the box around the mask."""
    if instance.box is not None and is_axis_aligned(matrix):
        x, y, w, h = instance.box
        x0, y0, x1, y1 = clip_box(move_box(matrix, (x, y, x + w, y + h)), size)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    return box_of_mask(mask)
