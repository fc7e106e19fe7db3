"""Write a RefShapes data set to a folder.

    images/<split>_<index>.png   RGB
    refshapes.jsonl              one row per expression, images in order; all splits
    refcoco/, refcoco+/, refcocog/, grefcoco/, ref-zom/, rrefcoco/
                                 the official layouts: a refs file and an instances.json each (layouts.py)
    words.txt                    the closed word list, one word per line
    meta.json                    preset, generator version, counts, sha256 of the annotation files; written last

Each image has seeds of its own (preset seed, split, index), so that neither the number of workers nor an interruption
changes anything. Deterministic are the pixels as decoded and the bytes of all annotation files; the bytes of a PNG
depend on the zlib that wrote it.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from refseg.errors import UsageError
from refseg.refshapes.official_layouts import LAYOUTS
from refseg.refshapes.output import IMAGES, AnnotationWriter, Fragments, annotation_files, make_fragments
from refseg.refshapes.presets import Preset, get_preset
from refseg.refshapes.sample import draw_sample, make_sample
from refseg.refshapes.vocabulary import word_list

META = "meta.json"
STARTED = "generating.json"  # there while a folder is unfinished; says what it is going to be
WORDS = "words.txt"
FORMER = ("instances.jsonl",)  # files of generator version 1


def _write_image(preset: Preset, folder: Path, place: tuple[str, int]) -> Fragments:
    """Write one PNG, unless it is there, and return what the image adds to the annotation files."""
    sample = make_sample(preset, *place)
    path = folder / f"{sample.name}.png"
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        Image.fromarray(draw_sample(preset, sample)).save(unfinished, format="PNG", compress_level=1)
        os.replace(unfinished, path)
    return make_fragments(preset, sample)


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
    for name in (META, STARTED, WORDS, *annotation_files(), *FORMER):
        (out / name).unlink(missing_ok=True)
        (out / f"{name}.tmp").unlink(missing_ok=True)
    for path in (*out.glob(f"{IMAGES}/*_??????.png"), *out.glob(f"{IMAGES}/*_??????.tmp")):
        path.unlink()
    for layout in LAYOUTS:
        folder = out / layout.folder
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _read_meta(out: Path, preset: Preset, overwrite: bool) -> dict[str, Any] | None:
    """The meta data of a finished folder of this preset; None when there is work to do. Any other folder is refused."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; RefShapes needs a folder")
    if overwrite:
        _remove_files(out)
    for name in (META, STARTED):
        path = out / name
        if not path.exists():
            continue
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {key: meta.get(key) for key in ("preset", "generator_version")} != preset.identity():
            raise UsageError(
                f"{out} holds RefShapes preset {meta['preset']['name']!r}, generator version "
                f"{meta['generator_version']}, not {preset.name!r} as it is now: choose another --out, or --overwrite"
            )
        return meta if name == META else None
    if not overwrite and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds other files: choose another --out, or --overwrite (keeps those files)")
    return None


def _is_whole(out: Path, places: list[tuple[str, int]]) -> bool:
    present = {path.name for path in out.glob(f"{IMAGES}/*.png")}
    named = (*annotation_files(), WORDS)
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

    workers = min(workers or _usable_cores(), -(-len(places) // 16))
    with AnnotationWriter(out, list(preset.images)) as writer, _mapper(workers) as mapped:
        done = mapped(partial(_write_image, preset, out / IMAGES), places)
        for image in tqdm(done, total=len(places), desc=f"RefShapes {preset.name}", unit="image", disable=not progress):
            writer.add(image)
        written = writer.finish()
    (out / WORDS).write_text("\n".join(word_list()) + "\n", encoding="utf-8", newline="\n")

    meta = {**preset.identity(), **written}
    (out / (META + ".tmp")).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    os.replace(out / (META + ".tmp"), out / META)
    (out / STARTED).unlink()
    return meta


def main(args: argparse.Namespace) -> int:
    """Run `refseg data refshapes`."""
    out = args.out or Path("data") / f"refshapes_{args.preset}"
    try:
        meta = generate(args.preset, out, workers=args.workers, overwrite=args.overwrite)
    except ValueError as error:
        print(f"refseg data refshapes: {error}", file=sys.stderr)
        return 1
    for split, counts in meta["counts"].items():
        print(
            f"{split}: {counts['images']} images, {counts['expressions']} expressions "
            f"({counts['no_target']} no-target, {counts['multi_target']} with several referents)"
        )
    return 0
