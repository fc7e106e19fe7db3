"""Records: what annotation files say, one per image. No torch here; `refseg.structures` has what comes after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# polygons [[x, y, ...], ...] | RLE {"size", "counts"} | path of a mask image
Segmentation = Sequence[Sequence[float]] | dict | str
NoTargetRule = Literal["head", "head-or-empty", "area", "none"]  # when "nothing here" is the answer
Crowds = Literal["include", "exclude"]  # whether crowd regions are part of a target's mask


@dataclass(slots=True)
class AnnotatedInstance:
    """One annotated object. `box`: (x, y, width, height) as annotated, where the file has one. `is_crowd`: a region of
    many objects that were not annotated one by one (COCO's `iscrowd`)."""

    instance_id: str
    segmentation: Segmentation
    category: str | None = None
    box: tuple[float, float, float, float] | None = None
    is_crowd: bool = False


@dataclass(slots=True)
class Expression:
    """One phrase. `referents` index the record's instances; empty means that the phrase refers to nothing here.

    `text` is the phrase as people wrote it (REFER's `raw`), `sent` the cleaned one where the file has both.
    `object_id`: expressions that share it describe the same thing (REFER's `ref_id`). `tags`: more, by name.
    """

    expression_id: str
    text: str
    referents: tuple[int, ...]
    split: str | None = None
    object_id: str = ""
    sent: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One image with all its instances and all its expressions, of whatever split."""

    image_id: str
    image_path: str  # as in the file, relative to the image root, from a reader; complete from a data set
    size: tuple[int, int]  # (height, width) of the file
    instances: list[AnnotatedInstance]
    expressions: list[Expression]


def without_crowds(expression: Expression, record: Record) -> Expression:
    """The expression without the referents that are crowd regions; `referents` may be empty though it has a target."""
    referents = tuple(index for index in expression.referents if not record.instances[index].is_crowd)
    return expression if referents == expression.referents else replace(expression, referents=referents)


UNKNOWN = "?"  # the split of an entry that does not say it


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry that a reader had to leave out: where (file and record), and what.

    `split`: the split that is the poorer for it; UNKNOWN; or "" for what no expression needs. `is_notice`: nothing is
    lost and nothing needs fixing, as with a ref without sentences; it is reported and never counts as a defect.
    """

    place: str
    message: str
    split: str = ""
    is_notice: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(slots=True)
class Annotations:
    """What a reader returns: the records of all splits, the entries that it could not use, and the images that it had
    to open, because the file does not say their sizes."""

    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
