"""Predictions in other formats: folders of PNGs, and COCO results, which can also be written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from pycocotools import mask as coco_mask

from refseg.datasets.images import open_image
from refseg.datasets.masks import mask_of_image, rle_to_json
from refseg.errors import DataError
from refseg.evaluation.overlap import union_rle, with_area
from refseg.evaluation.prediction_file import (
    BOX,
    Answer,
    BadField,
    box_from_json,
    id_from_json,
    is_number,
    read_header,
    read_predictions,
    rle_from_json,
    unique_keys,
)
from refseg.evaluation.protocols import READ_BY
from refseg.files import write_atomically
from refseg.instance import Instance

ID_FIELDS = ("expression_id", "image_id", "id")
SUFFIXES = (".jsonl", ".jsonl.gz")


def open_predictions(path: str | Path, *, min_score: float | None = None) -> Iterator[Answer]:
    """Yield the rows of a prediction file, a folder of PNGs, or COCO results.

    Args:
        min_score: Score below which entries of COCO results are left out of masks.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False where it may not be looked at
        return read_png_folder(path)
    if not os.path.isfile(path):
        raise DataError(f"no such file or folder of predictions: {path}")
    if is_coco_results(path):
        return read_coco_results(path, min_score=min_score)
    if path.name.endswith(SUFFIXES):
        return read_predictions(path)
    raise DataError(
        f"unknown format of predictions: {path}. Pass a prediction file (.jsonl, .jsonl.gz), COCO results (.json), or "
        "a folder of PNGs"
    )


def is_coco_results(path: str | Path) -> bool:
    return Path(path).suffix == ".json"


# A PNG per expression -------------------------------------------------------------------------------------------------


def png_name(expression_id: str) -> str:
    """Return the file name of an id. Characters that file names cannot have are percent-encoded, such as "/" as %2F."""
    return f"{quote(expression_id, safe=' ')}.png"


def read_png_folder(folder: str | Path) -> Iterator[Answer]:
    """Yield a row for each mask image, in which 0 is background and everything else is mask.

    The file name without .png is the id, with %XX decoded.
    """
    folder = Path(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".png"))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None
    if not names:
        raise DataError(f"{folder} has no .png file")
    for name in names:
        with open_image(str(folder / name)) as image:
            mask = mask_of_image(image, str(folder / name))
            channels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
            # The values of a palette image number objects, so they are not counted.
            levels = 2 if image.mode == "P" else max(2, *(len(np.unique(channel)) for channel in channels))
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        yield Answer(unquote(name[: -len(".png")]), rle, levels=levels)


# COCO's results -------------------------------------------------------------------------------------------------------


def read_coco_results(file: str | Path, *, min_score: float | None = None) -> Iterator[Answer]:
    """Yield the rows of a list of `{"expression_id" | "image_id" | "id", "segmentation": RLE, "score", "bbox"}`.

    The first of the three id fields that the first entry has is the id. Entries with the same id are instances of one
    answer. Their masks are merged, without those of a score below `min_score` (an entry without a score has 1). Each
    entry with a mask is an instance, and each entry is a box with its score: its `bbox`, or the box around its mask.
    "Nothing here" is an entry with an empty mask, or with a box without area. `refseg.evaluation.scorer.answers_of` can
    add it for ids without entries.
    """
    entries = _load_list(file)
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    id_field = next((name for name in ID_FIELDS if name in first), ID_FIELDS[0])
    groups: dict[str, list[tuple[dict | None, float, list[float]]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise BadField(f"an entry must be an object, not {type(entry).__name__}")
            expression_id = id_from_json(entry.get(id_field), id_field)
            mask, score, box = _parse_entry(entry)
            size = tuple(mask["size"]) if mask is not None else None
            if size is not None and sizes.setdefault(expression_id, size) != size:
                raise BadField(f"the masks of {expression_id} differ in size")
        except BadField as error:
            raise DataError(f"{file}, entry {number} (from 0): {error}") from None
        groups.setdefault(expression_id, []).append((mask, score, box))
        entries[number] = None  # frees its memory
    for expression_id, parsed in groups.items():
        merged = None
        if expression_id in sizes:
            masks = [mask for mask, score, _ in parsed if mask and (min_score is None or score >= min_score)]
            merged = union_rle(masks, sizes[expression_id])
        boxes = with_area([[*box, score] for _, score, box in parsed])
        instances = [Instance(mask, score) for mask, score, _ in parsed if mask] if merged is not None else None
        yield Answer(expression_id, merged, boxes=boxes.tolist(), raw_instances=instances)


def write_coco_results(source: str | Path, file: str | Path) -> None:
    """Write COCO results from a prediction file: an entry per instance, or for the mask of an answer without instances.

    `image_id` is the expression's id, as in SA-Co's files. Answers that the model rejects have no entry.
    """
    made_with = read_header(source).get("postprocess", {})
    limit = made_with.get("no_target_threshold", 0.5) if made_with.get("no_target") in READ_BY["threshold"] else 1.0
    entries = []
    for row in read_predictions(source):
        prob = row.no_target_prob or 0.0
        name = row.expression_id
        objects = row.raw_instances
        if objects is None:
            objects = [] if row.raw_rle is None else [Instance(row.raw_rle, 1 - prob)]
        entries += [
            {
                "image_id": int(name) if name.isdecimal() else name,
                "category_id": 1,
                "segmentation": rle_to_json(one.rle),
                "bbox": coco_mask.toBbox(one.rle).tolist(),
                "score": one.score,
            }
            for one in objects
            if prob <= limit and coco_mask.area(one.rle)
        ]
    write_atomically(file, json.dumps(entries, separators=(",", ":")))


def entries_below(file: str | Path, min_score: float) -> int:
    """Count the entries of COCO results that `min_score` leaves out of masks. The file must be valid."""
    return sum(entry.get("score", 1.0) < min_score for entry in _load_list(file))


def _load_list(file: str | Path) -> list:
    try:
        entries = json.loads(Path(file).read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    except BadField as error:
        raise DataError(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); a prediction file ends in .jsonl") from None
    if not isinstance(entries, list):
        raise DataError(f"{file} is not a list: COCO results are a list of objects")
    return entries


def _parse_entry(entry: dict[str, Any]) -> tuple[dict | None, float, list[float]]:
    """Return the mask, the score and the box (x, y, width, height) of an entry."""
    segmentation, box, score = entry.get("segmentation"), entry.get("bbox"), entry.get("score", 1.0)
    if not is_number(score):
        raise BadField(f"score must be a finite number, not {repr(score)[:60]}")
    if box is not None:
        box = box_from_json(box, "bbox", BOX)
    if segmentation is None and box is not None:
        return None, float(score), box
    if not isinstance(segmentation, dict):
        raise BadField("segmentation must be an RLE, since polygons do not give the size of the mask")
    rle = rle_from_json(segmentation, "segmentation")
    return rle, float(score), coco_mask.toBbox(rle).tolist() if box is None else box
