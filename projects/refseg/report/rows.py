"""What pages need to show single answers: their rows, in a second pass since nobody kept them, and their images."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from refseg.datasets.images import read_image
from refseg.datasets.masks import decode
from refseg.errors import DataError
from refseg.evaluation.measure import resize_rle
from refseg.evaluation.prediction_file import PredictionRow

BLANK = 205  # grey of a picture whose image is missing


def chosen_rows(rows: Iterable[PredictionRow], ids: Set[str]) -> dict[str, PredictionRow]:
    """The rows of these expressions, reading no further than they go; of duplicates the first, as in scoring."""
    found: dict[str, PredictionRow] = {}
    if not ids:
        return found
    for row in rows:
        if row.expression_id in ids and row.expression_id not in found:
            found[row.expression_id] = row
            if len(found) == len(ids):
                break
    return found


def mask_at(rle: dict | None, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool; empty where there is none."""
    return np.zeros(size, bool) if rle is None else decode(resize_rle(rle, size))


def image_or_grey(path: str, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The image (h, w, 3), or grey and why there is none."""
    try:
        return read_image(path, size), ""
    except DataError as error:
        return np.full((*size, 3), BLANK, np.uint8), str(error)
