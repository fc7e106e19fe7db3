"""The one Dataset class: records of any set, a choice of expressions, a pipeline of transforms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch.utils.data import Dataset

from refseg.datasets.jsonl import read_jsonl
from refseg.datasets.samplers import SampleKey
from refseg.datasets.transforms import TransformState
from refseg.errors import DataError
from refseg.records import Expression, Record
from refseg.registry import DATASETS, TRANSFORMS
from refseg.structures import Sample

READERS: dict[str, Callable[..., list[Record]]] = {"jsonl": read_jsonl}


@DATASETS.register_module()
class ReferringDataset(Dataset):
    """One item per image.

    `annotations`: dict(format=..., and that reader's arguments). `expressions_per_image`: how many are drawn (anew each
    epoch, without replacement) for an item; None takes all of an image's expressions, in order. With
    `max_bad_samples`, that many items (per process) may be corrupt and are replaced by their successor, counted and
    logged once each; the default None lets the first one stop the run, as evaluation must.
    """

    def __init__(
        self,
        *,
        annotations: dict[str, Any],
        pipeline: list[dict],
        expressions_per_image: int | None = None,
        max_bad_samples: int | None = None,
    ) -> None:
        annotations = dict(annotations)
        reader = annotations.pop("format", None)
        if reader not in READERS:
            raise ValueError(f"annotations.format must be one of {sorted(READERS)}, not {reader!r}")
        if expressions_per_image is not None and expressions_per_image < 1:
            raise ValueError(f"expressions_per_image must be at least 1 or None, not {expressions_per_image}")
        self.annotations = dict(annotations, format=reader)
        self.records = READERS[reader](**annotations)
        self.transforms = [TRANSFORMS.build(transform) for transform in pipeline]
        self.expressions_per_image = expressions_per_image
        self.max_bad_samples = max_bad_samples
        self.bad_samples: set[int] = set()

    @property
    def metainfo(self) -> dict[str, Any]:
        """Goes into checkpoints."""
        return {"annotations": self.annotations, "expressions_per_image": self.expressions_per_image}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        for offset in range(len(self)):
            index = (key.item + offset) % len(self)
            if index in self.bad_samples:
                continue
            try:
                return self.make_sample(key._replace(item=index))
            except DataError as error:
                if self.max_bad_samples is None:
                    raise
                self._note_bad(index, error)
        raise DataError("no sample of the data set can be read")

    def make_sample(self, key: SampleKey) -> Sample:
        """The sample of one item: a pure function of the key."""
        record = self.records[key.item]
        rng = np.random.default_rng([key.seed, key.epoch, key.item])
        state: Any = TransformState(record, self._choose(record.expressions, rng), rng)
        try:
            for transform in self.transforms:
                state = transform(state)
        except DataError as error:
            raise DataError(f"image {record.image_id}: {error}") from None
        return state

    def _choose(self, expressions: list[Expression], rng: np.random.Generator) -> list[Expression]:
        count = self.expressions_per_image
        if count is None or count >= len(expressions):
            return list(expressions)
        return [expressions[i] for i in sorted(rng.choice(len(expressions), count, replace=False))]

    def _note_bad(self, index: int, error: DataError) -> None:
        self.bad_samples.add(index)
        print_log(f"skipping a bad sample ({len(self.bad_samples)}): {error}", "current", logging.WARNING)
        if len(self.bad_samples) > self.max_bad_samples:
            raise DataError(
                f"more than {self.max_bad_samples} bad samples in one process; the last: {error}. Check the data, or "
                "raise max_bad_samples."
            )
