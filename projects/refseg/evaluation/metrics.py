"""Metrics on mmengine: scores by several protocols in one pass of the model, and prediction files.

Per data-set item (an image) they keep the rows of its expressions, never masks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from pycocotools import mask as coco_mask
from torch import Tensor

from refseg.evaluation.measure import Truth, measure
from refseg.evaluation.other_formats import is_coco_results, write_coco_results
from refseg.evaluation.prediction_file import Answer, PredictionWriter, merge_parts, part_file
from refseg.evaluation.protocols import READ_BY, Protocol, View, get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.files import write_atomically
from refseg.models.postprocess import ImageResult, check_finite, diverged
from refseg.registry import METRICS


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks (K, h, w) as K compressed RLEs."""
    return coco_mask.encode(np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0))) if len(masks) else []


def masks_on(result: ImageResult, view: View, size: tuple[int, int]) -> list[dict]:
    """Return the K masks of a result as RLEs on a grid, restored from the logits by the rules of the view."""
    return encode_masks(
        result.restore(
            size=size,
            interpolation=view.interpolation,
            align_corners=view.align_corners,
            resize=view.resize,
            threshold=view.threshold,
            strict=view.strict,
        )
    )


def predicted_rows(result: ImageResult, masks: Sequence[dict] | None = None, *, instances: bool = True) -> list[Answer]:
    """Return the answers to the expressions of one image.

    Args:
        masks: RLE of each merged mask, `result.masks` by default.
        instances: Whether to include the instances, whose masks are costly to make.
    """
    ids = result.meta.expression_ids
    masks = encode_masks(result.masks) if masks is None else masks
    probs = [None] * len(ids) if result.no_target_prob is None else result.no_target_prob.tolist()
    found = (result.instances if instances else None) or [None] * len(ids)
    rows = [
        Answer(name, mask, prob, raw_instances=of_expression)
        for name, mask, prob, of_expression in zip(ids, masks, probs, found, strict=True)
    ]
    for row in rows:
        for one in row.raw_instances or ():
            if not all(map(math.isfinite, (one.score, *(one.words or ())))):
                raise diverged("relevance or attention of an instance", row.expression_id)
    return rows


def rows_of(result: ImageResult, view: View, truth: Truth) -> list[Row]:
    """Measure the expressions of one image on a view."""
    expressions, size = truth.record.expressions, truth.record.size
    grids = [view.grid_of(bool(expression.referents), size) for expression in expressions]
    masks = {grid: masks_on(result, view, grid) for grid in dict.fromkeys(grids)}
    on_grids = [masks[grid][k] for k, grid in enumerate(grids)]
    scores_objects = view.boxes is not None or view.instances is not None
    answers = predicted_rows(result, on_grids, instances=scores_objects)
    return [measure(answer, truth, one, view) for answer, one in zip(answers, expressions, strict=True)]


def change_no_target(protocols: Sequence[Protocol], changes: Mapping[str, Any]) -> list[Protocol]:
    """Return protocols with another rule for "nothing here". See `ReferringMetric.no_target`."""
    readers = [protocol for protocol in protocols if protocol.no_target.rule in READ_BY["threshold"]]
    if set(changes) != {"threshold"} or not readers:
        readers = list(protocols)  # all must change, or say why they cannot
    return [protocol.with_no_target(**changes) if protocol in readers else protocol for protocol in protocols]


@METRICS.register_module()
class ReferringMetric(BaseMetric):
    """Scores by named protocols. Results are `<protocol>/<metric>`, in percent.

    Args:
        protocols: Names of protocols.
        no_target: Changes to the protocols' rule for "nothing here", for example dict(rule='area', min_area=50).
            Results then have another protocol name. A `threshold` alone changes only the protocols that read one.
        save_best: Metric that selects the best checkpoint of a training run if the checkpoint hook has
            `save_best='auto'`.
        rows_file: File for the rows, as JSON lines with the name of their protocol.
    """

    def __init__(
        self,
        *,
        protocols: Sequence[str] = ("refseg",),
        no_target: dict[str, Any] | None = None,
        save_best: str | None = None,
        rows_file: str | None = None,
    ) -> None:
        super().__init__(collect_device="gpu")  # "gpu": through the process group, not a shared disk
        self.protocols = change_no_target([get_protocol(name) for name in protocols], no_target or {})
        self.views = list(dict.fromkeys(protocol.view for protocol in self.protocols))
        self.save_best = save_best
        self.rows_file = rows_file

    @property
    def metric_names(self) -> list[str]:
        """Names of all results. An evaluation leaves out those for which no expression counts."""
        return [f"{protocol.name}/{name}" for protocol in self.protocols for name in protocol.terms(Rows.of(()))]

    def process(self, data_batch: Any, data_samples: Sequence[ImageResult]) -> None:
        for result in data_samples:
            check_finite(result)
            if result.ground_truth is None:
                image = result.meta.image_id
                raise ValueError(f"image {image} has no ground truth: PackSample needs with_ground_truth=True")
            rles = enumerate(result.ground_truth.instance_rles)
            truth = Truth(result.ground_truth.record, {(index, "union"): rle for index, rle in rles})
            self.results.append([rows_of(result, view, truth) for view in self.views])

    def compute_metrics(self, results: list[list[list[Row]]]) -> dict[str, float]:
        columns = [Rows.of(row for image in results for row in image[number]) for number in range(len(self.views))]
        metrics: dict[str, float] = {}
        for protocol in self.protocols:
            scores = protocol.score(columns[self.views.index(protocol.view)])
            metrics |= {f"{protocol.name}/{name}": value for name, value in scores.items()}
        if self.rows_file is not None:
            lines = []
            for protocol in self.protocols:
                for image in results:
                    for row in image[self.views.index(protocol.view)]:
                        prob = None if math.isnan(row.no_target_prob) else row.no_target_prob
                        line = {"protocol": protocol.name, **asdict(row), "no_target_prob": prob}
                        lines.append(json.dumps(line, allow_nan=False) + "\n")
            write_atomically(self.rows_file, "".join(lines))
        return metrics


@METRICS.register_module()
class DumpPredictions(BaseMetric):
    """Writes the model's answers to a prediction file, for `refseg score`. It has no metrics.

    Masks and instances are those of the model's post-processing, before the rule for "nothing here". Each process
    writes a part, and the first one merges them.

    Args:
        file: The prediction file, or a file for COCO results (.json), which SA-Co's tools read.
        header: Description of what made the file.
    """

    def __init__(self, *, file: str, header: dict[str, Any] | None = None) -> None:
        super().__init__(collect_device="gpu")
        self.file = Path(file)
        self.header = header
        self.writer: PredictionWriter | None = None

    def process(self, data_batch: Any, data_samples: Sequence[ImageResult]) -> None:
        if self.writer is None:
            self.writer = PredictionWriter(part_file(self.file, get_rank()), header=self.header).__enter__()
        for result in data_samples:
            check_finite(result)
            rows = predicted_rows(result)
            for row in rows:
                self.writer.write(row)
            self.results.append(len(rows))

    def evaluate(self, size: int) -> dict[str, float]:
        if self.writer is not None:  # before the processes meet, so that every part is whole
            self.writer.__exit__(None, None, None)
            self.writer = None
        return super().evaluate(size)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Merge the parts. mmengine calls this on the first process only."""
        is_coco = is_coco_results(self.file)
        merged = self.file.with_suffix(".jsonl.part") if is_coco else self.file
        merge_parts([part_file(self.file, rank) for rank in range(get_world_size())], merged)
        if is_coco:
            write_coco_results(merged, self.file)
            merged.unlink()
        return {}
