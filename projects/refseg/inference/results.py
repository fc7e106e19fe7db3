"""Answers of the inferencer: typed, on the CPU, as numpy arrays at the image's size.

Masks are brought to the image's size when they are asked for. Scores, "nothing here" and the choice of the instances
that are shown are computed at the working size: that of the model's input, or the image's if that is smaller.

Letters: H x W pixels of the image, (h, w) cells of a model's own grid, N instances.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from refseg.datasets.geometry import Size
from refseg.datasets.masks import encode
from refseg.datasets.tokenizers import all_unknown
from refseg.evaluation.prediction_file import PredictionRow, rle_to_json
from refseg.files import write_atomically
from refseg.instance import Instance
from refseg.models.postprocess import ImageResult, LogitMask, PostProcess, reject
from refseg.structures import WordRegions
from refseg.visualization import answers
from refseg.visualization.heat import GridMap
from refseg.visualization.instances import answer_panel, own_phrases, words_by_instance
from refseg.visualization.overlay import Display, grid, reduce_image, reduced_size
from refseg.visualization.word_bars import Owners, owners_of_words

SAME_OBJECT_IOU = 0.8  # of two instances that overlap more, the one with the better score is shown


def mask_png(mask: np.ndarray) -> bytes:
    """(H, W) bool -> a PNG of one bit a pixel, white on black."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_picture(file: str | Path, picture: np.ndarray) -> None:
    """As a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_atomically(file, buffer.getvalue())


@dataclass(frozen=True, eq=False)
class PhraseAnswer:
    """The answer to one phrase.

    `lazy_mask` and `queries` (best first; None from models that do not tell instances apart) are what the model drew.
    `reason`: why nothing is here, in words; empty where the phrase refers to something. `no_target_prob`: None from
    models that cannot say. `probability`: of each cell, that the phrase refers to it. `regions`: what the words
    retrieved (VIPA), or None. `unknown_words`: parts of the phrase that the model does not know. `aligned`: whether
    the instances' weights of words were measured to find the right words; pictures show words only then.
    """

    text: str
    lazy_mask: LogitMask
    reason: str
    no_target_prob: float | None
    queries: tuple[Instance, ...] | None
    probability: GridMap
    regions: WordRegions | None = None
    unknown_words: tuple[str, ...] = ()
    aligned: bool = False

    @property
    def nothing_here(self) -> bool:
        """The phrase refers to nothing in this image."""
        return bool(self.reason)

    @property
    def raw_mask(self) -> np.ndarray:
        """(H, W) bool: what the model drew, whatever `nothing_here` says."""
        return self.lazy_mask.full

    @cached_property
    def raw_instances(self) -> tuple[Instance, ...] | None:
        """All instances with a pixel, whatever `nothing_here` says; None from models that do not tell them apart."""
        return None if self.queries is None else tuple(one for one in self.queries if one.mask.any())

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: everything that the phrase refers to."""
        return np.zeros(self.lazy_mask.meta.original_size, bool) if self.nothing_here else self.lazy_mask.full

    def mask_at(self, size: Size) -> np.ndarray:
        """`mask` for the image scaled to `size`."""
        return np.zeros(size, bool) if self.nothing_here else self.lazy_mask.at(size)

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The objects one by one, best first; none where nothing is here, and none from models that do not tell them
        apart.

        Left out is an instance of which less than one cell of the model's grid lies in the answer, and one that
        overlaps a better one with an IoU above `SAME_OBJECT_IOU`.
        """
        if self.nothing_here:
            return ()
        answer = self.lazy_mask.small
        cell = answer.size / (self.probability.extent[0] * self.probability.extent[1])
        shown: list[tuple[Instance, np.ndarray]] = []
        for one in self.queries or ():
            mask = one.mask_at(answer.shape)
            is_in_answer = np.count_nonzero(mask & answer) >= cell
            if is_in_answer and all(_iou(mask, better) <= SAME_OBJECT_IOU for _, better in shown):
                shown.append((one, mask))
        return tuple(one for one, _ in shown)

    @property
    def objects(self) -> tuple[Instance, ...]:
        """The instances, or the whole mask as one object where there are none of them."""
        if self.nothing_here or self.instances:
            return self.instances
        return (Instance(self.lazy_mask, self.score),)

    @property
    def words(self) -> list[Sequence[float] | None]:
        """The weights of words that are shown of each instance: None where `aligned` is False."""
        return [one.words if self.aligned else None for one in self.instances]

    @property
    def owners(self) -> list[Owners]:
        """The instances of each word of `text.split()`."""
        return owners_of_words(len(self.text.split()), words_by_instance(self.text, self.words))

    def cases(self, size: Size) -> list[Instance]:
        """The instances as pictures take them, for the image scaled to `size`."""
        masks = [one.mask_at(size) for one in self.instances]
        return list(map(Instance, masks, [one.score for one in self.instances], self.words))

    @cached_property
    def share(self) -> float:
        """The share of the image that the phrase refers to."""
        return 0.0 if self.nothing_here else float(self.lazy_mask.small.mean())

    @cached_property
    def score(self) -> float:
        """The mean probability of the mask's pixels; 0 where nothing is here."""
        if self.nothing_here:
            return 0.0
        return float(self.probability.at(self.lazy_mask.small.shape)[self.lazy_mask.small].mean())

    @property
    def in_words(self) -> str:
        """The answer in a sentence, without the phrase."""
        unknown = f"; the model does not know: {', '.join(self.unknown_words)}" if self.unknown_words else ""
        if self.nothing_here:
            reason_is_unknown = all_unknown(self.text, self.unknown_words)
            return f"{answers.NOTHING_HERE}: {self.reason}{'' if reason_is_unknown else unknown}"
        count = len(self.instances)
        objects = f"{count} object{'s' * (count > 1)}, " if count else ""
        return f"{objects}{answers.percent(self.share)} of the image, score {self.score:.2f}{unknown}"

    def word_attention(self, size: Size | None = None) -> np.ndarray:
        """(W, H, W) float32: for each word of `text.split()`, the share of attention that it has in each pixel's
        instance; where instances overlap, the greatest."""
        size = size or self.lazy_mask.meta.original_size
        shares = np.zeros((len(self.text.split()), *size), np.float32)
        for one in self.instances:
            weights = np.asarray(one.words or (), np.float32)
            if weights.size and weights.sum() > 0:
                np.maximum(shares, (weights / weights.sum())[:, None, None] * one.mask_at(size), out=shares)
        return shares

    def rle(self) -> dict[str, Any]:
        """`mask` as COCO's compressed RLE, ready for JSON."""
        return rle_to_json(encode(self.mask))

    def png(self) -> bytes:
        """`mask` as a PNG, white on black."""
        return mask_png(self.mask)

    def save_png(self, file: str | Path) -> None:
        write_atomically(file, self.png())

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "nothing_here": self.nothing_here,
            "reason": self.reason,
            "unknown_words": list(self.unknown_words),
            "no_target_prob": self.no_target_prob,
            "score": self.score,
            "mask": self.rle(),
            "instances": [
                {
                    "score": one.score,
                    "box": list(one.box),
                    "words": one.rounded_words,
                    "phrase": one.phrase,
                    "mask": rle_to_json(one.rle),
                }
                for one in self.instances
            ],
        }

    def to_row(self, expression_id: str) -> PredictionRow:
        """As prediction files have it: what the model drew, whatever its rule for "nothing here" says."""
        instances = None
        if self.raw_instances is not None:
            instances = [Instance(one.rle, one.score, one.rounded_words) for one in self.raw_instances]
        return PredictionRow(expression_id, encode(self.raw_mask), self.no_target_prob, instances=instances)


@dataclass(frozen=True, eq=False)
class ImageAnswer:
    """The answers to all phrases of one image, in their order; `answer[0]`, `len(answer)` and loops are over phrases.

    `image` (H, W, 3) RGB uint8, as the model saw it before resizing. `num_cut`: phrases that were longer than the
    model reads. `seconds`: of loading and preparing the image, encoding, decoding and finishing, each divided by the
    images that went through together.
    """

    name: str
    image: np.ndarray
    phrases: tuple[PhraseAnswer, ...]
    num_cut: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _reduced: dict[Size, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.phrases)

    def __iter__(self) -> Iterator[PhraseAnswer]:
        return iter(self.phrases)

    def __getitem__(self, number: int) -> PhraseAnswer:
        return self.phrases[number]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.image.shape[0], self.image.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        return {
            "image": self.name,
            "size": list(self.size),
            "phrases": [phrase.to_dict() for phrase in self.phrases],
            "num_cut": self.num_cut,
            "seconds": self.seconds,
        }

    def view(self, display: Display) -> np.ndarray:
        """The image, reduced for a display if it is larger. It is reduced once for all phrases."""
        size = reduced_size(self.size, display)
        if size == self.size:
            return self.image
        if size not in self._reduced:
            self._reduced[size] = reduce_image(self.image, size)
        return self._reduced[size]

    def picture(self) -> np.ndarray:
        """(h, w, 3): a panel for each phrase."""
        display = answers.display_for(len(self))
        image = self.view(display)
        size = image.shape[:2]
        cells = [
            answers.answer_cell(
                image, phrase.text, phrase.mask_at(size), phrase.cases(size), phrase.in_words, display=display
            )
            for phrase in self
        ]
        return grid(cells, columns=answers.columns_for(len(self)))

    def panel(self, number: int, display: Display) -> np.ndarray:
        """(h, w, 3): the answer to one phrase in colors, without its words."""
        phrase, image = self.phrases[number], self.view(display)
        mask, cases = phrase.mask_at(image.shape[:2]), phrase.cases(image.shape[:2])
        return answer_panel(image, mask, cases, rejected=phrase.nothing_here, display=display)

    def save_picture(self, file: str | Path) -> None:
        write_picture(file, self.picture())

    def heat_picture(self, number: int) -> np.ndarray:
        """(h, w, 3): for one phrase, how probable each place is, and what the model ties to each word: the instances,
        shaded by the word's weight, or the places that it retrieved."""
        phrase, image = self.phrases[number], self.view(answers.ONE_OF_FEW)
        size = image.shape[:2]
        cells = [answers.heat_cell(image, phrase.probability.at(size), f"probability of \u201c{phrase.text}\u201d")]
        if phrase.regions is not None:
            cells += [self._region_cell(phrase, row) for row in range(len(phrase.regions.scores))]
        elif any(one.words for one in phrase.instances):
            cells += [
                answers.heat_cell(image, attention, f"instance masks x weight of \u201c{word}\u201d")
                for word, attention in zip(phrase.text.split(), phrase.word_attention(size), strict=True)
            ]
        return grid(cells)

    def _region_cell(self, phrase: PhraseAnswer, row: int) -> np.ndarray:
        """`row` 0 is the phrase as a whole, 1 + i its word i."""
        assert phrase.regions is not None
        scores, retrieved = phrase.regions.scores[row].numpy(), phrase.regions.retrieved[row].numpy()
        words = "the whole phrase" if row == 0 else f"\u201c{phrase.text.split()[row - 1]}\u201d"
        finite = scores[np.isfinite(scores)]
        span = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        extent = phrase.regions.extent
        image = self.view(answers.ONE_OF_FEW)
        size = image.shape[:2]
        marked = GridMap(retrieved, extent).cells_at(size)
        title = f"retrieved by {words}" if finite.size else f"{words} was cut off"
        return answers.heat_cell(image, GridMap(scores, extent).at(size), title, marked=marked, span=span)

    def detections(self) -> dict[str, Any]:
        """Arguments for `supervision.Detections(**...)`: the objects of all phrases; a class is a phrase."""
        found = [(number, one) for number, phrase in enumerate(self.phrases) for one in phrase.objects]
        classes = np.array([number for number, _ in found], dtype=int)
        return {
            "xyxy": np.array([one.box for _, one in found], dtype=np.float32).reshape(-1, 4),
            "mask": np.array([one.mask for _, one in found], dtype=bool).reshape(-1, *self.size),
            "confidence": np.array([one.score for _, one in found], dtype=np.float32),
            "class_id": classes,
            "data": {"class_name": np.array([self.phrases[number].text for number in classes], dtype=str)},
        }


def answers_of(result: ImageResult, *, aligned: bool = False) -> tuple[PhraseAnswer, ...]:
    """Return the answers to the phrases of one image. `aligned`: see `PhraseAnswer`."""
    meta, texts = result.meta, result.meta.texts
    masks = [result.lazy_mask(logits) for logits in result.mask_logits]

    # Probabilities on the model's grid, of which the image covers the upper left part
    probs = result.mask_logits.float().sigmoid().numpy()
    sides = zip(meta.content_size, result.input_size, probs.shape[1:], strict=True)
    rows, columns = (content / whole * cells for content, whole, cells in sides)

    # Instances with their phrases
    queries: list[tuple[Instance, ...] | None] = [None] * len(texts)
    for k, of_text in enumerate(result.queries or ()):
        phrases = own_phrases(texts[k], [one.words if aligned else None for one in of_text])
        queries[k] = tuple(replace(one, phrase=phrase) for one, phrase in zip(of_text, phrases, strict=True))

    no_target_prob = [None] * len(texts) if result.no_target_prob is None else result.no_target_prob.tolist()
    unknown_words = meta.unknown_words or ((),) * len(texts)
    return tuple(
        PhraseAnswer(
            text=text,
            lazy_mask=masks[k],
            reason=_reason(text, masks[k], no_target_prob[k], unknown_words[k], result.settings),
            no_target_prob=no_target_prob[k],
            queries=queries[k],
            probability=GridMap(probs[k], (rows, columns)),
            regions=None if result.regions is None else result.regions[k],
            unknown_words=unknown_words[k],
            aligned=aligned,
        )
        for k, text in enumerate(texts)
    )


def _reason(
    text: str, mask: LogitMask, no_target_prob: float | None, unknown_words: tuple[str, ...], settings: PostProcess
) -> str:
    """Why nothing is here; empty where something is."""
    if all_unknown(text, unknown_words):
        return f"the model does not know: {', '.join(unknown_words)}"
    if not mask.small.any():
        known = "" if no_target_prob is None else f" (no-target probability {no_target_prob:.2f})"
        return f"no pixel reaches the threshold of {settings.threshold:g}{known}"
    by_area = settings.no_target == "area"
    prob = None if no_target_prob is None else torch.tensor([no_target_prob])
    if not reject(torch.from_numpy(mask.full if by_area else mask.small)[None], prob, settings):
        return ""
    if by_area:
        return f"fewer than {settings.min_area} pixels reach the threshold of {settings.threshold:g}"
    return f"no-target probability {no_target_prob:.2f}, above {settings.no_target_threshold:g}"


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks, of which one has a pixel."""
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)
