"""Compare the time and memory to open annotations: columns (converted once) against plain Python objects.

    python tools/benchmark/annotations.py [--images 20000] [--instances 196000] [--refs 50000] [--json result.json]

Files in the REFER layout (three sentences per ref, polygons of about 60 numbers) are generated in a temporary folder.
"plain" loads both files and indexes them in dicts, as published readers do. Memory is what a new process writes while
it opens the files, and what a forked worker writes while it reads every record. Each number comes from its own process.
Times are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import make_parser, write_json


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--instances", type=int, default=196_000)
    parser.add_argument("--refs", type=int, default=50_000)
    return parser.parse_args()


def write_files(folder: Path, num_images: int, num_instances: int, num_refs: int) -> dict[str, str]:
    rng = np.random.default_rng(0)
    image_of = np.concatenate([np.arange(num_images), rng.integers(num_images, size=num_instances - num_images)])
    size = {"height": 480, "width": 640, "license": 1, "coco_url": ""}
    images = [{"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", **size} for i in range(num_images)]
    annotations = []
    for i, image in enumerate(image_of.tolist()):
        points = np.round(rng.uniform(0, 480, 2 * int(rng.integers(10, 50))), 2).tolist()
        ids = {"id": i, "image_id": image, "category_id": 1 + i % 80}
        box = [points[0], points[1], 50.0, 60.0]
        annotations.append({**ids, "segmentation": [points], "bbox": box, "area": 9.5, "iscrowd": 0})
    words = "the left red dog man next to with big white shirt on right behind table second from".split()
    refs = []
    for ref_id, instance in enumerate(rng.integers(num_instances, size=num_refs).tolist()):
        sentences = []
        for k in range(3):
            tokens = rng.choice(words, int(rng.integers(2, 9))).tolist()
            text = " ".join(tokens)
            sentences.append({"sent_id": 3 * ref_id + k, "raw": text, "sent": text, "tokens": tokens})
        ids = {"ref_id": ref_id, "ann_id": instance, "image_id": int(image_of[instance]), "category_id": 1}
        refs.append({**ids, "split": "train", "file_name": "x", "sent_ids": [], "sentences": sentences})
    categories = [{"id": i, "name": f"category {i}"} for i in range(1, 81)]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return {"format": "refer", "refs": str(folder / "refs(unc).p"), "instances": str(folder / "instances.json")}


def open_plain(files: dict[str, str]) -> Any:
    with open(files["refs"], "rb") as opened:
        refs = pickle.load(opened)  # made by this script
    content = json.loads(Path(files["instances"]).read_bytes())
    annotations = {entry["id"]: entry for entry in content["annotations"]}
    return refs, annotations, {entry["id"]: entry for entry in content["images"]}


def touch_plain(opened: Any) -> None:
    refs, annotations, images = opened
    for ref in refs:
        _ = annotations[ref["ann_id"]]["segmentation"][0][0], images[ref["image_id"]]["file_name"]
        _ = [sentence["raw"] for sentence in ref["sentences"]]


def open_columns(files: dict[str, str]) -> Any:
    from refseg.datasets.annotations import open_annotations

    return open_annotations(**files)


def touch_columns(store: Any) -> None:
    for image in range(len(store)):
        store.record(image)


def private_memory() -> float:
    """Return the MiB that this process has written and therefore does not share."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty")) / 1024


def _answer(queue: Any, function: Callable, *args: Any) -> None:
    queue.put(function(*args))


def in_process(function: Callable, *args: Any, method: str) -> Any:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_answer, args=(queue, function, *args))
    process.start()
    while queue.empty():
        process.join(timeout=0.05)
        if process.exitcode:
            raise SystemExit(f"the process that measures {function.__name__} died (exit code {process.exitcode})")
    result = queue.get()
    process.join()
    return result


def measure_open(opener: Callable, files: dict[str, str]) -> tuple[float, float]:
    import refseg.datasets.annotations  # noqa: F401  (importing is not measured)

    before, start = private_memory(), time.perf_counter()
    opened = opener(files)
    seconds = time.perf_counter() - start
    memory = private_memory() - before
    del opened
    return seconds, memory


def measure_worker(opener: Callable, touch: Callable, files: dict[str, str]) -> float:
    opened = opener(files)
    return in_process(_memory_of_touch, touch, opened, method="fork")


def _memory_of_touch(touch: Callable, opened: Any) -> float:
    before = private_memory()
    touch(opened)
    return private_memory() - before


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), args.images, args.instances, args.refs)
        start = time.perf_counter()
        path = open_columns(files).path
        result: dict[str, Any] = {
            "source_mib": sum(Path(files[name]).stat().st_size for name in ("refs", "instances")) / 2**20,
            "convert_s": time.perf_counter() - start,
            "columns_mib": path.stat().st_size / 2**20,
        }
        for name, opener, touch in (("plain", open_plain, touch_plain), ("columns", open_columns, touch_columns)):
            runs = [in_process(measure_open, opener, files, method="spawn") for _ in range(args.repeats)]
            result[f"{name}_open_s"] = statistics.median(seconds for seconds, _ in runs)
            result[f"{name}_open_mib"] = statistics.median(memory for _, memory in runs)
            result[f"{name}_worker_mib"] = in_process(measure_worker, opener, touch, files, method="spawn")
        store = open_columns(files)
        start = time.perf_counter()
        touch_columns(store)
        result["record_us"] = (time.perf_counter() - start) / len(store) * 1e6
    for name, value in result.items():
        print(f"{name:20} {value:10.3f}")
    write_json(args.json, result)


if __name__ == "__main__":
    main()
