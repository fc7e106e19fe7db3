"""What a reader must know to use the numbers: sentences under a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refseg.evaluation.protocols import READ_BY, Protocol
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import Counts, ScoreResult, measured_on


def notes_of(
    protocols: Sequence[Protocol], found: ScoreResult, predictions: dict[str, Any], *, min_score: float | None = None
) -> list[str]:
    """`predictions`: as `describe_predictions` has them."""
    notes = [f"suspicious: {note}" for note in found.suspicions]
    notes += [
        f"{protocol.name}: {note}"
        for protocol in protocols
        for note in _of_protocol(protocol, found.rows[protocol.name], found.counts[protocol.name])
    ]
    notes += _of_masks(protocols, predictions["header"])
    counts = found.counts[protocols[0].name]
    if counts.duplicate or counts.extra:
        notes.append(
            f"{counts.duplicate:,} duplicate predictions (the first counts) and {counts.extra:,} of other expressions "
            "were left out"
        )
    if counts.absent:
        notes.append(
            f"{counts.absent:,} expressions without a prediction count as answered with 'nothing here' "
            "(--absent-is-nothing)"
        )
    if predictions.get("below_min_score"):
        notes.append(f"{predictions['below_min_score']:,} entries of a score below {min_score:g} are in no mask")
    if not predictions["header"]:
        notes.append(
            "the predictions do not say what made them: checkpoint, training data and leak filter are not known"
        )
    return notes


def _of_protocol(protocol: Protocol, rows: Rows, counts: Counts) -> Iterator[str]:
    if counts.scored < counts.expected:
        yield (
            f"PARTIAL: scores are of {counts.scored:,} of {counts.expected:,} expressions "
            f"({counts.missing:,} missing, {counts.mis_sized:,} mis-sized)"
        )
    if counts.resized:
        yield (
            f"{counts.resized:,} masks of the original size were resized to the protocol's grid, nearest: close to the "
            "published evaluator, which resizes logits, but not bit-equal to it"
        )
    if counts.mask_boxes:
        yield (
            f"{counts.mask_boxes:,} predictions have neither boxes nor instances; the box around the whole mask is "
            "scored, one for all objects"
        )
    yield from filter(None, (caution(rows, counts.resized) for caution in protocol.cautions))
    rule = protocol.no_target.rule
    unknown = np.count_nonzero(np.isnan(rows.no_target_prob)) if rule in READ_BY["threshold"] else 0
    if unknown:
        whose = "the file has no" if unknown == len(rows) else f"{unknown:,} of {len(rows):,} expressions have no"
        so = "they are not rejected" if rule == "head" else "only an empty mask rejects them"
        yield f"{whose} no_target_prob, so {so}; --no-target-rule area rejects by the mask"


def _of_masks(protocols: Sequence[Protocol], header: dict[str, Any]) -> Iterator[str]:
    """How logits became masks, which the file's writer chose."""
    prescribed = [protocol.name for protocol in protocols if protocol.view != measured_on(protocol.view)]
    if prescribed:
        yield (
            f"{', '.join(prescribed)}: interpolation and threshold, which the protocol prescribes for logits, are what "
            "the file's writer chose"
        )
    threshold = _inside(header, "postprocess").get("threshold")
    others = [protocol.name for protocol in protocols if threshold not in (None, protocol.view.threshold)]
    if others:
        yield f"{', '.join(others)}: the masks were made at a threshold of {threshold}, which is not the protocol's"


def header_line(header: dict[str, Any]) -> str:
    """What made the predictions, in a line: config, checkpoint, and the data they are of."""
    checkpoint, data = _inside(header, "checkpoint"), _inside(header, "data")
    annotations = _inside(data, "annotations")
    source = annotations.get("file") or annotations.get("refs") or data.get("set")
    digest = checkpoint.get("weights_sha256") or checkpoint.get("sha256", "?")
    parts = [
        f"config {header['config']}" if "config" in header else "",
        f"checkpoint {Path(str(checkpoint.get('file', '?'))).name} ({str(digest)[:8]})" if checkpoint else "",
        f"on {source}" if source else "",
        f"split {_listed(data['split'])}" if data.get("split") else "",
    ]
    return ", ".join(filter(None, parts)) or f"made with: {', '.join(header)}"


def _inside(value: dict[str, Any], key: str) -> dict[str, Any]:
    """Headers are anybody's: what is no object holds nothing."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
