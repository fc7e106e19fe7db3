"""`refseg data export`: convert a JSONL file to files of labeling tools."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pycocotools import mask as coco_mask

from refseg.data_tools import coco, label_studio, labelme, sa_co, yolo
from refseg.data_tools.conversion import Skipped, to_json
from refseg.data_tools.formats import FORMATS
from refseg.data_tools.rows import check_output
from refseg.datasets.masks import to_rle
from refseg.datasets.readers import read_jsonl
from refseg.datasets.readers.checks import MAX_RLE_PIXELS, plain_text
from refseg.errors import DataError, UsageError
from refseg.records import AnnotatedInstance, Expression, Record


def main(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if args.image_prefix and args.to != "label-studio":
        raise UsageError("--image-prefix is for --to label-studio. Omit it")
    if args.to in ("labelme", "yolo"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not an empty folder. Choose another --out")
    else:
        check_output(out, args.overwrite)
    skipped = Skipped()
    records = list(read_records(Path(args.file), args.split, skipped))
    if not records:
        of = f" of split {args.split!r}" if args.split else ""
        raise DataError("\n".join([f"{args.file} has no usable rows{of}", *skipped.lines()]))
    root = name_images(records)
    writers = {"coco": coco.write, "sa-co": sa_co.write, "labelme": labelme.write, "yolo": yolo.write}
    if args.to == "label-studio":
        notes = label_studio.write(records, out, prefix=args.image_prefix)
    else:
        notes = writers[args.to](records, out)
    if args.to in ("coco", "sa-co", "label-studio"):
        notes.insert(0, f"names of images are relative to {root}")
    phrases = sum(len(record.expressions) for record in records)
    objects = sum(len(record.instances) for record in records)
    print(f"{out}: {FORMATS[args.to]}, {len(records):,} images, {phrases:,} phrases, {objects:,} objects")
    print("\n".join([*(f"note: {note}" for note in notes), *skipped.lines()]))
    return 0


def read_records(file: Path, split: str | None, skipped: Skipped) -> Iterator[Record]:
    """Yield the records of a JSONL file with complete image paths and without mask images.

    Instances with the same mask are one. Rows of an image with the same phrase and the same targets are one.

    Args:
        file: The JSONL file.
        split: Keep only rows of this split.
        skipped: Collects rows that cannot be used.
    """
    annotations = read_jsonl(file=file)
    for problem in annotations.problems:
        skipped.add("invalid rows", str(problem))
    for record in annotations.records:
        path = os.path.join(file.parent, record.image_path)
        expressions = [one for one in record.expressions if split is None or one.split == split]
        if not expressions:
            continue
        if not os.path.isfile(path):
            skipped.add("images whose file is not there", path)
            continue
        if record.size[0] * record.size[1] >= MAX_RLE_PIXELS:
            skipped.add("images that are too large for masks", f"{path}: {list(record.size)}")
            continue
        # Masks, with the problem of each unusable one
        problems: dict[int, str] = {}
        first: dict[str, int] = {}  # mask -> new index
        new_index: dict[int, int] = {}
        instances: list[AnnotatedInstance] = []
        for index in sorted({index for expression in expressions for index in expression.referents}):
            instance = record.instances[index]
            if not instance.has_mask:
                problems[index] = "it is a box without a mask"
                continue
            segmentation = instance.segmentation
            try:
                if isinstance(segmentation, str):
                    segmentation = to_rle(os.path.join(file.parent, segmentation), record.size)
                rle = to_rle(segmentation, record.size)
            except (DataError, ValueError) as error:
                problems[index] = str(error)
                continue
            if not coco_mask.area(rle):
                problems[index] = "its mask has no pixel"
                continue
            new_index[index] = first.setdefault(json.dumps(to_json(rle)), len(instances))
            if new_index[index] == len(instances):
                instances.append(replace(instance, segmentation=segmentation))
        # Phrases
        phrases: dict[tuple, Expression] = {}
        for expression in expressions:
            unusable = [problems[index] for index in expression.referents if index in problems]
            if unusable:
                skipped.add("rows with an unusable target", f"{path}, {expression.text!r}: {unusable[0]}")
                continue
            referents = tuple(dict.fromkeys(new_index[index] for index in expression.referents))
            key = (plain_text(expression.text), frozenset(referents))
            if key in phrases:
                skipped.add("rows with the phrase and the targets of an earlier one", f"{path}, {expression.text!r}")
            else:
                phrases[key] = replace(expression, referents=referents)
        used = sorted({index for expression in phrases.values() for index in expression.referents})
        position = {index: number for number, index in enumerate(used)}
        kept = [replace(one, referents=tuple(map(position.get, one.referents))) for one in phrases.values()]
        if kept:
            yield Record(record.image_id, path, record.size, [instances[index] for index in used], kept)


def name_images(records: list[Record]) -> Path:
    """Set `image_id` to the path of the image relative to the common folder of all images, and return that folder."""
    folders = {os.path.dirname(os.path.abspath(record.image_path)) for record in records}
    root = os.path.commonpath(folders)
    for record in records:
        record.image_id = Path(os.path.relpath(os.path.abspath(record.image_path), root)).as_posix()
    names = Counter(record.image_id for record in records)
    twice = next((name for name, number in names.items() if number > 1), None)
    if twice is not None:
        raise DataError(
            f"rows name the image {twice} by several paths. `refseg data merge FILE --out NEW` makes them one"
        )
    return Path(root)
