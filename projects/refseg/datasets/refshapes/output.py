"""The annotation files of a data set, written image by image in one pass; each has its name only when it is whole.

What one image adds to each file comes ready as bytes (``Fragments``), from whatever process made it, so that the number
of processes changes nothing. Refs files are pickles that are put together from the pickles of single refs: these hold
no back references (``Pickler.fast``), so that their bytes depend on the values alone.
"""

import hashlib
import io
import json
import os
import pickle
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from refseg.datasets.refshapes.layouts import LAYOUTS, Layout, annotation_entries, image_entry, instances_head
from refseg.datasets.refshapes.polygons import encode_masks
from refseg.datasets.refshapes.presets import Preset
from refseg.datasets.refshapes.sample import Sample

EXPRESSIONS = "refshapes.jsonl"
INSTANCES = "instances.json"
IMAGES = "images"

_PICKLE_START, _PICKLE_END = pickle.PROTO + b"\x02", pickle.STOP
_LIST_START, _LIST_END = pickle.EMPTY_LIST + pickle.MARK, pickle.APPENDS


def annotation_files() -> list[str]:
    """Names of all annotation files, below the folder of the data set."""
    files = [f"{layout.folder}/{name}" for layout in LAYOUTS for name in (layout.refs_file, INSTANCES)]
    return [EXPRESSIONS, *files]


@dataclass(frozen=True)
class Fragments:
    """What one image adds to the files, and the numbers for meta.json."""

    split: str
    rows: bytes
    image: bytes
    annotations: dict[bool, bytes]  # by Layout.lists_rles
    refs: dict[str, bytes]  # folder of a layout -> refs
    counts: Counter  # of the image's instances and expressions
    skills: Counter
    layout_counts: dict[str, Counter]


def make_fragments(preset: Preset, sample: Sample) -> Fragments:
    rles = encode_masks(sample.masks)
    refs = {layout: layout.refs(preset, sample) for layout in LAYOUTS if sample.split in layout.splits}
    numbers = [len(expression.referents) for expression in sample.expressions]
    entries = annotation_entries(sample, rles)
    listed = [
        entry | {"segmentation": [entry["segmentation"]]} if isinstance(entry["segmentation"], dict) else entry
        for entry in entries
    ]
    return Fragments(
        split=sample.split,
        rows="".join(json.dumps(row) + "\n" for row in expression_rows(sample, rles)).encode("ascii"),
        image=_json(image_entry(sample)),
        annotations={False: b",\n".join(map(_json, entries)), True: b",\n".join(map(_json, listed))},
        refs={layout.folder: _refs_bytes(layout, found) for layout, found in refs.items()},
        counts=Counter(
            images=1,
            instances=len(sample.scene.shapes),
            expressions=len(numbers),
            no_target=numbers.count(0),
            multi_target=sum(number > 1 for number in numbers),
        ),
        skills=Counter(expression.skill for expression in sample.expressions),
        layout_counts={
            layout.folder: Counter(
                images=int(any(ref["sentences"] for ref in found)),
                refs=sum(bool(ref["sentences"]) for ref in found),
                sentences=sum(len(ref["sentences"]) for ref in found),
            )
            for layout, found in refs.items()
        },
    )


def expression_rows(sample: Sample, rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of refshapes.jsonl; instance ids count from 0 within an image."""
    rows = []
    for k, expression in enumerate(sample.expressions):
        tags = {"skill": expression.skill, "words": expression.words, "num_targets": len(expression.referents)}
        if expression.anchors:
            tags["anchor_words"] = expression.anchors
        if expression.change is not None:
            tags |= {"form": expression.form, "change": expression.change}
        rows.append(
            {
                "expression_id": f"{sample.name}_{k}",
                "image": f"{IMAGES}/{sample.name}.png",
                "size": [sample.scene.height, sample.scene.width],
                "text": expression.text,
                "targets": [rles[i] for i in expression.referents] or None,
                "instance_ids": list(expression.referents),
                "split": sample.split,
                "tags": tags,
            }
        )
    return rows


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(", ", ": ")).encode("ascii")


def _refs_bytes(layout: Layout, refs: list[dict[str, Any]]) -> bytes:
    if layout.refs_file.endswith(".json"):
        return b",\n".join(map(_json, refs))
    return b"".join(map(_pickled_item, refs))


def _pickled_item(value: Any) -> bytes:
    """The value as it stands within a pickled list."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue().removeprefix(_PICKLE_START).removesuffix(_PICKLE_END)


class _File:
    """A file in the making, with its digest; ``separator`` stands between what is added, where that is not empty."""

    def __init__(self, path: Path, start: bytes, separator: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        self.path = path
        self.separator = separator
        self.sha256 = hashlib.sha256()
        self.empty = True
        self.file: BinaryIO = path.with_name(path.name + ".tmp").open("wb")  # closed by AnnotationWriter
        self._write(start)

    def add(self, content: bytes) -> None:
        if content:
            self._write(content if self.empty else self.separator + content)
            self.empty = False

    def finish(self, end: bytes) -> str:
        """Close it, give it its name and return the digest."""
        self._write(end)
        self.file.close()
        os.replace(self.file.name, self.path)
        return self.sha256.hexdigest()

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.sha256.update(content)


@dataclass
class _LayoutFiles:
    """The two files of a layout; images are held back until the annotations are written."""

    layout: Layout
    folder: Path
    images: list[bytes] = field(default_factory=list)
    counts: dict[str, Counter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_json = self.layout.refs_file.endswith(".json")
        start = b"[\n" if self.is_json else _PICKLE_START + _LIST_START
        self.refs = _File(self.folder / self.layout.refs_file, start, b",\n" if self.is_json else b"")
        head = _json(instances_head()).removesuffix(b"}") + b', "annotations": [\n'
        self.instances = _File(self.folder / INSTANCES, head, b",\n")

    def add(self, image: Fragments) -> None:
        self.refs.add(image.refs[self.layout.folder])
        self.instances.add(image.annotations[self.layout.lists_rles])
        self.images.append(image.image)
        self.counts.setdefault(image.split, Counter()).update(image.layout_counts[self.layout.folder])

    def finish(self) -> dict[str, str]:
        end = b"\n]\n" if self.is_json else _LIST_END + _PICKLE_END
        images = b'\n], "images": [\n' + b",\n".join(self.images) + b"\n]}\n"
        folder = self.layout.folder
        return {
            f"{folder}/{self.layout.refs_file}": self.refs.finish(end),
            f"{folder}/{INSTANCES}": self.instances.finish(images),
        }


class AnnotationWriter:
    """All annotation files of a data set; as a context, it closes them whatever happens."""

    def __init__(self, out: Path, splits: list[str]) -> None:
        self.rows = _File(out / EXPRESSIONS, b"", b"")
        self.layouts = {layout.folder: _LayoutFiles(layout, out / layout.folder) for layout in LAYOUTS}
        self.counts = {
            split: Counter(images=0, instances=0, expressions=0, no_target=0, multi_target=0) for split in splits
        }
        self.skills: dict[str, Counter] = {split: Counter() for split in splits}

    def __enter__(self) -> "AnnotationWriter":
        self.open = ExitStack()
        for file in (self.rows, *(part for each in self.layouts.values() for part in (each.refs, each.instances))):
            self.open.callback(file.file.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.close()

    def add(self, image: Fragments) -> None:
        self.rows.add(image.rows)
        self.counts[image.split].update(image.counts)
        self.skills[image.split].update(image.skills)
        for folder in image.refs:
            self.layouts[folder].add(image)

    def finish(self) -> dict[str, Any]:
        """Give all files their names; returns what meta.json says of them."""
        digests = {EXPRESSIONS: self.rows.finish(b"")}
        for layout in self.layouts.values():
            digests |= layout.finish()
        counts = {
            split: {**tally, "skills": dict(sorted(self.skills[split].items()))} for split, tally in self.counts.items()
        }
        layouts = {folder: {split: dict(n) for split, n in files.counts.items()} for folder, files in
                   self.layouts.items()}  # fmt: skip
        return {"counts": counts, "layouts": layouts, "sha256": digests}
