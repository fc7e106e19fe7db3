"""Do a model's instances attend to the words that speak of them? Phrase-instance alignment, scored.

Where the ground truth says which words describe which instance (RefShapes' tag `words`), a model that gives each of its
instances a weight for every word (as InstAlign's attention does) can be checked: instances are matched by their masks,
and the weights of a matched one are compared with its words. Words are `text.split()`. W words of an expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.measure import Truth
from refseg.evaluation.prediction_file import PredictionRow
from refseg.evaluation.scorer import TruthIndex, check_instances
from refseg.instance import Instance
from refseg.records import Expression


@dataclass(frozen=True)
class TrueInstance:
    """`words`: indices of the words that describe it."""

    mask: dict
    words: frozenset[int]


@dataclass(frozen=True)
class Aligned:
    """A matched instance: whether the top word is one of its own, the average precision, and both for no knowledge."""

    iou: float
    pointing: float
    average_precision: float
    chance_pointing: float
    chance_average_precision: float


@dataclass(frozen=True)
class AlignedPhrase:
    """Of one expression: how many of its instances count, and those that were matched."""

    instances: int
    aligned: list[Aligned]


def true_instances(expression: Expression, truth: Truth) -> list[TrueInstance] | None:
    """From the tag `words` (instance id -> indices); None where the expression has no such tag."""
    words = expression.tags.get("words")
    if not isinstance(words, dict):
        return None
    ids = [truth.record.instances[index].instance_id for index in expression.referents]
    return [
        TrueInstance(truth.instance_rle(index), frozenset(int(word) for word in words.get(name, ())))
        for index, name in zip(expression.referents, ids, strict=True)
    ]


def distinguishing(instances: Sequence[TrueInstance]) -> list[TrueInstance]:
    """The same with the words alone that not all instances share: of "both circles and the star", what tells the star
    from the circles. Of one instance, or of "all red shapes", nothing is left."""
    shared = frozenset.intersection(*(instance.words for instance in instances)) if instances else frozenset()
    return [TrueInstance(instance.mask, instance.words - shared) for instance in instances]


def match_masks(
    predicted: Sequence[dict], true: Sequence[dict], *, min_iou: float = 0.5
) -> list[tuple[int, int, float]]:
    """(predicted, true, IoU) of the one-to-one matching of the largest sum of IoUs, among pairs of at least `min_iou`
    (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    if not predicted or not true:
        return []
    iou = np.asarray(coco_mask.iou(list(predicted), list(true), [0] * len(true)), np.float64)  # (predicted, true)
    iou = np.where(iou >= min_iou, iou, 0.0)
    pairs = zip(*linear_sum_assignment(iou, maximize=True), strict=True)
    return [(int(p), int(t), float(iou[p, t])) for p, t in pairs if iou[p, t] > 0]


def pointing(weights: Sequence[float], words: frozenset[int]) -> float:
    """1 where the word of the highest weight is one of `words`; of several highest ones, the share that is."""
    top = np.flatnonzero(np.asarray(weights) == np.max(weights))
    return float(np.mean([int(word) in words for word in top]))


def average_precision(weights: Sequence[float], words: frozenset[int]) -> float:
    """Mean, over `words`, of the precision of the ranking down to each; words of equal weight in random order, of which
    this is the expectation. Equal weights all through are thus the chance level.

    In a run of n equal words, r of them relevant, after N words with R relevant ones, the one at place i is relevant
    with probability r/n, and then R + 1 + (i - 1)(r - 1)/(n - 1) relevant ones are expected among the first N + i.
    """
    weights = np.asarray(weights, np.float64)
    relevant = np.isin(np.arange(len(weights)), list(words))
    total, before, found = 0.0, 0, 0
    for weight in np.unique(weights)[::-1]:
        run = relevant[weights == weight]
        n, r = len(run), int(run.sum())
        place = np.arange(1, n + 1)
        expected = found + 1 + (place - 1) * (r - 1) / max(n - 1, 1)
        total += float((r / n * expected / (before + place)).sum())
        before, found = before + n, found + r
    return total / len(words)


def align(
    predicted: Sequence[Instance],
    true: Sequence[TrueInstance],
    *,
    num_words: int,
    only_distinguishing: bool = False,
    min_iou: float = 0.5,
) -> AlignedPhrase:
    """One expression. Weights may have any scale: only their order counts. Predicted instances without weights are left
    out; true ones of which no word speaks are matched, but do not count."""
    predicted = [instance for instance in predicted if instance.words is not None]
    for instance in predicted:
        if len(instance.words) != num_words:
            raise ValueError(f"an instance has {len(instance.words)} weights for {num_words} words")
        if not np.isfinite(instance.words).all():
            raise ValueError("weights of words must be finite")
    true = distinguishing(true) if only_distinguishing else list(true)
    aligned = []
    for p, t, iou in match_masks([i.rle for i in predicted], [i.mask for i in true], min_iou=min_iou):
        weights, words = predicted[p].words, true[t].words
        if words:
            none = [0.0] * num_words
            aligned.append(
                Aligned(
                    iou, pointing(weights, words), average_precision(weights, words),
                    pointing(none, words), average_precision(none, words),
                )
            )  # fmt: skip
    return AlignedPhrase(sum(bool(instance.words) for instance in true), aligned)


def align_predictions(
    rows: Iterable[PredictionRow], truths: TruthIndex, *, only_distinguishing: bool = False, min_iou: float = 0.5
) -> Iterator[AlignedPhrase]:
    """Of a prediction file. Expressions without the tag, rows of other expressions and second rows of one are passed
    over; a row without instances, or no row, has found none."""

    def aligned(position: int, predicted: Sequence[Instance]) -> Iterator[AlignedPhrase]:
        expression, truth = truths.expression(position), truths.truth(position)
        true = true_instances(expression, truth)
        if true is not None:
            check_instances(predicted, truth.record.size)
            yield align(
                predicted,
                true,
                num_words=len(expression.text.split()),
                only_distinguishing=only_distinguishing,
                min_iou=min_iou,
            )

    missing = set(range(len(truths)))
    for row in rows:
        position = truths.position.get(row.expression_id)
        if position in missing:
            missing.remove(position)
            try:
                yield from aligned(position, row.instances or ())
            except ValueError as error:
                raise DataError(f"prediction of {row.expression_id}: {error}") from None
    for position in sorted(missing):
        yield from aligned(position, ())


def alignment_scores(phrases: Iterable[AlignedPhrase]) -> dict[str, Any]:
    """Means over matched instances in percent, what a model without knowledge gets on the same ones, and the coverage:
    the share of instances that were matched at all. Read them together: a model that finds easy instances only is
    scored on those."""
    phrases = list(phrases)
    aligned = [one for phrase in phrases for one in phrase.aligned]
    instances = sum(phrase.instances for phrase in phrases)

    def mean(name: str) -> float | None:
        return 100.0 * float(np.mean([getattr(one, name) for one in aligned])) if aligned else None

    return {
        "expressions": sum(phrase.instances > 0 for phrase in phrases),
        "instances": instances,
        "matched": len(aligned),
        "coverage": 100.0 * len(aligned) / instances if instances else None,
        "pointing": mean("pointing"),
        "pointing_chance": mean("chance_pointing"),
        "AP": mean("average_precision"),
        "AP_chance": mean("chance_average_precision"),
    }


def beats_chance(scores: Mapping[str, Any]) -> bool:
    """Whether pointing is above its chance level by more than two standard errors (`alignment_scores`)."""
    matched, pointing, chance = (scores[name] for name in ("matched", "pointing", "pointing_chance"))
    if not matched:
        return False
    error = math.sqrt(chance * (100 - chance) / matched)  # percent, if every top word were drawn by chance
    return pointing > chance + 2 * error
