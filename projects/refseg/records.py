"""Records: what annotation files say, one per image. No torch here; `refseg.structures` has what comes after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# polygons [[x, y, ...], ...] | RLE {"size", "counts"} | path of a mask image
Segmentation = Sequence[Sequence[float]] | dict | str
NoTargetRule = Literal["head", "head-or-empty", "area", "none"]  # when "nothing here" is the answer


@dataclass(slots=True)
class Instance:
    """One annotated object. `box`: (x, y, width, height) as annotated, where the file has one."""

    instance_id: str
    segmentation: Segmentation
    category: str | None = None
    box: tuple[float, float, float, float] | None = None


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
    instances: list[Instance]
    expressions: list[Expression]


UNKNOWN = "?"  # the split of an entry that does not say it


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry that a reader had to leave out: where (file and record), and what.

    `split`: the split that is the poorer for it; UNKNOWN; or "" for what no expression needs.
    """

    place: str
    message: str
    split: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(slots=True)
class Annotations:
    """What a reader returns: the records of all splits, the entries that it could not use, and the images that it had
    to open, because the file does not say their sizes."""

    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
