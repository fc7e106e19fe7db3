"""Notes under a score: what readers must know to use the numbers, and signs of mistakes in a prediction file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refseg.evaluation.overlap import with_area
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.protocols import READ_BY, Protocol
from refseg.evaluation.rows import Rows

if TYPE_CHECKING:
    from refseg.evaluation.scorer import PredictionCounts, ScoreResult

MAX_IDS = 10  # ids in an error message; a note has fewer
BEYOND = 1.05  # a box leaves the image if it ends beyond this share of a side; models miss the border by a little


@dataclass
class IdList:
    """The number of expressions of some kind, and the ids of the first `limit` ones."""

    number: int = 0
    ids: list[str] = field(default_factory=list)
    limit: int = MAX_IDS

    def add(self, name: str) -> None:
        self.number += 1
        if len(self.ids) < self.limit:
            self.ids.append(name)

    def update(self, other: IdList) -> None:
        self.number += other.number
        self.ids += other.ids[: self.limit - len(self.ids)]

    def __str__(self) -> str:
        return ", ".join(self.ids) + (", ..." if self.number > len(self.ids) else "")


class SuspiciousFields:
    """Signs that a prediction file does not hold what its field names say, counted while it is scored.

    Each of them can be right in some file, so they lead to notes, not to errors. Call `check` for each row, then
    read `notes`.
    """

    def __init__(self) -> None:
        self.with_boxes = self.boxes = self.boxes_as_corners = 0
        self.relative, self.leaving, self.scores, self.gray = (IdList(limit=3) for _ in range(4))

    def check(self, row: Answer, size: tuple[int, int]) -> None:
        """Count the signs in a row, given the image's (height, width)."""
        name, (height, width) = row.expression_id, size
        # Boxes in relative coordinates, or with corners where width and height belong.
        if row.boxes and len(boxes := with_area(row.boxes)):
            x, y, w, h, _ = boxes.T
            self.with_boxes += 1
            self.boxes += len(boxes)
            self.boxes_as_corners += int(((w > x) & (h > y) & (w <= BEYOND * width) & (h <= BEYOND * height)).sum())
            if boxes[:, :4].max() <= 1.01:
                self.relative.add(name)
            if ((x + w > BEYOND * width) | (y + h > BEYOND * height)).any():
                self.leaving.add(name)
        # Logits where scores belong.
        scores = [box[4] for box in row.boxes or ()] + [one.score for one in row.raw_instances or ()]
        outside = [score for score in scores if not 0 <= score <= 1]
        if outside:
            self.scores.add(f"{name}: {outside[0]:g}")
        # Probability maps where masks belong.
        if row.levels > 2:
            self.gray.add(f"{name}: {row.levels} values")

    def update(self, other: SuspiciousFields) -> None:
        """Add the counts of later rows."""
        for name, value in vars(other).items():
            if isinstance(value, IdList):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

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
                f"boxes of {self.leaving.number:,} predictions leave the image ({self.leaving}). Read as corners "
                "(x1, y1, x2, y2), they would not. Boxes are (x, y, width, height)"
            )
        if self.scores.number:
            notes.append(
                f"{self.scores.number:,} predictions have scores outside 0..1 ({self.scores}). Protocols compare "
                "scores with thresholds such as 0.7: apply a sigmoid to logits first"
            )
        if self.gray.number:
            notes.append(
                f"{self.gray.number:,} masks are images with more than two values ({self.gray}). Every value but 0 is "
                "mask: if the values are probabilities or smooth edges, apply the threshold before saving"
            )
        return notes


def notes_of(
    protocols: Sequence[Protocol],
    scored: ScoreResult,
    predictions: dict[str, Any],
    *,
    min_score: float | None = None,
    calibrating: bool = False,
) -> list[str]:
    """Return the notes on a score.

    Args:
        scored: Result of `score_predictions` for the protocols.
        predictions: Description of the file (`describe_predictions`).
        min_score: Score below which entries of COCO results were left out.
        calibrating: The score is a step of choosing a threshold, so that the file's own threshold does not matter.
    """
    header = predictions["header"]
    notes = [f"suspicious: {note}" for note in scored.suspicions]
    for protocol in protocols:
        lines = _notes_of_protocol(protocol, scored.rows[protocol.name], scored.counts[protocol.name])
        notes += [f"{protocol.name}: {line}" for line in lines]
    # The file's writer chose how logits became masks.
    prescribed = [protocol.name for protocol in protocols if protocol.view != protocol.view.for_masks()]
    if prescribed:
        notes.append(
            f"{', '.join(prescribed)}: the protocol prescribes an interpolation and a threshold for logits, but the "
            "masks were made as the file's writer chose"
        )
    threshold = _dict_in(header, "postprocess").get("threshold")
    others = [protocol.name for protocol in protocols if threshold not in (None, protocol.view.threshold)]
    if others:
        notes.append(
            f"{', '.join(others)}: the masks were made at a threshold of {threshold}, which is not the protocol's"
        )
    # The model's own threshold of "nothing here".
    made_with = _dict_in(header, "postprocess")
    own = made_with.get("no_target_threshold")
    others = [
        f"{protocol.name} rejects above {protocol.no_target.threshold:g}"
        for protocol in protocols
        if {made_with.get("no_target"), protocol.no_target.rule} <= {*READ_BY["threshold"]}
        and own not in (None, protocol.no_target.threshold)
        and not np.isnan(scored.rows[protocol.name].no_target_prob).all()
    ]
    if others and not calibrating:
        notes.append(
            f"{', '.join(others)}, but the model that made the file rejects above {own}. Pass --no-target-threshold "
            f"{own} to score its own answers"
        )
    # Predictions that are missing or do not count.
    counts = scored.counts[protocols[0].name]
    if counts.duplicate or counts.extra:
        notes.append(
            f"{counts.duplicate:,} duplicate predictions (the first one counts) and {counts.extra:,} predictions for "
            "other expressions were left out"
        )
    if counts.absent:
        notes.append(
            f"{counts.absent:,} expressions without a prediction count as answered with 'nothing here' "
            "(--absent-is-nothing)"
        )
    if predictions.get("below_min_score"):
        notes.append(f"{predictions['below_min_score']:,} entries of a score below {min_score:g} are in no mask")
    if not header:
        notes.append("the file does not say what made it: checkpoint, training data and leak filter are not known")
    return notes


def _notes_of_protocol(protocol: Protocol, rows: Rows, counts: PredictionCounts) -> Iterator[str]:
    if counts.scored < counts.expected:
        yield (
            f"PARTIAL: scores are of {counts.scored:,} of {counts.expected:,} expressions "
            f"({counts.missing:,} missing, {counts.mis_sized:,} mis-sized)"
        )
    if counts.resized:
        yield (
            f"{counts.resized:,} masks of the original size were resized to the protocol's grid (nearest). This is "
            "close to the published evaluator, which resizes logits, but not bit-equal to it"
        )
    if counts.mask_objects:
        without, scored = (
            ("no instances", "") if protocol.view.instances else ("neither boxes nor instances", "box around the ")
        )
        yield (
            f"{counts.mask_objects:,} predictions have {without}, so the {scored}whole mask is scored, one for all "
            "objects"
        )
    yield from filter(None, (caution(rows, counts.resized) for caution in protocol.cautions))
    rule = protocol.no_target.rule
    # No object, or no box, is an answer of its own.
    reads_prob = rule in READ_BY["threshold"] and not (protocol.lists_objects or protocol.view.boxes)
    unknown = np.count_nonzero(np.isnan(rows.no_target_prob)) if reads_prob else 0
    if unknown:
        subject = "the file has no" if unknown == len(rows) else f"{unknown:,} of {len(rows):,} expressions have no"
        effect = "they are not rejected" if rule == "head" else "only an empty mask rejects them"
        yield f"{subject} no_target_prob, so {effect}. `refseg score --no-target-rule area` rejects by the mask"


def header_line(header: dict[str, Any]) -> str:
    """Describe in one line what made the predictions: config, checkpoint, and data."""
    checkpoint, data = _dict_in(header, "checkpoint"), _dict_in(header, "data")
    annotations, split = _dict_in(data, "annotations"), data.get("split")
    source = annotations.get("file") or annotations.get("refs") or data.get("set")
    digest = checkpoint.get("weights_sha256") or checkpoint.get("sha256", "?")
    parts = [
        f"config {header['config']}" if "config" in header else "",
        f"checkpoint {Path(str(checkpoint.get('file', '?'))).name} ({str(digest)[:8]})" if checkpoint else "",
        f"on {source}" if source else "",
        f"split {','.join(map(str, split)) if isinstance(split, list) else split}" if split else "",
    ]
    return ", ".join(filter(None, parts)) or f"made with: {', '.join(header)}"


def _dict_in(value: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the dict under a key. Headers are untrusted, so any other value is ignored."""
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}
