"""Reader of the REFER layout: a list of refs (pickle or JSON) next to a COCO-style instances.json.

RefCOCO, RefCOCO+, RefCOCOg, RefCLEF (ReferIt), gRefCOCO, Ref-ZOM and R-RefCOCO use it. The content of an entry decides
how it is read, never the name of the data set:

- `ann_id` is an int or a list; -1 or [-1] means that the ref refers to nothing (gRefCOCO, which also sets `no_target`).
- `source: 'zero'` means the same, whatever `ann_id` says (Ref-ZOM).
- A sentence with `exist: False` (or 0) refers to nothing (R-RefCOCO's negatives).
- A ref without sentences is skipped. gRefCOCO's released file has some; no expression is lost.
- Annotations with `iscrowd` are regions of many objects. Some of gRefCOCO's refs name one.
- `file_name` of a ref is not an image file. Images are found by `image_id` in instances.json.
- One annotation may be the target of several refs, and refs may be repeated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg.datasets.readers.checks import (
    BadEntry,
    as_flag,
    as_xywh,
    clean_segmentation,
    image_size,
    is_text,
    load_json,
)
from refseg.datasets.readers.pickles import load_pickle
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import UNKNOWN, AnnotatedInstance, Annotations, Expression, Problem, Record

IDS_IN_NOTICE = 5


@dataclass
class _Image:
    """One image of instances.json.

    `index_of`: index of the instance by annotation id. `unusable`: reason by id of an annotation that was left out.
    """

    record: Record
    index_of: dict[int, int] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)


def read_refer(*, refs: str | Path, instances: str | Path) -> Annotations:
    """Read records of all images that a ref names, with all their annotations, referred to or not.

    Expression ids are `<ref_id>_<sent_id>`. Object ids are the ref ids. Tags are `exist` and `source`, if present.

    Args:
        refs: The list of refs, a pickle or a .json file.
        instances: instances.json.
    """
    refs, instances = data_path(refs), data_path(instances)
    entries = _load(refs)
    if not isinstance(entries, list):
        raise DataError(f"{refs}: holds a {type(entries).__name__}, not a list of refs")
    problems: list[Problem] = []
    images, image_of_annotation = _read_instances(instances, problems)
    content_of: dict[str, Any] = {}  # by expression id
    without_sentences: list[dict] = []
    for number, ref in enumerate(entries):
        if isinstance(ref, dict) and ref.get("sentences") == []:
            without_sentences.append(ref)
            continue
        place = f"{refs}, ref {number}"
        split = ref["split"] if isinstance(ref, dict) and isinstance(ref.get("split"), str) else UNKNOWN
        try:
            _check_ref(ref)
            place = f"{refs}, ref_id {ref['ref_id']}"
            image = _image_of(ref, images)
            ids = _annotation_ids(ref)
            referents = tuple(dict.fromkeys(_referent(i, image, image_of_annotation) for i in ids))
            if "no_target" in ref and as_flag("no_target", ref["no_target"]) == bool(ids):
                message = f"no_target is {ref['no_target']!r}, but ann_id, which decides, is {ref.get('ann_id')!r}"
                problems.append(Problem(place, message))
        except BadEntry as error:
            problems.append(Problem(place, str(error), split))
            continue
        _add_expressions(ref, image.record, referents, content_of, place, problems)
    if without_sentences:
        splits = Counter(str(ref.get("split")) for ref in without_sentences)
        ids = [str(ref.get("ref_id")) for ref in without_sentences[:IDS_IN_NOTICE]]
        ids += ["..."] * (len(without_sentences) > IDS_IN_NOTICE)
        noun = "ref without sentences is" if len(without_sentences) == 1 else "refs without sentences are"
        message = (
            f"{len(without_sentences):,} {noun} skipped ({', '.join(f'{s} {count}' for s, count in splits.items())}): "
            f"ref_id {', '.join(ids)}. No expression is lost."
        )
        problems.append(Problem(str(refs), message, is_notice=True))
    return Annotations([image.record for image in images.values() if image.record.expressions], problems)


def _load(file: Path) -> Any:
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}. `refseg data layout` shows where to get it.")
    return load_json(file) if file.suffix == ".json" else load_pickle(file)


# instances.json -------------------------------------------------------------------------------------------------------


def _read_instances(file: Path, problems: list[Problem]) -> tuple[dict[int, _Image], dict[int, int]]:
    """Return the images by id, and the image id of each annotation."""
    content = _load(file)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file}: has no list {name!r}, so it is not an instances.json in COCO's layout")
    images: dict[int, _Image] = {}
    for number, entry in enumerate(content["images"]):
        try:
            size = image_size(entry)
            if not isinstance(entry["file_name"], str) or not entry["file_name"]:
                raise BadEntry(f"file_name is {entry['file_name']!r}")
            if entry["id"] in images:
                raise BadEntry(f"id {entry['id']} is taken by an earlier image")
            images[entry["id"]] = _Image(Record(str(entry["id"]), entry["file_name"], size, [], []))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(f"{file}, images[{number}]", _reason(error)))
    named = [c for c in content["categories"] if isinstance(c, dict) and isinstance(c.get("name"), str)]
    categories = {c["id"]: c["name"] for c in named if isinstance(c.get("id"), int | str)}
    image_of: dict[int, int] = {}
    for number, entry in enumerate(content["annotations"]):
        try:
            if entry["id"] in image_of:
                raise BadEntry(f"id {entry['id']} is taken by an earlier annotation")
            image_of[entry["id"]] = entry["image_id"]
            image = _image_of(entry, images)
        except (BadEntry, KeyError, TypeError) as error:
            problems.append(Problem(f"{file}, annotations[{number}]", _reason(error)))
            continue
        try:
            instance = AnnotatedInstance(
                instance_id=str(entry["id"]),
                segmentation=clean_segmentation(entry.get("segmentation"), image.record.size),
                category=categories.get(entry.get("category_id")),
                box=as_xywh(entry.get("bbox")),
                is_crowd=as_flag("iscrowd", entry.get("iscrowd") or 0),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            image.unusable[entry["id"]] = _reason(error)
            problems.append(Problem(f"{file}, annotation id {entry['id']}", _reason(error)))
            continue
        image.index_of[entry["id"]] = len(image.record.instances)
        image.record.instances.append(instance)
    return images, image_of


def _reason(error: Exception) -> str:
    return f"no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


# refs -----------------------------------------------------------------------------------------------------------------


def _check_ref(ref: Any) -> None:
    if not isinstance(ref, dict):
        raise BadEntry(f"is a {type(ref).__name__}, not a dict")
    for name, kinds in (("ref_id", int | str), ("image_id", int | str), ("split", str), ("sentences", list)):
        if name not in ref:
            raise BadEntry(f"has no field {name!r}")
        if not isinstance(ref[name], kinds):
            raise BadEntry(f"field {name!r} is a {type(ref[name]).__name__}")


def _annotation_ids(ref: dict) -> list[int]:
    """Return the annotation ids of the referents, none if the ref refers to nothing."""
    ids = ref.get("ann_id")
    if ids is None and ("source" in ref or ("no_target" in ref and as_flag("no_target", ref["no_target"]))):
        ids = -1
    if ref.get("source") == "zero":
        return []
    if ids is None and all(isinstance(s, dict) and not _exists(s) for s in ref["sentences"]):
        return []
    if ids is None:
        raise BadEntry("has no field 'ann_id'")
    ids = ids if isinstance(ids, list) else [ids]
    if ids == [-1]:
        return []
    if not ids:
        raise BadEntry("ann_id is empty: a ref without target has -1")
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise BadEntry(f"ann_id is {ids!r}: ids are whole numbers, or -1 alone for a ref without target")
    return ids


def _exists(sentence: dict) -> bool:
    return as_flag("exist", sentence.get("exist", True))


def _image_of(entry: dict, images: dict[int, _Image]) -> _Image:
    if entry["image_id"] not in images:
        raise BadEntry(f"image_id {entry['image_id']!r} is not among the images of instances.json")
    return images[entry["image_id"]]


def _referent(annotation: int, image: _Image, image_of: dict[int, int]) -> int:
    """Return the index of an annotation among the instances of a ref's image."""
    if annotation in image.index_of:
        return image.index_of[annotation]
    if annotation in image.unusable:
        raise BadEntry(f"its annotation {annotation} cannot be used: {image.unusable[annotation]}")
    if annotation in image_of:
        raise BadEntry(f"ann_id {annotation} belongs to image {image_of[annotation]!r}, not {image.record.image_id}")
    raise BadEntry(f"ann_id {annotation} is not in instances.json")


def _add_expressions(
    ref: dict,
    record: Record,
    referents: tuple[int, ...],
    content_of: dict[str, Any],
    place: str,
    problems: list[Problem],
) -> None:
    """Add an expression for each sentence of a ref."""
    for number, sentence in enumerate(ref["sentences"]):
        # Of the raw and the cleaned text, one stands in for the other.
        texts = [sentence.get(name) for name in ("raw", "sent")] if isinstance(sentence, dict) else []
        texts = [text for text in texts if is_text(text)]
        try:
            if not texts:
                raise BadEntry("has no text in 'raw' or 'sent'")
            exists = _exists(sentence)
        except BadEntry as error:
            problems.append(Problem(place, f"sentences[{number}]: {error}", ref["split"]))
            continue
        targets = referents if exists else ()
        # Sentence ids are unique in the official files. Skip exact repetitions, and rename other collisions.
        expression_id = f"{ref['ref_id']}_{sentence.get('sent_id', number)}"
        content = (record.image_id, texts[0], targets, ref["split"])
        if content_of.get(expression_id) == content:
            problems.append(Problem(place, f"sent_id {sentence.get('sent_id', number)} is repeated; used once"))
            continue
        if expression_id in content_of:
            expression_id = f"{expression_id}_{len(content_of)}"
        content_of[expression_id] = content
        record.expressions.append(
            Expression(
                expression_id=expression_id,
                text=texts[0],
                referents=targets,
                split=ref["split"],
                object_id=str(ref["ref_id"]),
                sent=texts[-1],
                tags={
                    **({"exist": exists} if "exist" in sentence else {}),
                    **({"source": ref["source"]} if "source" in ref else {}),
                },
            )
        )
