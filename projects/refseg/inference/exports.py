"""Rows of `refseg predict` -> files of other programs: COCO results, Label Studio's pre-annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from refseg.datasets.masks import decode
from refseg.files import open_to_replace, write_atomically
from refseg.inference.brush import encode_brush

Row = Mapping[str, Any]
TRAILING_NUMBER = re.compile(r"(\d+)$")
TAG = "phrase"  # Label Studio's name of the brush


def objects_of(row: Row) -> list[dict[str, Any]]:
    """`mask` and `score` of the objects of a row: its shown instances, or the whole mask; none for "nothing here"."""
    if row["nothing_here"]:
        return []
    instances = row.get("instances") or []
    shown = [instances[k] for k in row.get("shown", range(len(instances)))]
    return shown or [{"mask": row["mask"], "score": row["score"]}]


def image_ids(images: Iterable[str]) -> dict[str, int | str]:
    """Ids for COCO: the numbers at the ends of the file names, as COCO's own images have them, if all images have one
    and no two the same; the file names otherwise."""
    names = list(dict.fromkeys(images))
    found = [TRAILING_NUMBER.search(Path(name).stem) for name in names]
    numbers = [int(match.group()) for match in found if match]
    if len(set(numbers)) == len(names):
        return dict(zip(names, numbers, strict=True))
    return {name: name for name in names}


def write_coco(file: str | Path, rows: Iterable[Row], images: Iterable[str]) -> None:
    """COCO results: a list with an entry for each object. A phrase's entries share `expression_id` and `text`. There is
    no `bbox`: pycocotools would take the entries for boxes, and their areas for those of the masks."""
    ids = image_ids(images)
    _write_list(file, (entry for row in rows for entry in _coco_entries(row, ids[row["image"]])))


def _coco_entries(row: Row, image_id: int | str) -> Iterator[dict[str, Any]]:
    for one in objects_of(row):
        yield {
            "image_id": image_id,
            "category_id": 1,
            "segmentation": one["mask"],
            "score": one["score"],
            "expression_id": row["expression_id"],
            "text": row["text"],
        }


def write_labelstudio(file: str | Path, rows: Iterable[Row], *, prefix: str = "", version: str = "refseg") -> None:
    """Tasks with pre-annotations: brush masks whose labels are the phrases; and, beside the file with the suffix .xml,
    the labelling set-up that they need. `prefix` goes before the images' paths: where Label Studio finds them."""
    labels: dict[str, None] = {}

    def tasks() -> Iterator[dict[str, Any]]:
        for image, of_image in _by_image(rows):
            labels.update(dict.fromkeys(row["text"] for row in of_image))
            found = [_region(row, one, f"{k}_{i}") for k, row in enumerate(of_image) for i, one in _numbered(row)]
            scores = [region["score"] for region in found]
            prediction = {"model_version": version, "score": min(scores, default=0.0), "result": found}
            yield {"data": {"image": prefix + image}, "predictions": [prediction]}

    _write_list(file, tasks())
    options = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    write_atomically(
        Path(file).with_suffix(".xml"),
        f'<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="{TAG}" toName="image">\n{options}\n'
        "  </BrushLabels>\n</View>\n",
    )


def _numbered(row: Row) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(objects_of(row))


def _region(row: Row, one: dict[str, Any], region_id: str) -> dict[str, Any]:
    height, width = one["mask"]["size"]
    return {
        "id": region_id,
        "type": "brushlabels",
        "from_name": TAG,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": one["score"],
        "value": {"format": "rle", "rle": encode_brush(decode(one["mask"])), "brushlabels": [row["text"]]},
    }


def _by_image(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of an image follow each other."""
    group: list[Row] = []
    for row in rows:
        if group and row["image"] != group[0]["image"]:
            yield group[0]["image"], group
            group = []
        group.append(row)
    if group:
        yield group[0]["image"], group


def _write_list(file: str | Path, entries: Iterable[dict[str, Any]]) -> None:
    """A JSON list, entry by entry."""
    with open_to_replace(file) as out:
        start = b"[\n"
        for entry in entries:
            out.write(start + json.dumps(entry, separators=(",", ":"), allow_nan=False).encode())
            start = b",\n"
        out.write(b"\n]\n" if start == b",\n" else b"[]\n")
