"""Publish a model: score its predictions, look for test images in its training data, and write the model folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope

from refseg.config_check import dicts_with
from refseg.datasets.selection import key_of
from refseg.errors import CheckpointError, UsageError, UserError
from refseg.evaluation.notes import notes_of
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.scorer import Data, describe_predictions, open_data, result_of, score_file
from refseg.inference.loading import LoadedModel
from refseg.inference.model_card import UNKNOWN, Result
from refseg.json_config import portable
from refseg.registry import DATASETS
from refseg.weights import hash_weights

RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Scored:
    """A file of predictions, and the data that it is about (SET:SPLIT)."""

    predictions: str
    data: str


def measure(loaded: LoadedModel, scored: Sequence[Scored], protocols: Sequence[Protocol]) -> list[Result]:
    """Score files of predictions that a model made, with intervals, for its card."""
    digest = hash_weights(loaded.segmentor) if scored else ""
    results = []
    for one in scored:
        facts = describe_predictions(Path(one.predictions))
        check_origin(loaded, one.predictions, facts["header"], digest)
        data = open_data(one.data)
        found = score_file(one.predictions, data.truths, protocols)
        shared = shared_images(loaded.cfg, data)
        notes = notes_of(protocols, found, facts)
        for protocol in protocols:
            rows, counts = found.rows[protocol.name], found.counts[protocol.name]
            result = result_of(protocol, rows, counts, RESAMPLES, ())
            results.append(
                Result(
                    data=data_name(data),
                    protocol=protocol.name,
                    images=len(np.unique(data.truths.images)),
                    expressions=len(data.truths),
                    metrics=result["metrics"],
                    intervals=result["intervals"],
                    notes=notes,
                    shared_images=shared,
                )
            )
    return results


def check_origin(loaded: LoadedModel, file: str, header: dict[str, Any], digest: str) -> None:
    """Refuse predictions of other weights than those that are published."""
    made_with = header.get("checkpoint")
    found = made_with.get("weights_sha256") if isinstance(made_with, dict) else None
    if found != digest:
        made = "does not say which weights made it" if found is None else f"was made by other weights ({found[:8]}...)"
        raise CheckpointError(
            f"{file} {made}. Published are those of {loaded.checkpoint} ({digest[:8]}...). Make predictions with "
            f"`refseg test {loaded.config.parent} --predictions FILE`"
        )


def data_name(data: Data) -> str:
    """Return SET:SPLIT without paths of this machine."""
    return portable(data.target.name) + (f":{','.join(data.splits)}" if data.splits else "")


def shared_images(cfg: Config, data: Data) -> str:
    """Say how many images of `data` the training data have, after the leak filter; "unknown" if they are not here."""
    dataset = (cfg.get("train_dataloader") or {}).get("dataset")
    if dataset is None:
        return UNKNOWN
    try:
        plain = dataset.to_dict()
        for part in dicts_with(plain, "pipeline"):
            part["pipeline"] = []
        with DefaultScope.overwrite_default_scope("refseg"):
            trained = set(training_keys(DATASETS.build(plain)))
    except (UserError, OSError) as error:
        return f"{UNKNOWN} (the training data cannot be read here: {type(error).__name__})"
    truths = data.truths
    images = np.unique(truths.images).tolist()
    shared = sum(key_of(truths.store, image, truths.image_root) in trained for image in images)
    return f"{shared:,} of {len(images):,}"


def training_keys(dataset: Any) -> Iterator[str]:
    """Yield the keys of the images that a data set, or each part of a mixture, trains on."""
    for part in getattr(dataset, "datasets", [dataset]):
        for image in np.unique(part.items.image).tolist():
            yield key_of(part.store, image, part.image_root)


def pairs(predictions: Sequence[str], data: Sequence[str]) -> list[Scored]:
    """Return each file of predictions with its data."""
    if len(predictions) != len(data):
        raise UsageError(
            f"--predictions has {len(predictions)} files and --data {len(data)} sets. Give each file its set, in the "
            "same order"
        )
    return [Scored(*pair) for pair in zip(predictions, data, strict=True)]
