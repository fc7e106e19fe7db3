"""Do the latent expressions of a trained Latent-VG stay diverse, and is the chosen subject the head noun?

    python tools/analysis_tools/latent_expressions.py CONFIG CHECKPOINT [--split val] [--json latents.json]

Means over the phrases of the config's test set: cosines of a phrase's latent expressions among each other, with their
text, and, to compare, across phrases; and, on RefShapes, the share of phrases whose subject is a noun of what is meant,
beside the share by chance, any word being as likely.
"""

from __future__ import annotations

import torch

from refseg.analysis.latent_diversity import across_texts, closeness, head_nouns, hits
from refseg.analysis.trained_model import Trained, analyse, analysis_parser, batches
from refseg.errors import UsageError
from refseg.models import LatentVG
from refseg.refshapes import vocabulary

_PAIRS = [pair for pairs in (*vocabulary.KIND_NOUNS.values(), vocabulary.ANY_NOUNS) for pair in pairs]
NOUNS = {word for pair in (*_PAIRS, vocabulary.PRONOUN) for word in pair}


def measure(trained: Trained) -> dict[str, float]:
    """The numbers by name; `subject` and `chance` only where the data tells which words speak of what."""
    cfg, model, dataset = trained
    if not isinstance(model, LatentVG) or model.latents is None:
        raise UsageError(f"{cfg.filename} has no latent expressions")
    among, to_text, latents, found, chances = [], [], [], [], []
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            expressions = model(batch).auxiliary
        rows = closeness(expressions.text, expressions.latents)
        among.append(rows.among.cpu())
        to_text.append(rows.to_text.cpu())
        latents.append(expressions.latents.cpu())
        texts = [text for meta in batch.metas for text in meta.texts]
        tags = [tags for meta in batch.metas for tags in (meta.tags or ({},) * len(meta.texts))]
        nouns = [head_nouns(text, of_text, NOUNS) for text, of_text in zip(texts, tags, strict=True)]
        word_of = batch.tokens.word_of.index_select(0, batch.tokens.text_of)
        chosen = word_of.gather(1, expressions.subject_token[:, None])[:, 0].tolist()
        found += hits(chosen, nouns)
        chances += [len(of_text) / len(text.split()) for text, of_text in zip(texts, nouns, strict=True) if of_text]
    result = {
        "among": torch.cat(among).mean().item(),
        "to_text": torch.cat(to_text).mean().item(),
        "across": across_texts(torch.cat(latents)),
    }
    if found:
        result |= {"subject": sum(found) / len(found), "chance": sum(chances) / len(chances)}
    return result


def main() -> None:
    for name, value in analyse(analysis_parser(__doc__).parse_args(), measure).items():
        print(f"{name:8s} {value:.3f}")


if __name__ == "__main__":
    main()
