"""How far the attention of a trained VIPA is spread (its Fig. 6 c, as numbers): by stage of its decoder, from
the coarsest of the encoder's levels, the highest number, to the finest, stage 1.

    python tools/analysis_tools/attention_entropy.py CONFIG CHECKPOINT [--split val] [--json entropy.json]

Means over the phrases of the config's test set. "over tokens": of a pixel's attention over the key-value set, 0 if it
reads one token, 1 if it reads all alike. "over pixels": of the pixels' attention to a token, 0 if one pixel reads it, 1
if all do alike. To compare key-value sets, run it for each.
"""

from __future__ import annotations

import torch

from refseg.analysis.attention_entropy import recorded_spread
from refseg.analysis.trained_model import Trained, analyse, analysis_parser, batches
from refseg.errors import UsageError
from refseg.models import VIPA


def measure(trained: Trained) -> dict[str, dict[str, float]]:
    """Means over phrases, by stage, and their mean."""
    cfg, model, dataset = trained
    if not isinstance(model, VIPA):
        raise UsageError(f"{cfg.filename} is a {type(model).__name__}: only the decoder of VIPA is measured")
    rows = []
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        for data in batches(dataset, cfg.test_dataloader.batch_size):
            model.test_step(data)
            rows.append(torch.stack([torch.stack(spread) for spread in spreads]).cpu())  # (stages, 2, E)
    found = torch.cat(rows, -1).nanmean(-1)  # (stages, 2)
    names = [*(f"stage {len(found) - number}" for number in range(len(found))), "mean"]
    pairs = [*found.tolist(), found.mean(0).tolist()]
    return {
        name: dict(over_tokens=tokens, over_pixels=pixels) for name, (tokens, pixels) in zip(names, pairs, strict=True)
    }


def main() -> None:
    for name, row in analyse(analysis_parser(__doc__).parse_args(), measure).items():
        print(f"{name:10s} over tokens {row['over_tokens']:.3f}  over pixels {row['over_pixels']:.3f}")


if __name__ == "__main__":
    main()
