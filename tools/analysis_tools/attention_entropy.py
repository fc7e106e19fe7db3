"""How far the attention of a trained VIPA is spread (its Fig. 6 c, as numbers): by stage of its decoder, from
the coarsest of the encoder's levels, the highest number, to the finest, stage 1.

    python tools/analysis_tools/attention_entropy.py CONFIG CHECKPOINT [--split val] [--json entropy.json]

Means over the phrases of the config's test set. "over tokens": of a pixel's attention over the key-value set, 0 if it
reads one token, 1 if it reads all alike. "over pixels": of the pixels' attention to a token, 0 if one pixel reads it, 1
if all do alike. To compare key-value sets, run it for each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from refseg.apis.trained import batches, load_trained
from refseg.errors import UsageError, UserError
from refseg.models import VIPA
from refseg.models.vipa.entropy import recorded_spread


def measure(model: VIPA, dataset: Dataset, batch_size: int) -> Tensor:
    """(stages, 2): means over phrases, over tokens and over pixels."""
    rows = []
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        for data in batches(dataset, batch_size):
            model.test_step(data)
            rows.append(torch.stack([torch.stack(spread) for spread in spreads]).cpu())  # (stages, 2, E)
    return torch.cat(rows, -1).nanmean(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--split", help="instead of the config's test split")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    try:
        cfg, model, dataset = load_trained(args.config, args.checkpoint, split=args.split)
        if not isinstance(model, VIPA):
            raise UsageError(f"{args.config} is a {type(model).__name__}: only the decoder of VIPA is measured")
        found = measure(model, dataset, cfg.test_dataloader.batch_size)
    except UserError as error:
        raise SystemExit(str(error)) from None
    stages = [f"stage {len(found) - number}" for number in range(len(found))]
    table = dict(zip([*stages, "mean"], [*found.tolist(), found.mean(0).tolist()], strict=True))
    for name, (over_tokens, over_pixels) in table.items():
        print(f"{name:10s} over tokens {over_tokens:.3f}  over pixels {over_pixels:.3f}")
    if args.json:
        rows = {name: dict(over_tokens=tokens, over_pixels=pixels) for name, (tokens, pixels) in table.items()}
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
