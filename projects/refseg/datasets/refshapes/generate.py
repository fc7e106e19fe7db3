"""Write a RefShapes data set to a folder.

    images/<split>_<index>.png   RGB
    refshapes.jsonl              one row per expression, images in order
    instances.jsonl              one row per image: every instance, referred to or not
    words.txt                    the closed word list, one word per line
    meta.json                    preset, generator version, counts, sha256 of refshapes.jsonl; written last

Each image has seeds of its own (preset seed, split, index), so that neither the number of workers nor an interruption
changes anything. Deterministic are the pixels as decoded and the bytes of both .jsonl files; the bytes of a PNG depend
on the zlib that wrote it.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_tools
from tqdm import tqdm

from refseg.datasets.refshapes.draw import drop_hidden, render
from refseg.datasets.refshapes.grammar import GroundedExpression, make_expressions
from refseg.datasets.refshapes.presets import SPLIT_IDS, Preset, get_preset
from refseg.datasets.refshapes.scene import UNIT, Scene, random_scene
from refseg.datasets.refshapes.stream import Stream
from refseg.datasets.refshapes.vocabulary import word_list

META = "meta.json"
STARTED = "generating.json"  # there while a folder is unfinished; says what it is going to be
EXPRESSIONS = "refshapes.jsonl"
INSTANCES = "instances.jsonl"
WORDS = "words.txt"
IMAGES = "images"

# Separate random streams of one image: a change of the grammar leaves the pictures alone.
_LAYOUT, _PIXELS, _WORDS = range(3)


@dataclass(frozen=True)
class Sample:
    """One generated image; ``pixels`` are drawn by ``draw_sample``."""

    name: str
    split: str
    scene: Scene
    masks: np.ndarray  # (N, H, W) bool, visible parts, disjoint
    expressions: list[GroundedExpression]


def make_sample(preset: Preset, split: str, index: int) -> Sample:
    """Scene, masks and expressions of one image; a scene too poor for its expressions is replaced."""
    for attempt in range(100):
        seeds = (preset.seed, SPLIT_IDS[split], index)
        laid_out = random_scene(*preset.image_size, preset.scene, Stream(*seeds, _LAYOUT, attempt))
        scene, masks = drop_hidden(laid_out, preset.scene)
        if not scene.shapes:
            continue
        expressions = make_expressions(scene, preset.expressions, Stream(*seeds, _WORDS, attempt))
        if expressions is not None:
            return Sample(f"{split}_{index:06d}", split, scene, masks, expressions)
    raise ValueError(
        f"preset {preset.name!r}: 100 scenes for image {index} of {split} gave no {preset.expressions.per_image} "
        "expressions; allow more shapes per scene or ask for fewer expressions"
    )


def draw_sample(preset: Preset, sample: Sample) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    index = int(sample.name.rsplit("_", 1)[1])
    return render(sample.scene, Stream(preset.seed, SPLIT_IDS[sample.split], index, _PIXELS))


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """(N, H, W) bool -> compressed COCO run lengths, counts as str."""
    encoded = mask_tools.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def expression_rows(sample: Sample, rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of refshapes.jsonl; instance ids count from 0 within an image."""
    rows = []
    for k, expression in enumerate(sample.expressions):
        tags = {"skill": expression.skill, "words": expression.words, "num_targets": len(expression.referents)}
        if expression.anchors:
            tags["anchor_words"] = expression.anchors
        if expression.change is not None:
            tags |= {"form": expression.form, "change": expression.change}
        rows.append(
            {
                "expression_id": f"{sample.name}_{k}",
                "image": f"{IMAGES}/{sample.name}.png",
                "size": [sample.scene.height, sample.scene.width],
                "text": expression.text,
                "targets": [rles[i] for i in expression.referents] or None,
                "instance_ids": list(expression.referents),
                "split": sample.split,
                "tags": tags,
            }
        )
    return rows


def instance_row(sample: Sample, rles: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of instances.jsonl."""
    instances = [
        {
            "id": shape.id,
            "mask": rles[shape.id],
            "kind": shape.kind,
            "colour": shape.colour,
            "size": shape.size,
            "texture": shape.texture,
            "centre": [shape.x / UNIT, shape.y / UNIT],  # x, y in pixels
            "radius": shape.radius / UNIT,
        }
        for shape in sample.scene.shapes
    ]
    return {
        "image": f"{IMAGES}/{sample.name}.png",
        "size": [sample.scene.height, sample.scene.width],
        "split": sample.split,
        "instances": instances,
    }


@dataclass
class _Tally:
    """What has been written for one split."""

    images: int = 0
    instances: int = 0
    expressions: int = 0
    no_target: int = 0
    multi_target: int = 0
    skills: Counter = field(default_factory=Counter)

    def add(self, sample: Sample) -> None:
        numbers = [len(expression.referents) for expression in sample.expressions]
        self.images += 1
        self.instances += len(sample.scene.shapes)
        self.expressions += len(numbers)
        self.no_target += numbers.count(0)
        self.multi_target += sum(number > 1 for number in numbers)
        self.skills.update(expression.skill for expression in sample.expressions)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "skills": dict(sorted(self.skills.items()))}


def _write_image(preset: Preset, folder: Path, place: tuple[str, int]) -> tuple[Sample, str, str]:
    """Write one PNG, unless it is there, and return the sample with its lines for the two .jsonl files."""
    sample = make_sample(preset, *place)
    path = folder / f"{sample.name}.png"
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        Image.fromarray(draw_sample(preset, sample)).save(unfinished, format="PNG", compress_level=1)
        os.replace(unfinished, path)
    rles = encode_masks(sample.masks)
    lines = "".join(json.dumps(row) + "\n" for row in expression_rows(sample, rles))
    return sample, lines, json.dumps(instance_row(sample, rles)) + "\n"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """An ordered, lazy map over processes; within this process when one worker is enough."""
    if workers <= 1:
        yield map
        return
    # An executor, not a Pool: where a script lacks `if __name__ == "__main__":`, a Pool starts workers for ever.
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
            "the generator's processes died. In a script of your own, call it below `if __name__ == '__main__':`, or "
            "with workers=1; otherwise the machine may be out of memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _remove_files(out: Path) -> None:
    """Remove what a generator wrote, and nothing else."""
    for name in (META, STARTED, EXPRESSIONS, INSTANCES, WORDS, EXPRESSIONS + ".tmp", INSTANCES + ".tmp"):
        (out / name).unlink(missing_ok=True)
    for path in (*out.glob(f"{IMAGES}/*_??????.png"), *out.glob(f"{IMAGES}/*_??????.tmp")):
        path.unlink()


def _read_meta(out: Path, preset: Preset, overwrite: bool) -> dict[str, Any] | None:
    """The meta data of a finished folder of this preset; None when there is work to do. Any other folder is refused."""
    if overwrite:
        _remove_files(out)
    for name in (META, STARTED):
        path = out / name
        if not path.exists():
            continue
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {key: meta.get(key) for key in ("preset", "generator_version")} != preset.identity():
            raise FileExistsError(
                f"{out} holds RefShapes preset {meta['preset']['name']!r}, generator version "
                f"{meta['generator_version']}, not {preset.name!r} as it is now: choose another --out, or --overwrite"
            )
        return meta if name == META else None
    if not overwrite and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds other files: choose another --out, or --overwrite (keeps those files)")
    return None


def _is_whole(out: Path, places: list[tuple[str, int]]) -> bool:
    present = {path.name for path in out.glob(f"{IMAGES}/*.png")}
    named = (EXPRESSIONS, INSTANCES, WORDS)
    return all((out / name).exists() for name in named) and {f"{s}_{i:06d}.png" for s, i in places} <= present


def generate(
    preset: str | Preset,
    out: str | Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generate a preset into ``out`` and return the content of its meta.json.

    An interrupted run is taken up by calling this again; a finished folder is left as it is. ``workers`` is the number
    of processes, by default one per usable core; as always with processes, call this below ``if __name__ ==
    "__main__":`` in a script.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    out = Path(out)
    places = [(split, index) for split, count in preset.images.items() for index in range(count)]
    meta = _read_meta(out, preset, overwrite)
    if meta is not None and _is_whole(out, places):
        if progress:
            print(f"RefShapes {preset.name}: already complete in {out}")
        return meta
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    (out / STARTED).write_text(json.dumps(preset.identity(), indent=2) + "\n", encoding="utf-8")
    (out / META).unlink(missing_ok=True)

    tallies = {split: _Tally() for split in preset.images}
    digest = hashlib.sha256()
    workers = min(workers or _usable_cores(), -(-len(places) // 16))
    with (
        open(out / (EXPRESSIONS + ".tmp"), "w", encoding="utf-8", newline="\n") as expressions,
        open(out / (INSTANCES + ".tmp"), "w", encoding="utf-8", newline="\n") as instances,
        _mapper(workers) as mapped,
    ):
        done = mapped(partial(_write_image, preset, out / IMAGES), places)
        bar = tqdm(done, total=len(places), desc=f"RefShapes {preset.name}", unit="image", disable=not progress)
        for sample, lines, line in bar:
            expressions.write(lines)
            instances.write(line)
            digest.update(lines.encode("utf-8"))
            tallies[sample.split].add(sample)
    os.replace(out / (EXPRESSIONS + ".tmp"), out / EXPRESSIONS)
    os.replace(out / (INSTANCES + ".tmp"), out / INSTANCES)
    (out / WORDS).write_text("\n".join(word_list()) + "\n", encoding="utf-8", newline="\n")

    counts = {split: tally.to_json() for split, tally in tallies.items()}
    meta = {**preset.identity(), "counts": counts, "sha256": {EXPRESSIONS: digest.hexdigest()}}
    (out / (META + ".tmp")).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    os.replace(out / (META + ".tmp"), out / META)
    (out / STARTED).unlink()
    return meta
