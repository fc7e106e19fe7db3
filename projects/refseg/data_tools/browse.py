"""`refseg data browse`: one page of samples as a model gets them, so that a wrong augmentation can be seen."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.data_tools.sample_cards import error_card, sample_card
from refseg.datasets.dataset import MixedDataset, ReferringDataset
from refseg.datasets.samplers import SampleKey
from refseg.errors import ConfigError, DataError, UsageError
from refseg.report.page import gallery, page, soft
from refseg.terminal import write_whole


@dataclass(frozen=True)
class Choice:
    """Which samples: `num` random items of a loader's data set, in one epoch of a run with this seed."""

    loader: str = "train"
    num: int = 24
    seed: int = 0
    epoch: int = 0


def main(args: argparse.Namespace) -> int:
    from refseg.engine.run import RunOptions, load_config

    if args.num < 1 or args.epoch < 0 or args.seed < 0:
        raise UsageError("--num must be at least 1, --epoch and --seed at least 0")
    cfg = load_config(args.config, RunOptions(cfg_options=args.cfg_options))
    choice = Choice(args.loader, args.num, args.seed, args.epoch)
    dataset = build_dataset(cfg, choice.loader)
    html, failed = contact_sheet(dataset, choice, title=f"{args.config}: {choice.loader}")
    write_whole(args.out, html)
    print(
        f"{args.out}: {min(choice.num, len(dataset))} of {len(dataset):,} items"
        + (f", {failed} unreadable" * (failed > 0))
    )
    return 0


def build_dataset(cfg: Any, loader: str) -> ReferringDataset | MixedDataset:
    from mmengine.registry import init_default_scope

    from refseg.registry import DATASETS

    found = cfg.get(f"{loader}_dataloader")
    if not found:
        raise ConfigError(f"the config has no {loader}_dataloader")
    init_default_scope(cfg.get("default_scope", "refseg"))
    return DATASETS.build(found.dataset)


def contact_sheet(dataset: ReferringDataset | MixedDataset, choice: Choice, *, title: str) -> tuple[str, int]:
    """The page, and how many of its samples could not be made."""
    rng = np.random.default_rng([choice.seed, choice.epoch])
    items = sorted(rng.choice(len(dataset), min(choice.num, len(dataset)), replace=False).tolist())
    cards, failed = [], 0
    for item in items:
        key = SampleKey(item, choice.epoch, choice.seed)
        part, own_key = dataset.locate(key) if isinstance(dataset, MixedDataset) else (dataset, key)
        try:
            cards.append(sample_card(part.make_sample(own_key), item=item, tokenizer=tokenizer_of(part)))
        except DataError as error:
            failed += 1
            cards.append(error_card(part.record(own_key), str(error), item=item))
    return page(title, {"Samples": introduction(dataset, choice) + gallery(cards)}), failed


def tokenizer_of(dataset: ReferringDataset) -> Any:
    """The tokenizer of the pipeline, or None."""
    found = (getattr(transform, "tokenizer", None) for transform in dataset.transforms)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


def introduction(dataset: ReferringDataset | MixedDataset, choice: Choice) -> str:
    parts = dataset.datasets if isinstance(dataset, MixedDataset) else [dataset]
    lines = [f"{min(choice.num, len(dataset))} of {len(dataset):,} items, seed {choice.seed}, epoch {choice.epoch}."]
    for part in parts:
        names = ", ".join(type(transform).__name__ for transform in part.transforms)
        annotations = part.metainfo["annotations"]
        source = annotations.get("refs") or annotations.get("file")
        lines.append(f"{source}, split {part.metainfo['split']}: {names}.")
    lines.append(
        "Masks, boxes, texts and tokens are those that the model gets. The number of an instance stands on its mask, "
        "and before the phrases that refer to it."
    )
    return "".join(map(soft, lines))
