"""What the words of a trained VIPA retrieve: is it what the phrase refers to, and is it the same for all words?

    python tools/analysis_tools/retrieved_regions.py CONFIG CHECKPOINT [--split val] [--json regions.json]

Means over the phrases of the config's test set. "by_first", "by_words": the share of the target's places, at the
coarsest level, that the whole phrase ([CLS]) and its words find; "chance": the share of all places that they take;
"alike": the share of a word's places that [CLS] takes too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import Dataset

from refseg.apis.trained import batches, load_trained
from refseg.errors import UsageError, UserError
from refseg.models import VIPA
from refseg.models.layers import level_mask
from refseg.models.vipa.regions import Retrieved, retrieved_shares
from refseg.models.vipa.supervision import relevant_pixels


def measure(model: VIPA, dataset: Dataset, batch_size: int) -> dict[str, float]:
    rows = []
    for data in batches(dataset, batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            retrieved = model(batch).regions.retrieved  # (E, L, h, w)
        size = (retrieved.shape[-2], retrieved.shape[-1])
        relevant = relevant_pixels(batch.merged_masks(), size, model.supervision.relevant_share)
        valid = level_mask(batch.pixel_mask[batch.image_of], size)
        shares = retrieved_shares(retrieved.flatten(2), relevant.flatten(1), valid.flatten(1))
        rows.append(torch.stack(shares).cpu())  # (4, E)
    return dict(zip(Retrieved._fields, torch.cat(rows, 1).nanmean(1).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--split", help="instead of the config's test split")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    try:
        cfg, model, dataset = load_trained(args.config, args.checkpoint, split=args.split)
        if not isinstance(model, VIPA) or model.generator is None or model.generator.retrieval is None:
            raise UsageError(f"{args.config} is no VIPA that retrieves")
        found = measure(model, dataset, cfg.test_dataloader.batch_size)
        found["tau"] = model.generator.retrieval.log_temperature.exp().item()
    except UserError as error:
        raise SystemExit(str(error)) from None
    for name, value in found.items():
        print(f"{name:8s} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
