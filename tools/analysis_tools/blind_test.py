"""What a trained model makes of the wrong phrases, or of the wrong images: how much it uses either.

    python tools/analysis_tools/blind_test.py CONFIG CHECKPOINT [--split val] [--json blind.json]

The config's test set is scored three times: as it is; with the phrases of the next image; with the next image. Answers
are compared with the ground truth of the sample's own phrases and image each time. A model that does not read scores
the same with other phrases, one that does not look with other images.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from refseg.analysis.trained_model import Trained, analyse, analysis_parser
from refseg.datasets.collate import collate_samples
from refseg.errors import UserError
from refseg.registry import METRICS
from refseg.structures import Sample

Exchange = Callable[[Sample, Sample], Sample]


def as_it_is(sample: Sample, other: Sample) -> Sample:
    return sample


def other_phrases(sample: Sample, other: Sample) -> Sample:
    """As many of the other sample's phrases, from the start again where it has fewer."""
    unknown = other.meta.unknown_words or [()] * len(other.meta.texts)
    phrases = itertools.cycle(zip(other.token_ids, other.word_of, other.meta.texts, unknown, strict=True))
    token_ids, word_of, texts, unknown = zip(*itertools.islice(phrases, len(sample.token_ids)), strict=True)
    meta = replace(sample.meta, texts=texts, unknown_words=unknown)
    return replace(sample, token_ids=list(token_ids), word_of=list(word_of), meta=meta)


def other_image(sample: Sample, other: Sample) -> Sample:
    if sample.image.shape != other.image.shape:
        raise UserError("images can be exchanged only where all inputs have one size (Resize without keep_ratio)")
    return replace(sample, image=other.image)


EXCHANGES: dict[str, Exchange] = {"as it is": as_it_is, "other phrases": other_phrases, "other image": other_image}


def score(model: nn.Module, dataset: Dataset, evaluator: dict, exchange: Exchange, batch_size: int) -> dict[str, float]:
    metric = METRICS.build(evaluator)
    metric.dataset_meta = dataset.metainfo
    count = len(dataset)
    starts = range(0, count, batch_size)
    for start in tqdm(starts, desc=exchange.__name__, leave=False, disable=not sys.stderr.isatty()):
        items = range(start, min(start + batch_size, count))
        samples = [exchange(dataset[item], dataset[(item + 1) % count]) for item in items]
        with torch.no_grad():
            metric.process(None, model.test_step(collate_samples(samples)))
    return metric.evaluate(count)


def measure(trained: Trained) -> dict[str, dict[str, float]]:
    cfg, model, dataset = trained
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return {
            name: score(model, dataset, cfg.test_evaluator, exchange, cfg.test_dataloader.batch_size)
            for name, exchange in EXCHANGES.items()
        }


def main() -> None:
    parser = analysis_parser(__doc__)
    parser.add_argument("--metrics", nargs="+", default=["refseg/oIoU", "refseg/mIoU"])
    args = parser.parse_args()
    for name, metrics in analyse(args, measure).items():
        print(f"{name:14s}" + "  ".join(f"{metric} {metrics[metric]:.1f}" for metric in args.metrics))


if __name__ == "__main__":
    main()
