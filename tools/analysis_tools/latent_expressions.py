"""Do the latent expressions of a trained Latent-VG stay diverse, and is the chosen subject the head noun?

    python tools/analysis_tools/latent_expressions.py CONFIG CHECKPOINT [--split val] [--json latents.json]

Means over the phrases of the config's test set: cosines of a phrase's latent expressions among each other, and with
their text; and, on RefShapes, the share of phrases whose subject is a noun of what is meant, beside the share by
chance, any word being as likely.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset
from tqdm import tqdm

from refseg.apis import RunOptions, load_config, load_weights
from refseg.apis.dummy import build_model
from refseg.datasets.collate import collate_samples
from refseg.datasets.refshapes import vocabulary
from refseg.errors import UsageError, UserError
from refseg.models import LatentVG
from refseg.models.latent_vg.diversity import closeness, head_nouns, hits
from refseg.registry import DATASETS

_PAIRS = [pair for pairs in (*vocabulary.KIND_NOUNS.values(), vocabulary.ANY_NOUNS) for pair in pairs]
NOUNS = {word for pair in (*_PAIRS, vocabulary.PRONOUN) for word in pair}


def measure(model: LatentVG, dataset: Dataset, batch_size: int) -> dict[str, float]:
    """The numbers by name; `subject` and `chance` only where the data tells which words speak of what."""
    starts = range(0, len(dataset), batch_size)
    among, to_text, found, chances = [], [], [], []
    for start in tqdm(starts, leave=False, disable=not sys.stderr.isatty()):
        samples = [dataset[item] for item in range(start, min(start + batch_size, len(dataset)))]
        batch = model.data_preprocessor(collate_samples(samples), False)["batch"]
        with torch.no_grad():
            expressions = model(batch).auxiliary
        rows = closeness(expressions.text, expressions.latents)
        among.append(rows.among.cpu())
        to_text.append(rows.to_text.cpu())
        texts = [text for meta in batch.metas for text in meta.texts]
        tags = [tags for meta in batch.metas for tags in (meta.tags or ({},) * len(meta.texts))]
        nouns = [head_nouns(text, of_text, NOUNS) for text, of_text in zip(texts, tags, strict=True)]
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of)
        chosen = word_of.gather(1, expressions.subject_token[:, None])[:, 0].tolist()
        found += hits(chosen, nouns)
        chances += [len(of_text) / len(text.split()) for text, of_text in zip(texts, nouns, strict=True) if of_text]
    result = {"among": torch.cat(among).mean().item(), "to_text": torch.cat(to_text).mean().item()}
    if found:
        result |= {"subject": sum(found) / len(found), "chance": sum(chances) / len(chances)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--split", help="instead of the config's test split")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    try:
        options = {"test_dataloader.dataset.split": args.split} if args.split else {}
        cfg = load_config(args.config, RunOptions(cfg_options=options))
        model = build_model(cfg).eval()
        if not isinstance(model, LatentVG) or model.latents is None:
            raise UsageError(f"{args.config} has no latent expressions")
        load_weights(model, args.checkpoint)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(cfg.test_dataloader.dataset)
        result = measure(model, dataset, cfg.test_dataloader.batch_size)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for name, value in result.items():
        print(f"{name:8s} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
