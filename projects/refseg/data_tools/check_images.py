"""Checks of every image: its file, its masks, and its boxes. Large sets use several processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from refseg.data_tools.issues import DataIssue
from refseg.datasets.images import has_end_marker, header_size, read_image
from refseg.datasets.masks import to_rle
from refseg.datasets.store import RecordStore
from refseg.errors import DataError, UsageError
from refseg.processes import process_map, usable_cores
from refseg.records import AnnotatedInstance, Record

ImageMode = Literal["quick", "all", "none"]
HEAD = 1 << 16  # bytes that nearly always contain a JPEG's frame header
TAIL = 32  # bytes that contain the end marker
CHUNK = 64  # images per task of a worker
FEW_INSTANCES = 20_000  # checking these takes less time than starting processes
OUTSIDE = 1.0  # pixels by which a box may extend beyond its image, because annotation tools round
STDERR = 2
SIGNS_OF_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")  # libjpeg prints these and continues


@dataclass
class ImageChecker:
    """The checks of one data set. Workers receive it once. Its store is pickled as a path."""

    store: RecordStore
    root: Path
    images: ImageMode
    image_source: str  # for remedies
    source: str  # of the annotations, for remedies

    def check(self, image: int) -> list[DataIssue]:
        record = self.store.record(image)
        issues = [] if self.images == "none" else list(self.check_file(record))
        referents = {index for expression in record.expressions for index in expression.referents}
        for index, instance in enumerate(record.instances):
            issues += self.check_instance(record, instance, index in referents)
        return issues

    def check_file(self, record: Record) -> Iterator[DataIssue]:
        path = str(self.root / record.image_path)
        remedy = f"from {self.image_source}" if self.image_source else f"image paths are relative to {self.root}"
        if not os.path.isfile(path):
            yield DataIssue("defect", "missing image", path, f"image {record.image_id} is not there", remedy)
            return
        again = f"get the file again, {remedy}" if self.image_source else "replace the file"
        try:
            if self.images == "all" or not looks_whole(path, record.size):
                with damage_reported() as messages:
                    read_image(path, record.size)
                if messages:
                    message = f"the decoder reports: {'; '.join(messages)}"
                    yield DataIssue("defect", "damaged image", path, message, again)
        except DataError as error:
            remedy = again if self.image_source else f"{again}, or correct its size in the rows"
            yield DataIssue("defect", "unreadable image", path, str(error), remedy)
        except OSError as error:
            message, remedy = str(error.strerror or error), "check its permissions and the disk"
            yield DataIssue("defect", "unreadable image", path, message, remedy)

    def check_instance(self, record: Record, instance: AnnotatedInstance, is_target: bool) -> Iterator[DataIssue]:
        severity: Any = "defect" if is_target else "warning"
        suffix = "" if is_target else ", no expression refers to it"
        place = f"image {record.image_id} ({record.image_path}), instance {instance.instance_id}"
        remedy = "correct the annotation" + (f", or get the file again from {self.source}" if self.source else "")
        segmentation = instance.segmentation
        if isinstance(segmentation, str):
            segmentation = str(self.root / segmentation)
        try:
            area = int(coco_mask.area(to_rle(segmentation, record.size)))
        except (DataError, ValueError, TypeError) as error:
            yield DataIssue(severity, "unusable mask", place, f"{error}{suffix}", remedy)
            return
        if not area:
            yield DataIssue(severity, "empty mask", place, f"it contains no pixel of the image{suffix}", remedy)
        if instance.box is not None and (fault := box_fault(instance.box, record.size)):
            yield DataIssue(severity, "box", place, f"{fault}{suffix}", remedy)


def looks_whole(path: str, size: tuple[int, int]) -> bool:
    """Return whether the header and the end of a JPEG or PNG are as expected. If not, it must be decoded."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        tail = file.read()
    return header_size(head) == tuple(size) and has_end_marker(head[:16] + tail)


def box_fault(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """Return what is wrong with a box (x, y, width, height) in an image (height, width), or "" if it is valid."""
    x, y, width, height = box
    rounded = f"box {[round(value, 1) for value in box]}"
    if not np.isfinite(box).all() or width <= 0 or height <= 0:
        return f"{rounded} has no area"
    if x < -OUTSIDE or y < -OUTSIDE or x + width > size[1] + OUTSIDE or y + height > size[0] + OUTSIDE:
        return f"{rounded} is not inside the image of {size[1]} x {size[0]} pixels"
    return ""


@contextmanager
def damage_reported() -> Iterator[list[str]]:
    """Collect the decoder's messages about damage from stderr. They are the only sign of damage inside a JPEG.

    The list is filled at the end of the context. Other output goes on to stderr. File descriptor 2 belongs to the whole
    process, so use this only in processes that do nothing else.
    """
    messages: list[str] = []
    try:
        stderr, file = os.dup(STDERR), tempfile.TemporaryFile()  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"decoding images needs stderr and a temporary file to detect damage: {error}. Set TMPDIR, or skip image "
            "files with --images none"
        ) from None
    with file:
        sys.stderr.flush()
        os.dup2(file.fileno(), STDERR)
        try:
            yield messages
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            os.close(stderr)
            file.seek(0)
            for line in file.read().splitlines(keepends=True):
                if any(sign.encode() in line for sign in SIGNS_OF_DAMAGE):
                    messages.append(line.decode(errors="replace").strip())
                else:
                    os.write(STDERR, line)


def check_images(checker: ImageChecker, *, workers: int | None = None, title: str = "") -> list[DataIssue]:
    """Check all images of a set.

    Args:
        checker: The checks.
        workers: Number of processes. By default, large sets use all cores and small ones a single process.
        title: Title of the progress bar.
    """
    from tqdm import tqdm

    num_images = len(checker.store)
    if workers is None:
        few = checker.store.num_instances < FEW_INSTANCES and (checker.images != "all" or num_images < 1000)
        workers = 1 if few else usable_cores()
    with process_map(checker.check, range(num_images), workers, chunksize=CHUNK) as results:
        bar = tqdm(results, total=num_images, desc=title, unit="image", leave=False, disable=None)
        return [issue for issues in bar for issue in issues]
