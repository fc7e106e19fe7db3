"""Single cases for people to look at: which ones, and their pictures."""

from __future__ import annotations

import base64
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, features

from refseg.visualization.overlay import (
    EMPTY_MASK,
    GROUND_TRUTH_COLOUR,
    PREDICTION_COLOUR,
    mask_panel,
    side_by_side,
)

RIGHT_IOU = 0.5  # a case counts as right from this IoU on; named wherever the report says "right"
GROUPS = ("worst", "best", "no-target", "random")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One expression with its prediction.

    `image` (H, W, 3) uint8 RGB or (H, W) grey. `predicted`, `ground_truth` (H, W) bool: merged masks; an empty ground
    truth is a no-target expression. `iou` is 0..1, by the rules of the report's protocol. `rejected`: the model says
    "nothing here". `group` is the heading under which the report shows the case.
    """

    image: np.ndarray
    text: str
    predicted: np.ndarray
    ground_truth: np.ndarray
    iou: float
    rejected: bool
    expression_id: str
    tags: Mapping[str, Any] = field(default_factory=dict)
    group: str = "cases"

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        for name in ("predicted", "ground_truth"):
            mask = getattr(self, name)
            if mask.dtype != bool or mask.shape != size:
                found = f"{mask.dtype} {mask.shape}"
                raise ValueError(f"expression {self.expression_id}: {name} must be bool {size}, not {found}")

    @property
    def no_target(self) -> bool:
        return not self.ground_truth.any()

    @property
    def answers_nothing(self) -> bool:
        return self.rejected or not self.predicted.any()

    @property
    def right(self) -> bool:
        """No-target: nothing is answered. Otherwise: IoU >= RIGHT_IOU, and not rejected."""
        if self.no_target:
            return self.answers_nothing
        return not self.rejected and self.iou >= RIGHT_IOU


def choose_cases(rows: Sequence[Row], *, per_group: int = 8, seed: int = 0) -> dict[str, list[Row]]:
    """Rows to show, by group of GROUPS: the worst and the best with a target, no-target ones, random others.

    A row has `expression_id`, `iou`, `no_target` and `rejected`, and whatever else the caller wants back. No row is
    in two groups. Half of the no-target rows are wrong ones where there are enough. The choice depends on the rows
    and the seed, not on the order of the rows.
    """
    for row in rows:
        missing = {"expression_id", "iou", "no_target", "rejected"} - row.keys()
        if missing:
            raise KeyError(f"a row for choose_cases lacks {sorted(missing)}; it has {sorted(row)}")
    rng = random.Random(seed)
    rows = sorted(rows, key=lambda row: str(row["expression_id"]))
    ranked = sorted((row for row in rows if not row["no_target"] and not math.isnan(row["iou"])), key=_iou)
    num_worst = min(per_group, len(ranked) // 2)
    num_best = min(per_group, len(ranked) - num_worst)
    worst, best = ranked[:num_worst], ranked[len(ranked) - num_best :][::-1]
    accepted = _sample(rng, [row for row in rows if row["no_target"] and not row["rejected"]], per_group)
    rejected = _sample(rng, [row for row in rows if row["no_target"] and row["rejected"]], per_group)
    num_accepted = max(per_group - len(rejected), min(len(accepted), per_group // 2))
    no_target = (accepted[:num_accepted] + rejected)[:per_group]
    taken = {id(row) for row in (*worst, *best, *no_target)}
    others = _sample(rng, [row for row in rows if id(row) not in taken], per_group)
    return dict(zip(GROUPS, (worst, best, no_target, others), strict=True))


def case_pictures(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a case's prediction and of its ground truth."""
    prediction = mask_panel(
        case.image, case.predicted, colour=PREDICTION_COLOUR, rejected=case.rejected, empty=EMPTY_MASK
    )
    return prediction, mask_panel(case.image, case.ground_truth, colour=GROUND_TRUTH_COLOUR)


def contact_sheet(cases: Sequence[Case], *, columns: int = 3, margin: int = 16) -> np.ndarray:
    """One picture (H, W, 3) of cases side by side, row by row: each its phrase, prediction and ground truth."""
    if not cases:
        raise ValueError("a contact sheet needs at least one case")
    cells = [
        side_by_side(
            case.image,
            case.predicted,
            case.ground_truth,
            text=case.text,
            iou=None if case.no_target else case.iou,
            right=case.right,
            rejected=case.rejected,
        )
        for case in cases
    ]
    height = max(cell.shape[0] for cell in cells) + margin
    width = max(cell.shape[1] for cell in cells) + margin
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * height + margin, min(columns, len(cells)) * width + margin, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        top, left = margin + number // columns * height, margin + number % columns * width
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def data_uri(picture: np.ndarray) -> str:
    """The picture (H, W, 3) as a data URI: WebP (JPEG where Pillow lacks it), or PNG where that is smaller.

    PNG is only tried on pictures of few colours: on others it is slow, and never the smallest.
    """
    image = Image.fromarray(picture)
    if features.check("webp"):
        candidates = [_encode(image, "webp", {"quality": 85})]
    else:
        candidates = [_encode(image, "jpeg", {"quality": 88, "subsampling": 0})]
    if image.getcolors(maxcolors=256) is not None:
        candidates.append(_encode(image, "png", {"optimize": True}))
    name, content = min(candidates, key=lambda pair: len(pair[1]))
    return f"data:image/{name};base64,{base64.b64encode(content).decode('ascii')}"


def _encode(image: Image.Image, name: str, options: dict[str, Any]) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    return name, buffer.getvalue()


def _sample(rng: random.Random, rows: list[Row], count: int) -> list[Row]:
    return rng.sample(rows, min(count, len(rows)))


def _iou(row: Row) -> float:
    return row["iou"]
