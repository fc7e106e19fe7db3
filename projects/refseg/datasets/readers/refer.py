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
    images, annotations = _read_instances(instances, problems)
    content_of: dict[str, Any] = {}  # by expression id
    without_sentences: list[dict] = []
    for position, ref in enumerate(entries):
        if isinstance(ref, dict) and ref.get("sentences") == []:
            without_sentences.append(ref)
            continue
        place = f"{refs}, ref {position}"
        split = ref["split"] if isinstance(ref, dict) and isinstance(ref.get("split"), str) else UNKNOWN
        try:
            _check_ref(ref)
            place = f"{refs}, ref_id {ref['ref_id']}"
            record = _record_of(ref, images)
            ids = _annotation_ids(ref)
            referents = tuple(dict.fromkeys(_referent(annotation_id, ref, annotations) for annotation_id in ids))
            if "no_target" in ref and as_flag("no_target", ref["no_target"]) == bool(ids):
                message = f"no_target is {ref['no_target']!r}, but ann_id, which decides, is {ref.get('ann_id')!r}"
                problems.append(Problem(place, message))
        except BadEntry as error:
            problems.append(Problem(place, str(error), split))
            continue
        for number, sentence in enumerate(ref["sentences"]):
            try:
                expression = _expression(ref, referents, number, sentence)
            except BadEntry as error:
                problems.append(Problem(place, f"sentences[{number}]: {error}", split))
                continue
            # Sentence ids are unique in the official files. Skip exact repetitions, and rename other collisions.
            content = (record.image_id, expression.text, expression.referents, split)
            if content_of.get(expression.expression_id) == content:
                problems.append(Problem(place, f"sent_id {sentence.get('sent_id', number)} is repeated; used once"))
                continue
            if expression.expression_id in content_of:
                expression.expression_id += f"_{len(content_of)}"
            content_of[expression.expression_id] = content
            record.expressions.append(expression)
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
    return Annotations([record for record in images.values() if record.expressions], problems)


def _load(file: Path) -> Any:
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}. `refseg data layout` shows where to get it.")
    return load_json(file) if file.suffix == ".json" else load_pickle(file)


# instances.json -------------------------------------------------------------------------------------------------------


def _read_instances(file: Path, problems: list[Problem]) -> tuple[dict[int, Record], dict[int, tuple[int, int | str]]]:
    """Read instances.json.

    Returns:
        The images by id. For each annotation id, the image id, and the index of its instance or why it has none.
    """
    content = _load(file)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file}: has no list {name!r}, so it is not an instances.json in COCO's layout")
    images: dict[int, Record] = {}
    for number, entry in enumerate(content["images"]):
        try:
            size = image_size(entry)
            if not isinstance(entry["file_name"], str) or not entry["file_name"]:
                raise BadEntry(f"file_name is {entry['file_name']!r}")
            if entry["id"] in images:
                raise BadEntry(f"id {entry['id']} is taken by an earlier image")
            images[entry["id"]] = Record(str(entry["id"]), entry["file_name"], size, [], [])
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(f"{file}, images[{number}]", _reason(error)))
    named = [c for c in content["categories"] if isinstance(c, dict) and isinstance(c.get("name"), str)]
    categories = {c["id"]: c["name"] for c in named if isinstance(c.get("id"), int | str)}
    annotations: dict[int, tuple[int, int | str]] = {}
    for number, entry in enumerate(content["annotations"]):
        try:
            if entry["id"] in annotations:
                raise BadEntry(f"id {entry['id']} is taken by an earlier annotation")
            annotations[entry["id"]] = (entry["image_id"], "it has no image")
            record = _record_of(entry, images)
        except (BadEntry, KeyError, TypeError) as error:
            problems.append(Problem(f"{file}, annotations[{number}]", _reason(error)))
            continue
        index: int | str = len(record.instances)
        try:
            instance = AnnotatedInstance(
                instance_id=str(entry["id"]),
                segmentation=clean_segmentation(entry.get("segmentation"), record.size),
                category=categories.get(entry.get("category_id")),
                box=as_xywh(entry.get("bbox")),
                is_crowd=as_flag("iscrowd", entry.get("iscrowd") or 0),
            )
            record.instances.append(instance)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            index = _reason(error)
            problems.append(Problem(f"{file}, annotation id {entry['id']}", index))
        annotations[entry["id"]] = (entry["image_id"], index)
    return images, annotations


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


def _record_of(entry: dict, images: dict[int, Record]) -> Record:
    if entry["image_id"] not in images:
        raise BadEntry(f"image_id {entry['image_id']!r} is not among the images of instances.json")
    return images[entry["image_id"]]


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


def _referent(annotation_id: int, ref: dict, annotations: dict[int, tuple[int, int | str]]) -> int:
    """Return the index of an annotation among the instances of a ref's image."""
    if annotation_id not in annotations:
        raise BadEntry(f"ann_id {annotation_id} is not in instances.json")
    image_id, index = annotations[annotation_id]
    if image_id != ref["image_id"]:
        raise BadEntry(f"ann_id {annotation_id} belongs to image {image_id!r}, not {ref['image_id']}")
    if isinstance(index, str):
        raise BadEntry(f"its annotation {annotation_id} cannot be used: {index}")
    return index


def _expression(ref: dict, referents: tuple[int, ...], number: int, sentence: Any) -> Expression:
    """Return the expression of a ref's sentence."""
    # Of the raw and the cleaned text, one stands in for the other.
    texts = [sentence.get(name) for name in ("raw", "sent")] if isinstance(sentence, dict) else []
    texts = [text for text in texts if is_text(text)]
    if not texts:
        raise BadEntry("has no text in 'raw' or 'sent'")
    exists = _exists(sentence)
    tags = {"exist": exists} if "exist" in sentence else {}
    return Expression(
        expression_id=f"{ref['ref_id']}_{sentence.get('sent_id', number)}",
        text=texts[0],
        referents=referents if exists else (),
        split=ref["split"],
        object_id=str(ref["ref_id"]),
        sent=texts[-1],
        tags={**tags, "source": ref["source"]} if "source" in ref else tags,
    )


def _exists(sentence: dict) -> bool:
    return as_flag("exist", sentence.get("exist", True))
