"""One pass of a model: its phrases cut into parts and put together again, and its seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from refseg.structures import Batch, InstancePrediction, Prediction, RegionPrediction, TextTokens


class Clock:
    """Seconds by name, of work that the device has done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def split_phrases(batch: Batch, most: int) -> Iterator[Batch]:
    """The batch itself, or, of one image with more phrases than that, one batch for each `most` of them."""
    if batch.num_expressions <= most or batch.num_images > 1:
        yield batch
        return
    (meta,) = batch.metas
    for start in range(0, batch.num_expressions, most):
        part = slice(start, start + most)
        rows, text_of = batch.tokens.text_of[part].unique(return_inverse=True)
        tokens = TextTokens(batch.tokens.ids[rows], batch.tokens.word_mask[rows], text_of)
        tokens.word_of = None if batch.tokens.word_of is None else batch.tokens.word_of[rows]
        of_part = replace(meta, expression_ids=meta.expression_ids[part], texts=meta.texts[part], tags=meta.tags[part])
        of_part.unknown_words = meta.unknown_words[part]
        yield replace(
            batch, tokens=tokens, image_of=batch.image_of[part], metas=[of_part], referents=batch.referents[part]
        )


def join_predictions(parts: Sequence[Prediction]) -> Prediction:
    """The inverse of `split_phrases`, of what the parts predicted."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    instances: list[InstancePrediction] | None = None
    if first.instances is not None:
        instances = [one for part in parts for one in part.instances or ()]
    regions = None
    if first.regions is not None:
        found = [part.regions for part in parts if part.regions is not None]
        regions = RegionPrediction(torch.cat([r.scores for r in found]), torch.cat([r.retrieved for r in found]))
    no_target = None
    if first.no_target_logit is not None:
        no_target = torch.cat([part.no_target_logit for part in parts if part.no_target_logit is not None])
    return Prediction(torch.cat([part.mask_logits for part in parts]), no_target, instances, regions=regions)
