"""Write a RefShapes data set to a folder.

    images/<split>_<index>.png   RGB
    refshapes.jsonl              one row per expression, images in order; all splits
    refcoco/, refcoco+/, refcocog/, grefcoco/, ref-zom/, rrefcoco/
                                 the official layouts: a refs file and an instances.json each (official_layouts.py)
    words.txt                    the closed word list, one word per line
    meta.json                    preset, generator version, counts, SHA-256 of the annotation files; written last

Each image has its own seeds (preset seed, split, index), so neither the number of workers nor an interruption changes
the result. The decoded pixels and the bytes of all annotation files are deterministic. The bytes of a PNG depend on the
version of zlib.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from refseg.errors import UsageError
from refseg.refshapes.official_layouts import (
    LAYOUTS,
    annotation_entries,
    encode_masks,
    image_entry,
    instances_head,
)
from refseg.refshapes.presets import GeneratedImage, Preset, draw_image, get_preset, make_image
from refseg.refshapes.vocabulary import word_list

EXPRESSIONS = "refshapes.jsonl"
INSTANCES = "instances.json"
IMAGES = "images"
META = "meta.json"
STARTED = "generating.json"  # present while a folder is unfinished; it identifies the preset
WORDS = "words.txt"
FORMER = ("instances.jsonl",)  # files of generator version 1


def generate(
    preset: str | Preset,
    out: str | Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generate a preset into a folder. A second call continues an interrupted run and leaves a finished folder alone.

    Args:
        preset: A `Preset`, or the name of one in `PRESETS`.
        out: The folder.
        workers: Number of processes; by default one per usable core. With several processes, a script must call this
            below ``if __name__ == "__main__":``.
        overwrite: Replace the RefShapes files of another preset or version. Other files in the folder are kept.
        progress: Show a progress bar.

    Returns:
        The content of meta.json.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    out = Path(out)
    places = [(split, index) for split, count in preset.images.items() for index in range(count)]
    meta = _read_meta(out, preset, overwrite)
    if meta is not None and _is_complete(out, places):
        if progress:
            print(f"RefShapes {preset.name}: already complete in {out}")
        return meta
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    (out / STARTED).write_text(json.dumps(preset.identity(), indent=2) + "\n", encoding="utf-8")
    (out / META).unlink(missing_ok=True)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, -(-len(places) // 16))
    with _AnnotationWriter(out, list(preset.images)) as writer, _mapper(workers) as mapped:
        done = mapped(partial(_write_image, preset, out / IMAGES), places)
        for part in tqdm(done, total=len(places), desc=f"RefShapes {preset.name}", unit="image", disable=not progress):
            writer.add(part)
        written = writer.finish()
    (out / WORDS).write_text("\n".join(word_list()) + "\n", encoding="utf-8", newline="\n")

    meta = {**preset.identity(), **written}
    (out / (META + ".tmp")).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    os.replace(out / (META + ".tmp"), out / META)
    (out / STARTED).unlink()
    return meta


def annotation_files() -> list[str]:
    """Return the names of all annotation files, relative to the folder of the data set."""
    return [EXPRESSIONS, *(f"{layout.folder}/{name}" for layout in LAYOUTS for name in (layout.refs_file, INSTANCES))]


def _read_meta(out: Path, preset: Preset, overwrite: bool) -> dict[str, Any] | None:
    """Return the meta data of a finished folder of this preset, or None if there is work to do.

    Raises:
        UsageError: The folder holds another preset, another generator version, or other files.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; RefShapes needs a folder")
    if overwrite:  # remove what a generator wrote, and nothing else
        for name in (META, STARTED, WORDS, *annotation_files(), *FORMER):
            (out / name).unlink(missing_ok=True)
            (out / f"{name}.tmp").unlink(missing_ok=True)
        for path in (*out.glob(f"{IMAGES}/*_??????.png"), *out.glob(f"{IMAGES}/*_??????.tmp")):
            path.unlink()
        for layout in LAYOUTS:
            folder = out / layout.folder
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for name in (META, STARTED):
        path = out / name
        if not path.exists():
            continue
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {key: meta.get(key) for key in ("preset", "generator_version")} != preset.identity():
            raise UsageError(
                f"{out} holds RefShapes preset {meta['preset']['name']!r}, generator version "
                f"{meta['generator_version']}, which differs from the current {preset.name!r}. Choose another --out, "
                "or --overwrite"
            )
        return meta if name == META else None
    if not overwrite and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds other files. Choose another --out, or --overwrite (keeps those files)")
    return None


def _is_complete(out: Path, places: list[tuple[str, int]]) -> bool:
    present = {path.name for path in out.glob(f"{IMAGES}/*.png")}
    if not {f"{split}_{index:06d}.png" for split, index in places} <= present:
        return False
    return all((out / name).exists() for name in (*annotation_files(), WORDS))


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """Yield an ordered, lazy map over processes, or Python's ``map`` for one worker."""
    if workers <= 1:
        yield map
        return
    # Unlike a Pool, an executor does not start workers forever if a script lacks `if __name__ == "__main__":`.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield partial(pool.map, chunksize=16)
    except BrokenProcessPool:
        raise RuntimeError(
            "The worker processes died. Call generate() below `if __name__ == '__main__':`, or pass workers=1. "
            "Otherwise the machine may be out of memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


# One image ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImagePart:
    """The bytes that one image adds to each annotation file, and its numbers for meta.json.

    The worker process makes the bytes, so the number of processes changes nothing.
    """

    split: str
    content: dict[str, bytes]  # by name of the file
    image_entry: bytes  # for every instances.json; images are written after the annotations
    counts: Counter  # of the image's instances and expressions
    skills: Counter
    layout_counts: dict[str, Counter]  # by folder of the layout


def _write_image(preset: Preset, folder: Path, place: tuple[str, int]) -> _ImagePart:
    """Write one PNG, unless it is there, and return what the image adds to the annotation files."""
    image = make_image(preset, *place)
    path = folder / f"{image.name}.png"
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        Image.fromarray(draw_image(preset, image)).save(unfinished, format="PNG", compress_level=1)
        os.replace(unfinished, path)

    # Annotations, with a bare RLE or an RLE in a list.
    rles = encode_masks(image.masks)
    entries = annotation_entries(image, rles)
    listed = [
        entry | {"segmentation": [entry["segmentation"]]} if isinstance(entry["segmentation"], dict) else entry
        for entry in entries
    ]
    annotations = {False: b",\n".join(map(_json, entries)), True: b",\n".join(map(_json, listed))}

    # Files, all that have this image's split.
    content = {EXPRESSIONS: b"".join(_json(row) + b"\n" for row in _expression_rows(image, rles))}
    layout_counts = {}
    for layout in LAYOUTS:
        if image.split not in layout.splits:
            continue
        refs = layout.refs(preset, image)
        is_json = layout.refs_file.endswith(".json")
        content[f"{layout.folder}/{layout.refs_file}"] = (
            b",\n".join(map(_json, refs)) if is_json else b"".join(map(_pickled_item, refs))
        )
        content[f"{layout.folder}/{INSTANCES}"] = annotations[layout.lists_rles]
        layout_counts[layout.folder] = Counter(
            images=int(any(ref["sentences"] for ref in refs)),
            refs=sum(bool(ref["sentences"]) for ref in refs),
            sentences=sum(len(ref["sentences"]) for ref in refs),
        )

    numbers = [len(expression.referents) for expression in image.expressions]
    return _ImagePart(
        split=image.split,
        content=content,
        image_entry=_json(image_entry(image)),
        counts=Counter(
            images=1,
            instances=len(image.scene.shapes),
            expressions=len(numbers),
            no_target=numbers.count(0),
            multi_target=sum(number > 1 for number in numbers),
        ),
        skills=Counter(expression.skill for expression in image.expressions),
        layout_counts=layout_counts,
    )


def _expression_rows(image: GeneratedImage, rles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of refshapes.jsonl. Instance ids start at 0 in each image."""
    for k, expression in enumerate(image.expressions):
        tags = {"skill": expression.skill, "words": expression.words, "num_targets": len(expression.referents)}
        if expression.anchors:
            tags["anchor_words"] = expression.anchors
        if expression.change is not None:
            tags |= {"form": expression.form, "change": expression.change}
        yield {
            "expression_id": f"{image.name}_{k}",
            "image": f"{IMAGES}/{image.name}.png",
            "size": [image.scene.height, image.scene.width],
            "text": expression.text,
            "targets": [rles[i] for i in expression.referents] or None,
            "instance_ids": list(expression.referents),
            "split": image.split,
            "tags": tags,
        }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


# Pickled refs files are put together from the pickles of single refs. Without back references (``Pickler.fast``), their
# bytes depend on the values alone.
_PICKLE_START, _PICKLE_END = pickle.PROTO + b"\x02", pickle.STOP


def _pickled_item(value: Any) -> bytes:
    """Return the value as it stands within a pickled list."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue().removeprefix(_PICKLE_START).removesuffix(_PICKLE_END)


# All images -----------------------------------------------------------------------------------------------------------


class _File:
    """A file under a temporary name, with its digest. The separator stands between non-empty parts."""

    def __init__(self, path: Path, start: bytes, separator: bytes, end: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        self.path = path
        self.separator, self.end = separator, end
        self.sha256 = hashlib.sha256()
        self.empty = True
        self.file = path.with_name(path.name + ".tmp").open("wb")  # closed by _AnnotationWriter
        self.write(start)

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.sha256.update(content)

    def add(self, part: bytes) -> None:
        if part:
            self.write(part if self.empty else self.separator + part)
            self.empty = False

    def finish(self) -> str:
        """Write the end, give the file its name, and return the digest."""
        self.write(self.end)
        self.file.close()
        os.replace(self.file.name, self.path)
        return self.sha256.hexdigest()


class _AnnotationWriter(ExitStack):
    """All annotation files of a data set, written image by image in one pass. As a context, it closes them."""

    def __init__(self, out: Path, splits: list[str]) -> None:
        super().__init__()
        before_annotations = _json(instances_head()).removesuffix(b"}") + b', "annotations": [\n'
        self.files: dict[str, _File] = {}
        for name in annotation_files():
            if name == EXPRESSIONS:
                start, separator, end = b"", b"", b""
            elif name.endswith(INSTANCES):
                start, separator, end = before_annotations, b",\n", b"\n]}\n"
            elif name.endswith(".json"):
                start, separator, end = b"[\n", b",\n", b"\n]\n"
            else:
                start = _PICKLE_START + pickle.EMPTY_LIST + pickle.MARK
                separator, end = b"", pickle.APPENDS + _PICKLE_END
            self.files[name] = _File(out / name, start, separator, end)
            self.callback(self.files[name].file.close)
        self.image_entries: dict[str, list[bytes]] = {layout.folder: [] for layout in LAYOUTS}
        numbers = ("images", "instances", "expressions", "no_target", "multi_target")
        self.counts = {split: Counter(dict.fromkeys(numbers, 0)) for split in splits}
        self.skills: dict[str, Counter] = {split: Counter() for split in splits}
        self.layouts: dict[str, dict[str, Counter]] = {layout.folder: {} for layout in LAYOUTS}

    def add(self, part: _ImagePart) -> None:
        for name, content in part.content.items():
            self.files[name].add(content)
        self.counts[part.split].update(part.counts)
        self.skills[part.split].update(part.skills)
        for folder, counts in part.layout_counts.items():
            self.image_entries[folder].append(part.image_entry)
            self.layouts[folder].setdefault(part.split, Counter()).update(counts)

    def finish(self) -> dict[str, Any]:
        """Give all files their names; return counts and digests for meta.json."""
        for folder, entries in self.image_entries.items():
            self.files[f"{folder}/{INSTANCES}"].write(b'\n], "images": [\n' + b",\n".join(entries))
        skills = {split: dict(sorted(counts.items())) for split, counts in self.skills.items()}
        return {
            "counts": {split: {**counts, "skills": skills[split]} for split, counts in self.counts.items()},
            "layouts": {folder: {split: dict(n) for split, n in by.items()} for folder, by in self.layouts.items()},
            "sha256": {name: file.finish() for name, file in self.files.items()},
        }


def main(args: argparse.Namespace) -> int:
    """Run `refseg data refshapes`."""
    out = args.out or Path("data") / f"refshapes_{args.preset}"
    meta = generate(args.preset, out, workers=args.workers, overwrite=args.overwrite)
    for split, counts in meta["counts"].items():
        print(
            f"{split}: {counts['images']} images, {counts['expressions']} expressions "
            f"({counts['no_target']} no-target, {counts['multi_target']} with several referents)"
        )
    return 0
