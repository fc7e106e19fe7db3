"""Label Studio's ML-backend protocol: labeling configs, tasks, and predictions.

Label Studio sends its labeling config (XML) with every request. The phrases are the values of its labels, or come with
the task. Predictions are brush or polygon regions at the image's own size.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from refseg.demo.guard import is_inside
from refseg.demo.limits import Limits, check_header, check_num_bytes, check_phrase_list, read_upload
from refseg.demo.page import Asked
from refseg.errors import DataError, UsageError
from refseg.inference.exports import brush_region, polygon_regions
from refseg.inference.inputs import Loading, fetch, is_url

KINDS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}  # the first one in a config is used
PHRASE_FIELDS = ("phrases", "text")  # of a task's data
NEGATIVES = "negative_phrases"  # text area of the whole image, as `refseg data export` and `import` name it
IMAGE = "image"  # name in error messages


@dataclass(frozen=True, slots=True)
class Control:
    """The tag of a labeling config that predictions are for.

    Args:
        kind: "brushlabels" or "polygonlabels".
        name: Name of the tag.
        image: Name of the image tag.
        field: Key of the image in a task's data.
        labels: The labels: what they show, which is the phrase, and what results call them.
        phrases: Name of the text area for the phrases of a region, or None.
        negatives: Whether there is a text area for the phrases that refer to nothing.
    """

    kind: str
    name: str
    image: str
    field: str
    labels: dict[str, str]
    phrases: str | None = None
    negatives: bool = False


def read_control(config: str) -> Control:
    """Find the brush or polygon labels of a labeling config, and their image."""
    if "<!DOCTYPE" in config or "<!ENTITY" in config:
        raise UsageError("The labeling config must not define a document type or entities.")
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"The labeling config is not valid XML ({error}).") from None
    images = {tag.get("name"): tag.get("value") or "" for tag in root.iter("Image")}
    for tag_name, kind in KINDS.items():
        for tag in root.iter(tag_name):
            for image in (tag.get("toName") or "").split(","):
                field = images.get(image, "")
                if tag.get("name") and field.startswith("$"):
                    labels = {
                        value: one.get("alias") or value for one in tag.iter("Label") if (value := one.get("value"))
                    }
                    areas = [area for area in root.iter("TextArea") if area.get("toName") == image]
                    per_region = (area.get("name") for area in areas if area.get("perRegion") == "true")
                    negatives = any(area.get("name") == NEGATIVES for area in areas)
                    name = tag.get("name") or ""
                    return Control(kind, name, image, field[1:], labels, next(per_region, None), negatives)
    raise UsageError(
        "The labeling config has no <BrushLabels> or <PolygonLabels> whose toName is an <Image> with a value like "
        '"$image". Add one.'
    )


def phrases_of(data: Mapping[str, Any], control: Control, limits: Limits) -> dict[str, str]:
    """Return the phrases of a task, each with the label of its regions.

    They are in the task's field `phrases` (a list, or a text with one per line) or `text`, or else are the labels. A
    phrase of the task that is not a label gets the label of the config, if there is only one.
    """
    given = next((data[field] for field in PHRASE_FIELDS if data.get(field)), None)
    if given is None:
        if not control.labels:
            raise UsageError("No phrases. Add labels to the labeling config, or the field `phrases` to the tasks.")
        phrases = check_phrase_list(list(control.labels), limits)
        return dict(zip(phrases, control.labels.values(), strict=True))
    phrases = given.splitlines() if isinstance(given, str) else given
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise UsageError("The task's phrases must be a list of texts, or a text with one phrase per line.")
    found = {}
    for phrase in check_phrase_list([phrase for phrase in phrases if phrase.strip()], limits):
        if phrase not in control.labels and len(control.labels) != 1:
            raise UsageError(
                f"{phrase!r} is not a label of the labeling config. Add it, or leave one label, which then takes all "
                "phrases."
            )
        found[phrase] = control.labels.get(phrase) or next(iter(control.labels.values()))
    return found


def prediction(asked: Asked, labels: Mapping[str, str], control: Control, version: str) -> dict[str, Any]:
    """Return an answer as a prediction of Label Studio.

    A phrase that is not a label goes into the text area of its regions. Without one, it becomes the regions' meta text,
    which Label Studio shows, but `refseg data import` does not read.

    Args:
        asked: The answer.
        labels: The label of each phrase.
        control: Where the regions belong.
        version: Version of the model.
    """
    size = asked.opened.full_size
    results: list[dict[str, Any]] = []
    for k, phrase in enumerate(asked.answer):
        label = labels[phrase.text]
        for i, one in enumerate(phrase.objects):
            place: dict[str, Any] = dict(from_name=control.name, to_name=control.image)
            mask, region_id = one.mask_at(size), f"{k}_{i}"
            if control.kind == "polygonlabels":
                regions = polygon_regions(mask, label, one.score, region_id, **place)
            else:
                regions = [brush_region(mask, label, one.score, region_id, **place)]
            for region in regions:
                is_free = control.labels.get(phrase.text) != label
                if is_free and not control.phrases:
                    region["meta"] = {"text": [phrase.text]}
                results.append(region)
                if is_free and control.phrases:
                    results.append(text_area(control.phrases, control.image, region["id"], [phrase.text]))
    score = min((one["score"] for one in results if "score" in one), default=0.0)
    absent = [phrase.text for phrase in asked.answer if phrase.nothing_here]
    if absent and control.negatives:
        results.append(text_area(NEGATIVES, control.image, NEGATIVES, absent))
    return {"result": results, "score": score, "model_version": version}


def text_area(name: str, image: str, region_id: str, texts: list[str]) -> dict[str, Any]:
    """Return texts of a region or, with an id of their own, of the whole image."""
    return {"id": region_id, "type": "textarea", "from_name": name, "to_name": image, "value": {"text": texts}}


# Images ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageSources:
    """Sources of the images of tasks, besides data URLs.

    Args:
        folders: Folders with Label Studio's files: its `media` folder, or that of its local storage.
        allow_url: Whether images may come from public addresses.
        private_addresses: Whether images may come from this machine and its private network too.
    """

    folders: Sequence[Path] = ()
    allow_url: bool = False
    private_addresses: bool = False

    def read(self, source: Any, limits: Limits) -> bytes:
        """Return the content of a task's image after checking its size, format, and header."""
        if not isinstance(source, str) or not source:
            raise UsageError("The task has no image. Its image must be a data URL, a path, or a web address.")
        if source[:5].lower() == "data:":
            return decode_base64(source, limits)
        if is_url(source):
            if not self.allow_url:
                raise UsageError("Images from web addresses are not allowed here. The server needs --allow-url.")
            how = Loading(allow_url=True, max_url_bytes=limits.upload_bytes, private_addresses=self.private_addresses)
            content = fetch(source, how)
            check_header(content, IMAGE, limits)
            return content
        return read_upload(str(self.find(source)), IMAGE, limits)

    def find(self, source: str) -> Path:
        """Return the file that a path of Label Studio names: /data/upload/1/a.png, or /data/local-files/?d=a.png."""
        if not self.folders:
            raise UsageError("Images from files are not allowed here. The server needs --label-studio-files DIR.")
        try:
            parts = urlsplit(source)
            path = parse_qs(parts.query).get("d", [""])[0] if "/local-files" in parts.path else unquote(parts.path)
        except ValueError:
            path = ""
        relative = path.removeprefix("/data/").lstrip("/")
        names = [name for name in (relative, relative.removeprefix("upload/")) if name and "\0" not in name]
        for folder in self.folders:
            for name in names:
                file = folder.resolve() / name
                if is_inside(str(file), folder.resolve()) and os.path.isfile(file):
                    return file.resolve()
        raise DataError(f"No such image below --label-studio-files: {source[:200]!r}.")


def decode_base64(text: str, limits: Limits) -> bytes:
    """Return the content of an image in base64 or in a data URL after checking its size, format, and header."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise UsageError("A data URL of an image must look like data:image/png;base64,...")
    check_num_bytes(len(text) * 3 // 4 - 2, IMAGE, limits)
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("The image is not valid base64.") from None
    check_num_bytes(len(content), IMAGE, limits)
    check_header(content, IMAGE, limits)
    return content
