"""Single cases for people to look at: which ones, and their pictures."""

from __future__ import annotations

import base64
import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, features

from refseg.instance import Instance
from refseg.visualization import instances
from refseg.visualization.instances import answer_panel, words_by_instance
from refseg.visualization.overlay import GROUND_TRUTH_COLOR, grid, mask_panel, two_panels
from refseg.visualization.word_bars import Owners, owners_of_words

RIGHT_IOU = 0.5  # a case counts as right from this IoU on; named wherever the report says "right"
GROUPS = ("worst", "best", "several", "no-target", "random")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One expression with its prediction.

    `image` (H, W, 3) uint8 RGB or (H, W) grey. `predicted`, `ground_truth` (H, W) bool: merged masks; an empty ground
    truth is a no-target expression. `iou` is 0..1, by the rules of the report's protocol. `rejected`: the model says
    "nothing here". `group` is the heading under which the report shows the case. `instances`: of models that tell them
    apart, best first.
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
                found = f"{mask.dtype} {mask.shape}"
                raise ValueError(f"expression {self.expression_id}: {name} must be bool {size}, not {found}")
        for i, instance in enumerate(self.instances):
            if instance.words is not None and len(instance.words) != num_words:
                found = f"{len(instance.words)} weights for {num_words} words"
                raise ValueError(f"expression {self.expression_id}: instance {i} has {found} of text.split()")

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

    @property
    def shown_instances(self) -> Sequence[Instance]:
        """None where the answer is "nothing here", or an empty mask."""
        return () if self.answers_nothing else self.instances

    @property
    def owners(self) -> list[Owners]:
        """The shown instances of each word of `text.split()`."""
        words = words_by_instance(self.text, [one.words for one in self.shown_instances])
        return owners_of_words(len(self.text.split()), words)


def choose_examples(
    rows: Sequence[Row], *, per_group: int = 8, seed: int = 0, found_all: Callable[[Row], bool] | None = None
) -> dict[str, list[Row]]:
    """Rows to show, by group of GROUPS: the worst and the best with a target, such with several targets, no-target
    ones, random others.

    A row has `expression_id`, `iou`, `no_target` and `rejected`, `several` where it has two targets or more, and
    whatever else the caller wants back. No row is in two groups. Half of the no-target rows are wrong ones where there
    are enough; of half of the several, the model found all, which `found_all` tells (left out: an IoU of RIGHT_IOU, and
    not rejected) of a few rows only. The choice depends on the rows and the seed, not on the order of the rows.
    """
    for row in rows:
        missing = {"expression_id", "iou", "no_target", "rejected"} - row.keys()
        if missing:
            raise KeyError(f"a row for choose_examples lacks {sorted(missing)}; it has {sorted(row)}")
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
    taken = {id(row) for row in (*worst, *best)}
    several = [row for row in rows if row.get("several") and id(row) not in taken]
    several = _half_found(_sample(rng, several, len(several)), per_group, found_all or _right)
    taken |= {id(row) for row in (*several, *no_target)}
    others = _sample(rng, [row for row in rows if id(row) not in taken], per_group)
    return dict(zip(GROUPS, (worst, best, several, no_target, others), strict=True))


def example_pictures(case: Example) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a case's prediction, with its instances where it has any, and of its ground truth."""
    truth = mask_panel(case.image, case.ground_truth, color=GROUND_TRUTH_COLOR)
    return answer_panel(case.image, case.predicted, case.shown_instances, rejected=case.rejected), truth


def phrase_strip(case: Example, width: int) -> np.ndarray:
    """The phrase (h, width, 3), with bars under the words that belong to instances."""
    return instances.phrase_strip(case.text, case.shown_instances, width)


def contact_sheet(cases: Sequence[Example], *, columns: int = 3, margin: int = 16) -> np.ndarray:
    """One picture (H, W, 3) of cases side by side, row by row: each its phrase, prediction and ground truth. The
    pictures of a row are level, however high the phrases are."""
    if not cases:
        raise ValueError("a contact sheet needs at least one case")
    cells = [
        two_panels(
            *example_pictures(case),
            phrase=partial(phrase_strip, case),
            iou=None if case.no_target else case.iou,
            right=case.right,
        )
        for case in cases
    ]
    return grid(cells, columns=columns, margin=margin)


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


def _half_found(rows: list[Row], count: int, found_all: Callable[[Row], bool]) -> list[Row]:
    """At most `count` rows, half of them found where enough are, then the others. Of the first rows, because asking
    costs."""
    asked = rows[: 4 * count]
    answers = [found_all(row) for row in asked]
    found = [row for row, answer in zip(asked, answers, strict=True) if answer]
    missed = [row for row, answer in zip(asked, answers, strict=True) if not answer]
    num_found = max(count - len(missed), min(len(found), count - count // 2))
    return (found[:num_found] + missed)[:count]


def _right(row: Row) -> bool:
    return not row["rejected"] and row["iou"] >= RIGHT_IOU


def _iou(row: Row) -> float:
    return row["iou"]
