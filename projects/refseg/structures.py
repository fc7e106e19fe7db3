"""What flows through refseg after the records (`refseg.records`): samples, batches, features, predictions.

Letters: B images, E expressions, U distinct texts, L words (tokens), I instances, N queries, C channels.
Every class has slots: a misspelt field is an error, not a new attribute. `x.to(device)` moves any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refseg.records import Record

if TYPE_CHECKING:
    from typing_extensions import Self


def move(value: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """Moves every tensor inside tensors, lists, tuples, dicts and the classes above; the rest is returned as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Movable) and is_dataclass(value):
        moved = {f.name: move(getattr(value, f.name), device, non_blocking=non_blocking) for f in fields(value)}
        return replace(value, **moved)
    if isinstance(value, dict):
        return {key: move(item, device, non_blocking=non_blocking) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [move(item, device, non_blocking=non_blocking) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


class Movable:
    """Gives the classes below `to(device)`, which returns a moved copy."""

    __slots__ = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return move(self, device, non_blocking=non_blocking)


# Samples and batches: what a model sees -------------------------------------------------------------------------------


@dataclass(slots=True)
class TextTokens(Movable):
    """Distinct texts as tokens, and which of them each expression is.

    `ids`, `word_mask` (U, L): token ids; True on real tokens. `text_of` (E,): row of each expression.
    `num_truncated`: expressions that were longer than the tokenizer's limit. `word_of` (U, L): which of `text.split()`
    each token is part of, -1 of special tokens and padding; None where nobody told. Models do not need it.
    """

    ids: Tensor
    word_mask: Tensor
    text_of: Tensor
    num_truncated: int = 0
    word_of: Tensor | None = None


@dataclass(slots=True)
class SampleMeta:
    """Where a sample comes from, and what is needed to bring a mask back to its image.

    `content_size`: (height, width) of the resized image inside the padded input; padding is right and below.
    `unknown_words`: for each text, the words that the tokenizer does not know; empty where nothing says.
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
    """Evaluation's ground truth at the original size.

    `record`: the sample's expressions, with the instances that they refer to and no others; every instance has a box,
    (x, y, width, height), as annotated or around its mask. `instance_rles`: their masks, with the union of polygons.
    """

    record: Record
    instance_rles: list[dict]

    @property
    def referents(self) -> list[tuple[int, ...]]:
        """Per expression, indices of its instances."""
        return [expression.referents for expression in self.record.expressions]


@dataclass(slots=True)
class Sample(Movable):
    """One image with K expressions, packed for collation.

    `image` (3, H, W) uint8 RGB. `instance_masks` (I, H, W) bool at the input's size: the instances some expression
    refers to; `instance_boxes` (I, 4) float32: their boxes as x0, y0, x1, y1 in pixels of the input. `referents`
    (K, I) bool. `token_ids`: K lists of ids, to be padded with `pad_id`. `word_of`: of each token, the word of its text
    (`TextTokens`).
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
    """B images, E >= B expressions. Those of an image follow each other, images in order.

    `images` (B, 3, H, W): uint8 from `collate`, normalised floats after the data preprocessor.
    `pixel_mask` (B, H, W) bool: True on image, False on padding. `image_of` (E,): the image of each expression.
    `instance_masks`: B tensors (I_b, H, W) bool. `referents`: E tensors (I_b,) bool over the instances of its image.
    `instance_boxes`: B tensors (I_b, 4) of x0, y0, x1, y1 in pixels of the input.
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
        return self.images.shape[0]

    @property
    def num_expressions(self) -> int:
        return self.image_of.shape[0]

    @property
    def expression_counts(self) -> list[int]:
        """The number of expressions of each image; known without asking the device."""
        return [len(meta.expression_ids) for meta in self.metas]

    @property
    def is_padded(self) -> bool:
        """Whether any image is smaller than the input; known without asking the device."""
        size = tuple(self.images.shape[-2:])
        return any(tuple(meta.content_size) != size for meta in self.metas)

    def target_masks(self) -> list[Tensor]:
        """Per expression the masks of its referents, (num referents, H, W) bool."""
        images = self.image_of.tolist()
        return [self.instance_masks[image][refers] for image, refers in zip(images, self.referents, strict=True)]

    def merged_masks(self) -> Tensor:
        """The union of each expression's referents, (E, H, W) bool."""
        return torch.stack([masks.any(0) for masks in self.target_masks()])

    def no_target(self) -> Tensor:
        """(E,) bool: the expression refers to nothing."""
        return torch.stack([~refers.any() for refers in self.referents])


# Features and predictions: what models say ----------------------------------------------------------------------------


@dataclass(slots=True)
class TextFeatures(Movable):
    """Word features of the distinct texts: `word_feats` (U, L, C), `word_mask` (U, L), `text_of` (E,), which is None
    where rows are expressions already."""

    word_feats: Tensor
    word_mask: Tensor
    text_of: Tensor | None

    def per_expression(self) -> tuple[Tensor, Tensor]:
        """Word features (E, L, C) and mask (E, L)."""
        if self.text_of is None:
            return self.word_feats, self.word_mask
        return self.word_feats.index_select(0, self.text_of), self.word_mask.index_select(0, self.text_of)


@dataclass(slots=True)
class EncodedFeatures(Movable):
    """Pixel features by level, fine to coarse, (B, C_i, H_i, W_i); `masks` (B, H_i, W_i), True on image; `strides` of
    each level; `image_of` (E,), the row of each expression. Where words were fused inside the encoder, rows are
    expressions and `image_of` is None."""

    levels: list[Tensor]
    masks: list[Tensor]
    strides: tuple[int, ...]
    image_of: Tensor | None

    def per_expression(self) -> Self:
        """The same with one row per expression."""
        if self.image_of is None:
            return self
        levels, masks = ([t.index_select(0, self.image_of) for t in tensors] for tensors in (self.levels, self.masks))
        return replace(self, levels=levels, masks=masks, image_of=None)


@dataclass(slots=True)
class InstancePrediction(Movable):
    """Per query: `mask_logits` (N, h, w), `relevance` (N,) in 0..1, `word_attention` (N, L) or None."""

    mask_logits: Tensor
    relevance: Tensor
    word_attention: Tensor | None = None


@dataclass(slots=True)
class RegionPrediction(Movable):
    """What each token drew from the image, at a coarse level: `scores` (E, L, h, w), and which places are `retrieved`
    (E, L, h, w) bool."""

    scores: Tensor
    retrieved: Tensor


@dataclass(slots=True)
class Prediction(Movable):
    """What every model returns for E expressions, at any one resolution of the padded input.

    `mask_logits` (E, h, w): the merged mask. `no_target_logit` (E,) or None for models that cannot tell.
    `instances`: E entries, for models that tell instances apart. `auxiliary`: what only the model's loss reads.
    `regions`: for models whose words retrieve places.
    """

    mask_logits: Tensor
    no_target_logit: Tensor | None = None
    instances: list[InstancePrediction] | None = None
    auxiliary: Any = None
    regions: RegionPrediction | None = None


@dataclass(slots=True)
class WordRegions(Movable):
    """Where in the image an expression and its words were found, on a grid of (h, w) cells, on the CPU.

    `scores` (1 + W, h, w), `retrieved` (1 + W, h, w) bool. Row 0 is of the expression as a whole, row 1 + i of word i
    of `text.split()`: of its tokens the highest score, and every cell that one of them retrieved. A word that was cut
    off has scores of NaN and no cell. `extent`: rows and columns of the grid that the image covers, not always whole
    ones; a pixel at y of an image of that height is in row floor(y / height * extent[0]).
    """

    scores: Tensor
    retrieved: Tensor
    extent: tuple[float, float]
