"""Import of benchmarks whose files are one of a kind: ReasonSeg, GSEval, PhraseCut, RefSegRS, RISBench, and
FineCops-Ref. `parquet.py` has two more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from refseg.data_tools.conversion import Row, Skipped, check_folder
from refseg.data_tools.parquet import read_pbench, read_ref_l4
from refseg.datasets.images import open_image
from refseg.datasets.masks import encode, mask_of_image, rle_to_json
from refseg.datasets.readers.checks import MAX_BEYOND, BadEntry, clean_segmentation, image_size, is_text, load_json
from refseg.datasets.readers.jsonl import read_target
from refseg.errors import DataError
from refseg.paths import path_to

PHRASE_LISTS = "output_phrase_*.txt"
TARGET, IGNORED, UNUSED = "target", "ignore", "flag"  # labels of ReasonSeg's shapes


def read_reasonseg(folder: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of ReasonSeg: a JSON file per image, with polygons labeled "target" or "ignore".

    Smaller polygons are drawn over larger ones, as in LISA's code. An image of a folder `train` has a row for each of
    its texts. In other folders only the first text counts, as in LISA's evaluation.

    Args:
        folder: A JSON file, their folder, or one with the folders train, val, and test.
        images: Folder of the images. By default they are beside the JSON files.
        base: Folder that paths of the rows are relative to.
        skipped: Collects what cannot be used.
    """
    for file in [folder] if folder.is_file() else sorted(folder.rglob("*.json")):
        image = (images or file.parent) / f"{file.stem}.jpg"
        try:
            # Text in these files is UTF-8 or, in some, Windows-1252
            content = file.read_bytes()
            try:
                parsed = json.loads(content.decode())
            except UnicodeDecodeError:
                parsed = json.loads(content.decode("cp1252"))
            with open_image(str(image)) as header:
                size = header.height, header.width
            masks = _draw(parsed.get("shapes"), size)
            texts = [text.strip() for text in parsed["text"] if is_text(text)]
        except (AttributeError, DataError, KeyError, OSError, TypeError, ValueError) as error:
            skipped.add("images with unusable annotations", f"{file}: {error}")
            continue
        split = file.parent.name
        for number, text in enumerate(texts if split == "train" else texts[:1]):
            yield {
                "expression_id": f"{split}/{file.stem}:{number}",
                "image": path_to(image, base).as_posix(),
                "size": list(size),
                "text": text,
                "targets": [masks[TARGET]] if TARGET in masks else None,
                **({"ignore": [masks[IGNORED]]} if IGNORED in masks else {}),
                "split": split,
                "tags": {"sentence": bool(parsed.get("is_sentence"))},
            }


def _draw(shapes: Any, size: tuple[int, int]) -> dict[str, dict]:
    """Return the target and the ignored region of an image as RLEs, without those that have no pixel."""
    polygons = []
    for shape in shapes:
        label = shape["label"].lower()
        if label == UNUSED:
            continue
        points = np.asarray(shape["points"], np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) <= MAX_BEYOND * max(size)).all():
            raise BadEntry("a shape is not a list of points in the image")
        corners = points.astype(np.int32)
        drawn = cv2.fillPoly(np.zeros(size, np.uint8), [corners], 1)
        polygons.append((int(drawn.sum()), IGNORED if IGNORED in label else TARGET, corners))
    canvas = np.zeros(size, np.uint8)
    for _, label, corners in sorted(polygons, key=lambda polygon: -polygon[0]):
        cv2.fillPoly(canvas, [corners], 1 if label == TARGET else 2)
    masks = {TARGET: canvas == 1, IGNORED: canvas == 2}
    return {label: rle_to_json(encode(mask)) for label, mask in masks.items() if mask.any()}


def read_gseval(file: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of GSEval: a JSON object per line with `idx`, `image_path`, `caption`, and an RLE.

    The class of a row (stuff, part, multi, single) is its tag `class`. The arguments are those of `read_reasonseg`.
    """
    images = images or file.parent
    check_folder(images)
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = json.loads(line)
            height, width = entry["segmentation"]["size"]
            mask: Any = clean_segmentation(entry["segmentation"], (height, width))
            if not is_text(entry["caption"]) or not is_text(entry["image_path"]):
                raise BadEntry("it has no caption or no image_path")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            skipped.add("lines that cannot be used", f"{where}: {error}")
            continue
        tags = {"class": str(entry.get("class_id")), "label": str(entry.get("label"))}
        yield {
            "expression_id": str(entry.get("idx", number)),
            "image": path_to(images / entry["image_path"], base).as_posix(),
            "size": [height, width],
            "text": entry["caption"].strip(),
            "targets": [rle_to_json(mask)] if coco_mask.area(mask) else None,
            "tags": tags,
        }


def read_phrasecut(file: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of a file `refer_<split>.json` of PhraseCut. Each of a phrase's instances is a target.

    The tag `type` says what makes the phrase unique (name, attribute, relation, verbose), and `name` is its noun. The
    arguments are those of `read_reasonseg`; by default, images are in the folder `images` beside the file.
    """
    images = images or file.parent / "images"
    check_folder(images)
    sizes: dict[Path, tuple[int, int]] = {}
    for number, entry in enumerate(load_json(file)):
        try:
            image = images / f"{int(entry['image_id'])}.jpg"
            if image not in sizes:
                with open_image(str(image)) as header:
                    sizes[image] = header.height, header.width
            targets = [
                clean_segmentation([[x for point in polygon for x in point] for polygon in instance], sizes[image])
                for instance in entry["Polygons"]
            ]
            if not is_text(entry["phrase"]) or not all(targets):
                raise BadEntry("it has no phrase, or an instance without an area")
            structure = entry.get("phrase_structure") or {}
            tags = {"type": str(structure.get("type")), "name": str(structure.get("name"))}
        except (AttributeError, DataError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
            skipped.add("phrases that cannot be used", f"{file}, entry {number}: {error}")
            continue
        yield {
            "expression_id": str(entry.get("task_id", number)),
            "image": path_to(image, base).as_posix(),
            "size": list(sizes[image]),
            "text": entry["phrase"].strip(),
            "targets": targets or None,
            "split": file.stem.removeprefix("refer_"),
            "tags": tags,
        }


def read_phrase_lists(folder: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of RefSegRS and RISBench: files `output_phrase_<split>.txt`, and folders of images and masks.

    A line is the name of an image and its mask, with or without its ending, and the phrase. The arguments are those of
    `read_reasonseg`.
    """

    def files_in(*folders: Path) -> dict[str, Path]:
        found = next((one for one in folders if one.is_dir()), folders[0])
        check_folder(found)
        return {file.stem: file for file in found.iterdir()}

    image_files = files_in(images) if images else files_in(folder / "images", folder / "img_rgb")
    mask_files = files_in(folder / "masks", folder / "mask")
    for file in sorted(folder.glob(PHRASE_LISTS)):
        split = file.stem.removeprefix("output_phrase_")
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            stem = Path(name).stem
            try:
                with open_image(str(mask_files[stem])) as opened:
                    mask = mask_of_image(opened, str(mask_files[stem]))
                image = image_files[stem]
                if not is_text(text):
                    raise BadEntry("it has no phrase")
            except (DataError, KeyError, OSError, ValueError) as error:
                reason = f"there is no image or no mask {error}" if isinstance(error, KeyError) else error
                skipped.add("lines that cannot be used", f"{file}, line {number}: {reason}")
                continue
            yield {
                "expression_id": f"{split}/{stem}:{number}",
                "image": path_to(image, base).as_posix(),
                "size": list(mask.shape),
                "text": text.strip(),
                "targets": [rle_to_json(encode(mask))] if mask.any() else None,
                "split": split,
            }


def read_finecops(file: Path, images: Path | None, base: Path, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of FineCops-Ref in COCO's format, where an entry of `images` is a phrase, with one annotation.

    A phrase with a `negative_type` refers to nothing: its box is that of the phrase or the image that it was made
    from. The tag `level` is the difficulty. Negatives also have the tags `negative_cate` (text or image),
    `negative_type`, and `negative_level`. The arguments are those of `read_reasonseg`; by default, images are in the
    folder `images` beside the file.
    """
    images = images or file.parent / "images"
    check_folder(images)
    content = load_json(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DataError(f"{file} is not in COCO's format: it needs the lists images and annotations")
    phrases = {str(entry.get("id")): entry for entry in content["images"] if isinstance(entry, dict)}
    split = next((name for name in ("train", "val", "test") if name in file.stem), None)
    for number, entry in enumerate(content["annotations"]):
        try:
            phrase = phrases[str(entry["image_id"])]
            height, width = image_size(phrase)
            is_negative = entry.get("negative_type") is not None
            target = None if is_negative else {"box": entry["bbox"]}
            if target:
                read_target("", target, (height, width))
            if not is_text(phrase["caption"]) or not is_text(phrase["file_name"]):
                raise BadEntry("it has no caption or no file_name")
            tags = {"level": str(entry["level"])}
            if is_negative:
                tags |= {name: str(entry.get(name)) for name in ("negative_cate", "negative_type", "negative_level")}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            skipped.add("annotations that cannot be used", f"{file}, annotation {number}: {reason}")
            continue
        yield {
            "expression_id": str(phrase["id"]),
            "image": path_to(images / phrase["file_name"], base).as_posix(),
            "size": [height, width],
            "text": phrase["caption"].strip(),
            "targets": [target] if target else None,
            **({"split": split} if split else {}),
            "tags": tags,
        }


READERS: dict[str, Callable[[Path, Path | None, Path, Skipped], Iterator[Row]]] = {
    "reasonseg": read_reasonseg,
    "gseval": read_gseval,
    "phrasecut": read_phrasecut,
    "phrase-lists": read_phrase_lists,
    "finecops": read_finecops,
    "pbench": read_pbench,
    "ref-l4": read_ref_l4,
}
