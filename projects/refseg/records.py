"""Records: the content of annotation files, one per image. Independent of torch, unlike `refseg.structures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# polygons [[x, y, ...], ...] | RLE {"size", "counts"} | path of a mask image
Segmentation = Sequence[Sequence[float]] | dict | str
NoTargetRule = Literal["head", "head-or-empty", "area", "none"]  # when a phrase is rejected
Crowds = Literal["include", "exclude"]  # whether crowd regions are part of a target's mask


@dataclass(slots=True)
class AnnotatedInstance:
    """One annotated object.

    Args:
        instance_id: Its id in the file.
        segmentation: Its mask, or the rectangle of its box if it has no mask.
        category: Name of its category, if the file has categories.
        box: (x, y, width, height) as annotated, if the file has boxes.
        is_crowd: Whether this is a region of many objects without masks of their own (COCO's `iscrowd`).
        has_mask: Whether it has a mask. If not, only protocols of boxes can score it.
    """

    instance_id: str
    segmentation: Segmentation
    category: str | None = None
    box: tuple[float, float, float, float] | None = None
    is_crowd: bool = False
    has_mask: bool = True


@dataclass(slots=True)
class Expression:
    """One phrase.

    Args:
        expression_id: Its id, unique in the data set.
        text: The phrase as people wrote it (REFER's `raw`).
        referents: Indices of the record's instances that it refers to. Empty means that it refers to nothing.
        split: Its split, if the file has splits.
        object_id: Id that expressions of the same object share (REFER's `ref_id`).
        sent: The cleaned phrase, if the file has both.
        tags: Further values by name.
        ignored: Indices of regions whose pixels do not count in scores, neither as target nor as prediction.
    """

    expression_id: str
    text: str
    referents: tuple[int, ...]
    split: str | None = None
    object_id: str = ""
    sent: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[int, ...] = ()


@dataclass(slots=True)
class Record:
    """One image with all its instances and its expressions of all splits."""

    image_id: str
    image_path: str  # relative to the image root from a reader, complete from a data set
    size: tuple[int, int]  # (height, width) of the file
    instances: list[AnnotatedInstance]
    expressions: list[Expression]


def without_crowds(expression: Expression, record: Record) -> Expression:
    """Return the expression without referents that are crowd regions. It may have no referents then."""
    instances = record.instances
    if not [index for index in expression.referents if instances[index].is_crowd]:
        return expression
    return replace(expression, referents=tuple(i for i in expression.referents if not instances[i].is_crowd))


UNKNOWN = "?"  # split of an entry that names none


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry that a reader skipped.

    Args:
        place: File and entry.
        message: Reason.
        split: Split that lacks the entry; UNKNOWN; or "" if no expression needs it.
        is_notice: Nothing is lost and nothing needs fixing, as with a ref without sentences. A notice is reported but
            never counts as a defect.
    """

    place: str
    message: str
    split: str = ""
    is_notice: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(slots=True)
class Annotations:
    """Result of a reader.

    Args:
        records: Records of all splits.
        problems: Entries that could not be used.
        opened: Images that were opened because the file does not give their sizes.
    """

    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
