"""A trained model with its test data, and the frame of the tools that measure one."""

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


class TrainedModel(NamedTuple):
    """A model in evaluation mode, its config, and the data set that it is measured on."""

    cfg: Config
    model: nn.Module
    dataset: Dataset


def batches(dataset: Dataset, size: int) -> Iterator[dict[str, Batch]]:
    """Yield all samples in order, collated. Shows a progress bar on a terminal."""
    for start in tqdm(range(0, len(dataset), size), leave=False, disable=not sys.stderr.isatty()):
        yield collate_samples([dataset[item] for item in range(start, min(start + size, len(dataset)))])


def measuring_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser that the tools share, with the tool's docstring as its description."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--split", help="a split of the config's test set (default: the one it names)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser


def run_measurement(args: argparse.Namespace, measure: Callable[[TrainedModel], Numbers]) -> Numbers:
    """Load the model that the arguments name, measure it, and write the numbers if `--json` asks for it."""
    options = {"test_dataloader.dataset.split": args.split} if args.split else {}
    try:
        loaded = load_model(args.config, args.checkpoint, device="cpu", cfg_options=options)
        with DefaultScope.overwrite_default_scope(loaded.cfg.default_scope):
            dataset = DATASETS.build(loaded.cfg.test_dataloader.dataset)
        numbers = measure(TrainedModel(loaded.cfg, loaded.segmentor, dataset))
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers
