"""The answers of the inferencer: typed, on the CPU, as numpy arrays at the image's size.

Masks are restored at the image's size when they are read. Scores, "nothing here" and the choice of shown instances are
computed at the working size: that of the model's input, or the image's if that is smaller.

Letters: H x W pixels of the image, (h, w) cells of the model's grid, N instances.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from refseg.datasets.geometry import Size
from refseg.datasets.masks import encode, rle_to_json
from refseg.datasets.tokenizers import all_unknown
from refseg.evaluation.prediction_file import Answer
from refseg.files import write_atomically
from refseg.inference.clicks import ClickedMask, Clicks, MaskUnion
from refseg.instance import Instance
from refseg.models.postprocess import ImageResult, LogitMask, PostProcess, reject
from refseg.structures import WordRegions
from refseg.visualization import answers
from refseg.visualization.answers import GridMap
from refseg.visualization.instances import answer_panel
from refseg.visualization.overlay import NOTHING_HERE, Display, grid, reduce_image, reduced_size
from refseg.visualization.word_bars import Owners, instance_phrases, word_owners

SAME_OBJECT_IOU = 0.8  # instances that overlap more are the same object


def picture_png(picture: np.ndarray, **options: Any) -> bytes:
    """Encode a picture (H, W, 3), or a mask (H, W) bool as one bit per pixel, white on black."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", **options)
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class PhraseAnswer(Answer):
    """The answer to one phrase, with what a running model tells. Everything raw is as the model drew it.

    Args:
        source: The merged mask, made at the size it is asked for.
        text: The phrase.
        reason: Why the answer is "nothing here"; empty if the phrase refers to something.
        probability: For each cell of the model's grid, the probability that the phrase refers to it.
        regions: What the words retrieved (VIPA), or None.
        unknown_words: Words of the phrase that the model does not know.
        aligned: Whether the instances' word weights were measured to point to the right words. Pictures show words only
            then.
    """

    source: LogitMask | MaskUnion
    _: KW_ONLY
    text: str
    reason: str
    probability: GridMap
    regions: WordRegions | None = None
    unknown_words: tuple[str, ...] = ()
    aligned: bool = False

    @property
    def nothing_here(self) -> bool:
        """Whether the phrase refers to nothing in this image."""
        return bool(self.reason)

    @property
    def raw_mask(self) -> np.ndarray:
        """(H, W) bool: the mask that the model drew, whatever `nothing_here` says."""
        return self.source.full

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: everything that the phrase refers to."""
        return self.mask_at(self.source.meta.original_size)

    @property
    def clicks(self) -> tuple[Clicks, ...]:
        """The clicks that corrected the answer: one entry for each mask that was corrected."""
        parts = self.source.parts if isinstance(self.source, MaskUnion) else (self.source,)
        return tuple(part.clicks for part in parts if isinstance(part, ClickedMask))

    def mask_at(self, size: Size) -> np.ndarray:
        """Return `mask` for the image scaled to `size`."""
        return np.zeros(size, bool) if self.nothing_here else self.source.at(size)

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The objects one by one, best first. None are shown if nothing is here, or by models without instances.

        Skipped are instances with less than one cell of the model's grid inside the answer, and those that overlap a
        better one with an IoU above `SAME_OBJECT_IOU`.
        """
        if self.nothing_here:
            return ()
        answer = self.source.small
        cell = answer.size / (self.probability.extent[0] * self.probability.extent[1])
        shown: list[tuple[Instance, np.ndarray]] = []
        for one in self.raw_instances or ():
            mask = one.mask_at(answer.shape)
            if np.count_nonzero(mask & answer) >= cell and all(
                np.count_nonzero(mask & better) <= SAME_OBJECT_IOU * np.count_nonzero(mask | better)
                for _, better in shown
            ):
                shown.append((one, mask))
        return tuple(one for one, _ in shown)

    @property
    def objects(self) -> tuple[Instance, ...]:
        """The instances, or the whole mask as one object if there are none."""
        if self.nothing_here or self.instances:
            return self.instances
        return (Instance(self.source, self.score),)

    @property
    def words(self) -> list[Sequence[float] | None]:
        """The word weights of each instance that pictures show: None if `aligned` is False."""
        return [one.words if self.aligned else None for one in self.instances]

    @property
    def owners(self) -> list[Owners]:
        """The instances of each word of `text.split()`."""
        return word_owners(self.text, self.words)

    def instances_at(self, size: Size) -> list[Instance]:
        """Return the instances for a picture of the image scaled to `size`."""
        words = zip(self.instances, self.words, strict=True)
        return [Instance(one.mask_at(size), one.score, weights) for one, weights in words]

    @cached_property
    def share(self) -> float:
        """The share of the image that the phrase refers to."""
        return 0.0 if self.nothing_here else float(self.source.small.mean())

    @cached_property
    def score(self) -> float:
        """The mean probability of the mask's pixels; 0 if nothing is here."""
        if self.nothing_here:
            return 0.0
        mask = self.source.small
        return float(self.probability.at(mask.shape)[mask].mean())

    @property
    def in_words(self) -> str:
        """The answer in a sentence, without the phrase."""
        unknown = f"; the model does not know: {', '.join(self.unknown_words)}" if self.unknown_words else ""
        if self.nothing_here:  # unknown words may already be the reason
            unknown = "" if all_unknown(self.text, self.unknown_words) else unknown
            return f"{NOTHING_HERE}: {self.reason}{unknown}"
        count = len(self.instances)
        objects = f"{count} object{'s' * (count > 1)}, " if count else ""
        corrected = "; corrected by clicks" if self.clicks else ""
        return f"{objects}{answers.percent(self.share)} of the image, score {self.score:.2f}{corrected}{unknown}"

    def word_attention(self, size: Size | None = None) -> np.ndarray:
        """Return (W, H, W) float32: for each word of `text.split()`, its share of the attention of each pixel's
        instance; the greatest one where instances overlap."""
        size = size or self.source.meta.original_size
        shares = np.zeros((len(self.text.split()), *size), np.float32)
        for one in self.instances:
            weights = np.asarray(one.words or (), np.float32)
            if weights.size and weights.sum() > 0:
                np.maximum(shares, (weights / weights.sum())[:, None, None] * one.mask_at(size), out=shares)
        return shares

    def rle(self) -> dict[str, Any]:
        """Return `mask` as COCO's compressed RLE, ready for JSON."""
        return rle_to_json(encode(self.mask))

    def png(self) -> bytes:
        """Return `mask` as a PNG, white on black."""
        return picture_png(self.mask, optimize=True)

    def save_png(self, file: str | Path) -> None:
        """Write `mask` as a PNG, white on black."""
        write_atomically(file, self.png())

    def to_dict(self) -> dict[str, Any]:
        """Return the answer ready for JSON, with masks as RLEs."""
        return {
            "text": self.text,
            "nothing_here": self.nothing_here,
            "reason": self.reason,
            "unknown_words": list(self.unknown_words),
            "no_target_prob": self.no_target_prob,
            "score": self.score,
            "mask": self.rle(),
            "clicks": [clicks.to_dict() for clicks in self.clicks],
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


@dataclass(frozen=True, eq=False)
class ImageAnswer:
    """The answers to all phrases of one image. `len(answer)`, `answer[0]` and loops are over phrases, in their order.

    Args:
        name: Path, URL or name of the image.
        image: (H, W, 3) RGB uint8, before it is resized for the model.
        phrases: The answers.
        num_cut: Number of phrases that were longer than the model reads.
        seconds: Seconds of loading and preparing the image, encoding, decoding and finishing, each divided by the
            number of images that were processed together.
        note: Why not to trust the answers, if the model was not made for such an image; else empty. Only the model that
            ships with refseg knows this.
    """

    name: str
    image: np.ndarray
    phrases: tuple[PhraseAnswer, ...]
    num_cut: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
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
        """Return everything but the pixels, ready for JSON."""
        return {
            "image": self.name,
            "size": list(self.size),
            "phrases": [phrase.to_dict() for phrase in self.phrases],
            "num_cut": self.num_cut,
            "seconds": self.seconds,
            "note": self.note,
        }

    def view(self, display: Display) -> np.ndarray:
        """Return the image, reduced if it is larger than the display. It is reduced once for all phrases."""
        size = reduced_size(self.size, display)
        if size == self.size:
            return self.image
        if size not in self._reduced:
            self._reduced[size] = reduce_image(self.image, size)
        return self._reduced[size]

    def picture(self) -> np.ndarray:
        """Draw a panel for each phrase: (h, w, 3)."""
        display = answers.display_for(len(self))
        image = self.view(display)
        size = image.shape[:2]
        cells = [
            answers.answer_cell(
                image, phrase.text, phrase.mask_at(size), phrase.instances_at(size), phrase.in_words, display=display
            )
            for phrase in self
        ]
        return grid(cells, columns=answers.columns_for(len(self)))

    def panel(self, number: int, display: Display) -> np.ndarray:
        """Draw the answer to one phrase, without its words: (h, w, 3)."""
        phrase, image = self.phrases[number], self.view(display)
        mask, instances = phrase.mask_at(image.shape[:2]), phrase.instances_at(image.shape[:2])
        return answer_panel(image, mask, instances, rejected=phrase.nothing_here, display=display)

    def save_picture(self, file: str | Path) -> None:
        """Write `picture()` as a PNG."""
        write_atomically(file, picture_png(self.picture()))

    def heat_picture(self, number: int) -> np.ndarray:
        """Draw heat maps of one phrase: (h, w, 3).

        The first shows the probability of each place. The others show what the model ties to each word: the instances,
        shaded by the word's weight, or the places that the word retrieved.
        """
        phrase, image = self.phrases[number], self.view(answers.ONE_OF_FEW)
        size = image.shape[:2]
        words = phrase.text.split()
        cells = [answers.heat_cell(image, phrase.probability.at(size), f"probability of \u201c{phrase.text}\u201d")]
        if phrase.regions is not None:
            regions, names = phrase.regions, ["the whole phrase", *(f"\u201c{word}\u201d" for word in words)]
            for name, scores, retrieved in zip(names, regions.scores.numpy(), regions.retrieved.numpy(), strict=True):
                finite = scores[np.isfinite(scores)]
                cells.append(
                    answers.heat_cell(
                        image,
                        GridMap(scores, regions.extent).at(size),
                        f"retrieved by {name}" if finite.size else f"{name} was cut off",
                        marked=GridMap(retrieved, regions.extent).cells_at(size),
                        span=(float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0),
                    )
                )
        elif any(one.words for one in phrase.instances):
            cells += [
                answers.heat_cell(image, attention, f"instance masks x weight of \u201c{word}\u201d")
                for word, attention in zip(words, phrase.word_attention(size), strict=True)
            ]
        return grid(cells)

    def detections(self) -> dict[str, Any]:
        """Return arguments for `supervision.Detections(**...)`: the objects of all phrases, with phrases as classes."""
        objects = [(number, one) for number, phrase in enumerate(self.phrases) for one in phrase.objects]
        classes = np.array([number for number, _ in objects], dtype=int)
        return {
            "xyxy": np.array([one.box for _, one in objects], dtype=np.float32).reshape(-1, 4),
            "mask": np.array([one.mask for _, one in objects], dtype=bool).reshape(-1, *self.size),
            "confidence": np.array([one.score for _, one in objects], dtype=np.float32),
            "class_id": classes,
            "data": {"class_name": np.array([self.phrases[number].text for number in classes], dtype=str)},
        }


def answers_of(result: ImageResult, *, aligned: bool = False) -> tuple[PhraseAnswer, ...]:
    """Return the answers to the phrases of one image. `aligned`: see `PhraseAnswer`."""
    meta, texts = result.meta, result.meta.texts

    # Probabilities on the model's grid, of which the image covers the upper left part
    probs = result.mask_logits.float().sigmoid().numpy()
    whole = result.input_size or meta.content_size
    rows, columns = (c / w * cells for c, w, cells in zip(meta.content_size, whole, probs.shape[1:], strict=True))

    no_target_prob = [None] * len(texts) if result.no_target_prob is None else result.no_target_prob.tolist()
    unknown_words = meta.unknown_words or ((),) * len(texts)
    found = []
    for k, text in enumerate(texts):
        instances = None if result.queries is None else result.queries[k]
        if instances is not None:
            phrases = instance_phrases(text, [one.words if aligned else None for one in instances])
            instances = [replace(one, phrase=phrase) for one, phrase in zip(instances, phrases, strict=True)]
        mask = result.merged(k)
        no_instance = result.united is not None and not len(result.united[k])
        found.append(
            PhraseAnswer(
                meta.expression_ids[k],
                mask,
                no_target_prob[k],
                raw_instances=instances,
                text=text,
                reason=_reason(text, mask, no_target_prob[k], unknown_words[k], result.settings, no_instance),
                probability=GridMap(probs[k], (rows, columns)),
                regions=None if result.regions is None else result.regions[k],
                unknown_words=unknown_words[k],
                aligned=aligned,
            )
        )
    return tuple(found)


def corrected(answer: PhraseAnswer | None, mask: ClickedMask, instance: int | None) -> PhraseAnswer:
    """Return the answer with a corrected mask.

    Args:
        answer: The answer before the correction; None if there are only clicks.
        mask: The corrected mask.
        instance: The shown instance that it replaces. The merged mask is then the union of the shown instances. None:
            it replaces the merged mask, and the answer no longer has instances.
    """
    source: ClickedMask | MaskUnion = mask
    instances: list[Instance] | None = None
    if answer is not None and instance is not None:
        instances = [replace(one, source=mask) if k == instance else one for k, one in enumerate(answer.instances)]
        source = MaskUnion(tuple(one.source for one in instances))
    empty = not source.small.any()
    reason = "the corrected mask is empty" if empty else ""
    grid = mask.logits.shape[0], mask.logits.shape[1]
    probability = GridMap(source.logits_at(grid).sigmoid().numpy(), grid)
    if answer is None:
        return PhraseAnswer("0", source, text="clicks", reason=reason, probability=probability)
    return replace(
        answer,
        source=source,
        no_target_prob=None if answer.no_target_prob is None else float(empty),  # the user has decided
        raw_instances=instances,
        reason=reason,
        probability=probability,
    )


def _reason(
    text: str,
    mask: LogitMask,
    no_target_prob: float | None,
    unknown_words: tuple[str, ...],
    settings: PostProcess,
    no_instance: bool,
) -> str:
    """Return why nothing is here, or "" if the phrase refers to something.

    `no_instance`: the mask is the union of instances, and none has a score above the threshold.
    """
    if all_unknown(text, unknown_words):
        return f"the model does not know: {', '.join(unknown_words)}"
    if not mask.small.any():
        head = "" if no_target_prob is None else f" (no-target probability {no_target_prob:.2f})"
        if no_instance:
            return f"no object has a score of {settings.instance_threshold:g} or more{head}"
        return f"no pixel reaches the threshold of {settings.threshold:g}{head}"
    by_area = settings.no_target == "area"
    prob = None if no_target_prob is None else torch.tensor([no_target_prob])
    if not reject(torch.from_numpy(mask.full if by_area else mask.small)[None], prob, settings):
        return ""
    if by_area:
        return f"fewer than {settings.min_area} pixels reach the threshold of {settings.threshold:g}"
    return f"no-target probability {no_target_prob:.2f}, above {settings.no_target_threshold:g}"
