"""Phrase-instance alignment: whether a model's instances attend to the words that describe them.

It needs ground truth that says which words describe which instance (RefShapes' tag `words`), and a model whose
instances have a weight for every word (such as InstAlign's attention). Instances are matched by their masks, and the
weights of a matched instance are compared with its words. Words are `text.split()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.measure import Truth, check_instances
from refseg.evaluation.other_formats import open_predictions
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.scorer import TruthIndex
from refseg.instance import Instance
from refseg.records import Expression

MIN_IOU = 0.5  # of matched instances


@dataclass(frozen=True)
class TrueInstance:
    """An annotated instance: the RLE of its mask, and the indices of the words that describe it."""

    mask: dict
    words: frozenset[int]


@dataclass(frozen=True)
class Aligned:
    """Scores of a matched instance, and the same scores by chance.

    `pointing`: whether the word of the highest weight describes the instance.
    """

    iou: float
    pointing: float
    average_precision: float
    chance_pointing: float
    chance_average_precision: float


@dataclass(frozen=True)
class AlignedPhrase:
    """Result of one expression: how many of its instances count, and the scores of the matched ones."""

    instances: int
    aligned: list[Aligned]


def true_instances(expression: Expression, truth: Truth) -> list[TrueInstance] | None:
    """Return the referents with their words, from the tag `words` (instance id -> indices). None without the tag."""
    words = expression.tags.get("words")
    if not isinstance(words, dict):
        return None
    ids = [truth.record.instances[index].instance_id for index in expression.referents]
    return [
        TrueInstance(truth.instance_rle(index), frozenset(int(word) for word in words.get(name, ())))
        for index, name in zip(expression.referents, ids, strict=True)
    ]


def distinguishing(instances: Sequence[TrueInstance]) -> list[TrueInstance]:
    """Drop the words that all instances share, such as "all" and "red" of "all red shapes".

    A single instance has no words afterwards.
    """
    shared = frozenset.intersection(*(instance.words for instance in instances)) if instances else frozenset()
    return [TrueInstance(instance.mask, instance.words - shared) for instance in instances]


def match_masks(predicted: Sequence[dict], true: Sequence[dict]) -> list[tuple[int, int, float]]:
    """Match masks one to one with the largest sum of IoUs (Hungarian algorithm).

    Returns:
        (index of the predicted mask, index of the true mask, IoU) of each pair with an IoU of at least MIN_IOU.
    """
    from scipy.optimize import linear_sum_assignment

    if not predicted or not true:
        return []
    iou = np.asarray(coco_mask.iou(list(predicted), list(true), [0] * len(true)), np.float64)  # (predicted, true)
    iou = np.where(iou >= MIN_IOU, iou, 0.0)
    pairs = zip(*linear_sum_assignment(iou, maximize=True), strict=True)
    return [(int(p), int(t), float(iou[p, t])) for p, t in pairs if iou[p, t] > 0]


def pointing(weights: Sequence[float], words: frozenset[int]) -> float:
    """Return 1 if the word of the highest weight is one of `words`, else 0. Ties count by their share."""
    top = np.flatnonzero(np.asarray(weights) == np.max(weights))
    return float(np.mean([int(word) in words for word in top]))


def average_precision(weights: Sequence[float], words: frozenset[int]) -> float:
    """Return the average precision of the ranking by weight, with `words` as the relevant ones.

    Words of equal weight are in random order, and the result is the expectation. All weights equal give the chance
    level. Take a run of n equal words, r of them relevant, after N words with R relevant ones. The word at place i of
    the run is relevant with probability r/n, and then R + 1 + (i - 1)(r - 1)/(n - 1) relevant words are expected among
    the first N + i.
    """
    weights = np.asarray(weights, np.float64)
    relevant = np.isin(np.arange(len(weights)), list(words))
    total, num_before, relevant_before = 0.0, 0, 0
    for weight in np.unique(weights)[::-1]:
        run = relevant[weights == weight]
        n, r = len(run), int(run.sum())
        place = np.arange(1, n + 1)
        expected = relevant_before + 1 + (place - 1) * (r - 1) / max(n - 1, 1)
        total += float((r / n * expected / (num_before + place)).sum())
        num_before, relevant_before = num_before + n, relevant_before + r
    return total / len(words)


def align(
    predicted: Sequence[Instance],
    true: Sequence[TrueInstance],
    *,
    num_words: int,
    only_distinguishing: bool = False,
) -> AlignedPhrase:
    """Score one expression.

    Args:
        predicted: Instances with a weight per word. Only the order of the weights counts. Instances without weights
            are left out.
        true: Annotated instances. Those that no word describes are matched, but do not count.
        only_distinguishing: Score only words that not all instances share.
    """
    predicted = [instance for instance in predicted if instance.words is not None]
    for instance in predicted:
        if len(instance.words) != num_words:
            raise ValueError(f"an instance has {len(instance.words)} weights, but the text has {num_words} words")
        if not np.isfinite(instance.words).all():
            raise ValueError("weights of words must be finite")
    true = distinguishing(true) if only_distinguishing else list(true)
    aligned = []
    for p, t, iou in match_masks([i.rle for i in predicted], [i.mask for i in true]):
        weights, words = predicted[p].words, true[t].words
        if words:
            equal = [0.0] * num_words
            aligned.append(
                Aligned(
                    iou, pointing(weights, words), average_precision(weights, words),
                    pointing(equal, words), average_precision(equal, words),
                )
            )  # fmt: skip
    return AlignedPhrase(sum(bool(instance.words) for instance in true), aligned)


def align_predictions(
    rows: Iterable[Answer], truths: TruthIndex, *, only_distinguishing: bool = False
) -> Iterator[AlignedPhrase]:
    """Score the rows of a prediction file.

    Expressions without the tag, rows of other expressions, and further rows of the same expression are skipped. A
    missing row, or one without instances, counts as no instance.
    """

    def first_answers() -> Iterator[tuple[int, Sequence[Instance]]]:
        missing = set(range(len(truths)))
        for row in rows:
            position = truths.position.get(row.expression_id)
            if position in missing:
                missing.remove(position)
                yield position, row.raw_instances or ()
        for position in sorted(missing):
            yield position, ()

    for position, predicted in first_answers():
        expression, truth = truths.expression(position), truths.truth(position)
        true = true_instances(expression, truth)
        if true is None:
            continue
        try:
            check_instances(predicted, truth.record.size)
            num_words = len(expression.text.split())
            yield align(predicted, true, num_words=num_words, only_distinguishing=only_distinguishing)
        except ValueError as error:
            raise DataError(f"prediction of {expression.expression_id}: {error}") from None


def alignment_scores(phrases: Iterable[AlignedPhrase]) -> dict[str, Any]:
    """Average over matched instances, in percent.

    Returns:
        The scores, their chance levels on the same instances ("..._chance"), and "coverage", the share of instances
        that were matched. A model that finds only easy instances is scored on those, so read them together.
    """
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


def alignment_report(path: str, truths: TruthIndex) -> dict[str, Any]:
    """Return `alignment_scores` of a file of predictions, for all words and for distinguishing words."""
    return {
        name: alignment_scores(align_predictions(open_predictions(path), truths, only_distinguishing=only))
        for name, only in (("all words", False), ("distinguishing words", True))
    }


def alignment_lines(report: dict[str, Any]) -> list[str]:
    """Format `alignment_report` for people."""
    lines = []
    for name, scores in report.items():
        numbers = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in scores.items()}
        lines.append(f"words of instances, {name}: {', '.join(f'{key} {value}' for key, value in numbers.items())}")
    return lines
