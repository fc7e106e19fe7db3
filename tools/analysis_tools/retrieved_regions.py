"""What the words of a trained VIPA retrieve: is it what the phrase refers to, and is it the same for all words?

    python tools/analysis_tools/retrieved_regions.py CONFIG CHECKPOINT [--split val] [--json regions.json]

Means over the phrases of the config's test set. "by_first", "by_words": the share of the target's places, at the
coarsest level, that the whole phrase ([CLS]) and its words find; "chance": the share of all places that they take;
"alike": the share of a word's places that [CLS] takes too.
"""

from __future__ import annotations

import torch

from refseg.analysis.retrieved_regions import Retrieved, retrieved_shares
from refseg.analysis.trained_model import Trained, analyse, analysis_parser, batches
from refseg.errors import UsageError
from refseg.models import VIPA
from refseg.models.layers import level_mask
from refseg.models.vipa.supervision import relevant_pixels


def measure(trained: Trained) -> dict[str, float]:
    cfg, model, dataset = trained
    if not isinstance(model, VIPA) or model.generator is None or model.generator.retrieval is None:
        raise UsageError(f"{cfg.filename} is no VIPA that retrieves")
    rows = []
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            retrieved = model(batch).regions.retrieved  # (E, L, h, w)
        size = (retrieved.shape[-2], retrieved.shape[-1])
        relevant = relevant_pixels(batch.merged_masks(), size, model.supervision.relevant_share)
        valid = level_mask(batch.pixel_mask[batch.image_of], size)
        shares = retrieved_shares(retrieved.flatten(2), relevant.flatten(1), valid.flatten(1))
        rows.append(torch.stack(shares).cpu())  # (4, E)
    found = dict(zip(Retrieved._fields, torch.cat(rows, 1).nanmean(1).tolist(), strict=True))
    return {**found, "tau": model.generator.retrieval.log_temperature.exp().item()}


def main() -> None:
    for name, value in analyse(analysis_parser(__doc__).parse_args(), measure).items():
        print(f"{name:8s} {value:.3f}")


if __name__ == "__main__":
    main()
