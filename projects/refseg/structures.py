"""Samples, batches, features, predictions and results: the data types after the records (`refseg.records`).

Letters: B images, E expressions, U distinct texts, L words (tokens), I instances, N queries, C channels.
Every class has slots, so a misspelled field is an error. `x.to(device)` moves any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from refseg.records import Record

if TYPE_CHECKING:
    from typing_extensions import Self


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Replace every tensor inside lists, tuples, dicts and the classes below. Other values are returned unchanged."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Movable) and is_dataclass(value):
        return replace(value, **{f.name: map_tensors(function, getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(function, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


class Movable:
    """Base of the classes below, with `to(device)` and `pin_memory()`."""

    __slots__ = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return a copy on another device."""
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking), self)

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, from which a GPU copies without waiting.

        A `DataLoader` with `pin_memory=True` calls it.
        """
        return map_tensors(Tensor.pin_memory, self)


# Samples and batches: the input of models -----------------------------------------------------------------------------


@dataclass(slots=True)
class TextTokens(Movable):
    """Tokens of the distinct texts, and the text of each expression.

    Args:
        ids: (U, L) token ids.
        word_mask: (U, L) bool, True on real tokens.
        text_of: (E,) row of each expression.
        num_truncated: Number of expressions that exceeded the tokenizer's limit.
        word_of: (U, L) index of each token's word in `text.split()`, -1 for special tokens and padding. None if
            unknown; models do not need it.
        pad_id: Token id of padding.
    """

    ids: Tensor
    word_mask: Tensor
    text_of: Tensor
    num_truncated: int = 0
    word_of: Tensor | None = None
    pad_id: int = 0


@dataclass(slots=True)
class SampleMeta:
    """Source of a sample, and the sizes for mapping a mask back to its image.

    Args:
        image_id: Id of the image in its data set.
        image_path: File of the image.
        original_size: (height, width) of the image file.
        content_size: (height, width) of the resized image inside the input, which is padded right and below.
        expression_ids: Ids of the expressions.
        texts: Texts of the expressions.
        tags: Tags of the expressions.
        unknown_words: For each text, the words that the tokenizer does not know; empty if unknown.
    """

    image_id: str
    image_path: str
    original_size: tuple[int, int]
    content_size: tuple[int, int]
    expression_ids: tuple[str, ...]
    texts: tuple[str, ...]
    tags: tuple[dict[str, Any], ...] = ()
    unknown_words: tuple[tuple[str, ...], ...] = ()


@dataclass(slots=True)
class GroundTruth:
    """Ground truth for evaluation, at the original size.

    Args:
        record: The sample's expressions and only the instances that they refer to. Every instance has a box, (x, y,
            width, height), as annotated or around its mask.
        instance_rles: Masks of these instances, with the union of their polygons.
    """

    record: Record
    instance_rles: list[dict]

    @property
    def referents(self) -> list[tuple[int, ...]]:
        """For each expression, the indices of its instances."""
        return [expression.referents for expression in self.record.expressions]


@dataclass(slots=True)
class Sample(Movable):
    """One image with K expressions, ready for collation.

    Args:
        image: (3, H, W) uint8 RGB.
        token_ids: Token ids of each expression.
        word_of: Word index of each token (`TextTokens`).
        pad_id: Token id of padding.
        instance_masks: (I, H, W) bool masks of all referents at the input's size.
        instance_boxes: (I, 4) float32 boxes of these instances, x0, y0, x1, y1 in pixels of the input.
        referents: (K, I) bool, True where an expression refers to an instance.
        meta: Source of the sample.
        ground_truth: Ground truth, in evaluation.
        num_truncated: Number of expressions that exceeded the tokenizer's limit.
    """

    image: Tensor
    token_ids: list[list[int]]
    word_of: list[list[int]]
    pad_id: int
    instance_masks: Tensor
    instance_boxes: Tensor
    referents: Tensor
    meta: SampleMeta
    ground_truth: GroundTruth | None = None
    num_truncated: int = 0


@dataclass(slots=True)
class Batch(Movable):
    """B images with E >= B expressions, which are grouped by image.

    Args:
        images: (B, 3, H, W), uint8 from `collate`, normalized floats after the data preprocessor.
        pixel_mask: (B, H, W) bool, True on image, False on padding.
        tokens: Tokens of the texts.
        image_of: (E,) image of each expression.
        metas: B sources of the samples.
        instance_masks: B bool tensors (I_b, H, W).
        referents: E bool tensors (I_b,) over the instances of the expression's image.
        ground_truth: B ground truths, in evaluation.
        instance_boxes: B tensors (I_b, 4) of x0, y0, x1, y1 in pixels of the input.
    """

    images: Tensor
    pixel_mask: Tensor
    tokens: TextTokens
    image_of: Tensor
    metas: list[SampleMeta]
    instance_masks: list[Tensor]
    referents: list[Tensor]
    ground_truth: list[GroundTruth | None]
    instance_boxes: list[Tensor] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """B."""
        return self.images.shape[0]

    @property
    def num_expressions(self) -> int:
        """E."""
        return self.image_of.shape[0]

    @property
    def expression_counts(self) -> list[int]:
        """Number of expressions of each image, known without synchronizing the device."""
        return [len(meta.expression_ids) for meta in self.metas]

    @property
    def is_padded(self) -> bool:
        """True if any image is smaller than the input. Known without synchronizing the device."""
        size = tuple(self.images.shape[-2:])
        return any(tuple(meta.content_size) != size for meta in self.metas)

    def target_masks(self) -> list[Tensor]:
        """Return for each expression the masks of its referents, (num referents, H, W) bool."""
        images = self.image_of.tolist()
        return [self.instance_masks[image][refers] for image, refers in zip(images, self.referents, strict=True)]

    def merged_masks(self) -> Tensor:
        """Return the union of each expression's referents, (E, H, W) bool."""
        images = [image for image, count in enumerate(self.expression_counts) for _ in range(count)]
        # Indexing with `refers` would make a GPU synchronize for every expression
        return torch.stack(
            [
                (self.instance_masks[image] & refers[:, None, None]).any(0)
                for image, refers in zip(images, self.referents, strict=True)
            ]
        )

    def no_target(self) -> Tensor:
        """Return (E,) bool, True for expressions that refer to nothing."""
        return torch.stack([~refers.any() for refers in self.referents])


# Features and predictions: the output of models -----------------------------------------------------------------------


@dataclass(slots=True)
class TextFeatures(Movable):
    """Word features of the distinct texts.

    Args:
        word_feats: (U, L, C) features.
        word_mask: (U, L) bool, True on real tokens.
        text_of: (E,) row of each expression, or None if rows are expressions already.
    """

    word_feats: Tensor
    word_mask: Tensor
    text_of: Tensor | None

    def per_expression(self) -> tuple[Tensor, Tensor]:
        """Return the word features (E, L, C) and mask (E, L) of each expression."""
        if self.text_of is None:
            return self.word_feats, self.word_mask
        return self.word_feats.index_select(0, self.text_of), self.word_mask.index_select(0, self.text_of)


@dataclass(slots=True)
class EncodedFeatures(Movable):
    """Pixel features of several levels, fine to coarse.

    Args:
        levels: Features (B, C_i, H_i, W_i).
        masks: (B, H_i, W_i) bool, True on image.
        strides: Stride of each level.
        image_of: (E,) row of each expression. None if words were fused in the encoder, so that rows are expressions.
    """

    levels: list[Tensor]
    masks: list[Tensor]
    strides: tuple[int, ...]
    image_of: Tensor | None

    def per_expression(self) -> Self:
        """Return features with one row per expression."""
        if self.image_of is None:
            return self
        levels, masks = ([t.index_select(0, self.image_of) for t in tensors] for tensors in (self.levels, self.masks))
        return replace(self, levels=levels, masks=masks, image_of=None)


@dataclass(slots=True)
class InstancePrediction(Movable):
    """Prediction of N queries for one expression.

    Args:
        mask_logits: (N, h, w) mask logits.
        relevance: (N,) probability that the query's instance is referred to.
        word_attention: (N, L) weights, or None.
    """

    mask_logits: Tensor
    relevance: Tensor
    word_attention: Tensor | None = None


@dataclass(slots=True)
class StackedInstances(Movable, Sequence):
    """Predictions of N queries for each of E expressions: a sequence of `InstancePrediction`.

    Args:
        mask_logits: (E, N, h, w) mask logits.
        relevance: (E, N) probability that the query's instance is referred to.
        word_attention: (E, N, L) weights, or None.
    """

    mask_logits: Tensor
    relevance: Tensor
    word_attention: Tensor | None = None

    def __len__(self) -> int:
        return len(self.relevance)

    def __getitem__(self, k: int) -> InstancePrediction:  # type: ignore[override]
        words = None if self.word_attention is None else self.word_attention[k]
        return InstancePrediction(self.mask_logits[k], self.relevance[k], words)

    def __iter__(self) -> Iterator[InstancePrediction]:
        # Sequence's own __iter__ waits for an IndexError, which torch.compile cannot trace
        return (self[k] for k in range(len(self)))


@dataclass(slots=True)
class RegionPrediction(Movable):
    """Image regions that each token retrieved, at a coarse level.

    Args:
        scores: (E, L, h, w) scores.
        retrieved: (E, L, h, w) bool.
    """

    scores: Tensor
    retrieved: Tensor


@dataclass(slots=True)
class Prediction(Movable):
    """Output of every model for E expressions, at any one resolution.

    Args:
        mask_logits: (E, h, w) logits of the merged mask. None: it is the union of the instances that post-processing
            chooses.
        no_target_logit: (E,), or None from models without a no-target head.
        instances: E entries, from models that predict instances.
        auxiliary: Values that only the model's loss reads.
        regions: Retrieved regions, from models whose words retrieve them.
        covers: What all masks cover: the padded "input" of the batch, or each "image" without its padding.
    """

    mask_logits: Tensor | None
    no_target_logit: Tensor | None = None
    instances: Sequence[InstancePrediction] | None = None
    auxiliary: Any = None
    regions: RegionPrediction | None = None
    covers: Literal["input", "image"] = "input"


@dataclass(slots=True)
class WordRegions(Movable):
    """Image regions that an expression and its words retrieved, on a grid of (h, w) cells, on the CPU.

    Row 0 belongs to the expression as a whole, row 1 + i to word i of `text.split()`. A word that was cut off has NaN
    scores and no cell.

    Args:
        scores: (1 + W, h, w), the highest score of the row's tokens.
        retrieved: (1 + W, h, w) bool, True for cells that a token of the row retrieved.
        extent: Rows and columns of the grid that the image covers, not necessarily whole ones. A pixel at y is in row
            floor(y / height * extent[0]).
    """

    scores: Tensor
    retrieved: Tensor
    extent: tuple[float, float]
