"""Readers of what other code dumps, as rows of prediction files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
from pycocotools import mask as coco_mask

from refseg.datasets.images import open_image
from refseg.datasets.masks import mask_of_image
from refseg.errors import DataError
from refseg.evaluation.areas import union_rle
from refseg.evaluation.boxes import with_area
from refseg.evaluation.prediction_file import (
    BOX,
    BadField,
    PredictionRow,
    box_from_json,
    id_from_json,
    is_number,
    read_predictions,
    rle_from_json,
    unique_keys,
)

ID_FIELDS = ("expression_id", "image_id", "id")
SUFFIXES = (".jsonl", ".jsonl.gz")


def open_predictions(path: str | Path, *, min_score: float | None = None) -> Iterator[PredictionRow]:
    """Of a prediction file, a folder of PNGs, or COCO results (for which `min_score` is)."""
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False where it may not be looked at
        return read_png_folder(path)
    if not os.path.isfile(path):
        raise DataError(f"no such file or folder of predictions: {path}")
    if is_coco_results(path):
        return read_coco_results(path, min_score=min_score)
    if path.name.endswith(SUFFIXES):
        return read_predictions(path)
    raise DataError(f"{path} is no prediction file (.jsonl, .jsonl.gz), no COCO results (.json), no folder of PNGs")


def is_coco_results(path: str | Path) -> bool:
    return Path(path).suffix == ".json"


# A PNG per expression -------------------------------------------------------------------------------------------------


def png_name(expression_id: str) -> str:
    """The file name of an id; what a file name cannot hold is percent-encoded, "/" is %2F."""
    return f"{quote(expression_id, safe=' ')}.png"


def read_png_folder(folder: str | Path) -> Iterator[PredictionRow]:
    """A mask per expression, an image as a JSONL file may name one: 0 is background, everything else is mask. The
    file's name without .png is the id, with %XX decoded."""
    folder = Path(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".png"))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None
    if not names:
        raise DataError(f"no .png file is in {folder}")
    for name in names:
        mask, levels = _read_png(folder / name)
        yield PredictionRow(unquote(name[: -len(".png")]), mask, levels=levels)


def _read_png(file: Path) -> tuple[dict, int]:
    """Return the RLE of the mask, and the number of values in the channel that has the most. The indices of a palette
    are not counted, because they number objects."""
    with open_image(str(file)) as image:
        mask = mask_of_image(image, str(file))
        pixels = np.atleast_3d(np.asarray(image))
        palette = image.mode == "P"
    levels = 2 if palette else max(len(np.unique(pixels[..., channel])) for channel in range(pixels.shape[2]))
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))), max(levels, 2)


# COCO's results -------------------------------------------------------------------------------------------------------


def read_coco_results(file: str | Path, *, min_score: float | None = None) -> Iterator[PredictionRow]:
    """A list of `{"expression_id" | "image_id" | "id", "segmentation": RLE, "score", "bbox"}`, read as a whole.

    The id is in that of the three fields, in this order, that the first entry has. Entries with the same id are
    instances of one answer: their masks are merged, without those of a score below `min_score` (1 if an entry has
    none). Each is a box too, its `bbox` or the one around its mask, with its score. An expression to which the answer
    is "nothing here" has an entry with an empty mask or, where there are boxes only, one without area. Where it has
    none, `refseg.evaluation.scorer.with_absent` adds the answer.
    """
    entries = _load_list(file)
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    id_field = next((name for name in ID_FIELDS if name in first), ID_FIELDS[0])
    groups: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        with _place(file, number):
            if not isinstance(entry, dict):
                raise BadField(f"an entry is an object, not {type(entry).__name__}")
            groups.setdefault(id_from_json(entry.get(id_field), id_field), []).append(number)
    for expression_id, numbers in groups.items():
        found = []
        for number in numbers:
            with _place(file, number):
                found.append(_instance(entries[number]))
            entries[number] = None  # its memory is needed no more
        with _place(file, numbers[-1]):
            yield _merged(expression_id, found, min_score)


def entries_below(file: str | Path, min_score: float) -> int:
    """How many entries of COCO results `min_score` leaves out of the masks; of a file that has been read well."""
    return sum(entry.get("score", 1.0) < min_score for entry in _load_list(file))


class _place:
    """Names the file and the entry in errors."""

    def __init__(self, file: str | Path, number: int) -> None:
        self.name = f"{file}, entry {number} (from 0)"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BadField):
            raise DataError(f"{self.name}: {error}") from None


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
        raise DataError(f"{file} holds no list: COCO results are a list of objects")
    return entries


class _Instance(NamedTuple):
    """`box`: (x, y, width, height)."""

    mask: dict | None
    score: float
    box: list[float]


def _instance(entry: dict[str, Any]) -> _Instance:
    segmentation, box, score = entry.get("segmentation"), entry.get("bbox"), entry.get("score", 1.0)
    if not is_number(score):
        raise BadField(f"score is a finite number, not {repr(score)[:60]}")
    if box is not None:
        box = box_from_json(box, "bbox", BOX)
    if segmentation is None and box is not None:
        return _Instance(None, float(score), box)
    if not isinstance(segmentation, dict):
        raise BadField("segmentation must be an RLE: polygons do not say how large the mask is")
    rle = rle_from_json(segmentation, "segmentation")
    return _Instance(rle, float(score), coco_mask.toBbox(rle).tolist() if box is None else box)


def _merged(expression_id: str, found: list[_Instance], min_score: float | None) -> PredictionRow:
    boxes = with_area([[*instance.box, instance.score] for instance in found]).tolist()
    sizes = {tuple(instance.mask["size"]) for instance in found if instance.mask is not None}
    if not sizes:
        return PredictionRow(expression_id, None, boxes=boxes)
    if len(sizes) > 1:
        raise BadField(f"the masks of {expression_id} differ in size")
    kept = [instance for instance in found if min_score is None or instance.score >= min_score]
    mask = union_rle([instance.mask for instance in kept if instance.mask is not None], sizes.pop())
    return PredictionRow(expression_id, mask, boxes=boxes)
