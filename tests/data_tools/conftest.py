"""A complete small set in the REFER layout with its images, and ways to damage it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refer_files import SIZE, annotation, image, ref, write_refer
from refseg.datasets.catalog import Counts
from refseg.datasets.targets import Target

NUMBER_OF_IMAGES = {"train": 6, "val": 3, "testA": 2}


@dataclass
class SmallSet:
    """Images 1-6 are train, 7-9 val, 10-11 testA; image i has annotations 10 i and 10 i + 1.

    Each image has a ref with two sentences on the first annotation. Train images also have a ref with one sentence on
    the second. In total, train has 12 refs and 18 sentences, val has 3 and 6, and testA has 2 and 4.
    """

    root: Path  # replaces `data`

    @property
    def refs_file(self) -> Path:
        return self.root / "refcoco" / "refs(unc).p"

    @property
    def instances_file(self) -> Path:
        return self.root / "refcoco" / "instances.json"

    @property
    def images(self) -> Path:
        return self.root / "images" / "train2014"

    def image_file(self, number: int) -> Path:
        return self.images / f"COCO_train2014_{number:012d}.jpg"

    def change_refs(self, change: Callable[[list[dict]], Any]) -> None:
        refs = pickle.loads(self.refs_file.read_bytes())
        change(refs)
        self.refs_file.write_bytes(pickle.dumps(refs, protocol=2))

    def change_instances(self, change: Callable[[dict], Any]) -> None:
        content = json.loads(self.instances_file.read_text())
        change(content)
        self.instances_file.write_text(json.dumps(content))

    def target(self, **changes: Any) -> Target:
        """Return the set as a target of the check, with its counts as the reference."""
        return Target(
            **{
                "name": "small",
                "title": "a small set",
                "annotations": dict(format="refer", refs=str(self.refs_file), instances=str(self.instances_file)),
                "image_root": str(self.images),
                "split_by": "image",
                "counts": {"train": Counts(12, 6, 18), "val": Counts(3, 3, 6), "testA": Counts(2, 2, 4)},
                "reference": "published",
                "source": "its authors",
                "image_source": "the image archive",
                **changes,
            }
        )


@pytest.fixture
def small_set(tmp_path: Path) -> SmallSet:
    made = SmallSet(tmp_path / "root")
    made.images.mkdir(parents=True)
    refs, images, annotations = [], [], []
    number = 0
    for split, count in NUMBER_OF_IMAGES.items():
        for _ in range(count):
            number += 1
            images.append(image(number))
            annotations += [annotation(10 * number, number), annotation(10 * number + 1, number)]
            refs.append(ref(10 * number, 10 * number, "The Thing", "that one", image_id=number, split=split))
            if split == "train":
                refs.append(ref(10 * number + 1, 10 * number + 1, "another", image_id=number, split=split))
            pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(made.image_file(number), quality=95)
    write_refer(made.root / "refcoco", refs, images=images, annotations=annotations)
    return made
