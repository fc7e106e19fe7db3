"""A trained model and the data that its config tests it on: what the analysis tools begin with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from refseg.apis.models import load_model
from refseg.datasets.collate import collate_samples
from refseg.registry import DATASETS
from refseg.structures import Batch


class Trained(NamedTuple):
    cfg: Config
    model: nn.Module
    dataset: Dataset


def load_trained(config: str, checkpoint: str, *, split: str | None = None) -> Trained:
    """The config's model with a checkpoint's weights, in evaluation mode, and its test set, or another split of it."""
    options = {"test_dataloader.dataset.split": split} if split else {}
    loaded = load_model(config, checkpoint, device="cpu", cfg_options=options)
    with DefaultScope.overwrite_default_scope(loaded.cfg.default_scope):
        return Trained(loaded.cfg, loaded.segmentor, DATASETS.build(loaded.cfg.test_dataloader.dataset))


def batches(dataset: Dataset, size: int) -> Iterator[dict[str, Batch]]:
    """All samples in order, collated; a bar of progress where there is a terminal."""
    for start in tqdm(range(0, len(dataset), size), leave=False, disable=not sys.stderr.isatty()):
        yield collate_samples([dataset[item] for item in range(start, min(start + size, len(dataset)))])
