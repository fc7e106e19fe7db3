"""Reader of the REFER layout: a list of refs (pickle or JSON) beside a COCO-style instances.json.

RefCOCO, RefCOCO+, RefCOCOg, RefCLEF (ReferIt), gRefCOCO, Ref-ZOM and R-RefCOCO are all written in it. What differs is
handled by what a record holds, never by the name of a set:

- `ann_id` is an int or a list; -1 or [-1] is "refers to nothing" (gRefCOCO, which also sets `no_target`);
- `source: 'zero'` is "refers to nothing" whatever `ann_id` says (Ref-ZOM);
- a sentence with `exist: False` (or 0) refers to nothing (R-RefCOCO's negatives);
- a ref without sentences is skipped: gRefCOCO's released file has some, and no expression is lost by it;
- annotations with `iscrowd` are regions of many objects; some of gRefCOCO's refs name one;
- `file_name` of a ref is not an image file: images are found by `image_id` in instances.json;
- one annotation may be the target of several refs, and refs may come twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg.datasets.readers.pickles import load_pickle
from refseg.datasets.readers.segmentations import clean_segmentation
from refseg.datasets.readers.values import as_flag, as_xywh, is_side, is_text
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import UNKNOWN, AnnotatedInstance, Annotations, Expression, Problem, Record

SHOWN = 5  # ids in a notice


class _BadEntry(ValueError):
    """Why one entry of a file cannot be used."""


@dataclass
class _Image:
    """One image of instances.json; `index_of`: annotation id -> index of its instance, `bad`: id -> what is wrong."""

    record: Record
    index_of: dict[int, int] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def read_refer(*, refs: str | Path, instances: str | Path) -> Annotations:
    """Records of all images that a ref names, with all their annotations, referred to or not.

    Expression ids are `<ref_id>_<sent_id>`, object ids the ref ids. Tags: `exist` and `source` where the file has them.
    """
    refs, instances = data_path(refs), data_path(instances)
    entries = _load(refs)
    if not isinstance(entries, list):
        raise DataError(f"{refs}: holds a {type(entries).__name__}, not a list of refs")
    problems: list[Problem] = []
    images, image_of_annotation = _read_instances(instances, problems)
    seen: dict[str, Any] = {}
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
        except ValueError as error:
            problems.append(Problem(place, str(error), split))
            continue
        _add_expressions(ref, image.record, referents, seen, place, problems)
    if without_sentences:
        problems.append(Problem(str(refs), _skipped(without_sentences), is_notice=True))
    return Annotations([image.record for image in images.values() if image.record.expressions], problems)


def _load(file: Path) -> Any:
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}. `refseg data layout` shows where it should come from.")
    if file.suffix != ".json":
        return load_pickle(file)
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: truncated, or not JSON ({error})") from None


# instances.json -------------------------------------------------------------------------------------------------------


def _read_instances(file: Path, problems: list[Problem]) -> tuple[dict[int, _Image], dict[int, int]]:
    """Images by id, and the image id of each annotation."""
    content = _load(file)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file}: has no list {name!r}: it is not an instances.json in COCO's layout")
    images: dict[int, _Image] = {}
    for number, entry in enumerate(content["images"]):
        try:
            image_id, record = _image_record(entry)
            if image_id in images:
                raise _BadEntry(f"id {image_id} is taken by an earlier image")
            images[image_id] = _Image(record)
        except (_BadEntry, KeyError, TypeError, ValueError) as error:
            problems.append(Problem(f"{file}, images[{number}]", _reason(error)))
    named = [c for c in content["categories"] if isinstance(c, dict) and isinstance(c.get("name"), str)]
    categories = {c["id"]: c["name"] for c in named if isinstance(c.get("id"), int | str)}
    image_of: dict[int, int] = {}
    for number, entry in enumerate(content["annotations"]):
        try:
            if entry["id"] in image_of:
                raise _BadEntry(f"id {entry['id']} is taken by an earlier annotation")
            image_of[entry["id"]] = entry["image_id"]
            image = _image_of(entry, images)
        except (_BadEntry, KeyError, TypeError) as error:
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
            image.bad[entry["id"]] = _reason(error)
            problems.append(Problem(f"{file}, annotation id {entry['id']}", _reason(error)))
            continue
        image.index_of[entry["id"]] = len(image.record.instances)
        image.record.instances.append(instance)
    return images, image_of


def _image_record(entry: Any) -> tuple[int, Record]:
    size = (entry["height"], entry["width"])
    if not all(is_side(side) for side in size):
        raise _BadEntry(f"height and width are {size[0]!r} and {size[1]!r}")
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        raise _BadEntry(f"file_name is {entry['file_name']!r}")
    return entry["id"], Record(str(entry["id"]), entry["file_name"], size, [], [])


def _reason(error: Exception) -> str:
    return f"no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


# refs -----------------------------------------------------------------------------------------------------------------


def _check_ref(ref: Any) -> None:
    if not isinstance(ref, dict):
        raise _BadEntry(f"is a {type(ref).__name__}, not a dict")
    for name, kinds in (("ref_id", int | str), ("image_id", int | str), ("split", str), ("sentences", list)):
        if name not in ref:
            raise _BadEntry(f"has no field {name!r}")
        if not isinstance(ref[name], kinds):
            raise _BadEntry(f"field {name!r} is a {type(ref[name]).__name__}")


def _skipped(refs: list[dict]) -> str:
    """Count refs without sentences, with their splits and the ids of the first ones."""
    splits = ", ".join(f"{split} {count}" for split, count in Counter(str(ref.get("split")) for ref in refs).items())
    ids = ", ".join(str(ref.get("ref_id")) for ref in refs[:SHOWN]) + (", ..." if len(refs) > SHOWN else "")
    noun = "ref without sentences is" if len(refs) == 1 else "refs without sentences are"
    return f"{len(refs):,} {noun} skipped ({splits}): ref_id {ids}. No expression is lost."


def _annotation_ids(ref: dict) -> list[int]:
    """Ids of the referents; none for "refers to nothing"."""
    ids = ref.get("ann_id")
    if ids is None and ("source" in ref or ("no_target" in ref and as_flag("no_target", ref["no_target"]))):
        ids = -1
    if ref.get("source") == "zero":
        return []
    if ids is None and all(isinstance(s, dict) and not _exists(s) for s in ref["sentences"]):
        return []
    if ids is None:
        raise _BadEntry("has no field 'ann_id'")
    ids = ids if isinstance(ids, list) else [ids]
    if ids == [-1]:
        return []
    if not ids:
        raise _BadEntry("ann_id is empty: a ref without target has -1")
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise _BadEntry(f"ann_id is {ids!r}: ids are whole numbers; -1 stands alone and means that there is no target")
    return ids


def _exists(sentence: dict) -> bool:
    return as_flag("exist", sentence.get("exist", True))


def _image_of(entry: dict, images: dict[int, _Image]) -> _Image:
    if entry["image_id"] not in images:
        raise _BadEntry(f"image_id {entry['image_id']!r} is not among the images of instances.json")
    return images[entry["image_id"]]


def _referent(annotation: int, image: _Image, image_of: dict[int, int]) -> int:
    if annotation in image.index_of:
        return image.index_of[annotation]
    if annotation in image.bad:
        raise _BadEntry(f"its annotation {annotation} cannot be used: {image.bad[annotation]}")
    if annotation in image_of:
        raise _BadEntry(f"ann_id {annotation} belongs to image {image_of[annotation]!r}, not {image.record.image_id}")
    raise _BadEntry(f"ann_id {annotation} is not in instances.json")


def _sentences(ref: dict) -> Iterator[tuple[int, dict | None]]:
    """Each sentence with its number and both forms of its text, the one standing in for the other; None without any."""
    for number, sentence in enumerate(ref["sentences"]):
        texts = [sentence.get(name) for name in ("raw", "sent")] if isinstance(sentence, dict) else []
        good = [text for text in texts if is_text(text)]
        yield number, {**sentence, "raw": good[0], "sent": good[-1]} if good else None


def _add_expressions(
    ref: dict, record: Record, referents: tuple[int, ...], seen: dict[str, Any], place: str, problems: list[Problem]
) -> None:
    for number, sentence in _sentences(ref):
        if sentence is None:
            problems.append(Problem(place, f"sentences[{number}] has no text in 'raw' or 'sent'", ref["split"]))
            continue
        try:
            exists = _exists(sentence)
        except ValueError as error:
            problems.append(Problem(place, f"sentences[{number}]: {error}", ref["split"]))
            continue
        expression_id = f"{ref['ref_id']}_{sentence.get('sent_id', number)}"
        targets = referents if exists else ()
        content = (record.image_id, sentence["raw"], targets, ref["split"])
        if seen.get(expression_id) == content:
            problems.append(Problem(place, f"sent_id {sentence.get('sent_id', number)} comes twice; taken once"))
            continue
        if expression_id in seen:
            expression_id = f"{expression_id}_{len(seen)}"
        seen[expression_id] = content
        record.expressions.append(
            Expression(
                expression_id=expression_id,
                text=sentence["raw"],
                referents=targets,
                split=ref["split"],
                object_id=str(ref["ref_id"]),
                sent=sentence["sent"],
                tags={
                    **({"exist": exists} if "exist" in sentence else {}),
                    **({"source": ref["source"]} if "source" in ref else {}),
                },
            )
        )
