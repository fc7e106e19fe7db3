"""The metrics of a protocol by group of expressions, and who was taken for "refers to nothing".

A group is scored as if it were the whole set. R rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refseg.datasets.selection import shipped_categories
from refseg.errors import UsageError
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import bootstrap

LENGTHS = (3, 8, 13)  # words: LGFormer's Table 3
SIZES = (0.01, 0.05, 0.2)  # share of the image
MOST_TARGETS = 4  # so many or more are one group


class Groups(NamedTuple):
    """Labels in the order in which they are shown, and the number of each row's label, -1 for a row in no group."""

    labels: Sequence[str]
    group: np.ndarray  # (R,)


def by_length(rows: Rows) -> Groups:
    labels = ["[1, 3) words", "[3, 8) words", "[8, 13) words", "[13, inf) words"]
    return Groups(labels, np.searchsorted(LENGTHS, rows.num_words, side="right"))


def by_targets(rows: Rows) -> Groups:
    labels = [*map(str, range(MOST_TARGETS)), f"{MOST_TARGETS} or more"]
    return Groups(labels, np.minimum(rows.num_targets, MOST_TARGETS))


def by_size(rows: Rows) -> Groups:
    """By the share of the image that the referents cover together, at the original size. COCO's small, medium and large
    (32 and 96 pixels squared) are not used: they mean another thing on each size of image."""
    labels = ["no target", "< 1 % of the image", "1-5 %", "5-20 %", ">= 20 %"]
    share = rows.target_area / np.maximum(rows.image_area, 1)
    return Groups(labels, np.where(rows.has_target, 1 + np.searchsorted(SIZES, share, side="right"), 0))


def by_category(rows: Rows) -> Groups:
    """COCO's seen and unseen classes (`refseg.datasets.selection`): all referents of seen ones, all of unseen ones, or
    anything else. Expressions without target, or whose data set has no categories, are in no group."""
    parts = [frozenset(shipped_categories(part)) for part in ("seen", "unseen")]
    names, which = _distinct(rows.categories)
    code = [
        -1 if not name else next((i for i, part in enumerate(parts) if part.issuperset(name.split("|"))), len(parts))
        for name in names
    ]
    return Groups(["seen", "unseen", "other"], np.array(code, np.int64)[which])


def by_label(rows: Rows, *, column: str) -> Groups:
    """A column of texts; a row without one is in no group."""
    names, which = _distinct(rows.columns[column])
    kept = [name for name in names if name]
    code = np.array([kept.index(name) if name else -1 for name in names], np.int64)
    return Groups(kept, code[which])


BREAKDOWNS: dict[str, Callable[[Rows], Groups]] = {
    "length": by_length,
    "targets": by_targets,
    "size": by_size,
    "category": by_category,
    "skill": partial(by_label, column="skill"),  # RefShapes' tag
}
TAG = "tag:"  # before the name of a tag, which is also a column of the rows (`refseg.evaluation.tags`)


def get_breakdown(name: str) -> Callable[[Rows], Groups]:
    if name.startswith(TAG):
        return partial(by_label, column=name)
    if name not in BREAKDOWNS:
        close = difflib.get_close_matches(name, BREAKDOWNS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(BREAKDOWNS)}, {TAG}NAME"
        raise UsageError(f"no breakdown by {name!r}; {hint}")
    return BREAKDOWNS[name]


def breakdown(rows: Rows, protocol: Protocol, by: str, *, resamples: int | None = None) -> list[dict[str, Any]]:
    """A line for each group that has expressions: its label under the name `by`, how many, and the metrics. With
    `resamples` also the "interval" of the first metric, as its name ("of") and its "ends"."""
    labels, group = get_breakdown(by)(rows)
    lines = []
    for number, label in enumerate(labels):
        chosen = np.flatnonzero(group == number)
        if len(chosen):
            line = {by: label, "expressions": len(chosen), **protocol.score(rows[chosen])}
            lines.append(line | (_interval(rows[chosen], protocol, resamples) if resamples else {}))
    return lines


def _interval(rows: Rows, protocol: Protocol, resamples: int) -> dict[str, Any]:
    name, terms = next(iter(protocol.terms(rows).items()))
    found = bootstrap({name: terms}, rows.image, num=resamples)
    return {"interval": {"of": name, "ends": list(found[name])}} if name in found else {}


def confusion(rows: Rows, rejected: np.ndarray) -> dict[str, Any]:
    """Who has a target against who was rejected, in counts and percent, and the share rejected by number of targets.

    `N-precision`: the share of rejections that are right. Rates without a denominator are None.
    """
    target, none = rows.has_target, ~rows.has_target
    counts = {
        "target, accepted": _count(target & ~rejected),
        "target, rejected": _count(target & rejected),
        "no target, accepted": _count(none & ~rejected),
        "no target, rejected": _count(none & rejected),
    }
    labels, group = by_targets(rows)
    by_number = [
        {"targets": label, "expressions": _count(group == i), "rejected": _rate(rejected & (group == i), group == i)}
        for i, label in enumerate(labels)
        if (group == i).any()
    ]
    rates = {
        "T-acc": _rate(target & ~rejected, target),
        "N-acc": _rate(none & rejected, none),
        "N-precision": _rate(none & rejected, rejected),
    }
    return {"counts": counts, "rates": rates, "by_targets": by_number}


def _distinct(column: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The sorted names of a column, and each row's number among them."""
    if not len(column):
        return [], np.zeros(0, np.int64)
    names, which = np.unique(column.astype(str), return_inverse=True)
    return names.tolist(), which.reshape(-1)


def _count(chosen: np.ndarray) -> int:
    return int(np.count_nonzero(chosen))


def _rate(chosen: np.ndarray, among: np.ndarray) -> float | None:
    return 100.0 * _count(chosen) / _count(among) if among.any() else None
