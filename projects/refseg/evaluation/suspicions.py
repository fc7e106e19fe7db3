"""Signs that a prediction file does not hold what its fields say, counted while it is scored.

Each of them can be right in some file, so they are notes and no errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from refseg.evaluation.boxes import with_area
from refseg.evaluation.prediction_file import PredictionRow

SHOWN = 10  # ids in an error; a note has fewer
BEYOND = 1.05  # a box leaves the image if it ends beyond this share of a side; models miss the border by a little


@dataclass
class Found:
    """A number of expressions, and the ids of the first ones, at most `limit`."""

    number: int = 0
    shown: list[str] = field(default_factory=list)
    limit: int = SHOWN

    def add(self, name: str) -> None:
        self.number += 1
        if len(self.shown) < self.limit:
            self.shown.append(name)

    def __str__(self) -> str:
        return ", ".join(self.shown) + (", ..." if self.number > len(self.shown) else "")


class Suspicions:
    """Counts over the predictions of a file. `look` at each, then read `notes`."""

    def __init__(self) -> None:
        self.with_boxes = self.boxes = self.boxes_as_corners = 0
        self.relative, self.leaving, self.scores, self.grey = (Found(limit=3) for _ in range(4))

    def look(self, row: PredictionRow, size: tuple[int, int]) -> None:
        """`size`: height and width of the image."""
        name, (height, width) = row.expression_id, size
        boxes = with_area(row.boxes or ())
        if len(boxes):
            x, y, w, h, _ = boxes.T
            self.with_boxes += 1
            self.boxes += len(boxes)
            self.boxes_as_corners += int(((w > x) & (h > y) & (w <= BEYOND * width) & (h <= BEYOND * height)).sum())
            if boxes[:, :4].max() <= 1.01:
                self.relative.add(name)
            if ((x + w > BEYOND * width) | (y + h > BEYOND * height)).any():
                self.leaving.add(name)
        scores = [box[4] for box in row.boxes or ()] + [one.score for one in row.instances or ()]
        wrong = [score for score in scores if not 0 <= score <= 1]
        if wrong:
            self.scores.add(f"{name}: {wrong[0]:g}")
        if row.levels > 2:
            self.grey.add(f"{name}: {row.levels} values")

    def notes(self) -> list[str]:
        notes = []
        if 2 * self.relative.number > self.with_boxes:
            notes.append(
                f"{self.relative.number:,} predictions have boxes in 0..1 ({self.relative}). Boxes are in pixels of "
                "the image: multiply them by its width and height"
            )
        # As corners, x2 > x1 and y2 > y1 hold for all boxes. As (x, y, width, height) they rarely do, and boxes in the
        # lower right half of the image leave it.
        if self.leaving.number and self.boxes_as_corners >= 0.99 * self.boxes:
            notes.append(
                f"boxes of {self.leaving.number:,} predictions leave the image ({self.leaving}), and as corners "
                "(x1, y1, x2, y2) they would not. Boxes are (x, y, width, height)"
            )
        if self.scores.number:
            notes.append(
                f"{self.scores.number:,} predictions have scores outside 0..1 ({self.scores}). Protocols compare "
                "scores with thresholds such as 0.7: logits need a sigmoid first"
            )
        if self.grey.number:
            notes.append(
                f"{self.grey.number:,} masks are images with more than two values ({self.grey}). Everything but 0 is "
                "mask: if the values are probabilities or smooth edges, apply the threshold before saving"
            )
        return notes
