"""`refseg data check`: is what lies there what should lie there? Every defect by name, with its place and remedy."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refseg.datasets.annotations import open_annotations
from refseg.datasets.commands.check_images import ImageMode, Job, look_at_all
from refseg.datasets.commands.counts import compare, compare_seen_unseen, count_splits, crowd_targets, shared_images
from refseg.datasets.commands.findings import Finding, Report, Severity, report_lines
from refseg.datasets.commands.from_coco import plain_text
from refseg.datasets.commands.output import write_whole
from refseg.datasets.commands.targets import Target, resolve_all
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.store import RecordStore
from refseg.errors import DataError
from refseg.files import sha256_of
from refseg.paths import data_path
from refseg.records import UNKNOWN, Expression, Record


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


def check_target(
    target: Target, images: ImageMode = "quick", *, workers: int | None = None, progress: bool = True
) -> Report:
    start = time.monotonic()
    report = Report(target.name, target.title, _files(target, images), target.reference, expected=target.counts)
    again = f"get it again from {target.source}" if target.source else "see docs/data.md for the format"
    report.findings += changed_files(target)
    try:
        store = open_annotations(**target.annotations)
    except DataError as error:
        report.findings.append(Finding("defect", "annotation file", "", str(error), again))
    else:
        report.findings += entries(store, again)
        report.counts = count_splits(store, target)
        report.findings += compare(report.counts, store, target)
        report.findings += compare_seen_unseen(store, target)
        report.findings += crowd_targets(store, target)
        report.findings += shared_images(store, target)
        report.findings += repeated_ids(store, target)
        report.findings += contradictions(store, target)
        if images != "none" and not target.images.is_dir():
            remedy = f"from {target.image_source}; see `refseg data layout`" if target.image_source else ""
            report.findings.append(Finding("defect", "image folder", str(target.images), "is not there", remedy))
            images = "none"
        job = Job(store, target.images, images, target.image_source, target.source)
        report.findings += look_at_all(job, workers=workers, progress=progress, title=target.name)
    report.seconds = time.monotonic() - start
    return report


def _files(target: Target, images: ImageMode) -> list[str]:
    names = [str(data_path(value)) for key, value in target.annotations.items() if key != "format"]
    how = {"quick": "header and end of each", "all": "each decoded", "none": "not looked at"}[images]
    return [*names, f"images in {target.images} ({how})"]


def changed_files(target: Target) -> Iterator[Finding]:
    """Files of a generated folder that are not as they were made."""
    for name, digest in target.files.items():
        file = Path(name)
        if not file.is_file():
            continue  # the reader says so
        try:
            found = sha256_of(file)
        except OSError as error:
            yield Finding("defect", "unreadable file", name, str(error.strerror), "see to its permissions and its disk")
            continue
        if found != digest:
            message = f"is not as it was generated (sha256 {found[:12]}, not {digest[:12]})"
            yield Finding("defect", "changed file", name, message, f"make it again: {target.source}")


def entries(store: RecordStore, again: str) -> Iterator[Finding]:
    """What the reader had to leave out: a defect where an expression is lost by it. And whether anything is left."""
    if not store.num_expressions:
        yield Finding("defect", "no expressions", "", "there is no expression that can be used", again)
    for problem in store.problems:
        if problem.is_notice:
            yield Finding("note", "skipped entries", problem.place, problem.message)
            continue
        lost = problem.split != ""
        where = f" (split {problem.split})" if lost and problem.split != UNKNOWN else ""
        yield Finding(
            "defect" if lost else "warning",
            "annotation" if lost else "annotation that no expression needs",
            problem.place,
            f"{problem.message}{where}",
            f"mend the entry, or {again}",
        )


def repeated_ids(store: RecordStore, target: Target) -> Iterator[Finding]:
    """Ids by which results are told apart: of expressions, and, as REFER has them, of refs."""
    seen: dict[str, int] = {}
    images = store.image_of_expression.tolist()
    refs: dict[str, tuple[int, int]] = {}
    for index in range(store.num_expressions):
        expression = store.expression(index)
        if expression.expression_id in seen:
            yield Finding(
                "defect",
                "expression id used twice",
                str(target.main_file),
                f"{expression.expression_id!r} in image {store.record(images[index], ()).image_id}",
                "give each expression an id of its own",
            )
        seen[expression.expression_id] = index
        if target.annotations["format"] != "refer":
            continue
        first = refs.setdefault(expression.object_id, (images[index], int(store.split_of_expression[index])))
        if first != (images[index], int(store.split_of_expression[index])):
            yield Finding(
                "warning",
                "ref_id used twice",
                f"{target.main_file}, ref_id {expression.object_id}",
                "stands for refs of several images or splits; their sentences are kept apart",
                "give each ref an id of its own",
            )
            refs[expression.object_id] = (images[index], int(store.split_of_expression[index]))


def contradictions(store: RecordStore, target: Target) -> Iterator[Finding]:
    """Phrases that stand more than once with one image, and mean different things. Nobody can mend those of the known
    sets, where they are a note."""
    severity: Severity = "warning" if target.annotations["format"] == "jsonl" else "note"
    for image in range(len(store)):
        alike: dict[str, list[Expression]] = {}
        for index in range(store.expression_starts[image], store.expression_starts[image + 1]):
            expression = store.expression(index)
            alike.setdefault(plain_text(expression.text), []).append(expression)
        repeated = [expressions for expressions in alike.values() if len(expressions) > 1]
        if not repeated:
            continue
        record = store.record(image, ())
        for expressions in repeated:
            try:
                answers = {_answer(record, expression, target.images) for expression in expressions}
            except (DataError, ValueError, TypeError):
                continue  # unusable masks are reported with their instances
            if len(answers) == 1:
                continue
            place = f"image {record.image_id}, {expressions[0].text!r}"
            ids = ", ".join(expression.expression_id for expression in expressions[:5])
            if None in answers:
                yield Finding(
                    severity,
                    "the same phrase with and without a target",
                    place,
                    f"refers to something in one row and to nothing in another ({ids})",
                    "delete the row that is wrong",
                )
            else:
                yield Finding(
                    severity,
                    "the same phrase with different targets",
                    place,
                    f"stands in {len(expressions)} rows with different targets ({ids})",
                    "make one row that refers to all of them, or phrases that tell them apart",
                )


def _answer(record: Record, expression: Expression, root: Path) -> bytes | None:
    """The pixels that an expression refers to, None for nothing."""
    masks = []
    for index in expression.referents:
        segmentation = record.instances[index].segmentation
        segmentation = str(root / segmentation) if isinstance(segmentation, str) else segmentation
        masks.append(decode(to_rle(segmentation, record.size)))
    return np.any(masks, axis=0).tobytes() if masks else None
