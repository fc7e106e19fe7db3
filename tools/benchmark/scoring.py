"""Measure scoring: run lengths against decoded masks, and the time and memory of `refseg score` on a large file.

    python tools/benchmark/scoring.py [--pairs 10000] [--rows 200000] [--json result.json]

Masks are jagged blobs at 640x480. "plain" works like published scripts: decode both masks of a pair, logical_and,
logical_or, two sums. There are two comparisons. "pairs" starts from RLEs in memory. "file" starts from the prediction
file: refseg parses JSON, checks every RLE, finds its annotation and makes rows, and the plain script parses JSON. Runs
alternate, and numbers are medians. `refseg score` scores the large file in its own process. Its peak resident memory is
printed beside that of a process that only imports the same modules.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from common import make_parser, time_in_turns, write_json
from pycocotools import mask as coco_mask

from refseg.datasets.readers.jsonl import read_jsonl
from refseg.datasets.store import from_annotations
from refseg.evaluation.overlap import areas_of_rles
from refseg.evaluation.prediction_file import Answer, rle_to_json, write_predictions
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import TruthIndex, score_file

HEIGHT, WIDTH, PER_IMAGE, BLOBS = 480, 640, 3, 2000


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the large file (0: skip it)")
    parser.add_argument("--protocols", default="refseg gres", help="protocols for the large file, one run each")
    return parser.parse_args()


def blob(rng: np.random.Generator) -> dict:
    """Return a filled star polygon with a noisy edge, 40 to 300 pixels wide."""
    corners = int(rng.integers(8, 30))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(20, 150) * rng.uniform(0.6, 1, corners)
    center = rng.uniform([120, 120], [520, 360])
    points = center + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    noise = cv2.blur(rng.random((HEIGHT, WIDTH)).astype(np.float32), (5, 5))
    mask = (cv2.blur(mask.astype(np.float32), (7, 7)) > noise).astype(np.uint8)
    return coco_mask.encode(np.asfortranarray(mask))


def write_truth(file: Path, targets: list[dict]) -> None:
    """Write a JSONL data set with three expressions per image."""
    with file.open("w") as out:
        for number, target in enumerate(targets):
            row = {
                "expression_id": f"{number // PER_IMAGE}_{number}",
                "image": f"{number // PER_IMAGE}.jpg",
                "size": [HEIGHT, WIDTH],
                "text": "the man on the left",
                "targets": [rle_to_json(target)],
                "split": "val",
            }
            out.write(json.dumps(row) + "\n")


def write_answers(file: Path, masks: list[dict], number: int) -> None:
    answers = (Answer(f"{i // PER_IMAGE}_{i}", masks[i % len(masks)], 0.1) for i in range(number))
    write_predictions(file, answers)


def plain_areas(predicted: dict, target: dict) -> tuple[int, int]:
    a, b = coco_mask.decode(predicted), coco_mask.decode(target)
    return int(np.sum(np.logical_and(a, b))), int(np.sum(np.logical_or(a, b)))


def plain_file(file: Path, targets: list[dict]) -> list[tuple[int, int]]:
    with file.open() as lines:
        return [plain_areas(json.loads(line)["mask"], target) for line, target in zip(lines, targets, strict=True)]


def compare(folder: Path, masks: list[dict], num_pairs: int, repeats: int) -> dict[str, float]:
    predicted = [masks[i % len(masks)] for i in range(num_pairs)]
    targets = [masks[(i + 1 + i // len(masks)) % len(masks)] for i in range(num_pairs)]
    write_truth(folder / "truth.jsonl", targets)
    write_answers(folder / "answers.jsonl", masks, num_pairs)
    store = from_annotations(read_jsonl(file=folder / "truth.jsonl"))
    protocols = [get_protocol("refseg")]

    def ours() -> list[tuple[int, int]]:
        truths = TruthIndex(store, np.ones(num_pairs, bool), folder)
        rows = score_file(folder / "answers.jsonl", truths, protocols).rows["refseg"]
        return list(zip(rows.intersection.tolist(), rows.union.tolist(), strict=True))

    if ours() != plain_file(folder / "answers.jsonl", targets):
        raise SystemExit("refseg and the plain script give different areas")
    pairs = list(zip(predicted, targets, strict=True))
    sides = {
        "pairs_ours": lambda: [areas_of_rles(*pair) for pair in pairs],
        "pairs_plain": lambda: [plain_areas(*pair) for pair in pairs],
        "file_ours": ours,
        "file_plain": lambda: plain_file(folder / "answers.jsonl", targets),
    }
    return {name: statistics.median(times) for name, times in time_in_turns(sides, repeats).items()}


def run_measured(command: list[str]) -> tuple[float, float]:
    """Run a command and return its seconds and its peak resident MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def score_large(folder: Path, masks: list[dict], num_rows: int, protocols: list[str]) -> dict[str, float]:
    write_truth(folder / "large.jsonl", [masks[(i * 7 + 1) % len(masks)] for i in range(num_rows)])
    write_answers(folder / "large_answers.jsonl", masks, num_rows)
    refseg = [sys.executable, "-m", "refseg.cli", "score"]
    arguments = [str(folder / "large_answers.jsonl"), "--data", f"{folder / 'large.jsonl'}:val", "--protocol"]
    out = {"file_mib": (folder / "large_answers.jsonl").stat().st_size / 2**20}
    code = "import refseg.cli.score, refseg.evaluation.other_formats, refseg.data_tools.leaks"
    _, out["import_mib"] = run_measured([sys.executable, "-c", code])
    convert = (
        "from refseg.datasets.annotations import open_annotations as o; import sys; o(format='jsonl', file=sys.argv[1])"
    )
    out["convert_s"], out["convert_mib"] = run_measured([sys.executable, "-c", convert, str(folder / "large.jsonl")])
    for name in protocols:
        out[f"{name}_s"], out[f"{name}_mib"] = run_measured([*refseg, *arguments, name])
    return out


def main() -> None:
    args = parse_args()
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(min(BLOBS, args.pairs))]
    result: dict[str, float] = {"counts_bytes": statistics.mean(len(mask["counts"]) for mask in masks)}
    print(f"RLEs of {result['counts_bytes']:.0f} bytes on average")
    with tempfile.TemporaryDirectory() as folder:
        result |= compare(Path(folder), masks, args.pairs, args.repeats)
        for what in ("pairs", "file"):
            ours, plain = result[f"{what}_ours"], result[f"{what}_plain"]
            print(f"{args.pairs} {what}: ours {ours:.2f} s, plain {plain:.2f} s, ratio {plain / ours:.1f}")
        if args.rows:
            result |= score_large(Path(folder), masks, args.rows, args.protocols.split())
            print(f"{args.rows} rows, {result['file_mib']:.0f} MiB; imports alone {result['import_mib']:.0f} MiB")
            print(f"  converting the annotations: {result['convert_s']:.1f} s, peak {result['convert_mib']:.0f} MiB")
            for name in args.protocols.split():
                print(f"  refseg score, {name}: {result[f'{name}_s']:.1f} s, peak {result[f'{name}_mib']:.0f} MiB")
    result["own_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_json(args.json, result)


if __name__ == "__main__":
    main()
