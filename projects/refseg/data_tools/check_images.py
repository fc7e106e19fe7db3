"""The part of a check that looks at every image: its file, its masks and its boxes; over processes where it pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from refseg.data_tools.decoder_messages import damage_reported
from refseg.data_tools.findings import Finding
from refseg.datasets.images import has_end_marker, header_size, read_image
from refseg.datasets.masks import to_rle
from refseg.datasets.store import RecordStore
from refseg.errors import DataError
from refseg.records import Instance, Record

ImageMode = Literal["quick", "all", "none"]
HEAD = 1 << 16  # bytes in which a JPEG's frame header nearly always lies
TAIL = 32  # bytes in which the end marker lies
CHUNK = 64
FEW_INSTANCES = 20_000  # checked in less time than processes take to start
OUTSIDE = 1.0  # pixels by which an annotated box may overhang its image: annotators' tools round


@dataclass
class Job:
    """What a worker needs; pickled once per process, and the store then only as its path."""

    store: RecordStore
    root: Path
    images: ImageMode
    fetch: str  # where image files come from, for remedies
    source: str  # where annotations come from

    def chunk(self, images: range) -> list[Finding]:
        return [finding for image in images for finding in self.one(image)]

    def one(self, image: int) -> Iterator[Finding]:
        record = self.store.record(image)
        if self.images != "none":
            yield from self.image_file(record)
        referred = {index for expression in record.expressions for index in expression.referents}
        for index, instance in enumerate(record.instances):
            yield from self.instance(record, instance, index in referred)

    def image_file(self, record: Record) -> Iterator[Finding]:
        path = str(self.root / record.image_path)
        remedy = f"from {self.fetch}" if self.fetch else f"image paths are relative to {self.root}"
        if not os.path.isfile(path):
            yield Finding("defect", "missing image", path, f"image {record.image_id} is not there", remedy)
            return
        fetch = f"fetch the file again, {remedy}" if self.fetch else "replace the file"
        try:
            if (self.images == "all" or not looks_whole(path, record.size)) and (damage := decode(path, record.size)):
                yield Finding("defect", "damaged image", path, f"the decoder says: {damage}", fetch)
        except DataError as error:
            remedy = fetch if self.fetch else f"{fetch}, or its size in the rows"
            yield Finding("defect", "unreadable image", path, str(error), remedy)
        except OSError as error:
            remedy = "see to its permissions and its disk"
            yield Finding("defect", "unreadable image", path, str(error.strerror or error), remedy)

    def instance(self, record: Record, instance: Instance, referred: bool) -> Iterator[Finding]:
        severity: Any = "defect" if referred else "warning"
        who = "" if referred else ", no expression refers to it"
        place = f"image {record.image_id} ({record.image_path}), instance {instance.instance_id}"
        mend = "mend the annotation" + (f", or get the file again from {self.source}" if self.source else "")
        segmentation = instance.segmentation
        if isinstance(segmentation, str):
            segmentation = str(self.root / segmentation)
        try:
            area = int(coco_mask.area(to_rle(segmentation, record.size)))
        except (DataError, ValueError, TypeError) as error:
            yield Finding(severity, "unusable mask", place, f"{error}{who}", mend)
            return
        if not area:
            yield Finding(severity, "empty mask", place, f"no pixel of the image is in it{who}", mend)
        if instance.box is not None and (wrong := box_fault(instance.box, record.size)):
            yield Finding(severity, "box", place, f"{wrong}{who}", mend)


def decode(path: str, size: tuple[int, int]) -> str:
    """Decodes an image; what the decoder said about damage that it went over, "" where there is none."""
    with damage_reported() as messages:
        read_image(path, size)
    return "; ".join(messages)


def looks_whole(path: str, size: tuple[int, int]) -> bool:
    """Whether header and end of a JPEG or PNG are as they should be; where not, only decoding can tell."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        tail = file.read()
    return header_size(head) == tuple(size) and has_end_marker(head[:16] + tail)


def box_fault(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """What is wrong with x, y, width, height in an image of (height, width)."""
    x, y, width, height = box
    shown = f"box {[round(value, 1) for value in box]}"
    if not np.isfinite(box).all() or width <= 0 or height <= 0:
        return f"{shown} has no area"
    if x < -OUTSIDE or y < -OUTSIDE or x + width > size[1] + OUTSIDE or y + height > size[0] + OUTSIDE:
        return f"{shown} is not inside the image of {size[1]} x {size[0]} pixels"
    return ""


def look_at_all(job: Job, *, workers: int | None = None, progress: bool = True, title: str = "") -> list[Finding]:
    from tqdm import tqdm

    num_images = len(job.store)
    chunks = [range(first, min(first + CHUNK, num_images)) for first in range(0, num_images, CHUNK)]
    if workers is None:
        few = job.store.num_instances < FEW_INSTANCES and (job.images != "all" or num_images < 1000)
        workers = 1 if few else usable_cores()
    findings: list[Finding] = []
    # disable=None: no bar where nobody looks at a terminal
    bar = tqdm(total=num_images, desc=title, unit="image", leave=False, disable=None if progress else True)
    with bar, _mapper(job, min(workers, len(chunks))) as mapped:
        for chunk, found in zip(chunks, mapped(chunks), strict=True):
            findings += found
            bar.update(len(chunk))
    return findings


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_job: Job | None = None  # a worker's own


def _start_worker(job: Job) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    _job = job


def _run_chunk(images: range) -> list[Finding]:
    assert _job is not None
    return _job.chunk(images)


@contextmanager
def _mapper(job: Job, workers: int) -> Iterator[Any]:
    """Maps chunks to findings, in order and lazily."""
    if workers <= 1:
        yield lambda chunks: map(job.chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    try:
        yield lambda chunks: pool.map(_run_chunk, chunks)
    except BrokenProcessPool:
        raise DataError("a checking process died, perhaps for want of memory; try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)
