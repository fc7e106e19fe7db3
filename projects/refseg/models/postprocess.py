"""Post-processing of all models: from logits to masks at the original size. Pure functions and their settings.

Letters: E expressions, K of them of an image, N queries, L tokens, W words; (h, w) the logits' size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import ConfigError
from refseg.instance import Instance
from refseg.records import NoTargetRule
from refseg.structures import (
    Batch,
    GroundTruth,
    ImageResult,
    InstancePrediction,
    Prediction,
    RegionPrediction,
    SampleMeta,
    WordRegions,
)


@dataclass(frozen=True, slots=True)
class PostProcess:
    """Settings of the step from predictions to answers.

    Args:
        threshold: A pixel belongs to the mask if its probability is at least this value.
        no_target: Rule that rejects a phrase: "head", the head's probability exceeds `no_target_threshold` (models
            without that head reject nothing); "head-or-empty", the same or an empty mask; "area", the mask has fewer
            than `min_area` pixels; "none".
        no_target_threshold: No-target probability above which a phrase is rejected.
        min_area: Pixels of the smallest mask that the rule "area" accepts.
        instances: Return the instances of models that predict them.
        instance_threshold: A query is an instance if its relevance is at least this value.
        max_instances: The most instances per phrase, best first.
        max_elements: Bound on the number of floats held at once.
    """

    threshold: float = 0.5
    no_target: NoTargetRule = "head-or-empty"
    no_target_threshold: float = 0.5
    min_area: int = 50
    instances: bool = True
    instance_threshold: float = 0.5
    max_instances: int = 100
    max_elements: int = 2**26

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"postprocess.threshold must lie between 0 and 1, not {self.threshold}")
        if self.no_target not in get_args(NoTargetRule):
            rules = ", ".join(get_args(NoTargetRule))
            raise ConfigError(f"postprocess.no_target must be one of {rules}, not {self.no_target!r}")
        if not 0 <= self.no_target_threshold <= 1:
            raise ConfigError(f"postprocess.no_target_threshold must be in [0, 1], not {self.no_target_threshold}")
        if self.min_area < 0:
            raise ConfigError(f"postprocess.min_area must be at least 0, not {self.min_area}")
        if not 0 <= self.instance_threshold <= 1:
            raise ConfigError(f"postprocess.instance_threshold must be in [0, 1], not {self.instance_threshold}")
        if self.max_instances < 1:
            raise ConfigError(f"postprocess.max_instances must be at least 1, not {self.max_instances}")
        if self.max_elements < 1:
            raise ConfigError(f"postprocess.max_elements must be at least 1, not {self.max_elements}")


def restore_masks(
    mask_logits: Tensor,
    *,
    input_size: tuple[int, int],
    meta: SampleMeta,
    size: tuple[int, int] | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    align_corners: bool = False,
    resize: Literal["logits", "probs"] = "logits",
    threshold: float = 0.5,
    strict: bool = False,
    max_elements: int = 2**26,
) -> Tensor:
    """Restore masks of one image: logits (K, h, w) of a padded input -> (K, height, width) bool on the CPU.

    Logits are resized bilinearly to the input's size, cropped to the image, resized by `interpolation`, and
    thresholded. Masks are processed in chunks.

    Args:
        mask_logits: (K, h, w).
        input_size: Size of the padded input.
        meta: The sample's content size and original size.
        size: Output size; the original size by default.
        interpolation: Of the second step.
        align_corners: Of both steps.
        resize: Whether the second step resizes logits or probabilities.
        threshold: Probability from which on a pixel is mask.
        strict: Exclude pixels exactly at the threshold.
        max_elements: Bound on the number of floats held at once.
    """
    height, width = size or meta.original_size
    limit = threshold if resize == "probs" else math.log(threshold / (1 - threshold))
    per_mask = max(input_size[0] * input_size[1], height * width)
    chunk = max(1, max_elements // per_mask)
    masks = [torch.zeros(0, height, width, dtype=torch.bool)]
    for logits in mask_logits.split(chunk) if len(mask_logits) else ():
        logits = logits[None].float()  # (1, k, h, w)
        if logits.shape[-2:] != torch.Size(input_size):
            logits = F.interpolate(logits, size=input_size, mode="bilinear", align_corners=align_corners)
        values = logits[..., : meta.content_size[0], : meta.content_size[1]]
        if resize == "probs":
            values = values.sigmoid()
        if values.shape[-2:] != (height, width):
            values = F.interpolate(values, size=(height, width), mode=interpolation, align_corners=align_corners)
        masks.append(((values[0] > limit) if strict else (values[0] >= limit)).cpu())
    return torch.cat(masks)


def reject(masks: Tensor, no_target_prob: Tensor | None, settings: PostProcess) -> Tensor:
    """Apply the no-target rule: (K,) bool."""
    rejected = torch.zeros(len(masks), dtype=torch.bool)
    if settings.no_target == "none":
        return rejected
    if settings.no_target == "area":
        return masks.flatten(1).sum(1) < settings.min_area
    if settings.no_target == "head-or-empty":
        rejected = ~masks.flatten(1).any(1)
    return rejected if no_target_prob is None else rejected | (no_target_prob > settings.no_target_threshold)


def choose_instances(instances: Sequence[InstancePrediction], settings: PostProcess) -> list[InstancePrediction]:
    """Select the instances of each expression, best first, with `relevance` on the CPU (one transfer for all).

    NaN is selected, so that metrics report it.
    """
    sizes = [len(queries.relevance) for queries in instances]
    relevance = torch.cat([queries.relevance for queries in instances]).float().cpu()
    ranked = [scores.sort(descending=True, stable=True) for scores in relevance.split(sizes)]
    relevant = [int((~(scores < settings.instance_threshold)).sum()) for scores, _ in ranked]
    counts = [min(count, settings.max_instances) for count in relevant]
    order = torch.cat([rows[:count] for (_, rows), count in zip(ranked, counts, strict=True)])
    chosen = order.to(instances[0].mask_logits.device).split(counts)
    return [
        InstancePrediction(
            queries.mask_logits.index_select(0, rows),
            scores[: len(rows)],
            None if queries.word_attention is None else queries.word_attention.index_select(0, rows),
        )
        for queries, rows, (scores, _) in zip(instances, chosen, ranked, strict=True)
    ]


def word_weights(attention: Tensor, word_of: Tensor, num_words: int) -> Tensor:
    """Sum weights of tokens (N, L) to weights of words (N, W).

    `word_of` (L,) is -1 for tokens outside of words. A word that was cut off gets 0.
    """
    of_text = word_of >= 0
    return attention.new_zeros(len(attention), num_words).index_add_(1, word_of[of_text], attention[:, of_text])


def restore_instances(
    chosen: Sequence[InstancePrediction],
    word_of: Tensor | None,
    *,
    input_size: tuple[int, int],
    meta: SampleMeta,
    settings: PostProcess,
) -> list[list[Instance]]:
    """Restore the instances of an image's K expressions, without those that are empty. `word_of` is (K, L)."""
    counts = [len(queries.relevance) for queries in chosen]
    masks = restore_masks(
        torch.cat([queries.mask_logits for queries in chosen]),
        input_size=input_size,
        meta=meta,
        threshold=settings.threshold,
        max_elements=settings.max_elements,
    )
    results = []
    words = instance_words(chosen, word_of, meta)
    for queries, restored, weights in zip(chosen, masks.split(counts), words, strict=True):
        found = map(Instance, restored.numpy(), queries.relevance.tolist(), weights)
        shown = restored.flatten(1).any(1).tolist()
        results.append([instance for instance, show in zip(found, shown, strict=True) if show])
    return results


def instance_words(
    chosen: Sequence[InstancePrediction], word_of: Tensor | None, meta: SampleMeta
) -> list[list[list[float] | None]]:
    """Return the word weights of each expression's instances (one transfer for all)."""
    counts = [len(queries.relevance) for queries in chosen]
    attention = [queries.word_attention for queries in chosen if queries.word_attention is not None]
    if word_of is None or len(attention) < len(chosen):
        return [[None] * count for count in counts]
    weights = torch.cat(attention).float().cpu().split(counts)
    return [
        word_weights(of_tokens, words, len(text.split())).tolist()
        for of_tokens, words, text in zip(weights, word_of, meta.texts, strict=True)
    ]


def restore_regions(
    regions: RegionPrediction, word_of: Tensor, *, input_size: tuple[int, int], meta: SampleMeta
) -> list[WordRegions]:
    """Turn regions of tokens into regions of words for an image's K expressions.

    `word_of` (K, L) is -1 for tokens outside of words. The first token represents the whole expression.
    """
    height, width = regions.scores.shape[-2:]
    extent = (meta.content_size[0] / input_size[0] * height, meta.content_size[1] / input_size[1] * width)
    scores, retrieved = regions.scores.float().cpu(), regions.retrieved.cpu()
    results = []
    for of_tokens, found, words, text in zip(scores, retrieved, word_of, meta.texts, strict=True):
        rows = torch.where(words >= 0, words + 1, -1)
        rows[0] = 0
        of_text = rows >= 0
        size = (1 + len(text.split()), height, width)
        index = rows[of_text][:, None, None].expand(-1, height, width)
        best = of_tokens.new_full(size, -math.inf).scatter_reduce(0, index, of_tokens[of_text], "amax")
        chosen = of_tokens.new_zeros(size).scatter_reduce(0, index, found[of_text].to(of_tokens.dtype), "amax")
        results.append(WordRegions(best.masked_fill(best == -math.inf, math.nan), chosen > 0, extent))
    return results


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """Predictions for the K expressions of an image, before masks are resized to the image.

    `mask_logits` (K, h, w), for an input of `input_size`. `no_target_prob` (K,) on the CPU. `chosen`: the instances of
    each expression (`choose_instances`); `word_of` (K, L).
    """

    meta: SampleMeta
    ground_truth: GroundTruth | None
    mask_logits: Tensor
    input_size: tuple[int, int]
    no_target_prob: Tensor | None
    chosen: list[InstancePrediction] | None
    word_of: Tensor | None
    regions: RegionPrediction | None
    settings: PostProcess

    def finish(self) -> ImageResult:
        """Return the results at the original size. Instances and regions are made when they are asked for."""
        masks = restore_masks(
            self.mask_logits,
            input_size=self.input_size,
            meta=self.meta,
            threshold=self.settings.threshold,
            max_elements=self.settings.max_elements,
        )

        instances = regions = None
        if self.chosen is not None:
            instances = partial(
                restore_instances,
                self.chosen,
                self.word_of,
                input_size=self.input_size,
                meta=self.meta,
                settings=self.settings,
            )
        if self.regions is not None and self.word_of is not None:
            regions = partial(restore_regions, self.regions, self.word_of, input_size=self.input_size, meta=self.meta)
        return ImageResult(
            self.meta,
            masks,
            reject(masks, self.no_target_prob, self.settings),
            self.no_target_prob,
            self.ground_truth,
            self.mask_logits,
            self.input_size,
            instances,
            regions,
        )


def draw(prediction: Prediction, batch: Batch, settings: PostProcess) -> list[DrawnImage]:
    """Split a prediction by image, in the order of the batch."""
    input_size = tuple(batch.images.shape[-2:])
    probs = None if prediction.no_target_logit is None else prediction.no_target_logit.float().sigmoid().cpu()
    image_of = batch.image_of.cpu()
    chosen = word_of = None
    if settings.instances and prediction.instances:
        chosen = choose_instances(prediction.instances, settings)
    if batch.tokens.word_of is not None and (chosen is not None or prediction.regions is not None):
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of).cpu()
    drawn = []
    for image, (meta, truth) in enumerate(zip(batch.metas, batch.ground_truth, strict=True)):
        rows = (image_of == image).nonzero().flatten()
        regions = prediction.regions
        drawn.append(
            DrawnImage(
                meta,
                truth,
                prediction.mask_logits[rows.to(prediction.mask_logits.device)],
                input_size,
                None if probs is None else probs[rows],
                None if chosen is None else [chosen[row] for row in rows.tolist()],
                None if word_of is None else word_of[rows],
                None if regions is None else RegionPrediction(regions.scores[rows], regions.retrieved[rows]),
                settings,
            )
        )
    return drawn


def finish(prediction: Prediction, batch: Batch, settings: PostProcess) -> list[ImageResult]:
    """Return one result per image of the batch, in order, with the image's expressions in their order."""
    return [drawn.finish() for drawn in draw(prediction, batch, settings)]
