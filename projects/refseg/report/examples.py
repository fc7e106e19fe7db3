"""Single answers for people to look at: their choice, their rows in a prediction file, and their pictures."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from refseg.datasets.images import read_image
from refseg.datasets.masks import decode
from refseg.errors import DataError
from refseg.evaluation.measure import resize_rle
from refseg.evaluation.prediction_file import Answer
from refseg.instance import Instance
from refseg.visualization.captions import caption
from refseg.visualization.instances import answer_panel, phrase_strip
from refseg.visualization.overlay import GROUND_TRUTH_COLOR, grid, mask_panel, pad_to, stack
from refseg.visualization.word_bars import Owners, word_owners

RIGHT_IOU = 0.5  # IoU from which an answer counts as right
GROUPS = ("worst", "best", "several", "no-target", "random")
_BLANK = 205  # gray of a picture whose image is missing
_GAP = 8  # pixels between prediction and ground truth


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
        instances: Predicted instances, best first, of models that tell them apart. Their words are those of
            `text.split()`.
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
        return word_owners(self.text, [one.words for one in self.shown_instances])


# Choice ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One scored expression that a report may show.

    Args:
        expression_id: Name of the expression in its data set.
        iou: IoU (0 to 1), or NaN if it has none.
        no_target: The expression refers to nothing.
        rejected: The model answers "nothing here".
        several: The expression has two targets or more.
        found_all: The model found all targets.
    """

    expression_id: str
    iou: float
    no_target: bool = False
    rejected: bool = False
    several: bool = False
    found_all: bool = False


def choose_examples(
    candidates: Sequence[Candidate], *, per_group: int = 8, seed: int = 0
) -> dict[str, list[Candidate]]:
    """Choose the expressions to show, by group: the worst and best ones with a target, ones with several targets,
    no-target ones, and random others.

    No expression is in two groups. Half of the no-target ones are not rejected, and half of those with several targets
    are completely found, if there are enough of both kinds. The choice depends on the candidates and the seed, not on
    the order of the candidates.

    Args:
        candidates: Expressions to choose from.
        per_group: Maximum number of expressions per group.
        seed: Seed of the random choices.
    """
    rng = random.Random(seed)
    candidates = sorted(candidates, key=attrgetter("expression_id"))

    def sample(members: list[Candidate], count: int) -> list[Candidate]:
        return rng.sample(members, min(count, len(members)))

    def mix(first: list[Candidate], others: list[Candidate], half: int) -> list[Candidate]:
        num_first = max(per_group - len(others), min(len(first), half))
        return (first[:num_first] + others)[:per_group]

    # The worst and the best
    ranked = sorted((one for one in candidates if not one.no_target and not math.isnan(one.iou)), key=attrgetter("iou"))
    num_worst = min(per_group, len(ranked) // 2)
    num_best = min(per_group, len(ranked) - num_worst)
    worst, best = ranked[:num_worst], ranked[len(ranked) - num_best :][::-1]
    # Without a target
    accepted = sample([one for one in candidates if one.no_target and not one.rejected], per_group)
    rejected = sample([one for one in candidates if one.no_target and one.rejected], per_group)
    no_target = mix(accepted, rejected, per_group // 2)
    # With several targets
    taken = {one.expression_id for one in (*worst, *best)}
    several = [one for one in candidates if one.several and one.expression_id not in taken]
    several = sample(several, len(several))
    hits, misses = ([one for one in several if one.found_all is found] for found in (True, False))
    several = mix(hits, misses, per_group - per_group // 2)
    # Any others
    taken |= {one.expression_id for one in (*several, *no_target)}
    others = sample([one for one in candidates if one.expression_id not in taken], per_group)
    return dict(zip(GROUPS, (worst, best, several, no_target, others), strict=True))


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


def contact_sheet(cases: Sequence[Example]) -> np.ndarray:
    """Draw examples side by side in one picture (H, W, 3), each with its phrase, prediction and ground truth.

    The pictures of a row are level, however high the phrases are.
    """
    if not cases:
        raise ValueError("a contact sheet needs at least one example")
    cells = []
    for case in cases:
        # Each picture above its name
        prediction, truth = example_pictures(case)
        width = max(160, truth.shape[1])
        size = max(14, min(20, width // 20))
        label = "prediction" if case.no_target else f"prediction, IoU {case.iou:.2f}"
        left = stack([prediction, caption(label, width, size=size, mark=case.right)])
        right = stack([truth, caption("ground truth", width, size=size)])
        # The two side by side, below the phrase
        height = max(left.shape[0], right.shape[0])
        left, right = pad_to(left, height, left.shape[1] + _GAP), pad_to(right, height, right.shape[1])
        pair = np.concatenate([left, right], axis=1)
        cells.append(stack([phrase_strip(case.text, case.shown_instances, pair.shape[1]), pair]))
    return grid(cells)
