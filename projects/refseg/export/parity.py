"""Comparison of an exported model with its original on the same images and phrases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from refseg.errors import DataError
from refseg.evaluation.measure import Truth
from refseg.evaluation.metrics import rows_of
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.evaluation.scorer import open_data
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import find_images
from refseg.inference.predict import read_jsonl
from refseg.models.postprocess import ImageResult, check_finite, finish
from refseg.shipped import EXAMPLES, MODELS, REFSHAPES
from refseg.structures import Prediction

PROTOCOL = "refseg"  # whose gIoU is shown
WARMUP = 2  # first samples, whose times do not count


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its phrases, and with ground truth if it comes from a data set."""

    image: Any
    phrases: tuple[str, ...]
    truth: Truth | None = None


@dataclass(slots=True)
class Run:
    """A model's answers to an example, and the seconds that they took.

    Args:
        prediction: Raw output.
        result: Masks and decisions.
        image_seconds: Time of the image graph; None if the model reads words while it encodes the image.
        phrases_seconds: Time of the rest.
    """

    prediction: Prediction
    result: ImageResult
    image_seconds: float | None
    phrases_seconds: float


@dataclass(slots=True)
class Parity:
    """Differences between two models, in the order of the examples.

    Args:
        logits: Largest difference of the logits of an example's masks, or of its no-target logits.
        ious: IoU of both masks for each phrase; 1 if both are empty.
        changed: For each phrase, whether the decision "nothing here" or the number of instances differs.
        image_seconds, phrases_seconds: Times of the exported model (`Run`).
        rows: Measured answers of the exported model, where there is ground truth.
    """

    logits: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    image_seconds: list[float | None] = field(default_factory=list)
    phrases_seconds: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, original: Run, exported: Run, truth: Truth | None) -> None:
        """Compare the answers to one example."""
        self.logits.append(largest_difference(original.prediction, exported.prediction))
        masks, others = original.result.final_masks(), exported.result.final_masks()
        self.ious += mask_ious(masks, others)
        self.changed += [a != b for a, b in zip(decisions(original.result), decisions(exported.result), strict=True)]
        self.image_seconds.append(exported.image_seconds)
        self.phrases_seconds.append(exported.phrases_seconds)
        if truth is not None:
            self.rows += rows_of(exported.result, get_protocol(PROTOCOL).view, truth)

    def summary(self) -> dict[str, float | None]:
        """Return the numbers of the table, by name."""
        timed = slice(WARMUP if len(self.phrases_seconds) > WARMUP else 0, None)
        images = [seconds for seconds in self.image_seconds[timed] if seconds is not None]
        return {
            "max_logit_difference": max(self.logits),
            "mean_iou": float(np.mean(self.ious)),
            "min_iou": min(self.ious),
            "changed": sum(self.changed),
            "phrases": len(self.ious),
            "image_ms": 1000 * median(images) if images else None,
            "phrases_ms": 1000 * median(self.phrases_seconds[timed]),
            "gIoU": get_protocol(PROTOCOL).score(Rows.of(self.rows))["gIoU"] if self.rows else None,
        }


# Examples -------------------------------------------------------------------------------------------------------------


def bundled_examples() -> list[Example]:
    """Return the images and phrases that come with refseg."""
    phrases: dict[str, list[str]] = {}
    for image, text, _ in read_jsonl(str(MODELS / REFSHAPES / EXAMPLES)):
        phrases.setdefault(image, []).append(text)
    return [Example(image, tuple(texts)) for image, texts in phrases.items()]


def examples_of(argument: str, limit: int) -> list[Example]:
    """Return the first images of SET:SPLIT with all their phrases."""
    truths = open_data(argument).truths
    positions: dict[int, list[int]] = {}
    for position, image in enumerate(truths.images.tolist()):
        if image in positions or len(positions) < limit:
            positions.setdefault(image, []).append(position)
    examples = []
    for of_image in positions.values():
        truth = truths.truth(of_image[0])
        expressions = [truths.expression(position) for position in of_image]
        record = replace(truth.record, expressions=expressions)
        texts = tuple(expression.text for expression in expressions)
        examples.append(Example(record.image_path, texts, Truth(record)))
    return examples


# Comparison -----------------------------------------------------------------------------------------------------------


def compare(
    original: ReferringInferencer, exported: Sequence[ReferringInferencer], examples: Sequence[Example]
) -> tuple[Parity, list[Parity]]:
    """Answer the examples with all models in turn.

    Returns:
        The original compared with itself, which has its times, and each exported model compared with it.
    """
    baseline, parities = Parity(), [Parity() for _ in exported]
    for example in examples:
        expected = run(original, example)
        baseline.add(expected, expected, example.truth)
        for parity, inferencer in zip(parities, exported, strict=True):
            parity.add(expected, run(inferencer, example), example.truth)
    return baseline, parities


def run(inferencer: ReferringInferencer, example: Example) -> Run:
    """Answer the phrases about an image in one pass."""
    (source,), _ = find_images(example.image)
    pixels = source.load(inferencer.loading)
    if example.truth is not None and pixels.shape[:2] != example.truth.record.size:
        raise DataError(f"{source.name} has {pixels.shape[:2]} pixels, its annotation {example.truth.record.size}.")
    batch = inferencer.collate([inferencer.pack(pixels, example.phrases, name=source.name)])
    start = time.perf_counter()
    encoded = inferencer.encode(batch)
    middle = time.perf_counter()
    with inferencer.running(batch):
        segmentor = inferencer.segmentor
        prediction = segmentor.infer_encoded(batch, encoded) if segmentor.shares_images else segmentor.infer(batch)
    end = time.perf_counter()
    (result,) = finish(prediction, batch, inferencer.postprocess)
    check_finite(result)
    return Run(prediction, result, middle - start if segmentor.shares_images else None, end - middle)


def largest_difference(original: Prediction, exported: Prediction) -> float:
    """Return the largest difference of mask logits, the instances' if there is no merged mask, and no-target logits."""

    def logits(prediction: Prediction) -> Iterator[Tensor]:
        if prediction.mask_logits is not None:
            yield prediction.mask_logits
        else:
            yield from (instances.mask_logits for instances in prediction.instances or ())
        if prediction.no_target_logit is not None:
            yield prediction.no_target_logit

    return max(float((a - b).abs().max()) for a, b in zip(logits(original), logits(exported), strict=True))


def mask_ious(masks: Tensor, others: Tensor) -> list[float]:
    """Return the IoU of each pair of masks (K, h, w); 1 if both are empty."""
    both, either = ((x.flatten(1).sum(1)).double() for x in (masks & others, masks | others))
    return [1.0 if union == 0 else share / union for share, union in zip(both.tolist(), either.tolist(), strict=True)]


def decisions(result: ImageResult) -> list[tuple[bool, int]]:
    """Return for each phrase whether it was rejected, and how many instances were found."""
    counts = [len(found) for found in result.instances] if result.instances is not None else [0] * len(result.rejected)
    return list(zip(result.rejected.tolist(), counts, strict=True))
