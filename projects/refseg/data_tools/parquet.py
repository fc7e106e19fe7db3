"""Import of benchmarks that come as parquet files: PBench and Ref-L4."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refseg.data_tools.conversion import Row, Skipped, check_folder, to_target
from refseg.datasets.images import open_image
from refseg.datasets.readers.checks import BadEntry, is_text
from refseg.datasets.readers.jsonl import read_target
from refseg.errors import DataError, UsageError
from refseg.files import write_atomically
from refseg.paths import path_to

COLUMNS = {"pbench": {"image", "expression", "masks"}, "ref-l4": {"file_name", "caption", "bbox"}}
SMALL, LARGE = 128, 256  # Ref-L4's limits of the root of a box's area
# Objects365's class of each class of COCO, by number, as Ref-L4's evaluation joins them. It also joins unlike ones: for
# example, birds (16) and buses (6). COCO's sports balls (37) stay a class of their own.
# fmt: off
OBJECTS365_OF_COCO = {
    1: 1, 2: 47, 3: 6, 4: 59, 5: 115, 6: 56, 7: 117, 8: 66, 9: 22, 10: 41, 11: 177, 13: 128, 14: 250, 15: 25, 16: 56,
    17: 140, 18: 93, 19: 79, 20: 100, 21: 97, 22: 145, 23: 296, 24: 179, 25: 181, 27: 39, 28: 40, 31: 13, 32: 44,
    33: 194, 34: 220, 35: 119, 36: 174, 38: 155, 39: 138, 40: 114, 41: 146, 42: 147, 43: 205, 44: 9, 46: 36, 47: 11,
    48: 89, 49: 85, 50: 94, 51: 26, 52: 113, 53: 83, 54: 266, 55: 104, 56: 142, 57: 153, 58: 235, 59: 144, 60: 151,
    61: 98, 62: 3, 63: 51, 64: 26, 65: 76, 67: 98, 70: 154, 72: 37, 73: 74, 74: 116, 75: 133, 76: 107, 77: 62,
    78: 164, 79: 135, 80: 278, 81: 82, 82: 134, 84: 19, 85: 95, 86: 31, 87: 170, 88: 70, 89: 328, 90: 227,
}
# fmt: on


def parquet_files(source: Path) -> list[Path]:
    """Return a parquet file, or those of a folder or its folder `data`."""
    if source.suffix.lower() == ".parquet":
        return [source]
    return sorted(source.glob("*.parquet")) or sorted(source.glob("data/*.parquet"))


def format_of_parquet(file: Path) -> str | None:
    """Return the format of a parquet file, or None if it is unknown."""
    with _opened(file) as opened:
        names = set(opened.schema_arrow.names)
    return next((name for name, columns in COLUMNS.items() if columns <= names), None)


def read_pbench(source: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of PBench: a phrase with the masks of all its instances, and the image.

    The images are written to `images`, equal ones once. The split of a row, which is also its tag `level`, is that of
    its file (level_0 to level_4, dense).

    Args:
        source: A parquet file, or their folder.
        images: Folder to write images to, by default `images` beside the files.
        base: Folder that paths of the rows are relative to.
        skipped: Collects what cannot be used.
    """
    folder = images or (source if source.is_dir() else source.parent) / "images"
    numbers: Counter = Counter()
    for file, place, row in _rows(source):
        level = file.stem.partition("-")[0]
        numbers[level] += 1
        try:
            encoded = row["image"]["bytes"]
            with open_image(place, encoded) as image:
                (height, width), ending = (image.height, image.width), str(image.format).lower()
            # The masks of a photograph that is stored on its side may have the size that people see
            masks = row["masks"] or []
            if masks:
                height, width = masks[0]["size"]
            targets = [to_target(mask, (height, width)) for mask in masks]
            if not is_text(row["expression"]):
                raise BadEntry("it has no expression")
        except (DataError, KeyError, OverflowError, TypeError, ValueError) as error:
            skipped.add("rows that cannot be used", f"{place}: {error}")
            continue
        path = folder / f"{hashlib.sha256(encoded).hexdigest()[:16]}.{ending}"
        if not path.exists():
            write_atomically(path, encoded)
        yield {
            "expression_id": f"{level}/{row.get('id')}:{numbers[level]}",
            "image": path_to(path, base).as_posix(),
            "size": [height, width],
            "text": row["expression"].strip(),
            "targets": targets or None,
            "split": level,
            "tags": {"level": level},
        }


def read_ref_l4(source: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of Ref-L4: a phrase and the box of its object.

    The tags are `size` (small, medium, large), `category`, `class` (the category after Ref-L4's evaluation has joined
    those of COCO with those of Objects365), and `rewritten`. The arguments are those of `read_pbench`,
    but the images exist.
    """
    folder = images or (source if source.is_dir() else source.parent) / "images"
    check_folder(folder)
    for _, place, row in _rows(source):
        try:
            name, box_id = str(row["id"]), str(row["bbox_id"])
            target, size = {"box": row["bbox"]}, (row["height"], row["width"])
            _, _, width, height = read_target("", target, size).box
            side = (width * height) ** 0.5
            if not is_text(row["caption"]) or not is_text(row["file_name"]):
                raise BadEntry("it has no caption or no file_name")
        except (KeyError, TypeError, ValueError) as error:
            skipped.add("rows that cannot be used", f"{place}: {error}")
            continue
        yield {
            "expression_id": name,
            "image": path_to(folder / row["file_name"], base).as_posix(),
            "size": list(size),
            "text": row["caption"].strip(),
            "targets": [target],
            "object_id": box_id,
            "split": row.get("split"),
            "tags": {
                "size": "small" if side < SMALL else "medium" if side <= LARGE else "large",
                "category": (category := str(row.get("ori_category_id"))),
                "class": joined_class(category),
                "rewritten": bool(row.get("is_rewrite")),
            },
        }


def joined_class(category: str) -> str:
    """Return Ref-L4's class of a category such as "refcoco_62" or "o365_3"."""
    dataset, _, number = category.rpartition("_")
    if dataset == "refcoco" and number.isdecimal() and int(number) in OBJECTS365_OF_COCO:
        return f"o365_{OBJECTS365_OF_COCO[int(number)]}"
    return category


def _rows(source: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Yield the rows of parquet files, each with its file and the place for messages. A few are in memory at a time."""
    for file in parquet_files(source):
        number = 0
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    number += 1
                    yield file, f"{file}, row {number}", row


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f"{file} needs pyarrow. Install it: pip install 'refseg[parquet]'") from None
    try:
        with ParquetFile(file) as opened:
            yield opened
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read ({error})") from None
