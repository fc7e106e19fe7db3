"""Tags of the ground truth as columns of rows, for breakdowns by `tag:NAME`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from refseg.errors import UsageError
from refseg.evaluation.breakdowns import TAG
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import TruthIndex


def tag_columns(truths: TruthIndex, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """For each group "tag:NAME", under that name, (N,) its label of every expression: "" without the tag."""
    columns = {group: np.full(len(truths), "", object) for group in groups if group.startswith(TAG)}
    known: set[str] = set()
    for position in range(len(truths) if columns else 0):
        tags = truths.expression(position).tags
        known |= tags.keys()
        for group, column in columns.items():
            column[position] = label_of(tags.get(group.removeprefix(TAG)))
    unknown = [group for group in columns if group.removeprefix(TAG) not in known]
    if unknown:
        raise UsageError(f"no expression has a {unknown[0]}; there are: {', '.join(sorted(known)) or 'no tags at all'}")
    return columns


def label_of(value: Any) -> str:
    """Texts as they are, everything else as JSON; nothing is no label."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def with_columns(rows: Rows, truths: TruthIndex, columns: dict[str, np.ndarray]) -> Rows:
    """The rows, of any of the expressions, with columns of all of them."""
    if not columns:
        return rows
    positions = np.array([truths.position[name] for name in rows.expression_id], np.int64)
    return Rows({**rows.columns, **{name: column[positions] for name, column in columns.items()}})
