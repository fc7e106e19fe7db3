"""Metrics by group of expressions, and the confusion of target and no target.

Each group is scored as if it were the whole set. Letters: R rows.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refseg.datasets.selection import shipped_categories
from refseg.errors import UsageError
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import bootstrap

if TYPE_CHECKING:
    from refseg.evaluation.scorer import TruthIndex

LENGTHS = (3, 8, 13)  # words, as in LGFormer's Table 3
SIZES = (0.01, 0.05, 0.2)  # share of the image
MOST_TARGETS = 4  # this many targets or more form one group
TAG = "tag:"  # prefix of groups that come from a tag of the ground truth


class Grouping(NamedTuple):
    """Labels in display order, and the index of each row's label (-1 for rows in no group)."""

    labels: Sequence[str]
    group: np.ndarray  # (R,)


def by_length(rows: Rows) -> Grouping:
    """Group by the number of words."""
    labels = ["[1, 3) words", "[3, 8) words", "[8, 13) words", "[13, inf) words"]
    return Grouping(labels, np.searchsorted(LENGTHS, rows.num_words, side="right"))


def by_targets(rows: Rows) -> Grouping:
    """Group by the number of targets."""
    labels = [*map(str, range(MOST_TARGETS)), f"{MOST_TARGETS} or more"]
    return Grouping(labels, np.minimum(rows.num_targets, MOST_TARGETS))


def by_size(rows: Rows) -> Grouping:
    """Group by the share of the image that the referents cover together, at the original size.

    COCO's small, medium and large (32 and 96 pixels squared) are not used, since they depend on the image size.
    """
    labels = ["no target", "< 1 % of the image", "1-5 %", "5-20 %", ">= 20 %"]
    share = rows.target_area / np.maximum(rows.image_area, 1)
    return Grouping(labels, np.where(rows.has_target, 1 + np.searchsorted(SIZES, share, side="right"), 0))


def by_category(rows: Rows) -> Grouping:
    """Group by COCO's seen and unseen classes: all referents seen, all unseen, or anything else.

    Rows without a target, or from a data set without categories, are in no group.
    """
    parts = [frozenset(shipped_categories(part)) for part in ("seen", "unseen")]
    names, code_of_row = _distinct(rows.categories)
    code = [
        -1 if not name else next((i for i, part in enumerate(parts) if part.issuperset(name.split("|"))), len(parts))
        for name in names
    ]
    return Grouping(["seen", "unseen", "other"], np.array(code, np.int64)[code_of_row])


def by_label(rows: Rows, *, column: str) -> Grouping:
    """Group by a column of strings. Rows with an empty string are in no group."""
    names, code_of_row = _distinct(rows.columns[column])
    labels = [name for name in names if name]
    code = np.array([labels.index(name) if name else -1 for name in names], np.int64)
    return Grouping(labels, code[code_of_row])


BREAKDOWNS: dict[str, Callable[[Rows], Grouping]] = {
    "length": by_length,
    "targets": by_targets,
    "size": by_size,
    "category": by_category,
    "skill": partial(by_label, column="skill"),  # RefShapes' tag
}


def get_breakdown(name: str) -> Callable[[Rows], Grouping]:
    """Return the grouping function of a name in BREAKDOWNS, or of "tag:NAME" (see `tag_columns`)."""
    if name.startswith(TAG):
        return partial(by_label, column=name)
    if name not in BREAKDOWNS:
        close = difflib.get_close_matches(name, BREAKDOWNS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"valid names: {', '.join(BREAKDOWNS)}, {TAG}NAME"
        raise UsageError(f"unknown breakdown {name!r}; {hint}")
    return BREAKDOWNS[name]


def iter_groups(rows: Rows, by: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield, for each group that has rows, the start of its table line and the indices of its rows."""
    labels, group = get_breakdown(by)(rows)
    for number, label in enumerate(labels):
        chosen = np.flatnonzero(group == number)
        if len(chosen):
            yield {by: label, "expressions": len(chosen)}, chosen


def breakdown(rows: Rows, protocol: Protocol, by: str, *, resamples: int | None = None) -> list[dict[str, Any]]:
    """Score each group of rows.

    Args:
        by: Name of a breakdown, or "tag:NAME".
        resamples: Number of bootstrap samples for the interval of the first metric. None: no interval.

    Returns:
        A line per group with its label (under the key `by`), "expressions", the metrics, and with `resamples` the
        "interval" of the first metric: its name ("of") and its "ends".
    """
    lines = []
    for line, chosen in iter_groups(rows, by):
        members = rows[chosen]
        line |= protocol.score(members)
        if resamples:
            name, terms = next(iter(protocol.terms(members).items()))
            intervals = bootstrap({name: terms}, members.image, num=resamples)
            if name in intervals:
                line["interval"] = {"of": name, "ends": list(intervals[name])}
        lines.append(line)
    return lines


def mean_of_groups(lines: Sequence[dict[str, Any]], metrics: Iterable[str]) -> dict[str, float]:
    """Return the mean of each metric over the lines of a breakdown that have it, each group with the same weight."""
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in metrics}
    return {name: float(np.mean(of_groups)) for name, of_groups in values.items() if of_groups}


def confusion(rows: Rows, rejected: np.ndarray) -> dict[str, Any]:
    """Count target and no target against accepted and rejected.

    Returns:
        "counts"; "rates" in percent, where `N-precision` is the share of rejections that are right; and "by_targets",
        the share rejected by number of targets. Rates without a denominator are None.
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


def _count(chosen: np.ndarray) -> int:
    return int(np.count_nonzero(chosen))


def _rate(chosen: np.ndarray, among: np.ndarray) -> float | None:
    return 100.0 * _count(chosen) / _count(among) if among.any() else None


def _distinct(column: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the sorted names of a column, and the index of each row's name among them."""
    names, code_of_row = np.unique(column.astype(str), return_inverse=True)
    return names.tolist(), code_of_row.reshape(-1)


# Tags of the ground truth as columns of rows --------------------------------------------------------------------------


def tag_columns(truths: TruthIndex, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a column (N,) of labels over all expressions for each group "tag:NAME".

    Strings are labels as they are, other values as JSON. Expressions without the tag have the label "".
    """
    columns = {group: np.full(len(truths), "", object) for group in groups if group.startswith(TAG)}
    names: set[str] = set()
    for position in range(len(truths) if columns else 0):
        tags = truths.expression(position).tags
        names |= tags.keys()
        for group, column in columns.items():
            value = tags.get(group.removeprefix(TAG))
            if value is not None:
                column[position] = value if isinstance(value, str) else json.dumps(value)
    unknown = [group for group in columns if group.removeprefix(TAG) not in names]
    if unknown:
        raise UsageError(f"no expression has a {unknown[0]}; there are: {', '.join(sorted(names)) or 'no tags at all'}")
    return columns


def with_columns(rows: Rows, truths: TruthIndex, columns: dict[str, np.ndarray]) -> Rows:
    """Add columns over all expressions (`tag_columns`) to rows of some of them."""
    if not columns:
        return rows
    positions = np.array([truths.position[name] for name in rows.expression_id], np.int64)
    return Rows({**rows.columns, **{name: column[positions] for name, column in columns.items()}})
