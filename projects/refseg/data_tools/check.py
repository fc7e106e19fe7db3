"""`refseg data check`: find missing, damaged, and contradictory data, each with its place and remedy."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refseg.data_tools.check_images import ImageChecker, ImageMode, check_images
from refseg.data_tools.check_splits import (
    check_counts,
    check_crowd_targets,
    check_seen_unseen,
    check_shared_images,
    count_splits,
)
from refseg.data_tools.issues import DataIssue, DataReport, Severity, report_lines
from refseg.datasets.annotations import open_annotations
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers.checks import plain_text
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target, resolve_all
from refseg.errors import DataError
from refseg.files import sha256_of
from refseg.paths import data_path
from refseg.records import UNKNOWN, Expression, Record
from refseg.terminal import write_whole


def main(args: argparse.Namespace) -> int:
    reports = []
    for target in resolve_all(args.sets):
        reports.append(check_target(target, args.images, workers=args.workers))
        print("\n".join(report_lines(reports[-1], everything=args.all)), end="\n\n", flush=True)
    defects = sum(report.number("defect") for report in reports)
    if args.json:
        content = {"defects": defects, "sets": [report.to_json() for report in reports]}
        write_whole(args.json, json.dumps(content, indent=2) + "\n")
    width = max(len(report.name) for report in reports)
    for report in reports:
        print(f"{report.name:{width}}  {report.verdict}")
    return 1 if defects else 0


def check_target(target: Target, images: ImageMode = "quick", *, workers: int | None = None) -> DataReport:
    """Check one data set.

    Args:
        target: The set.
        images: Decode all image files ("all"), check their headers and ends ("quick"), or skip them ("none").
        workers: Number of processes, or None for a suitable number.
    """
    start = time.monotonic()
    files = [str(data_path(value)) for key, value in target.annotations.items() if key != "format"]
    how = {"quick": "header and end of each", "all": "each decoded", "none": "not checked"}[images]
    files.append(f"images in {target.images} ({how})")
    report = DataReport(target.name, target.title, files, target.reference, expected=target.counts)
    again = f"get it again from {target.source}" if target.source else "see docs/data.md for the format"
    report.findings += check_generated_files(target)
    try:
        store = open_annotations(**target.annotations)
    except DataError as error:
        report.findings.append(DataIssue("defect", "annotation file", "", str(error), again))
    else:
        report.findings += check_entries(store, again)
        report.counts = count_splits(store, target)
        report.findings += check_counts(report.counts, store, target)
        checks = (check_seen_unseen, check_crowd_targets, check_shared_images, check_ids, check_repeated_phrases)
        report.findings += [issue for check in checks for issue in check(store, target)]
        if images != "none" and not target.images.is_dir():
            remedy = f"from {target.image_source}; see `refseg data layout`" if target.image_source else ""
            report.findings.append(DataIssue("defect", "image folder", str(target.images), "is not there", remedy))
            images = "none"
        checker = ImageChecker(store, target.images, images, target.image_source, target.source)
        report.findings += check_images(checker, workers=workers, title=target.name)
    report.seconds = time.monotonic() - start
    return report


def check_generated_files(target: Target) -> Iterator[DataIssue]:
    """Yield files of a generated folder that have changed. The reader reports missing files."""
    for name, digest in target.files.items():
        if not Path(name).is_file():
            continue
        try:
            current = sha256_of(Path(name))
        except OSError as error:
            remedy = "check its permissions and the disk"
            yield DataIssue("defect", "unreadable file", name, str(error.strerror), remedy)
            continue
        if current != digest:
            message = f"has changed since it was generated (sha256 {current[:12]}, not {digest[:12]})"
            yield DataIssue("defect", "changed file", name, message, f"generate it again: {target.source}")


def check_entries(store: RecordStore, again: str) -> Iterator[DataIssue]:
    """Yield entries that the reader skipped, as defects if an expression is lost, and sets without expressions."""
    if not store.num_expressions:
        yield DataIssue("defect", "no expressions", "", "there is no usable expression", again)
    for problem in store.problems:
        if problem.is_notice:
            yield DataIssue("note", "skipped entries", problem.place, problem.message)
            continue
        remedy = f"correct the entry, or {again}"
        if problem.split:
            split = f" (split {problem.split})" if problem.split != UNKNOWN else ""
            yield DataIssue("defect", "annotation", problem.place, f"{problem.message}{split}", remedy)
        else:
            kind = "annotation that no expression needs"
            yield DataIssue("warning", kind, problem.place, problem.message, remedy)


def check_ids(store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield ids that are used twice: of expressions, and of refs in REFER's layout."""
    seen: set[str] = set()
    places: dict[str, tuple[int, int]] = {}  # ref_id -> image and split
    images = store.image_of_expression.tolist()
    for index in range(store.num_expressions):
        expression = store.expression(index)
        if expression.expression_id in seen:
            message = f"{expression.expression_id!r} in image {store.record(images[index], ()).image_id}"
            remedy = "give each expression its own id"
            yield DataIssue("defect", "expression id used twice", str(target.main_file), message, remedy)
        seen.add(expression.expression_id)
        if target.annotations["format"] != "refer":
            continue
        place = (images[index], int(store.split_of_expression[index]))
        if places.setdefault(expression.object_id, place) != place:
            where = f"{target.main_file}, ref_id {expression.object_id}"
            message = "belongs to refs of several images or splits, whose sentences are kept apart"
            yield DataIssue("warning", "ref_id used twice", where, message, "give each ref its own id")
            places[expression.object_id] = place


def check_repeated_phrases(store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield phrases that an image has several times with different targets. In published sets, they are only noted."""
    severity: Severity = "warning" if target.annotations["format"] == "jsonl" else "note"
    for image in range(len(store)):
        by_text: dict[str, list[Expression]] = {}
        for index in range(store.expression_starts[image], store.expression_starts[image + 1]):
            expression = store.expression(index)
            by_text.setdefault(plain_text(expression.text), []).append(expression)
        repeated = [expressions for expressions in by_text.values() if len(expressions) > 1]
        if not repeated:
            continue
        record = store.record(image, ())
        for expressions in repeated:
            try:
                answers = {_merged_mask(record, expression, target.images) for expression in expressions}
            except (DataError, ValueError, TypeError):
                continue  # unusable masks are reported with their instances
            if len(answers) == 1:
                continue
            place = f"image {record.image_id}, {expressions[0].text!r}"
            ids = ", ".join(expression.expression_id for expression in expressions[:5])
            if None in answers:
                kind = "the same phrase with and without a target"
                message = f"refers to something in one row and to nothing in another ({ids})"
                remedy = "delete the row that is wrong"
            else:
                kind = "the same phrase with different targets"
                message = f"is in {len(expressions)} rows with different targets ({ids})"
                remedy = "use one row that refers to all of them, or different phrases"
            yield DataIssue(severity, kind, place, message, remedy)


def _merged_mask(record: Record, expression: Expression, root: Path) -> bytes | None:
    """Return the pixels that an expression refers to, or None if it has no target."""
    masks = []
    for index in expression.referents:
        segmentation = record.instances[index].segmentation
        segmentation = str(root / segmentation) if isinstance(segmentation, str) else segmentation
        masks.append(decode(to_rle(segmentation, record.size)))
    return np.any(masks, axis=0).tobytes() if masks else None
