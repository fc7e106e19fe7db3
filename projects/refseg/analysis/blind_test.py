"""Scores with the wrong phrases or the wrong images: how much a trained model uses either."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from mmengine.registry import DefaultScope
from tqdm import tqdm

from refseg.analysis.trained_model import TrainedModel
from refseg.datasets.collate import collate_samples
from refseg.errors import UserError
from refseg.registry import METRICS
from refseg.structures import Sample

Exchange = Callable[[Sample, Sample], Sample]


def other_phrases(sample: Sample, other: Sample) -> Sample:
    """Replace the phrases by as many of another sample, starting over if it has fewer."""
    unknown = other.meta.unknown_words or [()] * len(other.meta.texts)
    phrases = itertools.cycle(zip(other.token_ids, other.word_of, other.meta.texts, unknown, strict=True))
    token_ids, word_of, texts, unknown = zip(*itertools.islice(phrases, len(sample.token_ids)), strict=True)
    meta = replace(sample.meta, texts=texts, unknown_words=unknown)
    return replace(sample, token_ids=list(token_ids), word_of=list(word_of), meta=meta)


def other_image(sample: Sample, other: Sample) -> Sample:
    """Replace the image by another sample's."""
    if sample.image.shape != other.image.shape:
        raise UserError("images can be exchanged only where all inputs have one size (Resize without keep_ratio)")
    return replace(sample, image=other.image)


EXCHANGES: dict[str, Exchange] = {
    "as it is": lambda sample, other: sample,
    "other phrases": other_phrases,
    "other image": other_image,
}


def measure_blind(trained: TrainedModel) -> dict[str, dict[str, float]]:
    """Return the metrics of the test set as it is, with the next sample's phrases, and with the next sample's image."""
    cfg, model, dataset = trained
    count, batch_size = len(dataset), cfg.test_dataloader.batch_size
    scores = {}
    for name, exchange in EXCHANGES.items():
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            metric = METRICS.build(cfg.test_evaluator)
        metric.dataset_meta = dataset.metainfo
        for start in tqdm(range(0, count, batch_size), desc=name, leave=False, disable=not sys.stderr.isatty()):
            items = range(start, min(start + batch_size, count))
            samples = [exchange(dataset[item], dataset[(item + 1) % count]) for item in items]
            with torch.no_grad():
                metric.process(None, model.test_step(collate_samples(samples)))
        scores[name] = metric.evaluate(count)
    return scores
