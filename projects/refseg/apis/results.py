"""What the inferencer answers: typed, on the CPU, as numpy arrays at the image's size.

Letters: H x W pixels of the image, (h, w) cells of a model's own grid, N instances.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.geometry import box_of_mask
from refseg.evaluation.prediction_file import PredictedInstance, PredictionRow, rle_to_json
from refseg.files import write_atomically
from refseg.structures import ImageResult, WordRegions
from refseg.visualization import answers
from refseg.visualization.glosses import Owners, owners_of_words, words_of_instances
from refseg.visualization.heat import GridMap
from refseg.visualization.instances import CaseInstance, answer_panel, words_by_instance
from refseg.visualization.overlay import grid


def encode_mask(mask: np.ndarray) -> dict:
    """(H, W) bool -> compressed COCO RLE."""
    return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


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
class FoundInstance:
    """One of the objects that a phrase means. `mask` (H, W) bool; `score`: its relevance, 0..1; `words`: a weight for
    each word of the phrase's `split()`, or None from models that do not say; `phrase`: the words that weigh most."""

    mask: np.ndarray
    score: float
    words: tuple[float, ...] | None = None
    phrase: str = ""

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around the mask, in pixels."""
        return box_of_mask(self.mask)

    @property
    def rounded(self) -> list[float] | None:
        """`words` as files have them."""
        return None if self.words is None else [round(weight, 4) for weight in self.words]

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "box": list(self.box),
            "words": self.rounded,
            "phrase": self.phrase,
            "mask": rle_to_json(encode_mask(self.mask)),
        }


@dataclass(frozen=True, eq=False)
class PhraseResult:
    """The answer to one phrase.

    `raw_mask` (H, W) bool and `raw_instances` (best first; None from models that do not tell them apart) are what the
    model drew, `rejected` whether it says "nothing here" nevertheless; `mask`, `instances` and `nothing_here` put them
    together, and are what counts. `no_target_prob`: None from models that cannot say. `probability`: of each cell, that
    the phrase means it. `regions`: what the words retrieved (VIPA), or None.
    """

    text: str
    raw_mask: np.ndarray
    rejected: bool
    no_target_prob: float | None
    raw_instances: tuple[FoundInstance, ...] | None
    probability: GridMap
    regions: WordRegions | None = None

    @cached_property
    def nothing_here(self) -> bool:
        """The phrase refers to nothing in this image."""
        return self.rejected or not self.raw_mask.any()

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: everything that the phrase refers to."""
        return np.zeros_like(self.raw_mask) if self.rejected else self.raw_mask

    @property
    def instances(self) -> tuple[FoundInstance, ...]:
        """The objects one by one; none where nothing is here, and none from models that do not tell them apart."""
        return () if self.nothing_here else self.raw_instances or ()

    @property
    def objects(self) -> tuple[FoundInstance, ...]:
        """The instances, or the whole mask as one object where there are none of them."""
        if self.nothing_here or self.instances:
            return self.instances
        return (FoundInstance(self.raw_mask, self.score),)

    @property
    def cases(self) -> list[CaseInstance]:
        """The instances as pictures take them."""
        return [CaseInstance(one.mask, one.score, one.words) for one in self.instances]

    @property
    def owners(self) -> list[Owners]:
        """The instances of each word of `text.split()`."""
        return owners_of_words(len(self.text.split()), words_by_instance(self.cases))

    @cached_property
    def score(self) -> float:
        """The mean probability of the mask's pixels; 0 where nothing is here."""
        if self.nothing_here:
            return 0.0
        return float(self.probability.at(self.raw_mask.shape)[self.raw_mask].mean())

    def word_attention(self) -> np.ndarray:
        """(W, H, W) float32: for each word of `text.split()`, the share of attention that it has in each pixel's
        instance; where instances overlap, the greatest."""
        shares = np.zeros((len(self.text.split()), *self.raw_mask.shape), np.float32)
        for one in self.instances:
            weights = np.asarray(one.words or (), np.float32)
            if weights.size and weights.sum() > 0:
                np.maximum(shares, (weights / weights.sum())[:, None, None] * one.mask, out=shares)
        return shares

    def rle(self) -> dict[str, Any]:
        """`mask` as COCO's compressed RLE, ready for JSON."""
        return rle_to_json(encode_mask(self.mask))

    def png(self) -> bytes:
        """`mask` as a PNG, white on black."""
        return mask_png(self.mask)

    def save_png(self, file: str | Path) -> None:
        write_atomically(file, self.png())

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "nothing_here": self.nothing_here,
            "no_target_prob": self.no_target_prob,
            "score": self.score,
            "mask": self.rle(),
            "instances": [instance.to_dict() for instance in self.instances],
        }

    def to_row(self, expression_id: str) -> PredictionRow:
        """As prediction files have it: what the model drew, whatever its rule for "nothing here" says."""
        instances = None
        if self.raw_instances is not None:
            instances = [PredictedInstance(encode_mask(one.mask), one.score, one.rounded) for one in self.raw_instances]
        return PredictionRow(expression_id, encode_mask(self.raw_mask), self.no_target_prob, instances=instances)


@dataclass(frozen=True, eq=False)
class ImageAnswer:
    """The answers to all phrases of one image, in their order; `answer[0]`, `len(answer)` and loops are over phrases.

    `image` (H, W, 3) RGB uint8, as the model saw it before resizing. `num_cut`: phrases that were longer than the
    model reads. `seconds`: of loading and preparing the image, encoding, decoding and finishing, each divided by the
    images that went through together.
    """

    name: str
    image: np.ndarray
    phrases: tuple[PhraseResult, ...]
    num_cut: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.phrases)

    def __iter__(self) -> Iterator[PhraseResult]:
        return iter(self.phrases)

    def __getitem__(self, number: int) -> PhraseResult:
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

    def picture(self) -> np.ndarray:
        """(h, w, 3): a panel for each phrase."""
        display = answers.display_for(len(self))
        cells = [
            answers.answer_cell(
                self.image, phrase.text, phrase.mask, phrase.cases, phrase.no_target_prob, display=display
            )
            for phrase in self
        ]
        return grid(cells, columns=answers.columns_for(len(self)))

    def panel(self, number: int, display: answers.Display) -> np.ndarray:
        """(h, w, 3): the answer to one phrase in colours, without its words."""
        phrase = self.phrases[number]
        return answer_panel(self.image, phrase.mask, phrase.cases, rejected=phrase.nothing_here, display=display)

    def save_picture(self, file: str | Path) -> None:
        write_picture(file, self.picture())

    def heat_picture(self, number: int) -> np.ndarray:
        """(h, w, 3): for one phrase, how probable each place is, and what the model ties to each word: the instances
        that attend to it, or the places that it retrieved."""
        phrase = self.phrases[number]
        probability = phrase.probability.at(self.size)
        cells = [answers.heat_cell(self.image, probability, f"probability of \u201c{phrase.text}\u201d")]
        if phrase.regions is not None:
            cells += [self._region_cell(phrase, row) for row in range(len(phrase.regions.scores))]
        elif any(one.words for one in phrase.instances):
            cells += [
                answers.heat_cell(self.image, attention, f"attention to \u201c{word}\u201d")
                for word, attention in zip(phrase.text.split(), phrase.word_attention(), strict=True)
            ]
        return grid(cells)

    def _region_cell(self, phrase: PhraseResult, row: int) -> np.ndarray:
        """`row` 0 is the phrase as a whole, 1 + i its word i."""
        assert phrase.regions is not None
        scores, retrieved = phrase.regions.scores[row].numpy(), phrase.regions.retrieved[row].numpy()
        words = "the whole phrase" if row == 0 else f"\u201c{phrase.text.split()[row - 1]}\u201d"
        finite = scores[np.isfinite(scores)]
        span = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        extent = phrase.regions.extent
        marked = GridMap(retrieved, extent).cells_at(self.size)
        title = f"retrieved by {words}" if finite.size else f"{words} was cut off"
        return answers.heat_cell(self.image, GridMap(scores, extent).at(self.size), title, marked=marked, span=span)

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


def answers_of(result: ImageResult, probs: np.ndarray) -> tuple[PhraseResult, ...]:
    """The phrases of one image. `probs` (K, h, w): of the mask, on the model's grid of the padded input."""
    height, width = result.meta.content_size
    scale = probs.shape[1] / result.input_size[0], probs.shape[2] / result.input_size[1]
    extent = (height * scale[0], width * scale[1])
    return tuple(
        PhraseResult(
            text=text,
            raw_mask=result.masks[k].numpy(),
            rejected=bool(result.rejected[k]),
            no_target_prob=None if result.no_target_prob is None else float(result.no_target_prob[k]),
            raw_instances=None if result.instances is None else _instances(text, result.instances[k]),
            probability=GridMap(probs[k], extent),
            regions=None if result.regions is None else result.regions[k],
        )
        for k, text in enumerate(result.meta.texts)
    )


def _instances(text: str, instances: list[Any]) -> tuple[FoundInstance, ...]:
    words = text.split()
    own = words_of_instances([one.words or () for one in instances])
    return tuple(
        FoundInstance(
            one.mask.numpy(), one.score, one.words and tuple(one.words), " ".join(words[index] for index in indices)
        )
        for one, indices in zip(instances, own, strict=True)
    )
