"""The last transform: make masks and boxes once, at the input's size, and pack everything into a `Sample`."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import Box, Size, box_of_mask, clip_box, is_resizing, move_box
from refseg.datasets.masks import MasksAt, Overlap, instance_mask, to_rle
from refseg.datasets.transforms.state import TransformState
from refseg.errors import ConfigError, check_choice
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
        check_choice("PackSample.overlap", overlap, ("union", "exclude"))
        check_choice("PackSample.masks_at", masks_at, ("input", "original"))
        self.with_ground_truth = with_ground_truth
        self.overlap: Overlap = overlap
        self.masks_at: MasksAt = masks_at

    def __call__(self, state: TransformState) -> Sample:
        record, expressions, size, tokens = state.record, state.expressions, state.size, state.tokens
        if tokens is None:
            raise ConfigError("the pipeline needs LoadText before PackSample")
        truth = self._ground_truth(state) if self.with_ground_truth else None
        # Masks of the referents, by index in the record. Those out of view are dropped, except the last ones of an
        # expression. The rows of the ground truth match those of the masks, so nothing is dropped then.
        draw = partial(
            instance_mask,
            original_size=record.size,
            matrix=state.matrix,
            size=size,
            overlap=self.overlap,
            masks_at=self.masks_at,
        )
        masks = {index: draw(record.instances[index]) for index in state.instances}
        if truth is None:
            visible = {index for index, mask in masks.items() if np.count_nonzero(mask)}
            for expression in expressions:
                if visible.isdisjoint(expression.referents):
                    masks |= {index: draw(record.instances[index], must_show=True) for index in expression.referents}
                    visible.update(expression.referents)
            masks = {index: mask for index, mask in masks.items() if index in visible}
        boxes = [input_box(record.instances[index], mask, state.matrix, size) for index, mask in masks.items()]
        stacked = np.stack(list(masks.values())) if masks else np.zeros((0, *size), np.uint8)
        refers = [[index in expression.referents for index in masks] for expression in expressions]
        # Color planes: cv2.split is several times faster than a transposed copy.
        planes = np.empty((3, *size), np.uint8)
        cv2.split(state.image, list(planes))
        return Sample(
            image=torch.from_numpy(planes),
            token_ids=tokens.token_ids,
            word_of=tokens.word_of,
            pad_id=tokens.pad_id,
            instance_masks=torch.from_numpy(stacked.view(np.bool_)),
            instance_boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            referents=torch.tensor(refers, dtype=torch.bool).view(len(refers), len(masks)),
            meta=SampleMeta(
                image_id=record.image_id,
                image_path=os.fspath(record.image_path),
                original_size=record.size,
                content_size=size,
                expression_ids=tuple(expression.expression_id for expression in expressions),
                texts=tuple(expression.text for expression in expressions),
                tags=tuple(expression.tags for expression in expressions),
                unknown_words=tuple(tokens.unknown_words),
            ),
            ground_truth=truth,
            num_truncated=tokens.num_truncated,
        )

    def _ground_truth(self, state: TransformState) -> GroundTruth:
        """Return the record with the expressions' referents and ignored regions only, and their masks at the original
        size."""
        record = state.record
        if state.augmented_by or not is_resizing(state.matrix, record.size, state.size):
            raise ConfigError(
                f"PackSample(with_ground_truth=True) cannot follow {state.augmented_by or 'a change of geometry'}, "
                "because predictions are mapped back to the original image by resizing. Remove all transforms that "
                "move the image, except Resize, from evaluation pipelines"
            )
        ignored = [index for expression in state.expressions for index in expression.ignored]
        row = {index: row for row, index in enumerate(dict.fromkeys([*state.instances, *ignored]))}
        instances, rles = [], []
        for index in row:
            instance = record.instances[index]
            rles.append(to_rle(instance.segmentation, record.size))
            instances.append(replace(instance, box=instance.box or tuple(coco_mask.toBbox(rles[-1]).tolist())))
        expressions = [
            replace(e, referents=tuple(row[i] for i in e.referents), ignored=tuple(row[i] for i in e.ignored))
            for e in state.expressions
        ]
        return GroundTruth(replace(record, instances=instances, expressions=expressions), rles)


def input_box(instance: AnnotatedInstance, mask: np.ndarray, matrix: np.ndarray, size: Size) -> Box:
    """Return x0, y0, x1, y1 in the input: the annotated box if it stays a box, else the box around the mask."""
    if instance.box is not None:
        x, y, w, h = instance.box
        x0, y0, x1, y1 = clip_box(move_box(matrix, (x, y, x + w, y + h)), size)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    return box_of_mask(mask)
