"""Convert rows of `refseg predict` for other programs: COCO results and Label Studio pre-annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from refseg.datasets.masks import decode
from refseg.files import open_to_replace, write_atomically

Row = Mapping[str, Any]
TRAILING_NUMBER = re.compile(r"(\d+)$")
TAG = "phrase"  # name of the brush in Label Studio

# Label Studio's brush format
VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
CHANNELS = 4  # red, green, blue and alpha, all equal here
_TO_DIGITS = bytes.maketrans(b"\0\1", b"01")


def objects_of(row: Row) -> list[dict[str, Any]]:
    """Return the objects of a row (`mask`, `score`): its shown instances, or else the whole mask.

    There are none where the answer is "nothing here".
    """
    if row["nothing_here"]:
        return []
    instances = row.get("instances") or []
    shown = [instances[k] for k in row.get("shown", range(len(instances)))]
    return shown or [{"mask": row["mask"], "score": row["score"]}]


def image_ids(images: Iterable[str]) -> dict[str, int | str]:
    """Return a COCO id for each image.

    As in COCO, the id is the number at the end of the file name, if all names have one and no two are equal.
    Otherwise it is the file name.
    """
    names = list(dict.fromkeys(images))
    matches = [TRAILING_NUMBER.search(Path(name).stem) for name in names]
    numbers = [int(match.group()) for match in matches if match]
    return dict(zip(names, numbers if len(set(numbers)) == len(names) else names, strict=True))


def write_coco(file: str | Path, rows: Iterable[Row], images: Iterable[str]) -> None:
    """Write COCO results: one entry per object, with `expression_id` and `text` of its phrase.

    There is no `bbox`, because pycocotools would then take the entries for boxes and compute areas from them.
    """
    ids = image_ids(images)
    entries = (
        {
            "image_id": ids[row["image"]],
            "category_id": 1,
            "segmentation": one["mask"],
            "score": one["score"],
            "expression_id": row["expression_id"],
            "text": row["text"],
        }
        for row in rows
        for one in objects_of(row)
    )
    write_list(file, entries)


def write_labelstudio(file: str | Path, rows: Iterable[Row], *, prefix: str = "", version: str = "refseg") -> None:
    """Write Label Studio tasks with pre-annotations, and their labeling setup beside them (suffix .xml).

    Args:
        file: The JSON file to write.
        rows: Rows of `refseg predict`, image by image.
        prefix: Goes before the images' paths, so that Label Studio finds them.
        version: Model version that Label Studio shows.
    """
    labels: dict[str, None] = {}

    def tasks() -> Iterator[dict[str, Any]]:
        for image, group in groupby(rows, key=lambda row: row["image"]):
            regions = []
            for k, row in enumerate(group):
                labels[row["text"]] = None
                regions += [_region(row, one, f"{k}_{i}") for i, one in enumerate(objects_of(row))]
            score = min((region["score"] for region in regions), default=0.0)
            prediction = {"model_version": version, "score": score, "result": regions}
            yield {"data": {"image": prefix + image}, "predictions": [prediction]}

    write_list(file, tasks())
    options = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    write_atomically(
        Path(file).with_suffix(".xml"),
        f'<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="{TAG}" toName="image">\n{options}\n'
        "  </BrushLabels>\n</View>\n",
    )


def _region(row: Row, one: dict[str, Any], region_id: str) -> dict[str, Any]:
    return brush_region(decode(one["mask"]), row["text"], one["score"], region_id)


def brush_region(
    mask: np.ndarray, label: str, score: float, region_id: str, *, from_name: str = TAG, to_name: str = "image"
) -> dict[str, Any]:
    """Return a mask as a brush region of Label Studio.

    Args:
        mask: (H, W) bool.
        label: Its label.
        score: Confidence from 0 to 1.
        region_id: Id of the region, unique in its task.
        from_name: Name of the control tag in the labeling config.
        to_name: Name of the image tag.
    """
    region = _region_base(mask, "brushlabels", score, region_id, from_name, to_name)
    return region | {"value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]}}


def polygon_regions(
    mask: np.ndarray, label: str, score: float, region_id: str, *, from_name: str, to_name: str
) -> list[dict[str, Any]]:
    """Return the outlines of a mask as polygon regions of Label Studio, one for each connected part.

    The arguments are those of `brush_region`. Polygons have no holes, and parts without an area are left out.
    """
    height, width = mask.shape
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    regions = []
    for k, contour in enumerate(contours):
        if len(contour) < 3:
            continue
        # OpenCV returns pixels: their centers in percent of the image
        points = (100 * (contour[:, 0] + 0.5) / (width, height)).round(4).tolist()
        region = _region_base(mask, "polygonlabels", score, f"{region_id}_{k}", from_name, to_name)
        regions.append(region | {"value": {"points": points, "closed": True, "polygonlabels": [label]}})
    return regions


def _region_base(
    mask: np.ndarray, kind: str, score: float, region_id: str, from_name: str, to_name: str
) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "id": region_id,
        "type": kind,
        "from_name": from_name,
        "to_name": to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
    }


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask (H, W) bool as Label Studio's run lengths of a four-channel image, as a list of bytes.

    The bits, highest first: 32 for the number of values, 5 for the width of a value minus 1, and four times 4 for the
    widths of lengths minus 1. Each run then has a 1 (0 would mean values written out, which we never need), 2 bits for
    the index of its length's width, the length minus 1, and the value.
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = CHANNELS * np.diff(ends, prepend=0)
    bits = [f"{CHANNELS * flat.size:032b}{VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in LENGTH_BITS)]
    for length, inside in zip(lengths.tolist(), flat[ends - 1].tolist(), strict=True):
        while length:  # a run longer than the widest length is cut
            part = min(length, 2 ** LENGTH_BITS[-1])
            which = next(index for index, width in enumerate(LENGTH_BITS) if part <= 2**width)
            value = 255 if inside else 0
            bits.append(f"1{which:02b}{part - 1:0{LENGTH_BITS[which]}b}{value:0{VALUE_BITS}b}")
            length -= part
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()


def decode_brush(values: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) bool mask of Label Studio's run lengths of a four-channel image.

    Args:
        values: The bytes, as a file has them.
        size: (height, width) of the image.

    Raises:
        ValueError: The bytes are not the runs of an image of this size.
    """
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise ValueError("brush: the runs are not a list of bytes")
    bits = np.unpackbits(np.array(values, np.uint8)).tobytes().translate(_TO_DIGITS).decode()
    at = 0

    def number(width: int) -> int:
        nonlocal at
        if at + width > len(bits):
            raise ValueError("brush: the runs end early")
        at += width
        return int(bits[at - width : at], 2)

    total = CHANNELS * size[0] * size[1]
    count, value_bits = number(32), number(5) + 1
    length_bits = [number(4) + 1 for _ in range(4)]
    if count != total or value_bits != VALUE_BITS:
        raise ValueError(f"brush: it has {count} values of {value_bits} bits, its image {total} of {VALUE_BITS}")
    decoded = np.zeros(total, np.uint8)
    start = 0
    while start < total:
        is_run = number(1)
        length = number(length_bits[number(2)]) + 1
        if start + length > total:
            raise ValueError("brush: the runs are longer than the image")
        if is_run:
            decoded[start : start + length] = number(VALUE_BITS)
        else:
            decoded[start : start + length] = [number(VALUE_BITS) for _ in range(length)]
        start += length
    return decoded.reshape(*size, CHANNELS)[..., CHANNELS - 1] >= 128  # alpha


def write_list(file: str | Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list, entry by entry."""
    with open_to_replace(file) as out:
        start = b"[\n"
        for entry in entries:
            out.write(start + json.dumps(entry, separators=(",", ":"), allow_nan=False).encode())
            start = b",\n"
        out.write(b"\n]\n" if start == b",\n" else b"[]\n")
