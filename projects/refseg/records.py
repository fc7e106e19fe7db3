"""Records: what annotation files say, one per image. No torch here; `refseg.structures` has what comes after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Segmentation = list | dict | str  # polygons [[x, y, ...], ...] | RLE {"size", "counts"} | path of a mask PNG


@dataclass(slots=True)
class Instance:
    """One annotated object."""

    instance_id: str
    segmentation: Segmentation
    category: str | None = None


@dataclass(slots=True)
class Expression:
    """One phrase. `referents` index the record's instances; empty means that the phrase refers to nothing here."""

    expression_id: str
    text: str
    referents: tuple[int, ...]
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One image with all its instances and all its expressions."""

    image_id: str
    image_path: str
    size: tuple[int, int]  # (height, width) of the file
    instances: list[Instance]
    expressions: list[Expression]
