"""Score baselines on RefShapes that ignore the image, the phrase, or the order of words.

    python tools/benchmark/refshapes_baselines.py data/refshapes_base [--split val] [--targets-only]

- text-blind: the same answer for every phrase of an image (all shapes, the largest, the one nearest the center)
- image-blind: ridge regression from words and pairs of words to a coarse mask, and to "refers to nothing"
- bag of words: knows every attribute of every shape, and the set of attribute words in the phrase

gIoU is that of GRES: a phrase that refers to nothing counts 1 if nothing is predicted, else 0. With --targets-only,
these phrases are left out, and oIoU and mIoU are printed. The regression is fitted on the split train.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_tools

from refseg.refshapes.vocabulary import ADJECTIVES, KIND_NOUNS

GRID = 16  # side of the coarse masks
FEATURES = 1500
TRAIN_ROWS = 20_000  # the first ones; enough for these features
TUNING_ROWS = 2_000  # of TRAIN_ROWS, held back for the two thresholds; at most a fifth
THRESHOLDS = np.linspace(0.04, 0.8, 20)

FIELDS = {"color": "colour"}  # attributes under another name in instances.json
MEANS = {
    word: (FIELDS.get(name, name), value)
    for name, table in ADJECTIVES.items()
    for value, words in table.items()
    for word in words
} | {word: ("kind", kind) for kind, nouns in KIND_NOUNS.items() for noun in nouns for word in noun}


@dataclass(frozen=True)
class Row:
    """One phrase. `referents` are indices of `shapes`, whose visible masks are disjoint."""

    words: tuple[str, ...]
    skill: str
    referents: frozenset[int]
    shapes: list[dict]
    size: tuple[int, int]
    targets: list[dict]

    def grid(self) -> np.ndarray:
        """Return the share of each cell that the referents cover, (GRID, GRID)."""
        mask = self.mask().astype(np.float32)
        for axis in (0, 1):
            edges = np.linspace(0, mask.shape[axis], GRID + 1).astype(int)
            counts = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
            mask = np.add.reduceat(mask, edges[:-1], axis=axis) / counts
        return mask

    def mask(self) -> np.ndarray:
        union = np.zeros(self.size, bool)
        for target in self.targets:
            union |= mask_tools.decode(target).astype(bool)
        return union


def read(root: Path, split: str, most: int | None = None, *, targets_only: bool = False) -> list[Row]:
    layout = "ref-zom" if split == "test" else "grefcoco"  # the latter has no test split
    table = json.loads((root / layout / "instances.json").read_text(encoding="utf-8"))
    shapes = defaultdict(list)
    for entry in table["annotations"]:
        shapes[entry["image_id"]].append({**entry["attributes"], "area": entry["area"]})
    ids = {image["file_name"]: image["id"] for image in table["images"]}
    rows = []
    with open(root / "refshapes.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] == split and (row["targets"] or not targets_only):
                image = ids[Path(row["image"]).name]
                words = tuple(row["text"].split())
                referents, targets = frozenset(row["instance_ids"]), row["targets"] or []
                rows.append(Row(words, row["tags"]["skill"], referents, shapes[image], tuple(row["size"]), targets))
                if len(rows) == most:
                    break
    return rows


# Text-blind and bag of words: sets of shapes --------------------------------------------------------------------------

Areas = tuple[int, int]  # pixels of intersection and union


def iou(areas: Areas) -> float:
    """Return the IoU, 1 for two empty masks."""
    return areas[0] / areas[1] if areas[1] else 1.0


def set_areas(chosen: set[int], row: Row) -> Areas:
    """Return intersection and union of the chosen shapes and the referents. Masks are disjoint, so areas are enough."""
    areas = [shape["area"] for shape in row.shapes]
    return sum(areas[i] for i in chosen & row.referents), sum(areas[i] for i in chosen | row.referents)


def all_shapes(row: Row) -> set[int]:
    return set(range(len(row.shapes)))


def largest(row: Row) -> set[int]:
    return {max(all_shapes(row), key=lambda i: row.shapes[i]["area"])}


def central(row: Row) -> set[int]:
    height, width = row.size
    return {
        min(all_shapes(row), key=lambda i: np.hypot(*np.subtract(row.shapes[i]["centre"], (width / 2, height / 2))))
    }


def nothing(row: Row) -> set[int]:
    return set()


def every_word(row: Row) -> set[int]:
    """Return the shapes that fit every attribute word: none if two words contradict each other."""
    asked = {MEANS[word] for word in row.words if word in MEANS}
    return {i for i, shape in enumerate(row.shapes) if all(shape[name] == value for name, value in asked)}


def any_word(row: Row) -> set[int]:
    """Return the shapes that have, for every named attribute, one of its named values."""
    asked = defaultdict(set)
    for word in row.words:
        if word in MEANS:
            asked[MEANS[word][0]].add(MEANS[word][1])
    return {i for i, shape in enumerate(row.shapes) if all(shape[name] in values for name, values in asked.items())}


# Image-blind ----------------------------------------------------------------------------------------------------------


def grams(row: Row) -> set[str]:
    return {*row.words, *map(" ".join, zip(row.words, row.words[1:], strict=False)), f"length {len(row.words)}", ""}


class ImageBlind:
    """Ridge regression from a phrase to a coarse mask and to whether it refers to nothing."""

    def __init__(self, rows: list[Row]) -> None:
        fitted = len(rows) - min(TUNING_ROWS, len(rows) // 5)
        rows, held_back = rows[:fitted], rows[fitted:]
        counts = Counter(gram for row in rows for gram in grams(row))
        self.index = {gram: i for i, (gram, _) in enumerate(counts.most_common(FEATURES))}
        x = self.features(rows)  # (E, F)
        y = np.stack([np.append(row.grid().ravel(), not row.referents) for row in rows])  # (E, GRID * GRID + 1)
        self.weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ y)
        scores = self.features(held_back) @ self.weights
        none = np.array([not row.referents for row in held_back])
        self.nothing_from = np.inf
        if none.any():
            self.nothing_from = max(
                np.quantile(scores[:, -1], np.linspace(0.3, 0.99, 70)),
                key=lambda t: (scores[none, -1] >= t).mean() + (scores[~none, -1] < t).mean(),
            )
        pairs = list(zip(scores, held_back, strict=True))
        self.mask_from = max(THRESHOLDS, key=lambda t: np.mean([iou(self._areas(*pair, t)) for pair in pairs]))

    def features(self, rows: list[Row]) -> np.ndarray:
        x = np.zeros((len(rows), len(self.index)))
        for i, row in enumerate(rows):
            x[i, [self.index[gram] for gram in grams(row) if gram in self.index]] = 1
        return x

    @staticmethod
    def _areas(score: np.ndarray, row: Row, threshold: float) -> Areas:
        """Return the areas of a coarse mask at the size of the image."""
        ys, xs = (np.arange(side) * GRID // side for side in row.size)
        predicted = score[:-1].reshape(GRID, GRID)[ys][:, xs] >= threshold
        target = row.mask()
        return int(np.count_nonzero(predicted & target)), int(np.count_nonzero(predicted | target))

    def test(self, rows: list[Row]) -> tuple[list[Areas], dict[str, float]]:
        scores = self.features(rows) @ self.weights
        none = np.array([not row.referents for row in rows])
        said_none = scores[:, -1] >= self.nothing_from
        accuracy = {"N-acc": said_none[none].mean(), "T-acc": (~said_none[~none]).mean()} if none.any() else {}
        return [self._areas(s, row, self.mask_from) for s, row in zip(scores, rows, strict=True)], accuracy


def table(results: dict[str, list[Areas]], rows: list[Row], metric: Callable[[list[Areas]], float]) -> list[str]:
    """Return a table in Markdown with a row per baseline and a column per skill."""
    skills = sorted({row.skill for row in rows})
    lines = [f"| | all | {' | '.join(skills)} |", "|---" * (len(skills) + 2) + "|"]
    for name, values in results.items():
        parts = [[v for v, row in zip(values, rows, strict=True) if row.skill == skill] for skill in skills]
        lines.append(f"| {name} | " + " | ".join(f"{100 * metric(part):.1f}" for part in (values, *parts)) + " |")
    return lines


def mean_iou(areas: list[Areas]) -> float:
    return float(np.mean([iou(pair) for pair in areas]))


def overall_iou(areas: list[Areas]) -> float:
    intersection, union = np.sum(areas, axis=0)
    return float(intersection / union) if union else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of a generated data set")
    parser.add_argument("--split", default="val", choices=("val", "test", "testA", "testB"))
    parser.add_argument("--targets-only", action="store_true", help="without phrases that refer to nothing")
    args = parser.parse_args()
    rows = read(args.root, args.split, targets_only=args.targets_only)
    choosers = (nothing, all_shapes, largest, central, every_word, any_word)
    results = {chooser.__name__: [set_areas(chooser(row), row) for row in rows] for chooser in choosers}
    blind = ImageBlind(read(args.root, "train", TRAIN_ROWS, targets_only=args.targets_only))
    results["image_blind"], accuracy = blind.test(rows)

    metrics = {"mIoU": mean_iou, "oIoU": overall_iou} if args.targets_only else {"gIoU": mean_iou}
    for name, metric in metrics.items():
        print(f"\n{name} on {args.split}, {len(rows)} phrases\n", *table(results, rows, metric), sep="\n")
    if accuracy:
        balanced = 50 * sum(accuracy.values())
        numbers = ", ".join(f"{name} {100 * value:.1f}" for name, value in accuracy.items())
        print(f"\n'refers to nothing' from the text alone: {numbers}, balanced {balanced:.1f} (chance: 50)")


if __name__ == "__main__":
    main()
