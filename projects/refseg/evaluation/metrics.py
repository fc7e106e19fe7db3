"""Metric classes on mmengine: one row of sums per data-set item (an image with all its expressions); no masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from refseg.datasets.masks import decode
from refseg.evaluation.functions import ExpressionRow, score_expression, summarise
from refseg.files import write_atomically
from refseg.registry import METRICS
from refseg.structures import GroundTruth, ImageResult


def merged_target(truth: GroundTruth, row: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the union of an expression's referents at the original size."""
    mask = np.zeros(size, bool)
    for index in truth.referents[row]:
        mask |= decode(truth.instance_rles[index])
    return mask


def score_image(result: ImageResult) -> list[ExpressionRow]:
    """The rows of one image's expressions."""
    truth, meta = result.ground_truth, result.meta
    if truth is None:
        raise ValueError(f"image {meta.image_id} has no ground truth: PackSample needs with_ground_truth=True")
    rows = []
    for k, expression_id in enumerate(meta.expression_ids):
        tags: dict[str, Any] = meta.tags[k] if meta.tags else {}
        rows.append(
            score_expression(
                expression_id,
                result.masks[k].numpy(),
                merged_target(truth, k, meta.original_size),
                rejected=bool(result.rejected[k]),
                has_target=bool(truth.referents[k]),
                skill=str(tags.get("skill", "")),
                num_targets=len(truth.referents[k]),
            )
        )
    return rows


@METRICS.register_module()
class ReferringMetric(BaseMetric):
    """Protocol `refseg` (see `score_expression`, `summarise`). `rows_file`: where to write the rows, as JSON lines."""

    default_prefix = "refseg"

    def __init__(self, *, rows_file: str | None = None, prefix: str | None = None) -> None:
        super().__init__(collect_device="gpu", prefix=prefix)  # "gpu": through the process group, not a shared disk
        self.rows_file = rows_file

    def process(self, data_batch: Any, data_samples: Sequence[ImageResult]) -> None:
        for result in data_samples:
            self.results.append(score_image(result))

    def compute_metrics(self, results: list[list[ExpressionRow]]) -> dict[str, float]:
        rows = [row for image in results for row in image]
        if self.rows_file is not None:
            import json

            lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
            write_atomically(self.rows_file, lines.encode())
        return summarise(rows)
