"""Probe a model on a data set: one forward pass per image for all its phrases."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from refseg.analysis.probes.measure import KINDS, SAME_IOU, Outcome, Pair, summarize
from refseg.analysis.probes.rule_pairs import pairs_by_rule
from refseg.analysis.probes.scene_pairs import pairs_of_scenes, preset_of
from refseg.datasets.collate import collate_samples
from refseg.datasets.transforms import TransformState
from refseg.errors import DataError
from refseg.evaluation.metrics import encode_masks
from refseg.evaluation.scorer import Data
from refseg.inference.loading import LoadedModel, build_transforms
from refseg.models.postprocess import check_finite
from refseg.records import Expression, Record


@dataclass(frozen=True)
class ProbedImage:
    """An image with its pairs."""

    index: int
    record: Record
    pairs: list[Pair]

    @property
    def texts(self) -> list[str]:
        """The phrases of the pairs, each one once."""
        return list(dict.fromkeys(text for pair in self.pairs for text in (pair.text, pair.changed)))


def probed_images(
    data: Data, *, kinds: Collection[str], use_rules: bool = False, sent: bool = False
) -> Iterator[ProbedImage]:
    """Yield the images that have pairs of these kinds. Pairs with nearly the same truth are left out.

    Args:
        use_rules: Change words by rule even where meanings are known.
        sent: Use the cleaned form of phrases, where the data set has one.
    """
    truths, store = data.truths, data.truths.store

    def with_text(expression: Expression) -> Expression:
        if sent and expression.sent is not None:
            expression.text = expression.sent
        return expression

    preset = None if use_rules else preset_of(data.target.main_file)
    positions = np.argsort(truths.images, kind="stable")
    for group in np.split(positions, np.flatnonzero(np.diff(truths.images[positions])) + 1):
        image, truth = int(truths.images[group[0]]), truths.truth(int(group[0]))
        chosen = [with_text(truths.expression(int(position))) for position in group]
        truth.record.expressions = chosen
        if preset is not None:
            pairs = pairs_of_scenes(preset, truth.record)
        else:
            everything = [with_text(expression) for expression in store.record(image).expressions]
            pairs = pairs_by_rule(truth, chosen, everything, store.categories)
        pairs = [pair for pair in pairs if pair.kind in kinds and not pair.same_truth]
        if pairs:
            yield ProbedImage(image, truth.record, pairs)


def probe_data(
    loaded: LoadedModel,
    data: Data,
    *,
    kinds: Collection[str] = tuple(KINDS),
    use_rules: bool = False,
    most_images: int | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Probe a model and return numbers and pairs, as in the files of `refseg probe --json`.

    Args:
        kinds: Kinds of changes, keys of KINDS.
        use_rules: Change words by rule even where meanings are known.
        most_images: Only the first images that have pairs. None: all.
        resamples: Number of bootstrap samples.
    """
    model, transforms = loaded.segmentor, build_transforms(loaded.pipeline)
    loader = loaded.cfg.get("test_dataloader") or {}
    sent = (loader.get("dataset") or {}).get("text_field") == "sent"
    images = islice(probed_images(data, kinds=kinds, use_rules=use_rules, sent=sent), most_images)
    num_images = len(np.unique(data.truths.images))
    total = min(num_images, most_images or num_images)
    outcomes: list[Outcome] = []
    with tqdm(total=total, unit=" images", desc="probing", mininterval=0.5, dynamic_ncols=True) as bar:
        while batch := list(islice(images, loader.get("batch_size", 1))):
            # Make a sample of each image and all its phrases, without referents.
            samples = []
            for image in batch:
                expressions = [Expression(str(k), text, ()) for k, text in enumerate(image.texts)]
                state: Any = TransformState(image.record, expressions, np.random.default_rng(0))
                try:
                    for transform in transforms:
                        state = transform(state)
                except DataError as error:
                    raise DataError(f"image {image.record.image_id}: {error}") from None
                samples.append(state)

            # Predict, and judge the answers to both phrases of each pair.
            with torch.no_grad():
                results = model.test_step(collate_samples(samples))
            for image, result in zip(batch, results, strict=True):
                check_finite(result)
                answers = dict(zip(image.texts, encode_masks(result.final_masks()), strict=True))
                outcomes += [
                    Outcome.of(pair, image.index, answers[pair.text], answers[pair.changed]) for pair in image.pairs
                ]
            bar.update(len(batch))
        bar.total = bar.n  # images without pairs are not probed
    if not outcomes:
        raise DataError(f"no phrase of {data.name} can be changed in these ways: {', '.join(kinds)}")
    by_meaning = not use_rules and preset_of(data.target.main_file) is not None
    return {
        "data": data.describe(),
        "images": len({one.image for one in outcomes}),
        "by": "meaning" if by_meaning else "rules on words",
        "same_iou": SAME_IOU,
        "bootstrap": {"level": 95.0, "resamples": resamples, "seed": 0, "of": "images"},
        "postprocess": asdict(model.postprocess),
        "probes": summarize(outcomes, resamples=resamples),
        "pairs": [one.as_json() for one in outcomes],
    }
