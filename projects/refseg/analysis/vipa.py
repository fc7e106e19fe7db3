"""Claims of VIPA as numbers and pictures: where the decoder attends, and what the words of a phrase retrieve.

The paper shows t-SNE plots of tokens and pixels (Fig. 5) and attention maps ("lower modality projection entropy",
Figs. 1 c and 6 c) without a measure. Here the entropy is that of eq. 8's softmax, relative to that of equal weights,
and distances are those of eq. 8's keys and queries.

Letters: E expressions, H heads, L tokens of the text, P pixels, T tokens of the key-value set, J the joint space.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from refseg.analysis.trained_model import TrainedModel, batches
from refseg.errors import UsageError
from refseg.models import VIPA
from refseg.models.layers import level_mask, masked_mean
from refseg.models.vipa.decoder import PartAttentionDecoder
from refseg.models.vipa.generator import AllPixelsGenerator, VisualExpressionGenerator
from refseg.models.vipa.supervision import relevant_pixels
from refseg.structures import Batch
from refseg.visualization.answers import GridMap, heat_cell
from refseg.visualization.overlay import grid

# Attention ------------------------------------------------------------------------------------------------------------


class StageAttention(NamedTuple):
    """Attention of one decoder stage: `weights` (E, H, P, T), the mean cosine of the heads' queries and keys `cosines`
    (E, P, T), masks of pixels (E, P) and tokens (E, T), and the size (h, w) of the stage."""

    weights: Tensor
    cosines: Tensor
    pixel_mask: Tensor
    token_mask: Tensor
    size: tuple[int, int]


@contextmanager
def recorded_attention(decoder: PartAttentionDecoder) -> Iterator[list[StageAttention]]:
    """Record the attention of the decoder's last run, from the coarsest stage to the finest."""
    stages: list[StageAttention] = []
    sizes: list[tuple[int, int]] = []
    masks: list[Tensor | None] = []

    def begin(module: Any, args: tuple) -> None:
        levels, level_masks = args[:2]
        stages.clear()
        sizes[:] = [tuple(level.shape[-2:]) for level in levels[::-1]]
        masks[:] = [None] * len(levels) if level_masks is None else [mask.flatten(1) for mask in level_masks[::-1]]

    @torch.no_grad()
    def record(attn: Any, args: tuple) -> None:
        pixels, tokens, token_mask = args
        pixel_mask = masks[len(stages)]
        if pixel_mask is None:
            pixel_mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        if token_mask is None:
            token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        query, key = attn.query(pixels), attn.key_value(tokens).chunk(2, -1)[0]
        query, key = (F.normalize(x.unflatten(-1, (attn.num_heads, -1)), dim=-1) for x in (query, key))
        cosines = torch.einsum("ephd,ethd->ept", query, key) / attn.num_heads
        weights = attn.weights(pixels, tokens, token_mask)
        stages.append(StageAttention(weights, cosines, pixel_mask, token_mask, sizes[len(stages)]))

    handles = [decoder.register_forward_pre_hook(begin)]
    handles += [layer.attn.register_forward_pre_hook(record) for layer in decoder.attn_layers]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


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


def token_distance(cosines: Tensor, token_mask: Tensor, pixel_mask: Tensor) -> Tensor:
    """Return the mean of 1 - cosines (E, P, T) over valid tokens (E, T) and pixels (E, P): (E,); NaN without pixels."""
    by_pixel = masked_mean(1 - cosines.transpose(1, 2), token_mask)  # (E, P)
    return by_pixel.where(pixel_mask, torch.nan).nanmean(1)


def measure_attention(
    trained: TrainedModel, *, pictures: Path | None = None, count: int = 12
) -> dict[str, dict[str, float]]:
    """Return the measures of attention over a data set by stage, and the mean of all stages.

    "over_tokens" and "over_pixels" are the `Spread`. "to_target" and "to_others" are the distances of the tokens' keys
    to the queries of target pixels and of all others (`token_distance`), the number behind Fig. 5.

    Args:
        trained: The model and its data.
        pictures: Folder for attention maps of the first phrases (Figs. 1 c and 6 c); None draws none.
        count: Number of pictures.
    """
    cfg, model, dataset = trained
    if not isinstance(model, VIPA):
        raise UsageError(f"{cfg.filename} is a {type(model).__name__}: only the decoder of VIPA is measured")
    if pictures is not None and isinstance(model.generator, AllPixelsGenerator):
        raise UsageError(f"{cfg.filename} has no cues, so no token belongs to a word. Omit the pictures.")
    rows = []
    with recorded_attention(model.decoder) as stages, torch.no_grad():
        for data in batches(dataset, cfg.test_dataloader.batch_size):
            images = data["batch"].images  # uint8
            batch = model.data_preprocessor(data, False)["batch"]
            model(batch)
            masks = batch.merged_masks()
            row = []
            for stage in stages:
                target = relevant_pixels(masks, stage.size, model.supervision.relevant_share).flatten(1)
                distances = [
                    token_distance(stage.cosines, stage.token_mask, stage.pixel_mask & pixels)
                    for pixels in (target, ~target)
                ]
                spread = attention_spread(stage.weights, stage.token_mask, stage.pixel_mask)
                row.append(torch.stack([*spread, *distances]))
            rows.append(torch.stack(row).cpu())  # (stages, 4, E)
            if pictures is not None and count > 0:
                count -= draw_attention(batch, images, masks, stages, pictures, count)
    means = torch.cat(rows, -1).nanmean(-1)  # (stages, 4)
    names = [*(f"stage {len(means) - number}" for number in range(len(means))), "mean"]
    keys = ("over_tokens", "over_pixels", "to_target", "to_others")
    values = [*means.tolist(), means.mean(0).tolist()]
    return {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, values, strict=True)}


def draw_attention(
    batch: Batch, images: Tensor, masks: Tensor, stages: list[StageAttention], folder: Path, count: int
) -> int:
    """Draw maps of the weights of each token, a row for each stage, for the first `count` expressions of a batch.

    The scale goes from 0 to twice the weight that each token has if all weigh the same. The target is outlined. Token
    i of a visual expression belongs to token i of the text.

    Args:
        batch: The batch.
        images: (B, 3, H, W) uint8.
        masks: (E, H, W) bool, the targets.
        stages: Recorded attention of the batch.
        folder: Folder of the files, which are named by image and expression.
        count: Maximum number of pictures.

    Returns:
        The number of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [(meta.image_id, *ids) for meta in batch.metas for ids in zip(meta.expression_ids, meta.texts, strict=True)]
    word_of = batch.tokens.word_of[batch.tokens.text_of].tolist()
    for row, (image_id, expression_id, text) in enumerate(names[:count]):
        image, target = images[batch.image_of[row]].permute(1, 2, 0).cpu().numpy(), masks[row].cpu().numpy()
        words = [text.split()[word] if word >= 0 else f"token {token}" for token, word in enumerate(word_of[row])]
        cells = []
        for number, stage in enumerate(stages):
            tokens = stage.token_mask[row].nonzero()[:, 0].tolist()
            maps = stage.weights[row].mean(0).T.unflatten(1, stage.size).cpu().numpy()  # (T, h, w)
            for token in tokens:
                values = GridMap(maps[token], stage.size).at(target.shape)
                title, span = f"stage {len(stages) - number}: {words[token]}", (0.0, 2 / len(tokens))
                cells.append(heat_cell(image, values, title, marked=target, span=span))
        file = folder / f"{Path(image_id).stem}_{expression_id}.png"
        Image.fromarray(grid(cells, columns=len(tokens))).save(file)
    return len(names[:count])


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


def effective_rank(x: Tensor, valid: Tensor) -> Tensor:
    """Return exp(entropy) of the shares of the squared singular values of the valid rows of x (B, P, J): (B,).

    It is 1 if all rows are parallel, and n if n orthogonal directions have the same weight.
    """
    power = torch.linalg.svdvals(x * valid[..., None]).square()
    return torch.special.entr(power / power.sum(-1, keepdim=True)).sum(-1).exp()


def mean_cosine(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cosine of different valid rows of x (E, L, J): (E,); NaN with fewer than two."""
    x = F.normalize(x, dim=-1) * valid[..., None]
    number = valid.sum(-1)
    return (x.sum(1).square().sum(-1) - number) / (number * (number - 1))


def mask_gradient(model: VIPA, batch: Batch) -> float:
    """Return the size of the mask losses' gradient on the scores of [CLS], relative to that of eq. 4's.

    Retrieval has its noise and its straight-through gradient, as in training. All else is in evaluation mode.
    """
    retrieval, scores = model.generator.retrieval, []
    handle = retrieval.register_forward_pre_hook(lambda _, args: scores.append(args[0]))
    retrieval.train()
    try:
        losses = model.losses(model(batch), batch)
    finally:
        retrieval.eval()
        handle.remove()
    of_mask, of_eq4 = (
        torch.autograd.grad(loss, scores[0], retain_graph=True)[0][:, 0].norm()
        for loss in (losses["loss_mask"] + losses["loss_dice"], losses["loss_relevance"])
    )
    return (of_mask / of_eq4).item()


def measure_retrieval(trained: TrainedModel) -> dict[str, float]:
    """Return means over a data set.

    Besides the `RetrievedShares`: "rank", the `effective_rank` of an image's pixels in the joint space; "cue_cosine"
    and "token_cosine", the `mean_cosine` of a phrase's cues in the joint space and of its visual expression;
    "mask_gradient" (NaN without supervision of the scores); and the temperature "tau".
    """
    cfg, model, dataset = trained
    if not isinstance(model, VIPA) or not isinstance(model.generator, VisualExpressionGenerator):
        raise UsageError(f"{cfg.filename} is not a VIPA with retrieval")
    seen: list[Any] = []
    handle = model.generator.register_forward_hook(lambda _, args, output: seen.append((*args, output)))
    retrieval = model.generator.retrieval
    rows, gradients = [], []
    for data in batches(dataset, cfg.test_dataloader.batch_size):
        batch = model.data_preprocessor(data, False)["batch"]
        with torch.no_grad():
            retrieved = model(batch).regions.retrieved  # (E, L, h, w)
            pixels, _, words, cues, expression = seen.pop()
            pixels, words = retrieval.embed(pixels, words)
        # Shares of pixels
        size = (retrieved.shape[-2], retrieved.shape[-1])
        relevant = relevant_pixels(batch.merged_masks(), size, model.supervision.relevant_share).flatten(1)
        valid = level_mask(batch.pixel_mask, size)[batch.image_of].flatten(1)
        shares = retrieved_shares(retrieved.flatten(2), relevant, valid)
        # Geometry of the joint space and of the key-value set
        pixels = pixels if len(pixels) == len(words) else pixels[batch.image_of]
        geometry = effective_rank(pixels, valid), mean_cosine(words, cues), mean_cosine(expression.tokens, cues)
        rows.append(torch.stack([*shares, *geometry]).cpu())  # (7, E)
        # Gradients
        if model.supervision.scores is not None:
            gradients.append(mask_gradient(model, batch))
            seen.clear()
    handle.remove()
    names = (*RetrievedShares._fields, "rank", "cue_cosine", "token_cosine")
    means = dict(zip(names, torch.cat(rows, 1).nanmean(1).tolist(), strict=True))
    mean_gradient = sum(gradients) / len(gradients) if gradients else float("nan")
    return {**means, "mask_gradient": mean_gradient, "tau": retrieval.log_temperature.exp().item()}
