"""Two claims of VIPA as numbers: how focused the decoder's attention is, and what the words of a phrase retrieve.

The paper's Fig. 6 c shows attention maps ("lower modality projection entropy") without a measure. Here the measure is
the entropy of eq. 8's softmax, relative to the entropy of equal weights.

Letters: E expressions, H heads, L tokens of the text, P pixels, T tokens of the key-value set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refseg.analysis.trained_model import TrainedModel, batches
from refseg.errors import UsageError
from refseg.models import VIPA
from refseg.models.layers import level_mask
from refseg.models.vipa.decoder import PartAttentionDecoder
from refseg.models.vipa.supervision import relevant_pixels

# Attention ------------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Relative entropies of one stage's attention, (E,) each, averaged over heads.

    `over_tokens` averages over pixels, `over_pixels` over tokens. 0: one place has all the weight. 1: all places weigh
    the same. NaN if there is only one place.
    """

    over_tokens: Tensor
    over_pixels: Tensor


def relative_entropy(weights: Tensor, valid: Tensor) -> Tensor:
    """Return the entropy of weights (..., S) over the valid places, divided by its maximum.

    Weights must be zero on invalid places. The result is NaN with fewer than two valid places, or without any weight.
    """
    shares = weights / weights.sum(-1, keepdim=True)
    number = valid.sum(-1)
    return torch.special.entr(shares).sum(-1) / number.log().where(number > 1, torch.nan)


def attention_spread(weights: Tensor, token_mask: Tensor, pixel_mask: Tensor) -> Spread:
    """Measure attention (E, H, P, T) of pixels, pixel_mask (E, P), to tokens, token_mask (E, T)."""
    weights = weights * pixel_mask[:, None, :, None] * token_mask[:, None, None]
    over_tokens = relative_entropy(weights, token_mask[:, None, None].expand_as(weights))  # (E, H, P)
    weights = weights.transpose(2, 3)
    over_pixels = relative_entropy(weights, pixel_mask[:, None, None].expand_as(weights))  # (E, H, T)
    return Spread(
        over_tokens.where(pixel_mask[:, None], torch.nan).flatten(1).nanmean(1),
        over_pixels.where(token_mask[:, None], torch.nan).flatten(1).nanmean(1),
    )


@contextmanager
def recorded_spread(decoder: PartAttentionDecoder) -> Iterator[list[Spread]]:
    """Record the spreads of the decoder's last run, from the coarsest stage to the finest."""
    spreads: list[Spread] = []
    masks: list[Tensor | None] = []

    def begin(module: Any, args: tuple) -> None:
        levels, level_masks = args[:2]
        spreads.clear()
        masks[:] = [None] * len(levels) if level_masks is None else [mask.flatten(1) for mask in level_masks[::-1]]

    def record(attn: Any, args: tuple) -> None:
        pixels, tokens, token_mask = args
        pixel_mask = masks[len(spreads)]
        if pixel_mask is None:
            pixel_mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        if token_mask is None:
            token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        with torch.no_grad():
            spreads.append(attention_spread(attn.weights(pixels, tokens, token_mask), token_mask, pixel_mask))

    handles = [decoder.register_forward_pre_hook(begin)]
    handles += [layer.attn.register_forward_pre_hook(record) for layer in decoder.attn_layers]
    try:
        yield spreads
    finally:
        for handle in handles:
            handle.remove()


def measure_attention(trained: TrainedModel) -> dict[str, dict[str, float]]:
    """Return the spread over a data set by stage, and the mean of all stages."""
    cfg, model, dataset = trained
    if not isinstance(model, VIPA):
        raise UsageError(f"{cfg.filename} is a {type(model).__name__}: only the decoder of VIPA is measured")
    rows = []
    with recorded_spread(model.decoder) as spreads, torch.no_grad():
        for data in batches(dataset, cfg.test_dataloader.batch_size):
            model.test_step(data)
            rows.append(torch.stack([torch.stack(spread) for spread in spreads]).cpu())  # (stages, 2, E)
    means = torch.cat(rows, -1).nanmean(-1)  # (stages, 2)
    names = [*(f"stage {len(means) - number}" for number in range(len(means))), "mean"]
    pairs = [*means.tolist(), means.mean(0).tolist()]
    return {name: {"over_tokens": a, "over_pixels": b} for name, (a, b) in zip(names, pairs, strict=True)}


# Retrieval ------------------------------------------------------------------------------------------------------------


class RetrievedShares(NamedTuple):
    """Shares of pixels, (E,) each. NaN without a target, or without a token that retrieves.

    `by_first`, `by_words`: share of the target that the first token and the other tokens retrieve. `chance`: share of
    all pixels that they retrieve. `alike`: share of a word's pixels that the first token retrieves too.
    """

    by_first: Tensor
    by_words: Tensor
    chance: Tensor
    alike: Tensor


def retrieved_shares(retrieved: Tensor, relevant: Tensor, valid: Tensor) -> RetrievedShares:
    """Measure what tokens retrieve.

    Args:
        retrieved: (E, L, P) bool, all False for tokens that are no cue.
        relevant: (E, P) bool, the target.
        valid: (E, P) bool, False on padding.
    """
    number = retrieved.sum(-1)
    is_cue = number > 0
    of_target = (retrieved & relevant[:, None]).sum(-1) / relevant.sum(-1, keepdim=True)  # (E, L), NaN without a target
    of_target = of_target.where(is_cue, torch.nan)
    shared = ((retrieved & retrieved[:, :1]).sum(-1) / number).where(is_cue & is_cue[:, :1], torch.nan)
    chance = (number / valid.sum(-1, keepdim=True)).where(is_cue, torch.nan)
    return RetrievedShares(of_target[:, 0], of_target[:, 1:].nanmean(1), chance.nanmean(1), shared[:, 1:].nanmean(1))


def measure_retrieval(trained: TrainedModel) -> dict[str, float]:
    """Return the mean shares over a data set, and the temperature `tau` of the retrieval."""
    cfg, model, dataset = trained
    if not isinstance(model, VIPA) or model.generator is None or model.generator.retrieval is None:
        raise UsageError(f"{cfg.filename} is not a VIPA with retrieval")
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
    means = dict(zip(RetrievedShares._fields, torch.cat(rows, 1).nanmean(1).tolist(), strict=True))
    return {**means, "tau": model.generator.retrieval.log_temperature.exp().item()}
