"""Post-processing of all models: from logits to masks at the original size. Pure functions and their settings.

Letters: E expressions, K of them of an image, N queries, L tokens, W words; (h, w) the logits' size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import CheckpointError, ConfigError
from refseg.instance import Instance
from refseg.records import NoTargetRule
from refseg.structures import (
    Batch,
    GroundTruth,
    InstancePrediction,
    Movable,
    Prediction,
    RegionPrediction,
    SampleMeta,
    WordRegions,
)

NOTHING = -30.0  # logit of pixels that no instance covers


@dataclass(frozen=True, slots=True)
class PostProcess:
    """Settings of the step from predictions to answers.

    Args:
        threshold: A pixel belongs to the mask if its probability is at least this value.
        resize: Whether logits or probabilities are resized to the image's size.
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
    resize: Literal["logits", "probs"] = "logits"
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
        if self.resize not in ("logits", "probs"):
            raise ConfigError(f"postprocess.resize must be 'logits' or 'probs', not {self.resize!r}")
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
    input_size: tuple[int, int] | None,
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
        input_size: Size of the padded input. None: the logits cover the image alone, so that one step resizes them.
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
    per_mask = max(math.prod(input_size or (0, 0)), height * width)
    chunk = max(1, max_elements // per_mask)
    masks = [torch.zeros(0, height, width, dtype=torch.bool)]
    for logits in mask_logits.split(chunk) if len(mask_logits) else ():
        values = without_padding(logits[None].float(), input_size, meta, align_corners)  # (1, k, h, w)
        if resize == "probs":
            values = values.sigmoid()
        if values.shape[-2:] != (height, width):
            values = F.interpolate(values, size=(height, width), mode=interpolation, align_corners=align_corners)
        masks.append(((values[0] > limit) if strict else (values[0] >= limit)).cpu())
    return torch.cat(masks)


def without_padding(
    logits: Tensor, input_size: tuple[int, int] | None, meta: SampleMeta, align_corners: bool = False
) -> Tensor:
    """Resize logits (1, k, h, w) of a padded input to its size, and cut its padding off."""
    if input_size is None:
        return logits
    if logits.shape[-2:] != torch.Size(input_size):
        logits = F.interpolate(logits, size=input_size, mode="bilinear", align_corners=align_corners)
    return logits[..., : meta.content_size[0], : meta.content_size[1]]


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
    """Sum weights of tokens (N, L) to shares of words (N, W), which sum to 1.

    `word_of` (L,) is -1 for tokens outside of words, such as [CLS], which do not count. A word that was cut off gets 0.
    """
    of_text = word_of >= 0
    words = attention.new_zeros(len(attention), num_words).index_add_(1, word_of[of_text], attention[:, of_text])
    return words / words.sum(1, keepdim=True).clamp_min(1e-12)


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


@dataclass(frozen=True, eq=False)
class LogitMask:
    """A mask that is kept as logits and restored on request: the union of one or more maps.

    Args:
        logits: (h, w) or (n, h, w), for an input of `input_size`. Several maps are united at the size of the result.
        input_size: Size of the padded input; None if the logits cover the image alone.
        meta: The sample's content size and original size.
        threshold: A pixel belongs to the mask if its probability is at least this value.
        resize: Whether logits or probabilities are resized to the image's size.
    """

    logits: Tensor
    input_size: tuple[int, int] | None
    meta: SampleMeta
    threshold: float = 0.5
    resize: Literal["logits", "probs"] = "logits"

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool: the mask of the image scaled to `size`."""
        return self.full if size == self.meta.original_size else self._restored(size)

    @cached_property
    def full(self) -> np.ndarray:
        """(H, W) bool: the mask at the image's size."""
        return self._restored(self.meta.original_size)

    @cached_property
    def small(self) -> np.ndarray:
        """The mask at the working size: that of the model's input, or the image's if that is smaller."""
        content, original = self.meta.content_size, self.meta.original_size
        return self.at(content) if content[0] * content[1] < original[0] * original[1] else self.full

    def logits_at(self, size: tuple[int, int]) -> Tensor:
        """(h, w): the logits of the image without padding, scaled to `size`. The threshold is at 0."""
        logits = self.logits.reshape(1, -1, *self.logits.shape[-2:]).float()
        logits = without_padding(logits, self.input_size, self.meta)
        if logits.shape[-2:] != torch.Size(size):
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False, antialias=True)
        return highest(logits[0]) - math.log(self.threshold / (1 - self.threshold))

    def _restored(self, size: tuple[int, int]) -> np.ndarray:
        masks = restore_masks(
            self.logits.reshape(-1, *self.logits.shape[-2:]),
            input_size=self.input_size,
            meta=self.meta,
            size=size,
            resize=self.resize,
            threshold=self.threshold,
        )
        return masks.any(0).numpy()


@dataclass(eq=False)
class ImageResult(Movable):
    """The answers for the K expressions of one image. Masks are restored when they are first read.

    Protocols differ in how they combine `masks` and `rejected`. `final_masks()` applies our rule.

    Args:
        meta: The image's sizes and expressions.
        ground_truth: For metrics, where the data set has it.
        mask_logits: (K, h, w) on the model's device, for an input of `input_size`.
        input_size: Size of the padded input; None if the masks cover the image alone.
        no_target_prob: (K,) on the CPU, or None for models without a no-target head.
        chosen: The instances of each expression (`choose_instances`), or None.
        word_of: (K, L), the word that each token is part of.
        token_regions: For models whose words retrieve places.
        settings: Thresholds and the no-target rule.
        united: For models without a merged mask: K times (N, h, w), the instances whose union it is. `mask_logits` is
            their maximum, which differs by a few pixels where instances meet.
    """

    meta: SampleMeta
    ground_truth: GroundTruth | None
    mask_logits: Tensor
    input_size: tuple[int, int] | None
    no_target_prob: Tensor | None = None
    chosen: list[InstancePrediction] | None = None
    word_of: Tensor | None = None
    token_regions: RegionPrediction | None = None
    settings: PostProcess = field(default_factory=PostProcess)
    united: list[Tensor] | None = None

    def restore(self, **options: Any) -> Tensor:
        """Return (K, H, W) bool: the merged masks by the given options of `restore_masks`."""
        options = {"input_size": self.input_size, "meta": self.meta, **options}
        if self.united is None:
            return restore_masks(self.mask_logits, **options)
        return torch.stack([restore_masks(instances, **options).any(0) for instances in self.united])

    @cached_property
    def masks(self) -> Tensor:
        """(K, height, width) bool: thresholded merged masks at the original size, whatever `rejected` says."""
        return self.restore(
            resize=self.settings.resize,
            threshold=self.settings.threshold,
            max_elements=self.settings.max_elements,
        )

    def merged(self, k: int) -> LogitMask:
        """Return the merged mask of expression k."""
        return self.lazy_mask(self.mask_logits[k] if self.united is None else self.united[k])

    @cached_property
    def rejected(self) -> Tensor:
        """(K,) bool: the no-target rule says "nothing here"."""
        return reject(self.masks, self.no_target_prob, self.settings)

    def final_masks(self) -> Tensor:
        """(K, height, width) bool: the masks, empty where the expression is rejected."""
        return self.masks & ~self.rejected[:, None, None]

    def lazy_mask(self, logits: Tensor) -> LogitMask:
        """Return the mask of one (h, w) map of logits, or the union of several."""
        return LogitMask(logits, self.input_size, self.meta, self.settings.threshold, self.settings.resize)

    @cached_property
    def queries(self) -> list[list[Instance]] | None:
        """The chosen queries of each expression, best first; None from models that do not tell instances apart."""
        if self.chosen is None:
            return None
        words = instance_words(self.chosen, self.word_of, self.meta)
        return [
            list(map(Instance, map(self.lazy_mask, queries.mask_logits), queries.relevance.tolist(), weights))
            for queries, weights in zip(self.chosen, words, strict=True)
        ]

    @cached_property
    def instances(self) -> list[list[Instance]] | None:
        """The queries with a mask that is not empty, whatever `rejected` says."""
        if self.queries is None:
            return None
        return [[one for one in of_expression if one.mask.any()] for of_expression in self.queries]

    @cached_property
    def regions(self) -> list[WordRegions] | None:
        """One per expression; None from models whose words retrieve nothing."""
        if self.token_regions is None or self.word_of is None or self.input_size is None:
            return None
        return restore_regions(self.token_regions, self.word_of, input_size=self.input_size, meta=self.meta)


def highest(mask_logits: Tensor) -> Tensor:
    """Return the highest of the logits (N, h, w) per pixel, or `NOTHING` if N is 0."""
    return mask_logits.amax(0) if len(mask_logits) else mask_logits.new_full(mask_logits.shape[1:], NOTHING)


def finish(prediction: Prediction, batch: Batch, settings: PostProcess) -> list[ImageResult]:
    """Return one result per image of the batch, in order, with the image's expressions in their order."""
    probs = None if prediction.no_target_logit is None else prediction.no_target_logit.float().sigmoid().cpu()
    image_of = batch.image_of.cpu()
    chosen = word_of = None
    if prediction.instances and (settings.instances or prediction.mask_logits is None):
        chosen = choose_instances(prediction.instances, settings)
    mask_logits, united = prediction.mask_logits, None
    if mask_logits is None:
        united = [of_expression.mask_logits for of_expression in chosen or ()]
        mask_logits = torch.stack([highest(logits) for logits in united])
    if not settings.instances:
        chosen = None
    if batch.tokens.word_of is not None and (chosen is not None or prediction.regions is not None):
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of).cpu()
    results = []
    for image, (meta, truth) in enumerate(zip(batch.metas, batch.ground_truth, strict=True)):
        rows = (image_of == image).nonzero().flatten()
        regions = prediction.regions
        size = None if prediction.covers == "image" else tuple(batch.images.shape[-2:])
        results.append(
            ImageResult(
                meta,
                truth,
                mask_logits[rows.to(mask_logits.device)],
                size,
                None if probs is None else probs[rows],
                None if chosen is None else [chosen[row] for row in rows.tolist()],
                None if word_of is None else word_of[rows],
                None if regions is None else RegionPrediction(regions.scores[rows], regions.retrieved[rows]),
                settings,
                None if united is None else [united[row] for row in rows.tolist()],
            )
        )
    return results


def check_finite(result: ImageResult) -> None:
    """Raise an error for values that are not finite, which would be scored as empty masks."""
    for name, values in (("mask logits", result.mask_logits), ("no-target probability", result.no_target_prob)):
        if values is not None and not (finite := values[:, None].isfinite().flatten(1).all(1)).all():
            raise diverged(name, result.meta.expression_ids[int((~finite).nonzero()[0])])


def diverged(name: str, expression: str) -> CheckpointError:
    """Return the error for a prediction that is not finite."""
    return CheckpointError(
        f"The model's {name} for expression {expression} is not finite (NaN or infinite): its weights have diverged, "
        "or mixed precision overflowed. Evaluate an earlier checkpoint, or without mixed precision."
    )
