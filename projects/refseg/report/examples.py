"""Single answers for people to look at: their choice, their rows in a prediction file, and their pictures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from refseg.datasets.images import read_image
from refseg.datasets.masks import decode
from refseg.errors import DataError
from refseg.evaluation.measure import resize_rle
from refseg.evaluation.prediction_file import Answer
from refseg.instance import Instance
from refseg.visualization.instances import answer_panel, phrase_strip, words_by_instance
from refseg.visualization.overlay import GROUND_TRUTH_COLOR, grid, mask_panel, two_panels
from refseg.visualization.word_bars import Owners, owners_of_words

RIGHT_IOU = 0.5  # IoU from which an answer counts as right
GROUPS = ("worst", "best", "several", "no-target", "random")
_BLANK = 205  # gray of a picture whose image is missing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One expression with its prediction.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) gray.
        text: The expression.
        predicted: Merged mask (H, W) bool of the prediction.
        ground_truth: Merged mask (H, W) bool of the referents. It is empty for a no-target expression.
        iou: IoU (0 to 1) by the rules of the report's protocol.
        rejected: The model answers "nothing here".
        expression_id: Name of the expression in its data set.
        tags: Facts for the small print.
        group: Heading under which the report shows the example.
        instances: Predicted instances, best first, of models that tell them apart.
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
    instances: Sequence[Instance] = ()

    def __post_init__(self) -> None:
        size, num_words = self.image.shape[:2], len(self.text.split())
        masks = {"predicted": self.predicted, "ground_truth": self.ground_truth}
        masks |= {f"the mask of instance {i}": instance.mask for i, instance in enumerate(self.instances)}
        for name, mask in masks.items():
            if mask.dtype != bool or mask.shape != size:
                actual = f"{mask.dtype} {mask.shape}"
                raise ValueError(f"expression {self.expression_id}: {name} must be bool {size}, not {actual}")
        for i, instance in enumerate(self.instances):
            if instance.words is not None and len(instance.words) != num_words:
                counts = f"{len(instance.words)} weights for {num_words} words"
                raise ValueError(f"expression {self.expression_id}: instance {i} has {counts} of text.split()")

    @property
    def no_target(self) -> bool:
        return not self.ground_truth.any()

    @property
    def answers_nothing(self) -> bool:
        return self.rejected or not self.predicted.any()

    @property
    def right(self) -> bool:
        """Whether a no-target expression has an empty answer, and any other one an IoU of at least RIGHT_IOU."""
        if self.no_target:
            return self.answers_nothing
        return not self.rejected and self.iou >= RIGHT_IOU

    @property
    def shown_instances(self) -> Sequence[Instance]:
        """The instances, or none if the answer is "nothing here" or an empty mask."""
        return () if self.answers_nothing else self.instances

    @property
    def owners(self) -> list[Owners]:
        """For each word of `text.split()`, the shown instances that it belongs to."""
        words = words_by_instance(self.text, [one.words for one in self.shown_instances])
        return owners_of_words(len(self.text.split()), words)


def choose_examples(
    rows: Sequence[Row], *, per_group: int = 8, seed: int = 0, found_all: Callable[[Row], bool] | None = None
) -> dict[str, list[Row]]:
    """Choose the rows to show, by group: the worst and best ones with a target, ones with several targets, no-target
    ones, and random others.

    No row is in two groups. Half of the no-target rows are wrong ones, and half of those with several targets are
    completely found, if there are enough of both kinds. The choice depends on the rows and the seed, not on the order
    of the rows.

    Args:
        rows: Mappings with `expression_id`, `iou`, `no_target` and `rejected`, with `several` if the expression has two
            targets or more, and with anything else that the caller needs back.
        per_group: Maximum number of rows per group.
        seed: Seed of the random choices.
        found_all: Tells whether the model found all targets of a row. It is called for a few rows only. By default the
            row must not be rejected and have an IoU of at least RIGHT_IOU.
    """
    for row in rows:
        missing = {"expression_id", "iou", "no_target", "rejected"} - row.keys()
        if missing:
            raise KeyError(f"a row for choose_examples lacks {sorted(missing)}; it has {sorted(row)}")
    rng = random.Random(seed)
    rows = sorted(rows, key=lambda row: str(row["expression_id"]))
    # The worst and the best
    ranked = sorted((row for row in rows if not row["no_target"] and not math.isnan(row["iou"])), key=itemgetter("iou"))
    num_worst = min(per_group, len(ranked) // 2)
    num_best = min(per_group, len(ranked) - num_worst)
    worst, best = ranked[:num_worst], ranked[len(ranked) - num_best :][::-1]
    # Without a target: wrong ones first
    accepted = _sample(rng, [row for row in rows if row["no_target"] and not row["rejected"]], per_group)
    rejected = _sample(rng, [row for row in rows if row["no_target"] and row["rejected"]], per_group)
    num_accepted = max(per_group - len(rejected), min(len(accepted), per_group // 2))
    no_target = (accepted[:num_accepted] + rejected)[:per_group]
    # With several targets
    taken = {id(row) for row in (*worst, *best)}
    several = [row for row in rows if row.get("several") and id(row) not in taken]
    several = _half_found(_sample(rng, several, len(several)), per_group, found_all or _is_right)
    # Any others
    taken |= {id(row) for row in (*several, *no_target)}
    others = _sample(rng, [row for row in rows if id(row) not in taken], per_group)
    return dict(zip(GROUPS, (worst, best, several, no_target, others), strict=True))


def _sample(rng: random.Random, rows: list[Row], count: int) -> list[Row]:
    return rng.sample(rows, min(count, len(rows)))


def _half_found(rows: list[Row], count: int, found_all: Callable[[Row], bool]) -> list[Row]:
    """Return at most `count` rows: half of them found if there are enough, then the others. Only the first rows are
    checked, because checking is slow."""
    checked = [(row, found_all(row)) for row in rows[: 4 * count]]
    hits = [row for row, is_found in checked if is_found]
    misses = [row for row, is_found in checked if not is_found]
    num_hits = max(count - len(misses), min(len(hits), count - count // 2))
    return (hits[:num_hits] + misses)[:count]


def _is_right(row: Row) -> bool:
    return not row["rejected"] and row["iou"] >= RIGHT_IOU


# Rows and images of chosen examples -----------------------------------------------------------------------------------


def chosen_rows(rows: Iterable[Answer], ids: Set[str]) -> dict[str, Answer]:
    """Return the rows of these expressions, reading no further than needed. The first of duplicates counts, as in
    scoring."""
    chosen: dict[str, Answer] = {}
    if not ids:
        return chosen
    for row in rows:
        if row.expression_id in ids and row.expression_id not in chosen:
            chosen[row.expression_id] = row
            if len(chosen) == len(ids):
                break
    return chosen


def mask_at(rle: dict | None, size: tuple[int, int]) -> np.ndarray:
    """Decode a mask at a size (h, w). None becomes an empty mask."""
    return np.zeros(size, bool) if rle is None else decode(resize_rle(rle, size))


def image_or_gray(path: str, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Return the image (h, w, 3) and "", or a gray one and the reason why the image cannot be read."""
    try:
        return read_image(path, size), ""
    except DataError as error:
        return np.full((*size, 3), _BLANK, np.uint8), str(error)


# Pictures -------------------------------------------------------------------------------------------------------------


def example_pictures(case: Example) -> tuple[np.ndarray, np.ndarray]:
    """Draw the prediction, with its instances if there are any, and the ground truth."""
    truth = mask_panel(case.image, case.ground_truth, color=GROUND_TRUTH_COLOR)
    return answer_panel(case.image, case.predicted, case.shown_instances, rejected=case.rejected), truth


def contact_sheet(cases: Sequence[Example], *, columns: int = 3, margin: int = 16) -> np.ndarray:
    """Draw examples side by side in one picture (H, W, 3), each with its phrase, prediction and ground truth.

    The pictures of a row are level, however high the phrases are.
    """
    if not cases:
        raise ValueError("a contact sheet needs at least one example")
    cells = [
        two_panels(
            *example_pictures(case),
            phrase=partial(phrase_strip, case.text, case.shown_instances),
            iou=None if case.no_target else case.iou,
            right=case.right,
        )
        for case in cases
    ]
    return grid(cells, columns=columns, margin=margin)
