"""A trained model and the data that its config tests it on, and what the commands of analysis tools have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from refseg.datasets.collate import collate_samples
from refseg.errors import UserError
from refseg.inference.loading import load_model
from refseg.registry import DATASETS
from refseg.structures import Batch

Numbers = TypeVar("Numbers", bound=dict)


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


def analysis_parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--split", help="instead of the config's test split")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser


def analyse(args: argparse.Namespace, measure: Callable[[Trained], Numbers]) -> Numbers:
    """Numbers of the model that `analysis_parser`'s arguments name, written to their file; mistakes end the program."""
    try:
        found = measure(load_trained(args.config, args.checkpoint, split=args.split))
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found
