"""Readers of what other code dumps, as rows of prediction files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from pycocotools import mask as coco_mask

from refseg.errors import DataError
from refseg.evaluation.areas import union_rle
from refseg.evaluation.prediction_file import (
    BadField,
    PredictionRow,
    id_from_json,
    read_predictions,
    rle_from_json,
)

ID_FIELDS = ("expression_id", "image_id", "id")
SUFFIXES = (".jsonl", ".jsonl.gz")


def open_predictions(path: str | Path, *, min_score: float = 0.0) -> Iterator[PredictionRow]:
    """Of a prediction file, a folder of PNGs, or COCO results (for which `min_score` is)."""
    path = Path(path)
    if path.is_dir():
        return read_png_folder(path)
    if not path.is_file():
        raise DataError(f"no such file or folder of predictions: {path}")
    if path.suffix == ".json":
        return read_coco_results(path, min_score=min_score)
    if path.name.endswith(SUFFIXES):
        return read_predictions(path)
    raise DataError(f"{path} is no prediction file (.jsonl, .jsonl.gz), no COCO results (.json), no folder of PNGs")


# A PNG per expression -------------------------------------------------------------------------------------------------


def png_name(expression_id: str) -> str:
    """The file name of an id; what a file name cannot hold is percent-encoded, "/" is %2F."""
    return f"{quote(expression_id, safe=' ')}.png"


def read_png_folder(folder: str | Path) -> Iterator[PredictionRow]:
    """A mask per expression: 0 is background, everything else foreground. The file's name without .png is the id, with
    %XX decoded."""
    folder = Path(folder)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".png"))
    if not names:
        raise DataError(f"no .png file is in {folder}")
    for name in names:
        yield PredictionRow(unquote(name[: -len(".png")]), _png_rle(folder / name))


def _png_rle(file: Path) -> dict:
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image)  # of a palette: its indices, of which 0 is background, whatever its colour
            if image.mode in ("LA", "RGBA"):
                pixels = pixels[..., :-1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"mask image cannot be read: {file} ({error})") from None
    mask = pixels.astype(bool) if pixels.ndim == 2 else pixels.any(-1)
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


# COCO's results -------------------------------------------------------------------------------------------------------


def read_coco_results(
    file: str | Path, *, min_score: float = 0.0, id_field: str | None = None
) -> Iterator[PredictionRow]:
    """A list of `{"expression_id" | "image_id" | "id", "segmentation": RLE, "score", "bbox"}`, read as a whole.

    The id is in `id_field`, or, of the three, in the first that the first entry has. Entries with the same id are
    instances of one answer: their masks are merged where the score is at least `min_score` (1 if an entry has none),
    and their boxes, if any entry has one, are kept with their scores. An expression to which the answer is "nothing
    here" must have an entry too, with an empty mask.
    """
    entries = _load_list(file)
    if entries and id_field is None:
        first = entries[0] if isinstance(entries[0], dict) else {}
        id_field = next((name for name in ID_FIELDS if name in first), "expression_id")
    groups: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        with _place(file, number):
            if not isinstance(entry, dict):
                raise BadField(f"an entry is an object, not {type(entry).__name__}")
            groups.setdefault(id_from_json(entry.get(id_field), str(id_field)), []).append(number)
    for expression_id, numbers in groups.items():
        found = []
        for number in numbers:
            with _place(file, number):
                found.append(_instance(entries[number]))
            entries[number] = None  # its memory is needed no more
        with _place(file, numbers[-1]):
            yield _merged(expression_id, found, min_score)


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
        entries = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); a prediction file ends in .jsonl") from None
    if not isinstance(entries, list):
        raise DataError(f"{file} holds no list: COCO results are a list of objects")
    return entries


def _instance(entry: dict[str, Any]) -> tuple[dict, float, list[float] | None]:
    """RLE, score, box."""
    if not isinstance(entry.get("segmentation"), dict):
        raise BadField("segmentation must be an RLE: polygons do not say how large the mask is")
    rle = rle_from_json(entry["segmentation"], "segmentation")
    numbers = [entry.get("score", 1.0), *(entry.get("bbox") or ())]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n) for n in numbers):
        raise BadField("score and bbox are finite numbers")
    if len(numbers) not in (1, 5):
        raise BadField("bbox is [x, y, width, height]")
    return rle, float(numbers[0]), [float(number) for number in numbers[1:]] or None


def _merged(expression_id: str, found: list[tuple[dict, float, list[float] | None]], min_score: float) -> PredictionRow:
    size = found[0][0]["size"]
    if any(rle["size"] != size for rle, _, _ in found):
        raise BadField(f"the masks of {expression_id} differ in size")
    mask = union_rle([rle for rle, score, _ in found if score >= min_score], (size[0], size[1]))
    boxes = None
    if any(box is not None for _, _, box in found):
        boxes = [[*(box or coco_mask.toBbox(rle).tolist()), score] for rle, score, box in found]
    return PredictionRow(expression_id, mask, boxes=boxes)
