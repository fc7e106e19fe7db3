"""Write a RefShapes data set to a folder.

    images/<split>_<index>.png   RGB
    refshapes.jsonl              one row per expression, images in order; all splits
    refcoco/, refcoco+/, refcocog/, grefcoco/, ref-zom/, rrefcoco/
                                 the official layouts: a refs file and an instances.json each (official_layouts.py)
    paraphrases.jsonl            the phrases of val and test in words that are not in words.txt (paraphrases.py)
    words.txt                    the closed word list, one word per line
    meta.json                    preset, generator version, counts, SHA-256 of the annotation files; written last

Each image has its own seeds (preset seed, split, index), so neither the number of workers nor an interruption changes
the result. The decoded pixels and the bytes of all annotation files are deterministic. The bytes of a PNG depend on the
version of zlib.
"""

import argparse
import io
import json
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from refseg.errors import UsageError
from refseg.files import sha256_of
from refseg.processes import process_map, usable_cores
from refseg.refshapes.official_layouts import LAYOUTS, annotation_entries, encode_masks, image_entry, instances_head
from refseg.refshapes.paraphrases import write_paraphrases
from refseg.refshapes.presets import PRESETS, GeneratedImage, Preset, draw_image, make_image
from refseg.refshapes.vocabulary import word_list

EXPRESSIONS = "refshapes.jsonl"
INSTANCES = "instances.json"
IMAGES = "images"
META = "meta.json"
STARTED = "generating.json"  # present while a folder is unfinished; it identifies the preset
WORDS = "words.txt"
PARAPHRASES = "paraphrases.jsonl"  # made from EXPRESSIONS alone
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
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise UsageError(f"Unknown RefShapes preset {preset!r}. Valid presets: {', '.join(sorted(PRESETS))}")
        preset = PRESETS[preset]
    out = Path(out)
    places = [(split, index) for split, count in preset.images.items() for index in range(count)]
    meta = _read_meta(out, preset, overwrite)
    if meta is not None:
        names = {f"{IMAGES}/{split}_{index:06d}.png" for split, index in places}
        if all((out / name).exists() for name in (*annotation_files(), WORDS, *names)):
            if not (out / PARAPHRASES).exists():  # finished before this file existed
                write_paraphrases(out / EXPRESSIONS, out / PARAPHRASES)
            if progress:
                print(f"RefShapes {preset.name}: already complete in {out}")
            return meta
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    (out / STARTED).write_text(json.dumps(preset.identity(), indent=2) + "\n", encoding="utf-8")
    (out / META).unlink(missing_ok=True)
    write_image = partial(_write_image, preset, out / IMAGES)
    with process_map(write_image, places, workers or usable_cores(), chunksize=16) as parts:
        bar = tqdm(parts, total=len(places), desc=f"RefShapes {preset.name}", unit="image", disable=not progress)
        written = _write_annotations(out, bar)
    (out / WORDS).write_text("\n".join(word_list()) + "\n", encoding="utf-8", newline="\n")
    write_paraphrases(out / EXPRESSIONS, out / PARAPHRASES)
    meta = {**preset.identity(), **written}
    (out / (META + ".tmp")).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    os.replace(out / (META + ".tmp"), out / META)
    (out / STARTED).unlink()
    return meta


def annotation_files() -> list[str]:
    """Return the names of the annotation files, relative to the folder of the data set, without PARAPHRASES."""
    return [EXPRESSIONS, *(f"{layout.folder}/{name}" for layout in LAYOUTS for name in (layout.refs_file, INSTANCES))]


def _read_meta(out: Path, preset: Preset, overwrite: bool) -> dict[str, Any] | None:
    """Return the meta data of a finished folder of this preset, or None if there is work to do.

    Raises:
        UsageError: The folder holds another preset, another generator version, or other files.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; RefShapes needs a folder")
    if overwrite:  # remove what a generator wrote, and nothing else
        for name in (META, STARTED, WORDS, PARAPHRASES, *annotation_files(), *FORMER):
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


# One image ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImagePart:
    """The bytes that one image adds to each annotation file, and its numbers for meta.json.

    The worker process makes the bytes, so the number of processes changes nothing.
    """

    split: str
    content: dict[str, bytes]  # by name of the file
    image_entry: bytes  # for every instances.json; images are written after the annotations
    counts: dict[str, Counter]  # "image": of its instances and expressions; "skills"; and by folder of a layout


def _write_image(preset: Preset, folder: Path, place: tuple[str, int]) -> _ImagePart:
    """Write one PNG, unless it is there, and return what the image adds to the annotation files."""
    image = make_image(preset, *place)
    path = folder / image.file_name
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

    # The files of all layouts that have this image's split, and counts.
    numbers = [len(expression.referents) for expression in image.expressions]
    counts = {
        "image": Counter(
            images=1,
            instances=len(image.scene.shapes),
            expressions=len(numbers),
            no_target=numbers.count(0),
            multi_target=sum(number > 1 for number in numbers),
        ),
        "skills": Counter(expression.skill for expression in image.expressions),
    }
    content = {EXPRESSIONS: b"".join(_json(row) + b"\n" for row in _expression_rows(image, rles))}
    for layout in LAYOUTS:
        if image.split not in layout.splits:
            continue
        refs = layout.refs(preset, image)
        is_json = layout.refs_file.endswith(".json")
        content[f"{layout.folder}/{layout.refs_file}"] = (
            b",\n".join(map(_json, refs)) if is_json else b"".join(map(_pickled_item, refs))
        )
        content[f"{layout.folder}/{INSTANCES}"] = annotations[layout.lists_rles]
        counts[layout.folder] = Counter(
            images=int(any(ref["sentences"] for ref in refs)),
            refs=sum(bool(ref["sentences"]) for ref in refs),
            sentences=sum(len(ref["sentences"]) for ref in refs),
        )
    return _ImagePart(image.split, content, _json(image_entry(image)), counts)


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
            "image": f"{IMAGES}/{image.file_name}",
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


def _frame(name: str) -> tuple[bytes, bytes, bytes]:
    """Return the start of an annotation file, the separator of its images' parts, and the end."""
    if name == EXPRESSIONS:
        return b"", b"", b""
    if name.endswith(INSTANCES):
        return _json(instances_head()).removesuffix(b"}") + b', "annotations": [\n', b",\n", b"\n]}\n"
    if name.endswith(".json"):
        return b"[\n", b",\n", b"\n]\n"
    return _PICKLE_START + pickle.EMPTY_LIST + pickle.MARK, b"", pickle.APPENDS + _PICKLE_END


def _write_annotations(out: Path, parts: Iterable[_ImagePart]) -> dict[str, Any]:
    """Write the annotation files image by image, rename them at the end, and return what meta.json says about them."""
    image_entries: dict[str, list[bytes]] = {layout.folder: [] for layout in LAYOUTS}
    counts: dict[str, dict[str, Counter]] = {name: {} for name in ("image", "skills", *image_entries)}  # by split
    frames = {name: _frame(name) for name in annotation_files()}
    with ExitStack() as stack:
        files = {}
        for name, (start, _, _) in frames.items():
            (out / name).parent.mkdir(exist_ok=True)
            files[name] = stack.enter_context((out / f"{name}.tmp").open("wb"))
            files[name].write(start)
        for part in parts:
            for name, content in part.content.items():
                start, separator, _ = frames[name]
                if content:
                    files[name].write(content if files[name].tell() == len(start) else separator + content)
            for name, numbers in part.counts.items():
                counts[name].setdefault(part.split, Counter()).update(numbers)
                if name in image_entries:
                    image_entries[name].append(part.image_entry)
        for folder, entries in image_entries.items():
            files[f"{folder}/{INSTANCES}"].write(b'\n], "images": [\n' + b",\n".join(entries))
        for name, (_, _, end) in frames.items():
            files[name].write(end)
    for name in frames:
        os.replace(out / f"{name}.tmp", out / name)
    return {
        "counts": {
            split: {**numbers, "skills": dict(sorted(counts["skills"][split].items()))}
            for split, numbers in counts["image"].items()
        },
        "layouts": {folder: counts[folder] for folder in image_entries},
        "sha256": {name: sha256_of(out / name) for name in frames},
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
