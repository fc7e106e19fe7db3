"""Folders for training YOLO on segmentation: data.yaml, `images/SPLIT`, and `labels/SPLIT` with polygons.

Names of classes are phrases. An object with several phrases has a line for each, with the same polygon. Phrases that
refer to nothing are in `negative_phrases` of data.yaml, which YOLO ignores: a mapping from images to phrases.

A line holds one polygon. A mask with holes or several parts becomes one polygon whose outlines are joined by lines of
zero width. It covers the same pixels.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from refseg.data_tools.conversion import (
    NEGATIVES,
    LabeledImage,
    Skipped,
    negatives_of,
    phrases_by_instance,
    phrases_in,
    size_of,
    to_target,
)
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers.checks import is_text
from refseg.errors import DataError, UsageError
from refseg.records import AnnotatedInstance, Record
from refseg.terminal import write_whole

SPLITS = ("train", "val", "test")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
OUTSIDE = 0.01  # how far normalized coordinates may be outside of the image


def read(source: Path, skipped: Skipped) -> tuple[list[LabeledImage], dict[str, str]]:
    """Return the labels of all images, and the names of classes with their numbers.

    Args:
        source: The YAML file, or the folder that it is in.
        skipped: Collects what cannot be used.
    """
    file = find_yaml(source) if source.is_dir() else source
    try:
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not YAML ({error})") from None
    names = content.get("names") if isinstance(content, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not all(is_text(name) for name in names.values()):
        raise DataError(f"{file} has no `names`, a list or a mapping of the names of classes")
    root = file.parent
    if is_text(content.get("path")) and (root / content["path"]).is_dir():
        root = root / content["path"]
    negatives = content.get(NEGATIVES)
    labeled, seen = [], set()
    for split in SPLITS:
        for path in _images(content.get(split), root, skipped):
            name = Path(os.path.relpath(path, root)).as_posix()
            if name in seen:
                skipped.add("images of an earlier split", str(path))
                continue
            seen.add(name)
            absent = phrases_in(negatives.get(name)) if isinstance(negatives, dict) else []
            labels = _labels(name, path, names, absent, split, skipped)
            if labels is not None:
                labeled.append(labels)
    return labeled, {name.strip(): str(number) for number, name in names.items()}


def find_yaml(folder: Path) -> Path:
    """Return the YAML file of a folder: data.yaml, or the only one."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    named = [file for file in files if file.stem == "data"] or files
    if len(named) != 1:
        raise DataError(f"{folder} has {len(named)} YAML files ({', '.join(f.name for f in named)}). Name one of them")
    return named[0]


def _images(value: Any, root: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the images of a split: of a folder, of a list of files (.txt), or of several of these."""
    for entry in value if isinstance(value, list) else [value]:
        if not is_text(entry):
            continue
        # Some tools write "../train/images" for a folder beside data.yaml.
        path = next((p for p in (root / entry, root / entry.removeprefix("../")) if p.exists()), None)
        if path is None:
            skipped.add("folders of images that are not there", str(root / entry))
        elif path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                image = (path.parent / line.strip()) if line.startswith("./") else (root / line.strip())
                if image.is_file():
                    yield image
                elif line.strip():
                    skipped.add("images whose file is not there", f"{path}: {line.strip()!r}")


def label_file(image: Path) -> Path:
    """Return the file of an image's labels: the last folder `images` in its path is `labels`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _labels(name: str, path: Path, names: dict, absent: list[str], split: str, skipped: Skipped) -> LabeledImage | None:
    """Return the labels of one image. Lines with the same polygon are one instance."""
    try:
        size = size_of(path)
        file = label_file(path)
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    except (OSError, DataError) as error:
        skipped.add("images that cannot be read", str(error))
        return None
    labels = LabeledImage(name, str(path), size, [], [], set(), split)
    ids: dict[tuple[str, ...], str] = {}
    for number, line in enumerate(lines, start=1):
        words, where = line.split(), f"{file}, line {number}"
        if not words:
            continue
        try:
            category = names[int(words[0])].strip()
            numbers = np.array(words[1:], np.float64)
        except (ValueError, KeyError):
            skipped.add("lines without a known class and numbers", where)
            continue
        labels.present.add(category)
        if numbers.size == 4:
            skipped.add("boxes", where)
        elif numbers.size < 6 or numbers.size % 2:
            skipped.add("lines without the corners of a polygon", where)
        elif not ((numbers >= -OUTSIDE) & (numbers <= 1 + OUTSIDE)).all():  # also true for NaN
            skipped.add("polygons whose coordinates are not between 0 and 1", where)
        else:
            polygon = (numbers.reshape(-1, 2) * (size[1], size[0])).ravel().round(4).tolist()
            instance_id = ids.setdefault(tuple(words[1:]), str(len(ids)))
            labels.add(AnnotatedInstance(instance_id, to_target([polygon], size), category))
    labels.add_negatives(absent)
    return labels


# Writing --------------------------------------------------------------------------------------------------------------


def write(records: Sequence[Record], out: Path) -> list[str]:
    """Write a folder with copies of the images.

    Args:
        records: Records whose `image_id` is the name of the image.
        out: The folder.

    Returns:
        Facts that the user should know.
    """
    classes: dict[str, int] = {}
    negatives: dict[str, list[str]] = {}
    splits: dict[str, None] = {}
    joined: list[tuple[int, int]] = []  # area of each mask with holes or several parts, and changed pixels
    for record, split in zip(records, [split_of(record) for record in records], strict=True):
        # Folders with these names inside would confuse YOLO, which replaces the last `images` in a path.
        name = "/".join(f"{part}_" if part in ("images", "labels") else part for part in record.image_id.split("/"))
        splits[split] = None
        image = out / "images" / split / name
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.image_path, image)
        lines = []
        for instance, phrases in zip(record.instances, phrases_by_instance(record), strict=True):
            polygon, changes = one_polygon(instance.segmentation, record.size)
            joined += [changes] if changes else []
            height, width = record.size
            numbers = " ".join(f"{value:.7g}" for value in (polygon / (width, height)).ravel())
            lines += [f"{classes.setdefault(phrase, len(classes))} {numbers}\n" for phrase in phrases]
        write_whole(label_file(image), "".join(lines))
        if negatives_of(record):
            negatives[f"images/{split}/{name}"] = negatives_of(record)
    content: dict[str, Any] = {split: f"images/{split}" for split in SPLITS if split in splits}
    content["names"] = {number: phrase for phrase, number in classes.items()}
    if negatives:
        content[NEGATIVES] = negatives
    write_whole(out / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    notes = [] if {"train", "val"} <= set(splits) else ["YOLO needs train and val: run `refseg data split` first"]
    if joined:
        area, changed = (sum(column) for column in zip(*joined, strict=True))
        notes.append(
            f"{len(joined):,} masks with holes or several parts became one polygon each, whose outlines are joined by "
            f"lines of zero width. {changed / max(area, 1):.2%} of their area changed"
        )
    return notes


def split_of(record: Record) -> str:
    """Return the split of an image, `train` if its rows name none."""
    splits = {expression.split or "train" for expression in record.expressions}
    split = splits.pop()
    if splits or split not in SPLITS:
        raise UsageError(
            f"{record.image_id} is in {', '.join(sorted({split, *splits}))}, but for YOLO each image is in one of "
            f"{', '.join(SPLITS)}. Choose rows with --split, or run `refseg data split`"
        )
    return split


def one_polygon(segmentation: Any, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Return one polygon (N, 2) for a mask.

    The only polygon of a mask inside its image stays as it is. Otherwise the polygon follows the edges of pixels.

    Returns:
        The polygon, and the mask's area and number of changed pixels if it has holes or several parts.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1:
        points = np.array(segmentation[0], np.float64).reshape(-1, 2)
        if (points >= 0).all() and (points <= (size[1], size[0])).all():
            return points, None
    mask = decode(to_rle(segmentation, size))
    loops = outlines(mask)
    polygon = loops[0]
    for loop in loops[1:]:
        # Go from the nearest corner to the loop, around it, and back.
        at = int(np.abs(polygon - loop[0]).sum(1).argmin())
        polygon = np.concatenate([polygon[: at + 1], loop, loop[:1], polygon[at:]])
    if len(loops) == 1:
        return polygon, None
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], *size))
    return polygon, (int(mask.sum()), int((decode(rle) != mask).sum()))


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed outlines (N, 2) of a mask along the edges of pixels: of its parts, and of their holes."""
    padded = np.pad(mask.astype(np.int8), 1)
    # Edges from corner to corner, with the mask on their right
    ends: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    down = np.diff(padded, axis=0)[:, 1:-1]  # between the rows y - 1 and y
    for y, x in np.argwhere(down).tolist():
        left, right = (x, y), (x + 1, y)
        start, end = (left, right) if down[y, x] > 0 else (right, left)
        ends[start].append(end)
    across = np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(across).tolist():
        top, bottom = (x, y), (x, y + 1)
        start, end = (bottom, top) if across[y, x] > 0 else (top, bottom)
        ends[start].append(end)
    loops = []
    while ends:
        start = at = next(iter(ends))
        corners: list[tuple[int, int]] = []
        while not corners or at != start:
            following = ends[at].pop()
            if not ends[at]:
                del ends[at]
            # Keep a corner only where the direction changes.
            if len(corners) > 1 and _turn(corners[-2], corners[-1], at) == 0:
                corners.pop()
            corners.append(at)
            at = following
        if _turn(corners[-2], corners[-1], start) == 0:
            corners.pop()
        loops.append(np.array(corners, np.float64))
    return loops


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
