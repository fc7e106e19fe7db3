"""Uncertainty of scores: bootstrap intervals and a paired test of two models, both over images.

Expressions of one image are not independent, so images are drawn, not expressions. Every metric is a function of sums
over rows (`refseg.evaluation.terms`). Rows are summed by image once. A resample is then a vector of weights, and all
resamples are one matrix product.

Letters: R rows, I images, M metrics, K columns of all metrics, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refseg.evaluation.terms import Terms, columns_of, percent, values

_WEIGHTS_AT_ONCE = 2**22  # numbers of a chunk's (S, I) weights: 32 MiB
LEVEL = 95.0  # coverage of all intervals, in percent
_SAME = 1e-9  # points; smaller differences are rounding errors


class PairedResult(NamedTuple):
    """One metric of A and B in points: both values, B minus A with its interval, and the p-value of no difference.

    The interval's ends are None if no resample has a denominator.
    """

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float


def bootstrap(
    terms: Terms, image: np.ndarray, *, num: int = 1000, seed: int = 0, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of metrics, in percent.

    Resamples without a denominator are ignored, and so are metrics for which every resample lacks one.

    Args:
        terms: Metrics.
        image: (R,) int code of each row's image.
        num: Number of resamples.
        level: Coverage of the intervals in percent.
    """
    sums = sum_by_image(terms, image)
    if not sums.size:
        return {}
    samples = np.concatenate(
        [_percent(terms, weights @ sums) for weights in _resamples(len(sums), num, seed)]
    )  # (S, M)
    ends = {name: _ends(column, level) for name, column in zip(terms, samples.T, strict=True)}
    return {name: (low, high) for name, (low, high) in ends.items() if low is not None and high is not None}


def paired_test(
    terms_a: Terms,
    terms_b: Terms,
    image: np.ndarray,
    *,
    num: int = 10_000,
    seed: int = 0,
) -> dict[str, PairedResult]:
    """Compare B with A on the same rows, for metrics that both have.

    The interval draws the same images for A and B. The two-sided p-value swaps A and B at random within images. It is
    the share of swaps whose difference is at least as large as the observed one, which counts as a swap itself, so it
    is never below 1 / (num + 1). The arguments are those of `bootstrap`.
    """
    names = [name for name in terms_a if name in terms_b]
    terms = {name: terms_a[name] for name in names}
    sums_a = sum_by_image(terms, image)
    sums_b = sum_by_image({name: terms_b[name] for name in names}, image)
    if not sums_a.size:
        return {}

    # Differences of the images drawn again, and with A and B swapped in some images. Equal images need no swap.
    total_a, total_b = sums_a.sum(0, keepdims=True), sums_b.sum(0, keepdims=True)
    seen = (_percent(terms, total_b) - _percent(terms, total_a))[0]  # (M,)
    drawn = np.concatenate(
        [_percent(terms, w @ sums_b) - _percent(terms, w @ sums_a) for w in _resamples(len(sums_a), num, seed)]
    )
    moved = (sums_b - sums_a)[(sums_a != sums_b).any(1)]
    swapped = np.concatenate(
        [
            _percent(terms, total_b - swaps @ moved) - _percent(terms, total_a + swaps @ moved)
            for swaps in _swaps(len(moved), num, seed)
        ]
    )

    values_a, values_b = values(terms_a), values(terms_b)
    results = {}
    for name, observed, column, by_chance in zip(names, seen, drawn.T, swapped.T, strict=True):
        if np.isnan(observed):
            continue
        by_chance = by_chance[~np.isnan(by_chance)]
        extreme = int(np.count_nonzero(np.abs(by_chance) >= abs(observed) - _SAME))
        p_value = (1 + extreme) / (1 + len(by_chance))
        ends = _ends(column, LEVEL)
        results[name] = PairedResult(values_a[name], values_b[name], float(observed), *ends, p_value)
    return results


def paired_ranking_test(
    prob_a: np.ndarray,
    prob_b: np.ndarray,
    none: np.ndarray,
    image: np.ndarray,
    *,
    num: int = 500,
    seed: int = 0,
) -> dict[str, PairedResult]:
    """Compare two no-target probabilities (R,) of the same expressions by AUC and AURC, as `paired_test` does.

    AURC is the area under the risk-coverage curve (`risk_coverage`) of the decision at 1/2; lower is better. Ranks are
    no sums, so every resample is ranked anew.

    Args:
        none: (R,) bool, whether the expression refers to nothing. Both kinds must be there.
        image: (R,) int code of each row's image.
    """
    codes, image = np.unique(image, return_inverse=True)

    def measure(prob: np.ndarray, none: np.ndarray) -> tuple[float, float]:
        area = auroc(prob, none)
        risks = risk_coverage(np.maximum(prob, 1 - prob), (prob > 0.5) != none)
        return (np.nan if area is None else 100.0 * area, 100.0 * float(risks.mean()))

    drawn, swapped = [], []
    for weights in _resamples(len(codes), num, seed):
        for counts in weights.astype(np.int64):
            rows = np.repeat(np.arange(len(none)), counts[image])
            drawn.append(np.subtract(measure(prob_b[rows], none[rows]), measure(prob_a[rows], none[rows])))
    for swaps in _swaps(len(codes), num, seed):
        for swap in swaps.astype(bool):
            of_row = swap[image]
            first, second = np.where(of_row, prob_b, prob_a), np.where(of_row, prob_a, prob_b)
            swapped.append(np.subtract(measure(second, none), measure(first, none)))
    values_a, values_b = measure(prob_a, none), measure(prob_b, none)
    results = {}
    for i, name in enumerate(("AUC", "AURC")):
        observed = values_b[i] - values_a[i]
        extreme = sum(abs(difference[i]) >= abs(observed) - _SAME for difference in swapped)
        ends = _ends(np.array([difference[i] for difference in drawn]), LEVEL)
        results[name] = PairedResult(values_a[i], values_b[i], observed, *ends, (1 + extreme) / (1 + num))
    return results


def beats_chance(scores: Mapping[str, Any]) -> bool:
    """Check whether pointing (`refseg.evaluation.alignment`) is more than two standard errors above chance."""
    matched, pointing, chance = (scores[name] for name in ("matched", "pointing", "pointing_chance"))
    if not matched:
        return False
    error = math.sqrt(chance * (100 - chance) / matched)  # percent, if every top word were drawn by chance
    return pointing > chance + 2 * error


def auroc(prob: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the chance that a positive has a higher probability than a negative. Ties count half.

    None without positives or without negatives.
    """
    from scipy.stats import rankdata

    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    ranks = rankdata(prob)[positive].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def risk_coverage(confidence: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return (N,): the mean loss of the k answers with the highest confidence, for k = 1 ... N.

    The mean of it is the area under the risk-coverage curve (AURC). Answers with the same confidence have the mean loss
    of all of them, as in random order.
    """
    _, group = np.unique(-confidence, return_inverse=True)  # the highest confidence first
    mean_loss = np.bincount(group, weights=loss) / np.maximum(np.bincount(group), 1)
    return np.cumsum(mean_loss[np.sort(group)]) / np.arange(1, len(group) + 1)


def sum_by_image(terms: Terms, image: np.ndarray) -> np.ndarray:
    """Return (I, K) float64: the columns of one metric after the other. Sums of pixels below 2**53 are exact."""
    codes, number = np.unique(image, return_inverse=True)
    columns = [column for term in terms.values() for column in columns_of(term).T]
    sums = [np.bincount(number, weights=column, minlength=len(codes)) for column in columns]
    return np.stack(sums, axis=1) if sums and len(codes) else np.zeros((len(codes), 0))


def _resamples(images: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """Yield chunks (S, I): how often each image was drawn."""
    rng = np.random.default_rng(seed)
    for size in _chunks(images, num):
        drawn = rng.integers(0, images, (size, images)) + images * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float64)


def _swaps(images: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """Yield chunks (S, I) of 0 and 1: the images in which A and B are swapped."""
    if not images:
        yield np.zeros((num, 0))
        return
    rng = np.random.default_rng([seed, 1])  # not the stream that the resamples come from
    for size in _chunks(images, num):
        bits = np.frombuffer(rng.bytes(size * -(-images // 8)), np.uint8).reshape(size, -1)
        yield np.unpackbits(bits, axis=1, count=images).astype(np.float64)


def _chunks(images: int, num: int) -> Iterator[int]:
    most = max(1, _WEIGHTS_AT_ONCE // max(1, images))
    for start in range(0, num, most):
        yield min(most, num - start)


def _percent(terms: Terms, sums: np.ndarray) -> np.ndarray:
    """Return metrics (S, M) in percent, NaN without a denominator, of sums (S, K) as `sum_by_image` has them."""
    ends = np.cumsum([columns_of(term).shape[1] for term in terms.values()])[:-1]
    parts = np.split(sums, ends, axis=1)
    return np.stack([percent(term, part) for term, part in zip(terms.values(), parts, strict=True)], axis=1)


def _ends(column: np.ndarray, level: float) -> tuple[float, float] | tuple[None, None]:
    if np.isnan(column).all():
        return None, None
    tail = (100.0 - level) / 2
    low, high = np.nanpercentile(column, [tail, 100.0 - tail])
    return float(low), float(high)
