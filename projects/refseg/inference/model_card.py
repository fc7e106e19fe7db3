"""The model card of a model folder. A fact that is not known is written as "unknown"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg import __version__
from refseg.config_check import dicts_with
from refseg.files import sha256_of
from refseg.inference.loading import LoadedModel
from refseg.known_models import WEIGHTS
from refseg.pretrained import PACKAGES
from refseg.weights import read_checkpoint

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of a model on one data set by one protocol.

    Args:
        data: Name of the data, such as "grefcoco:val".
        protocol: Name of the protocol.
        images, expressions: What was scored.
        metrics: Values in percent.
        intervals: 95 % intervals of some of them.
        notes: What readers must know.
        shared_images: Whether training images are among them, in words.
    """

    data: str
    protocol: str
    images: int
    expressions: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    shared_images: str = UNKNOWN


def facts_of(loaded: LoadedModel, weights: Path) -> dict[str, str]:
    """Return the facts about a model that its card lists, by name.

    Args:
        loaded: The model.
        weights: Its file in the model folder.
    """
    content = read_checkpoint(weights)
    meta = content.get("meta") or {}
    bits = 16 if any(value.element_size() == 2 for value in content["state_dict"].values()) else 32
    number = sum(value.numel() for value in loaded.segmentor.parameters())
    data = list(_training_sets(meta.get("dataset_meta")))
    training = [f"{name} {meta.get(key, UNKNOWN)}" for name, key in (("seed", "seed"), ("epochs", "epoch"),
                                                                     ("steps", "iter"))]  # fmt: skip
    return {
        "method": f"{type(loaded.segmentor).__name__}, config `{meta.get('config', UNKNOWN)}`",
        "size": f"{number / 1e6:.2f} M parameters, {bits}-bit weights",
        "training data": "; ".join(name for name, _ in data) or UNKNOWN,
        "images of test sets in training": "; ".join(dict.fromkeys(leaks for _, leaks in data)) or UNKNOWN,
        "training": ", ".join(training),
        "started from": str(meta.get("start", UNKNOWN)),
        "pretrained encoders": "; ".join(encoders_of(loaded.cfg.model)) or "none are named in the config",
        "checkpoint": str(meta.get("checkpoint", UNKNOWN)),
        "license": str(meta.get("license", UNKNOWN)),
        f"SHA-256 of `{weights.name}`": f"`{sha256_of(weights)}`",
        "written by": f"refseg {__version__}",
    }


def _training_sets(meta: Any) -> Iterator[tuple[str, str]]:
    """Yield name and leak status of each data set in the meta of a checkpoint, which may be from a stranger."""
    parts = meta.get("mixture", [meta]) if isinstance(meta, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, dict) or not isinstance(annotations := part.get("annotations"), dict):
            continue
        source = annotations.get("refs") or annotations.get("file") or annotations.get("format")
        made = part.get("generated")
        name = f"{source}, split {part.get('split')}"
        if isinstance(made, dict):
            name += f" (RefShapes {made.get('preset')}, generator version {made.get('generator_version')})"
        filtered = part.get("leak_filter")
        if not isinstance(filtered, dict):
            yield name, UNKNOWN
        elif against := filtered.get("against"):
            yield (
                name,
                (
                    f"those of {', '.join(map(str, against))} were removed "
                    f"({filtered.get('dropped_images')} images, {filtered.get('dropped_expressions')} phrases)"
                ),
            )
        else:
            yield name, "no filter was set"


def encoders_of(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield each pretrained part that the `model` of a config names, with its license."""
    for part in dicts_with(model, "pretrained"):
        source = part["pretrained"]
        if not source:
            continue
        name = str(part.get("name") if source is True else source)
        yield f"{part.get('type', 'a part')}: {name} (license: {_license_of(name, part)})"
    for part in dicts_with(model, "init_cfg"):
        if checkpoint := (part["init_cfg"] or {}).get("checkpoint"):
            yield f"{part.get('type', 'a part')}: {checkpoint} (license: {UNKNOWN})"


def _license_of(name: str, part: Mapping[str, Any]) -> str:
    if name in WEIGHTS:
        return WEIGHTS[name].license
    if name in PACKAGES:
        return PACKAGES[name].license
    if part.get("type") == "TimmEncoder" and part["pretrained"] is True:
        import timm

        return getattr(timm.get_pretrained_cfg(name), "license", None) or UNKNOWN
    return UNKNOWN


def model_card(title: str, facts: Mapping[str, str], results: Sequence[Result] = ()) -> str:
    """Return a model card in Markdown, with the metadata that the hub reads."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
{_metadata(title, results, facts["license"])}
---

# {title}

A model for referring segmentation: an image and a phrase go in, and the masks of what the phrase refers to come out.

    from refseg import ReferringInferencer
    answer = ReferringInferencer("FOLDER")("photo.jpg", "the red cup")    # FOLDER: this one, or its name on the hub

## Facts

| | |
|---|---|
{rows}

## Results

{results_table(results)}
"""


def results_table(results: Sequence[Result]) -> str:
    """Return a table with a line per score, and what readers must know."""
    if not results:
        return "Not measured."
    lines = ["| data | protocol | metric | value | 95 % interval |", "|---|---|---|---|---|"]
    for result in results:
        for name, value in result.metrics.items():
            low, high = result.intervals.get(name, (None, None))
            interval = UNKNOWN if low is None else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {result.data} | {result.protocol} | {name} | {value:.2f} | {interval} |")
    lines += ["", "Intervals are bootstrap intervals over images. All numbers are of exactly these weights.", ""]
    for data in dict.fromkeys(result.data for result in results):
        first = next(result for result in results if result.data == data)
        size = f"{first.images:,} images, {first.expressions:,} phrases"
        lines.append(f"- {data}: {size}. Training images among them: {first.shared_images}.")
    lines += [f"- {note}." for note in dict.fromkeys(note for result in results for note in result.notes)]
    return "\n".join(lines)


def _metadata(title: str, results: Sequence[Result], license: str) -> str:
    """Return the YAML header of a card."""
    from huggingface_hub import EvalResult, ModelCardData

    entries = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=result.data.rpartition(":")[0] or result.data,
            dataset_name=result.data,
            metric_type=name,
            metric_name=f"{name} ({result.protocol})",
            metric_value=round(value, 2),
        )
        for result in results
        for name, value in result.metrics.items()
    ]
    named: dict[str, Any] = {"model_name": title, "eval_results": entries} if entries else {}
    card = ModelCardData(
        license=license,
        library_name="refseg",
        pipeline_tag="image-segmentation",
        tags=["referring-segmentation"],
        **named,
    )
    return card.to_yaml().strip()
