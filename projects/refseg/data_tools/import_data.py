"""`refseg data import`: convert files of labeling tools to JSONL rows."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refseg.data_tools import coco, label_studio, labelme, sa_co, yolo
from refseg.data_tools.benchmarks import PHRASE_LISTS, READERS
from refseg.data_tools.conversion import LabeledImage, Row, Skipped, Wording, to_rows
from refseg.data_tools.formats import FORMATS
from refseg.data_tools.parquet import COLUMNS, format_of_parquet, parquet_files
from refseg.data_tools.rows import check_output, to_line
from refseg.datasets.readers.checks import load_json
from refseg.errors import DataError, UsageError
from refseg.terminal import open_output


def main(args: argparse.Namespace) -> int:
    text_many, split = args.text_many, args.split or None
    wording = Wording(args.per, args.text, text_many, args.text_field, args.no_target, args.seed, split)
    out = check_output(args.out, args.overwrite)
    source, images = Path(args.source), Path(args.images) if args.images else None
    file, format, content = recognize(source, args.format)
    skipped = Skipped()
    numbers: Counter = Counter()
    with open_output(out) as output:
        for row in convert(file, format, content, images, out.parent, wording, skipped):
            output.write(to_line(row))
            numbers["rows"] += 1
            numbers["targets"] += len(row["targets"] or ())
            numbers["without target"] += row["targets"] is None
        if not numbers["rows"]:
            lines = [f"{source} has no usable annotations (format: {FORMATS[format]})", *skipped.lines()]
            if any("file is not there" in reason for reason in skipped.numbers):
                lines.append("Name the folder of the images with --images")
            raise DataError("\n".join(lines))
    without = numbers["without target"]
    print(f"{file}: {FORMATS[format]}")
    print(f"{out}: {numbers['rows']:,} rows ({without:,} without target), {numbers['targets']:,} targets")
    print("\n".join([*skipped.lines(), f"Review the texts, then run: refseg data check {out}"]))
    return 0


def convert(
    file: Path, format: str, content: Any, images: Path | None, base: Path, wording: Wording, skipped: Skipped
) -> Iterator[Row]:
    """Yield the rows of a file or folder.

    Args:
        file: The file or folder.
        format: Its format, a key of FORMATS.
        content: Its content as `recognize` returns it.
        images: Folder of the images, or None for the usual place.
        base: Folder that image paths of the rows are relative to.
        wording: The texts.
        skipped: Collects what cannot be used.
    """
    if wording.text_field is not None and format != "coco":
        raise UsageError(f"--text-field is for COCO, not for {FORMATS[format]}. Omit it")
    if images is not None and format == "yolo":
        raise UsageError("--images does not apply to YOLO: data.yaml names the folders. Omit it")
    if format in READERS:
        yield from READERS[format](file, images, base, skipped)
        return
    folder = usual_images(file) if images is None else images
    labels: tuple[list[LabeledImage], dict[str, str]]
    if format == "coco":
        labels = coco.read(file, content, folder, skipped, wording.text_field)
    elif format == "sa-co":
        labels = (sa_co.read(file, folder, skipped), {})
    elif format == "label-studio":
        labels = label_studio.read(file, content, folder, skipped)
    elif format == "labelme":
        labels = labelme.read(file, images, skipped)
    else:
        labels = yolo.read(file, skipped)
    yield from to_rows(*labels, wording, base, skipped)


def recognize(source: Path, format: str = "auto") -> tuple[Path, str, Any]:
    """Return the file or folder to read, its format, and the content of a JSON file.

    Args:
        source: A file or folder.
        format: A key of FORMATS, or "auto".

    Raises:
        DataError: The source cannot be read, or its format is unknown.
    """
    if format in ("auto", *COLUMNS) and (files := parquet_files(source)):
        found = format_of_parquet(files[0]) if format == "auto" else format
        if found is not None:
            return source, found, None
        if not source.is_dir():
            raise DataError(f"{files[0]} has the columns of neither PBench nor Ref-L4. --format names the format")
    if source.is_dir():
        if format == "yolo" or (format == "auto" and (list(source.glob("*.yaml")) or list(source.glob("*.yml")))):
            return source, "yolo", None
        if format == "labelme":
            return source, "labelme", None
        if format in ("auto", "phrase-lists") and list(source.glob(PHRASE_LISTS)):
            return source, "phrase-lists", None
        # CVAT and others put the file of a set into the folder `annotations`.
        files = sorted(source.glob("annotations/*.json")) or sorted(source.rglob("*.json"))
        if not files:
            raise DataError(f"{source} has neither a YAML file (YOLO) nor JSON files")
        file, found, content = recognize(files[0], format)
        if found in ("labelme", "reasonseg"):  # a file per image
            return source, found, None
        if len(files) > 1:
            raise DataError(f"{source} has {len(files)} JSON files of the format {FORMATS[found]}. Name one of them")
        return file, found, content
    if source.suffix.lower() == ".zip":
        raise UsageError(f"{source} is an archive. Unpack it, and name the folder")
    if source.suffix.lower() in (".yaml", ".yml") or format == "yolo":
        return source, "yolo", None
    if source.is_file() and source.suffix.lower() == ".jsonl" and format in ("auto", "gseval"):
        if b'"caption"' not in source.read_bytes()[: 2**16]:
            raise DataError(f"{source} is not GSEval's file. A JSONL file of refseg needs no import: refseg data check")
        return source, "gseval", None
    try:
        if format in ("auto", "reasonseg") and b'"is_sentence"' in source.read_bytes():  # not all of them are UTF-8
            return source, "reasonseg", None
        content = load_json(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror})") from None
    found = format_of(content) if format == "auto" else format
    if found is None:
        raise DataError(f"{source} has an unknown format. Known formats: {', '.join(FORMATS.values())}")
    return source, found, content


def format_of(content: Any) -> str | None:
    """Return the format of a JSON file, or None if it is unknown."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("data"), dict):
        return "label-studio"
    if isinstance(content, list):
        return "phrasecut" if {"Polygons", "phrase"} <= first.keys() else None
    if isinstance(content.get("shapes"), list):
        return "labelme"
    images = content.get("images")
    if isinstance(images, list):
        regions = content.get("annotations")
        if "caption" in _keys_of_first(images) and "level" in _keys_of_first(regions):
            return "finecops"
        has_phrases = any(isinstance(image, dict) and "text_input" in image for image in images[:100])
        return "sa-co" if has_phrases else "coco"
    return None


def _keys_of_first(entries: Any) -> set[str]:
    return set(entries[0]) if isinstance(entries, list) and entries and isinstance(entries[0], dict) else set()


def usual_images(file: Path) -> Path:
    """Return the folder of images of an annotation file: its own one, or `images` beside `annotations`."""
    images = file.parent.parent / "images"
    return images if file.parent.name == "annotations" and images.is_dir() else file.parent
