"""From a model and data to outcomes: one forward pass per image for all its phrases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from refseg.analysis.probes.meanings import pairs_of_scenes, preset_of
from refseg.analysis.probes.measure import SAME_IOU, Outcome, as_json, iou_of, outcome, summarise
from refseg.analysis.probes.pairs import KINDS, Pair
from refseg.analysis.probes.words import pairs_by_rule
from refseg.datasets.collate import collate_samples
from refseg.datasets.transforms import TransformState
from refseg.errors import DataError
from refseg.evaluation.metrics import check_finite, encode_masks
from refseg.evaluation.scorer import Data
from refseg.inference.loading import LoadedModel, build_transforms
from refseg.records import Expression, Record
from refseg.structures import Sample


@dataclass(frozen=True)
class ProbedImage:
    """An image with its pairs; `index` numbers images."""

    index: int
    record: Record
    pairs: list[Pair]

    @property
    def texts(self) -> list[str]:
        """Every phrase of the pairs once."""
        return list(dict.fromkeys(text for pair in self.pairs for text in (pair.text, pair.changed)))


def probed_images(
    data: Data, *, kinds: Collection[str], use_rules: bool = False, sent: bool = False
) -> Iterator[ProbedImage]:
    """Images that have pairs of these kinds. `sent`: phrases are the set's cleaned form, where it has one. Pairs whose
    truths are nearly the same are left out: one answer may be right on both."""
    truths, store = data.truths, data.truths.store
    preset = None if use_rules else preset_of(data.target.main_file)
    positions = np.argsort(truths.images, kind="stable")
    for group in np.split(positions, np.flatnonzero(np.diff(truths.images[positions])) + 1):
        image, truth = int(truths.images[group[0]]), truths.truth(int(group[0]))
        chosen = [_with_text(truths.expression(int(position)), sent) for position in group]
        truth.record.expressions = chosen
        if preset is not None:
            pairs = pairs_of_scenes(preset, truth.record)
        else:
            everything = [_with_text(expression, sent) for expression in store.record(image).expressions]
            pairs = pairs_by_rule(truth, chosen, everything, store.categories)
        kept = [pair for pair in pairs if pair.kind in kinds and not _same_truth(pair)]
        if kept:
            yield ProbedImage(image, truth.record, kept)


def _same_truth(pair: Pair) -> bool:
    return pair.changed_truth is not None and iou_of(pair.truth, pair.changed_truth) >= SAME_IOU


def _with_text(expression: Expression, sent: bool) -> Expression:
    if sent and expression.sent is not None:
        expression.text = expression.sent
    return expression


def make_sample(image: ProbedImage, transforms: Sequence[Callable[[Any], Any]]) -> Sample:
    """The image with all its phrases; these refer to nothing here, as the model is not told the truth."""
    expressions = [Expression(str(k), text, ()) for k, text in enumerate(image.texts)]
    state: Any = TransformState(image.record, expressions, np.random.default_rng(0))
    try:
        for transform in transforms:
            state = transform(state)
    except DataError as error:
        raise DataError(f"image {image.record.image_id}: {error}") from None
    return state


def probe_data(
    loaded: LoadedModel,
    data: Data,
    *,
    kinds: Collection[str] = tuple(KINDS),
    use_rules: bool = False,
    most_images: int | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Numbers and pairs, as `refseg probe --json` has them; of the first `most_images` images that have pairs."""
    model, transforms = loaded.segmentor, build_transforms(loaded.pipeline)
    loader = loaded.cfg.get("test_dataloader") or {}
    sent = (loader.get("dataset") or {}).get("text_field") == "sent"
    images = islice(probed_images(data, kinds=kinds, use_rules=use_rules, sent=sent), most_images)
    in_all = len(np.unique(data.truths.images))
    batch_size, total = loader.get("batch_size", 1), min(in_all, most_images or in_all)
    outcomes = probe(model, transforms, images, batch_size=batch_size, total=total)
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
        "probes": summarise(outcomes, resamples=resamples),
        "pairs": [as_json(one) for one in outcomes],
    }


def probe(
    model: nn.Module,
    transforms: Sequence[Callable[[Any], Any]],
    images: Iterable[ProbedImage],
    *,
    batch_size: int = 1,
    total: int | None = None,
) -> list[Outcome]:
    """Outcomes of all pairs. `batch_size`, `total`: of images, at once and, for the progress bar, at most."""
    images, outcomes = iter(images), []
    with tqdm(total=total, unit=" images", desc="probing", mininterval=0.5, dynamic_ncols=True) as bar:
        while batch := list(islice(images, batch_size)):
            with torch.no_grad():
                results = model.test_step(collate_samples([make_sample(image, transforms) for image in batch]))
            for image, result in zip(batch, results, strict=True):
                check_finite(result)
                answers = dict(zip(image.texts, encode_masks(result.final_masks()), strict=True))
                outcomes += [
                    outcome(pair, image.index, answers[pair.text], answers[pair.changed]) for pair in image.pairs
                ]
            bar.update(len(batch))
        bar.total = bar.n  # images without pairs are not probed
    return outcomes
