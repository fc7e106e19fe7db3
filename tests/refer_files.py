"""Small data sets in the REFER layout, written by hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

SIZE = (8, 10)  # height, width


def square(x: float, y: float, side: float = 2) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(id: int, image_id: int = 1, **changes: Any) -> dict:
    """Return the annotation of a 2 x 2 square at (id % 5, 1)."""
    x = float(id % 5)
    entry = {
        "id": id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, 1.0, 2.0, 2.0],
        "segmentation": [square(x, 1.0)],
        "area": 4.0,
        "iscrowd": 0,
    }
    return {**entry, **changes}


def image(id: int, **changes: Any) -> dict:
    return {"id": id, "file_name": f"COCO_train2014_{id:012d}.jpg", "height": SIZE[0], "width": SIZE[1], **changes}


def ref(ref_id: int, ann_id: Any, *texts: str | dict, image_id: int = 1, split: str = "train", **more: Any) -> dict:
    """`texts`: strings, or whole sentences as dicts. Sentence ids are ref_id * 10 + position."""
    sentences = [
        text if isinstance(text, dict) else {"sent_id": ref_id * 10 + k, "raw": text, "sent": text.lower()}
        for k, text in enumerate(texts or (f"Thing {ref_id}",))
    ]
    entry = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "category_id": 1, "split": split}
    return {**entry, "file_name": f"COCO_train2014_{image_id}_{ann_id}.jpg", "sentences": sentences, **more}


def write_refer(
    folder: Path,
    refs: Any,
    *,
    images: list | None = None,
    annotations: list | None = None,
    categories: list | None = None,
    name: str = "refs(unc).p",
    protocol: int = 2,
) -> dict[str, Any]:
    """Write both files and return the `annotations` of a config. Defaults: images 1 and 2, annotations 1-3 and 4."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps(refs))
    else:
        (folder / name).write_bytes(pickle.dumps(refs, protocol=protocol))
    content = {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [annotation(1), annotation(2), annotation(3), annotation(4, 2)]
        if annotations is None
        else annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}] if categories is None else categories,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return {"format": "refer", "refs": str(folder / name), "instances": str(folder / "instances.json")}
